"""A Dask cluster of SLURM jobs, one GPU each, for `unic-pipe extract --scheduler` (needs: pip install '.[slurm]').

python examples/slurm_dask.py --jobs 16 --partition gpu &      # on a login node; it ends with Ctrl-C
unic-pipe extract --device cuda --scheduler scheduler.json     # in the working folder, beside scheduler.json
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from dask_jobqueue import SLURMCluster


def make_cluster(
    partition: str, cores: int = 8, memory: str = "64GB", walltime: str = "12:00:00", host: str | None = None
) -> Any:
    """A scheduler in this process (on `host`); every job is one worker with one GPU and three blocks in flight."""
    return SLURMCluster(
        queue=partition,
        job_cpu=cores,
        cores=3,  # threads of the worker: blocks in flight, not CPU cores
        processes=1,
        memory=memory,
        walltime=walltime,
        job_extra_directives=["--gres=gpu:1"],
        scheduler_options={"dashboard": False} | ({"host": host} if host else {}),
    )


def main() -> None:
    """Start the cluster and keep it until it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=4)
    parser.add_argument("--partition", required=True)
    parser.add_argument("--cores", type=int, default=8)
    parser.add_argument("--memory", default="64GB")
    parser.add_argument("--walltime", default="12:00:00")
    given = parser.parse_args()
    with make_cluster(given.partition, given.cores, given.memory, given.walltime) as cluster:
        cluster.scale(jobs=given.jobs)
        with open("scheduler.json", "w") as handle:
            handle.write(f'{{"address": "{cluster.scheduler_address}"}}')
        print(f"unic-pipe extract --device cuda --scheduler {cluster.scheduler_address}")
        while True:
            time.sleep(60)


if __name__ == "__main__":
    main()
