"""How a command ends: exit codes 0, 1 and 2, one to three lines of text, a traceback only with `--debug`."""

import errno
import io
import os
import sys
import traceback
from collections.abc import Callable

import typer
from rich.console import Console
from rich.text import Text

from unic_pipe.schemas.errors import UnicPipeError

_USAGE = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
"""What typer raises for a wrong command line (`ClickException`); newer typers carry their own copy of click."""


def guarded(program: Callable[[], object], debug: bool) -> int:
    """Run a program and turn whatever it raises into an exit code and a message on stderr."""
    try:
        result = program()
        sys.stdout.flush()
    except typer.Exit as error:
        return error.exit_code
    except typer.Abort:
        return 130
    except KeyboardInterrupt:
        Console(stderr=True, highlight=False).print("Stopped. Finished work is kept; the same command goes on.")
        return 130
    except (BrokenPipeError, SystemExit):
        # The reader of our output went away (`unic-pipe status | head`), and rich ends so when it notices; say nothing,
        # also not at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except UnicPipeError as error:
        if debug:
            traceback.print_exc()
        _show(error.message, error.hint)
        return error.exit_code
    except MemoryError:
        return _fail("Out of memory.", "Set compute.batch or samples.block_rows lower, or use fewer --workers.", debug)
    except ImportError as error:
        return _fail(
            f"A library cannot be loaded: {error}",
            "Its installation is broken or incomplete (pip install --force-reinstall unic-pipe), or there is too little "
            "memory to load it (ulimit -v).",
            debug,
        )
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return _fail(f"{error.strerror or error}{where}.", _next_step(error), debug)
    except Exception as error:
        if isinstance(error, _USAGE):
            error.show()  # type: ignore[attr-defined]
            return 2
        return _fail(
            f"Unexpected {type(error).__name__}: {error}",
            "This is a mistake in unic-pipe. Finished work is kept; --debug shows where it happened.",
            debug,
        )
    return result if isinstance(result, int) else 0


def require_streams() -> None:
    """Output that can be written whatever it is: to a terminal of any encoding, and where there is none (`>&-`).

    Names that are not UTF-8, and signs that a terminal lacks, are escaped.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _next_step(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "Finished work is kept. Free some space, then run the same command again."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
        return "The working folder (that of unic-pipe.yaml) must be one that you may write to: see unic-pipe doctor."
    return "Finished work is kept; run the same command again."


def _fail(message: str, hint: str, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    _show(message, hint)
    return 1


def _show(message: str, hint: str | None) -> None:
    console = Console(stderr=True, highlight=False)
    # A terminal gets whole words; a hint is never broken, so that commands in it can be copied.
    console.print(Text.assemble(("error:", "bold red"), " ", message), soft_wrap=not console.is_terminal)
    if hint:
        console.print(Text.assemble(("  →", "cyan"), " ", hint), soft_wrap=True)
