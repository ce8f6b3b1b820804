"""Extraction into an object store when requests fail, processes die, and two write at once: the bytes of a quiet local run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from object_server import LOST, RESET, SLOW, Bucket

ROOT = Path(__file__).parents[2]
KILLS = 4


def features(content: dict[str, bytes]) -> dict[str, bytes]:
    """Those of one teacher."""
    return {key: raw for key, raw in content.items() if key.startswith("features/") and "lite1" in key}


def start(work: Any) -> subprocess.Popen[str]:
    """Extract in a process of its own."""
    command = ["extract", "--teacher", "lite1", "--device", "cpu", "--config", str(work.folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "unic_pipe", *command], env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.slow
def test_failures_on_the_way_change_nothing(remote: Any, s3: Bucket, extracted_template: Any) -> None:
    """Every kind of failure, at several kinds of keys, in one extraction: the same bytes, and no unit twice."""
    faults = [
        s3.proxy.fail(f"{method} .*{key}", what)
        for what in (429, 500, 503, LOST, RESET)
        for method, key in (
            ("PUT", r"manifest\.json"), ("PUT", r"/c/"), ("GET", r"/c/"), ("PUT", r"\d\.json"), ("PUT", r"\.stats"),
            ("GET", r"\.stats"), ("PUT", r"\.parquet"), ("GET", "list-type"), ("DELETE", r"\.json"), ("PUT", r"\.pointer"),
            ("HEAD", r"\.parquet"), ("PUT", "zarr.json"),
        )
    ]  # fmt: skip
    faults += [
        s3.proxy.fail(r"PUT .*\d\.json", 409, 2),
        s3.proxy.fail("PUT .*/c/", SLOW),
        s3.proxy.fail("GET .*/c/", SLOW),
    ]
    remote.extract()
    assert [fault for fault in faults if fault.met != fault.times] == []
    mine, theirs = s3.content(), extracted_template.content("samples", "features")
    assert mine.keys() == theirs.keys()
    assert [k for k in theirs if mine[k] != theirs[k]] == []


@pytest.mark.slow
def test_two_processes_write_the_same_features(remote: Any, s3: Bucket, extracted_template: Any) -> None:
    remote.index()
    both = [start(remote) for _ in range(2)]
    said = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert features(s3.content()) == features(extracted_template.content("features"))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_some_request(remote: Any, s3: Bucket, extracted_template: Any) -> None:
    """SIGKILL at requests spread over what an extraction sends, each time going on from what the one before left."""
    remote.index()
    expected = features(extracted_template.content("features"))
    writes = 5 * len([key for key in expected if "view-" in key])
    killed = 0
    for moment in range(KILLS):
        process, seen = start(remote), [0]
        last = 8 + writes * moment // (2 * KILLS)

        def count(
            line: str, process: subprocess.Popen[str] = process, seen: list[int] = seen, last: int = last
        ) -> None:
            seen[0] += line.startswith("PUT")
            if seen[0] == last:
                process.send_signal(signal.SIGKILL)

        s3.proxy.on_request = count
        said = process.communicate(timeout=200)[0]
        killed += process.returncode == -signal.SIGKILL
        assert process.returncode in (0, -signal.SIGKILL), said
    s3.proxy.on_request = None
    assert killed > 1
    process = start(remote)
    said = process.communicate(timeout=200)[0]
    assert process.returncode == 0, said
    assert features(s3.content()) == expected
