"""Commands as people type them, and what they read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Said:
    """How a command ended: exit code, stdout, stderr."""

    code: int
    out: str
    err: str

    def refuses(self, *words: str, code: int = 2, lines: int = 3) -> None:
        """Assert that it ended with an error of at most so many lines, of which the last ones hold these words."""
        assert self.code == code, self.err
        assert "Traceback" not in self.err
        error = self.err[self.err.index("error: ") :].rstrip()
        assert len(error.splitlines()) <= lines, error
        for word in words:
            assert word in error, error


Type = Callable[..., Said]


def real(folder: Path, *arguments: str) -> Said:
    """The installed program, as a shell starts it."""
    program = Path(sys.executable).with_name("unic-pipe")
    done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    return Said(done.returncode, done.stdout, done.stderr)


def configured(work: Any, old: str, new: str) -> None:
    """Change the configuration file of a working folder."""
    path = work.folder / "unic-pipe.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def student_folders(work: Any) -> list[str]:
    return sorted(p.name for p in (work.folder / "students").iterdir() if not p.is_symlink())


def artefacts(said: Said) -> list[dict[str, Any]]:
    body = json.loads(said.out)
    found: list[dict[str, Any]] = body["artefacts"]
    return found
