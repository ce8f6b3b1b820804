"""Blocks on workers of an existing Dask scheduler, joined over TCP: workers die, the scheduler dies, nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from unic_pipe.pipeline.extraction.executors import Threads
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.schemas.errors import StageError, UserError

ROOT = str(Path(__file__).parents[2])
TRAIN = "distill.validation=null"


class Grid:
    """A `dask scheduler` and its `dask worker` processes on 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file, self.processes = folder, folder / "scheduler.json", []
        self.scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(self.file)
        )
        deadline = time.monotonic() + 60
        while not self.file.exists():
            assert time.monotonic() < deadline, (folder / "scheduler.log").read_text()
            time.sleep(0.05)

    def worker(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        address = ("--scheduler-file", str(self.file), "--host", "127.0.0.1", "--local-directory", str(self.folder))
        return self._start("worker", *address, "--nthreads", "1", *arguments, **environment)

    def _start(self, kind: str, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ, "PYTHONPATH": ROOT, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1", **environment
        }  # fmt: skip
        with (self.folder / f"{kind}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--no-dashboard", *arguments],
                cwd=self.folder, env=environment, stderr=log, stdout=log,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def close(self) -> None:
        for process in self.processes[::-1]:
            children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.kill()
            process.wait()
            for child in children:
                if child.is_running():
                    child.kill()


@pytest.fixture
def grid(tmp_path: Path) -> Iterator[Grid]:
    (tmp_path / "grid").mkdir()
    grid = Grid(tmp_path / "grid")
    yield grid
    grid.close()


@contextmanager
def executor_on(grid: Grid, said: list[str] | None = None) -> Iterator[Any]:
    from unic_pipe.pipeline.extraction.dask import Scheduler

    with Scheduler(str(grid.file), Stop(), (said if said is not None else []).append) as executor:
        yield executor


def extract(work: Any, executor: Any, *overrides: str, on_advance: Callable[[int], None] | None = None) -> Any:
    return work.extract(TRAIN, *overrides, on_advance=on_advance, executor=executor)["train"]


def committed(work: Any) -> int:
    """Units that have a loose record."""
    return len(list(work.folder.glob("features/*/records/*/*/*.json")))


def assert_same_bytes(work: Any, template: Any) -> None:
    mine, theirs = work.content("samples", "features"), template.content("samples", "features")
    assert mine == {name: data for name, data in theirs.items() if name.split("/")[1].startswith("train")}


@pytest.mark.slow
def test_a_worker_is_killed_in_the_middle(raw: Any, extracted_template: Any, grid: Grid) -> None:
    first, said, killed = grid.worker("--no-nanny"), [], []

    def kill(done: int) -> None:
        if not killed and committed(raw):
            grid.worker("--no-nanny")  # one that joins later, and takes over
            killed.append(committed(raw))
            os.kill(first.pid, signal.SIGKILL)

    with executor_on(grid, said) as executor:
        extraction = extract(raw, executor, on_advance=kill)
    assert 0 < killed[0] < 48
    assert (extraction.done, extraction.before) == (extraction.total, 0)
    assert_same_bytes(raw, extracted_template)


@pytest.mark.slow
def test_the_scheduler_is_killed_in_the_middle(
    raw: Any, extracted_template: Any, grid: Grid, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid.worker()

    def kill(done: int) -> None:
        if committed(raw) >= 8:
            grid.scheduler.kill()

    with executor_on(grid) as executor, pytest.raises(StageError, match="scheduler was lost") as caught:
        extract(raw, executor, on_advance=kill)
    assert "run the same command again" in str(caught.value.hint)
    grid.close()
    extraction = extract(raw, Threads())
    assert extraction.complete
    assert extraction.before >= 8, "two blocks of two encoders and two views were finished"
    assert_same_bytes(raw, extracted_template)
    monkeypatch.setattr("unic_pipe.pipeline.extraction.dask.CONNECT_S", 1.0)
    with pytest.raises(UserError, match="No Dask scheduler answers"), executor_on(grid) as executor:
        executor.device("cpu")


@pytest.mark.slow
def test_a_block_that_kills_every_worker_is_named(raw: Any, extracted_template: Any, grid: Grid) -> None:
    """It is tried again alone; its neighbours are finished."""
    preload = grid.folder / "deadly.py"
    preload.write_text(
        "import os, signal\nimport unic_pipe.pipeline.extraction.blocks as engine\n"
        "from unic_pipe.pipeline.extraction.forward import features_of_rows\n"
        "def deadly(dataset, rows, *more):\n"
        "    if 48 in rows:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return features_of_rows(dataset, rows, *more)\n"
        "engine.features_of_rows = deadly\n"
    )
    grid.worker("--preload", str(preload))
    with executor_on(grid) as executor, pytest.raises(StageError, match="Block 3 of train killed its worker") as caught:
        extract(raw, executor)
    assert "--part 4/4" in str(caught.value.hint)
    extraction = extract(raw, Threads())
    assert (extraction.done, extraction.complete) == (8, True), "one block of two encoders and two views"
    assert_same_bytes(raw, extracted_template)


@pytest.mark.slow
def test_a_worker_without_unic_pipe_or_with_another_torch(raw: Any, grid: Grid) -> None:
    shadow = grid.folder / "shadow" / "unic_pipe"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'unic_pipe'\", name='unic_pipe')")
    bare = grid.worker("--no-nanny", PYTHONPATH=str(shadow.parent))
    with executor_on(grid) as executor, pytest.raises(StageError, match="unic-pipe is not installed there"):
        extract(raw, executor)
    bare.kill()
    other = grid.folder / "other" / "torch-1.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n")
    grid.worker("--no-nanny", PYTHONPATH=f"{ROOT}/src:{other.parent}")
    with executor_on(grid) as executor, pytest.raises(StageError, match=r"Worker tcp://.*torch 1\.0 \(here"):
        extract(raw, executor)
    assert not list(raw.folder.glob("features/*/records/*/*/*.json"))


def test_a_script_without_a_main_guard_is_told_so(tmp_path: Path) -> None:
    """Every worker process runs the script that starts it once more."""
    script = tmp_path / "script.py"
    script.write_text(
        "from unic_pipe.pipeline.extraction.dask import Processes\n"
        "from unic_pipe.pipeline.process.stopping import Stop\n"
        "with Processes(1, 'cpu', Stop()) as processes:\n"
        "    print(processes.devices)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "this one would start workers of its own.\nIn that script, put" in done.stderr
    assert "StageError: The worker process ended before it could work." in done.stderr
