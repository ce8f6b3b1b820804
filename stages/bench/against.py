"""`bench --against`: a stage and the loops that one would write instead, in turns."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.process.stopwatch import Stopwatch
from unic_pipe.schemas.bench import Against, Part
from unic_pipe.stages.bench.extraction import ExtractBench

LOOP = "DataLoader + timm + .npy"
LIVE = "teachers in the loop"
SCIKIT = "scikit-learn, one C"
HEADS = "52 heads by SGD"
OURS = "ours"


def against_extraction(trial: ExtractBench, repeats: int, stop: Stop) -> list[Against]:
    """Extraction against the plain loop over the same images, views and teachers."""
    from unic_pipe.stages.bench.peers import plain_extraction

    folder = trial.folder / "plain"

    def plain() -> None:
        try:
            plain_extraction(trial.dataset_pass, trial.encoders, trial.device, folder, stop)
        except RuntimeError:
            # A signal to all processes ends the workers too, which the DataLoader takes for a failure.
            if not stop.requested:
                raise

    try:
        plain()
        watch = Stopwatch((OURS, LOOP), trial.device)
        _turns(watch, {OURS: lambda: trial.extraction(watch, OURS), LOOP: _timed(watch, LOOP, plain)}, repeats, stop)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return [] if stop.requested else compared("extract", watch, OURS, [LOOP], trial.forwards)


def against_probes(
    x_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    search: Callable[[], None],
    device: str,
    repeats: int,
    stop: Stop,
) -> list[Against]:
    """A search over all C and the final fit, against one fit of scikit-learn and against many heads."""
    from unic_pipe.stages.bench.peers import many_heads, one_regression

    watch = Stopwatch(device=device)
    work = {
        OURS: search,
        SCIKIT: lambda: one_regression(x_ND, labels_N),
        HEADS: lambda: many_heads(x_ND, labels_N, device),
    }
    _turns(watch, {name: _timed(watch, name, do) for name, do in work.items()}, repeats, stop)
    return [] if stop.requested else compared("probe", watch, OURS, [SCIKIT, HEADS], len(x_ND))


def compared(part: Part, watch: Stopwatch, ours: str, peers: Sequence[str], images: int) -> list[Against]:
    """What was timed in turns: the ratio of each turn, and their median."""
    found = []
    for name in peers:
        ratios = [lap[name].wall / lap[ours].wall for lap in watch.laps if name in lap]
        found.append(
            Against(
                part=part,
                peer=LIVE if part == "distill" else name,
                images=images,
                seconds=watch.wall(ours).median,
                peer_seconds=watch.wall(name).median,
                ratio=statistics.median(ratios),
                low_ratio=min(ratios),
                high_ratio=max(ratios),
            )
        )
    return found


def _turns(watch: Stopwatch, work: Mapping[str, Callable[[], None]], repeats: int, stop: Stop) -> None:
    """Each in turn, in every other repetition from the last to the first."""
    names = list(work)
    for turn in range(repeats):
        watch.begin()
        for name in names if turn % 2 == 0 else reversed(names):
            if not stop.requested:
                work[name]()


def _timed(watch: Stopwatch, name: str, do: Callable[[], None]) -> Callable[[], None]:
    def timed() -> None:
        with watch.time(name):
            do()

    return timed
