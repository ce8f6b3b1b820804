"""How commands end: exit codes and one to three lines on stderr, whatever went wrong."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from typing import Annotated

import pytest
import typer

from unic_pipe.cli.errors import guarded
from unic_pipe.schemas.errors import StageError, UserError

MISTAKE = "This is a mistake in unic-pipe. Finished work is kept; --debug shows where it happened."
FULL = "Finished work is kept. Free some space, then run the same command again."
FOLDER = "The working folder (that of unic-pipe.yaml) must be one that you may write to: see unic-pipe doctor."
app = typer.Typer()


@app.command()
def command(number: Annotated[int, typer.Option()] = 0) -> int:
    return number


def raising(error):
    def program():
        raise error

    return program


def ended(capfd, program, debug=False):
    """The exit code and what was said on stderr; nothing may come out on stdout."""
    code = guarded(program, debug)
    out, said = capfd.readouterr()
    assert out == ""
    return code, said


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (1, 1), (130, 130), ("text", 0)])
def test_a_program_that_returns_a_number_exits_with_it(capfd, result, code):
    assert ended(capfd, lambda: result) == (code, "")


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("No teacher [a].", "Try dino."), 2, "error: No teacher [a].\n  → Try dino.\n"),
        (StageError("Disk full."), 1, "error: Disk full.\n"),
        (UserError("x.yaml has 2 problems:\n  line 1: a\n  line 2: b"), 2,
         "error: x.yaml has 2 problems:\n  line 1: a\n  line 2: b\n"),
        (KeyboardInterrupt(), 130, "Stopped. Finished work is kept; the same command goes on.\n"),
        (MemoryError(), 1,
         "error: Out of memory.\n  → Set compute.batch or samples.block_rows lower, or use fewer --workers.\n"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"), 1,
         "error: No such file or directory: a/b.\n  → Finished work is kept; run the same command again.\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, f"error: No space left on device.\n  → {FULL}\n"),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 1, f"error: Permission denied: runs.\n  → {FOLDER}\n"),
        (OSError("odd"), 1, "error: odd.\n  → Finished work is kept; run the same command again.\n"),
        (KeyError("colour"), 1, f"error: Unexpected KeyError: 'colour'\n  → {MISTAKE}\n"),
        (typer.Exit(3), 3, ""),
        (typer.Abort(), 130, ""),
    ],
)  # fmt: skip
def test_every_failure_has_an_exit_code_and_few_words(capfd, error, code, said):
    assert ended(capfd, raising(error)) == (code, said)


def test_long_messages_are_not_broken_so_that_commands_can_be_copied(capfd):
    hint = "Run: unic-pipe extract" + " --teacher dino" * 20
    assert f"→ {hint}\n" in ended(capfd, raising(UserError("a", hint)))[1]


@pytest.mark.parametrize("error", [UserError("a"), StageError("a"), ValueError("a"), OSError("a"), MemoryError("a")])
def test_tracebacks_are_shown_with_debug_only(capfd, error):
    assert "Traceback" not in ended(capfd, raising(error))[1]
    said = ended(capfd, raising(error), debug=True)[1]
    assert said.startswith("Traceback")
    assert "in program" in said
    assert "error: " in said


@pytest.mark.parametrize("arguments", [["--number", "x"], ["--nubmer", "3"], ["extra"]])
def test_a_wrong_command_line_is_the_user_s_error(capfd, arguments):
    code, said = ended(capfd, lambda: app(args=arguments, standalone_mode=False))
    assert code == 2
    assert "Traceback" not in said
    assert said.strip()


def test_a_right_command_line_gives_its_result(capfd):
    assert ended(capfd, lambda: app(args=["--number", "7"], standalone_mode=False)) == (7, "")


WRITER = """
import sys
from unic_pipe.cli.errors import guarded
def program():
    print("x" * int(sys.argv[1]))
sys.exit(guarded(program, False))
"""


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_reader_that_goes_away_is_no_error(size):
    """As in `unic-pipe status | head -1`, for output that fits Python's buffer and output that does not."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [sys.executable, "-c", WRITER, str(size)], stdout=writing, stderr=subprocess.PIPE, text=True
        )
    finally:
        os.close(writing)
    assert (ended.returncode, ended.stderr) == (0, "")
