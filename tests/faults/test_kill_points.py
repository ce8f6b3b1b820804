"""Every point at which the commit protocol can be cut off, enumerated: afterwards the same run gives the same bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
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

    def close(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(30)


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files if ".tmp" not in p.parts}


@pytest.mark.timeout(240)
def test_killed_at_every_point(tmp_path: Path) -> None:
    servers = [Server(), Server()]
    status, points = servers[0](tmp_path / "whole")
    assert status == 0
    whole = contents(tmp_path / "whole")
    assert points > 150

    def wrong(number: int) -> list[str]:
        """What went wrong at every second point."""
        server, found = servers[number], []
        for point in range(number, points, len(servers)):
            folder = tmp_path / str(point)
            if server(folder, point)[0] != KILLED:
                found.append(f"point {point} of {points} was not reached")
            if server(folder)[0] != 0:
                found.append(f"after point {point}: what was left is wrong, or cannot be finished")
            elif contents(folder) != whole:
                found.append(f"after point {point}: other bytes")
            elif any(not p.name.endswith(".lock") for p in (folder / ".tmp").iterdir()):
                found.append(f"after point {point}: temporary files stay")
        return found

    with ThreadPoolExecutor(len(servers)) as pool:
        assert [problem for found in pool.map(wrong, range(len(servers))) for problem in found] == []
    assert [server.close() for server in servers] == [0, 0]
