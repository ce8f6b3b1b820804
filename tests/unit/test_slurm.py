"""The examples for SLURM: the job script that dask-jobqueue makes, and the job array."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from unic_pipe.pipeline.extraction.parts import parse_part

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_job_script_of_a_dask_worker():
    pytest.importorskip("dask_jobqueue", reason="extra slurm")
    spec = importlib.util.spec_from_file_location("slurm_dask", EXAMPLES / "slurm_dask.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.make_cluster("gpu", cores=8, host="127.0.0.1") as cluster:
        script = cluster.job_script()
        address = cluster.scheduler_address
    for line in ("#SBATCH -p gpu", "#SBATCH --cpus-per-task=8", "#SBATCH --gres=gpu:1", "#SBATCH -t 12:00:00"):
        assert line in script
    command = script.strip().splitlines()[-1]
    assert "distributed.cli.dask_worker" in command
    assert address in command
    assert "--nthreads 3" in command, "three blocks in flight: one rendered, one on the GPU, one written"
    assert "--nanny" in command
    assert "--no-nanny" not in command


def test_job_array_names_parts_that_exist():
    script = (EXAMPLES / "slurm-array.sh").read_text()
    first, last = map(int, re.search(r"--array=(\d+)-(\d+)", script).groups())
    template = re.search(r'--part "(.*)"', script)[1]
    for task in range(first, last + 1):
        part = template.replace("$SLURM_ARRAY_TASK_ID", str(task)).replace("$SLURM_ARRAY_TASK_COUNT", str(last))
        assert parse_part(part).of == last
