"""Which of the datasets that `init` found is trained on, validated with, and tested with: told by their names."""

from __future__ import annotations

from collections.abc import Mapping

from unic_pipe.pipeline.samples.splits import Split, split_of, stem_of
from unic_pipe.pipeline.samples.survey import Survey
from unic_pipe.schemas.benchmarks import BenchmarkConfig


def training_set(surveys: Mapping[str, Survey]) -> str:
    """The dataset that students are trained on: the largest training split, or the first dataset."""
    return max(_of(surveys, "train"), key=lambda name: surveys[name].rows, default=next(iter(surveys)))


def validation_set(surveys: Mapping[str, Survey]) -> str | None:
    """Images for the loss after every epoch: a validation split, or a test set where there is none. Labels are not
    needed."""
    train = training_set(surveys)
    others = [*_of(surveys, "val"), *_of(surveys, "test")]
    alike = [name for name in others if stem_of(name) == stem_of(train)]
    return next(iter([*alike, *others]), None)


def benchmarks(surveys: Mapping[str, Survey]) -> dict[str, BenchmarkConfig]:
    """Every labelled test set with the training set of its name, or with the only one; validation sets where a training
    set has no other."""
    labelled = {name: s for name, s in surveys.items() if s.classes is not None or s.config.labels is not None}
    trains = _of(labelled, "train")
    found: dict[str, BenchmarkConfig] = {}
    kinds: tuple[Split, Split] = ("test", "val")
    for kind in kinds:
        taken = {pair.train for pair in found.values()}
        for name in _of(labelled, kind):
            alike = [train for train in trains if stem_of(train) == stem_of(name)]
            train = next(iter(alike or (trains if len(trains) == 1 else [])), None)
            if train is not None and train not in taken:
                found[name] = BenchmarkConfig(train=train, test=name)
    return found


def _of(surveys: Mapping[str, Survey], split: Split) -> list[str]:
    return [name for name in surveys if split_of(name) == split]
