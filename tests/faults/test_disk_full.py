"""The disk is full at every tenth write: extract says so, keeps what is finished, and ends with the same bytes."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from unic_pipe.pipeline.process.progress import SilentReporter
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.schemas.errors import StageError
from unic_pipe.stages.verify import verify


def test_full_at_every_tenth_write(raw: Any, extracted_template: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, failures, writes = LocalStore._write_temporary, 0, 0
    said: set[tuple[str, str | None]] = set()

    def full(store: LocalStore, data: bytes) -> Path:
        nonlocal writes
        writes += 1
        if writes % 10 == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(store, data)

    monkeypatch.setattr(LocalStore, "_write_temporary", full)
    for _ in range(200):
        try:
            raw.extract()
            break
        except StageError as error:
            said.add((error.message[:27], error.hint))
            failures += 1
            monkeypatch.setattr(LocalStore, "_write_temporary", whole)
            report, _ = verify(raw.inventory(), True, SilentReporter())
            assert report.ok
            monkeypatch.setattr(LocalStore, "_write_temporary", full)
    assert failures > 5
    hint = "Finished work is kept. Free some space and run the same command again."
    assert said == {("Disk full: could not write ", hint)}
    monkeypatch.undo()
    raw.extract()
    assert raw.content("features") == extracted_template.content("features")
