"""Two processes extract the same teacher at once: nothing is lost, and little is done twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import sys
import unic_pipe.pipeline.extraction.blocks as engine
from unic_pipe.pipeline.process.threads import usable_cores
from unic_pipe.pipeline.process.crew import blocks_in_flight
whole, rows = engine.features_of_rows, 0
def counted(*arguments):
    global rows
    for found in whole(*arguments):
        rows += len(next(iter(found.features.values())))
        yield found
engine.features_of_rows = counted
import unic_pipe.pipeline.extraction.run
from unic_pipe.cli.main import app
sys.stdin.readline()
app(args=["extract", "--teacher", "lite0", "--device", "cpu"], standalone_mode=False)
print(rows, blocks_in_flight("cpu", usable_cores(), 16, 8))
"""


@pytest.mark.slow
def test_two_processes_extract_one_teacher(raw: Any, extracted_template: Any, tools: Any) -> None:
    """22 blocks of 16 rows and two views; at most the blocks in flight are done twice."""
    tools.put_tar(raw.folder / "data/train-0003.tar", tools.digit_members(300, 256))
    raw.index()
    one = type(raw)(raw.folder.parent / "alone")
    import shutil

    shutil.copytree(raw.folder, one.folder, symlinks=True)
    one.extract(teachers=["lite0"])
    root = str(Path(__file__).parents[2])
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT], cwd=raw.folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": root},
        )
        for _ in range(2)
    ]  # fmt: skip
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    counts = [int(output.split()[-2]) for output in outputs]
    in_flight = int(outputs[0].split()[-1])
    views, rows, blocks, validation = 2, 16, 22, 12
    needed = (90 + 256) * views + validation
    assert blocks * rows >= 346
    assert needed <= sum(counts) <= needed + 2 * in_flight * views * rows + validation
    assert raw.content("features") == one.content("features")
    assert extracted_template.folder.exists()
