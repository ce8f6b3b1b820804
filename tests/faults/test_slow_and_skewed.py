"""A disk that takes its time, and machines whose clocks disagree: slower, but the same bytes and the same words."""

from __future__ import annotations

import os
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from unic_pipe.pipeline.process.crew import blocks_in_flight
from unic_pipe.pipeline.storage.local import LocalStore
from unic_pipe.pipeline.workspace.run_log import running, silent_for
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.runs import RunDocument
from unic_pipe.stages.gc.stage import require_quiet

WEEK_S = 7 * 86_400


class SlowDisk:
    """Every fsync takes some milliseconds; counts the blocks that are being written and rendered meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import unic_pipe.pipeline.extraction.blocks as engine

        self.blocks = self.most = self.syncs = 0
        self._lock = threading.Lock()
        fsync, run_block = os.fsync, engine.run_block

        def slow_fsync(descriptor: int) -> None:
            time.sleep(0.02)
            self.syncs += 1
            fsync(descriptor)

        def counted(*arguments: Any) -> Any:
            with self._lock:
                self.blocks += 1
                self.most = max(self.most, self.blocks)
            try:
                return run_block(*arguments)
            finally:
                with self._lock:
                    self.blocks -= 1

        monkeypatch.setattr(os, "fsync", slow_fsync)
        monkeypatch.setattr("unic_pipe.pipeline.extraction.executors.run_block", counted)


def test_a_slow_disk_costs_time_but_neither_memory_nor_bytes(
    raw: Any, extracted_template: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks in flight are bounded however long writing takes, and the cache is that of a quick disk."""
    from unic_pipe.pipeline.process.threads import usable_cores

    disk = SlowDisk(monkeypatch)
    assert all(extraction.complete for extraction in raw.extract().values())
    assert disk.syncs > 100
    definition = raw.inventory().training_needs(("lite0",), "train")[0].definition
    assert disk.most <= blocks_in_flight("cpu", usable_cores(), definition.block_rows, definition.compute.batch)
    assert raw.content("features") == extracted_template.content("features")


def test_what_a_machine_with_a_clock_ahead_sweeps_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine's sweep takes the temporary file of a put for one that was abandoned a week ago."""
    store, real = LocalStore(tmp_path), time.time
    swept = []

    def sweep_from_the_future() -> None:
        with monkeypatch.context() as ahead:
            ahead.setattr(time, "time", lambda: real() + WEEK_S)
            LocalStore(tmp_path).sweep()

    replace, link = os.replace, os.link

    def after_a_sweep(appear: Any) -> Any:
        def act(temporary: Any, target: Any) -> None:
            if len(swept) < 2:
                swept.append(str(temporary))
                sweep_from_the_future()
            appear(temporary, target)

        return act

    monkeypatch.setattr(os, "replace", after_a_sweep(replace))
    monkeypatch.setattr(os, "link", after_a_sweep(link))
    store.put("a/record.json", b"first")
    assert store.create("a/other.json", b"second")
    assert len(swept) == 2
    assert (store.get("a/record.json"), store.get("a/other.json")) == (b"first", b"second")
    assert not list((tmp_path / ".tmp").iterdir())


@pytest.mark.parametrize("hours", [-30, -1, 1, 30])
def test_runs_of_machines_with_other_clocks_are_alive(tmp_path: Path, hours: int) -> None:
    """A heartbeat from the future, or from a clock that is late, still keeps gc away."""
    beat = (datetime.now(UTC) + timedelta(hours=hours)).isoformat(timespec="seconds")
    run = RunDocument(
        stage="extract", command="unic-pipe extract", host="elsewhere", pid=1, started=beat, updated=beat,
        state="running", versions={},
    )  # fmt: skip
    LocalStore(tmp_path / "runs").put("1-extract-elsewhere-1.json", run.to_bytes())
    (found,) = running(tmp_path)
    assert silent_for(found) == pytest.approx(-3600 * hours, abs=60)
    with pytest.raises(StageError, match="extract is running on elsewhere"):
        require_quiet(tmp_path)


def test_samples_and_features_with_times_in_the_future_are_fresh(extracted: Any) -> None:
    """Copied from a machine whose clock is ahead: names, sizes and digests decide, not times."""
    future = time.time() + WEEK_S
    before = [(a.name, a.state) for a in extracted.status().artefacts]
    for path in [*(extracted.folder / "data").rglob("*"), *(extracted.folder / "features").rglob("*")]:
        if path.is_file() and not path.is_symlink():
            os.utime(path, (future, future))
    assert [(a.name, a.state) for a in extracted.status().artefacts] == before
    assert all(extraction.done == 0 for extraction in extracted.extract().values())
