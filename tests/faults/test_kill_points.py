"""Every point at which the commit protocol can be cut off, enumerated: afterwards the same run gives the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

KILLED = 9


class Server:
    """The script `kill_points.py`."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("kill_points.py")
        environment = {**os.environ, "PYTHONPATH": str(script.parents[2]), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def __call__(self, folder: Path, point: int = -1) -> tuple[int, int]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(folder, point, file=self.process.stdin, flush=True)
        status, passed = self.process.stdout.readline().split()
        return int(status), int(passed)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    found = Server()
    yield found
    assert found.process.stdin is not None
    found.process.stdin.close()
    assert found.process.wait(30) == 0


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files if ".tmp" not in p.parts}


@pytest.mark.timeout(240)
def test_killed_at_every_point(server: Server, tmp_path: Path) -> None:
    status, points = server(tmp_path / "whole")
    assert status == 0
    whole = contents(tmp_path / "whole")
    assert points > 150
    for point in range(points):
        folder = tmp_path / str(point)
        assert server(folder, point)[0] == KILLED, f"point {point} of {points}"
        assert server(folder)[0] == 0, f"after point {point}: what was left is wrong, or cannot be finished"
        assert contents(folder) == whole, f"point {point} of {points}"
        leftovers = [p.name for p in (folder / ".tmp").iterdir() if not p.name.endswith(".lock")]
        assert leftovers == [], f"point {point} of {points}"
