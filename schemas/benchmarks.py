"""The registry of benchmarks that have a name: what each one is, typed; the entries themselves are in `benchmarks.toml`."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any, Literal

from unic_pipe.schemas.base import Model, Name
from unic_pipe.schemas.errors import did_you_mean

Axis = Literal["IN-1K", "IN-v2", "domain shift", "CoG", "long-tail", "fine-grained", "segmentation", "depth"]
"""Where a benchmark stands on the radar."""
Kind = Literal["probe", "transfer", "segmentation", "depth"]
"""`probe`: fitted on its training set. `transfer`: tested with the probe of `SOURCE`, without refit. The others are dense."""
Metric = Literal["top1", "per_class", "miou", "rmse"]
Classifier = Literal["logistic", "sgd", "linear-head"]
Split = Literal["train", "test"]
SOURCE = "in1k"
"""The benchmark whose probe the `transfer` benchmarks are tested with."""


class BenchmarkCard(Model):
    """One benchmark as its authors, t-ReX and UNIC define it."""

    title: str
    kind: Kind = "probe"
    axis: Axis
    reader: str = ""
    """How its files are read (`pipeline.benchmarks.readers`); none for dense benchmarks."""
    metric: Metric = "top1"
    """The main one. t-ReX's and UNIC's code reports top-1 for every classification benchmark; the mean over classes is
    always computed beside it."""
    classifier: Classifier = "logistic"
    """`logistic`: L-BFGS on raw features (small sets); `sgd`: on L2-normalised features (large sets)."""
    train: int | None = None
    """Images of the training set, validation images included; None for transfer."""
    test: int
    classes: int | None = None
    """Classes of the test set."""
    splits: str
    """Which of the authors' splits are train and test."""
    paper: str
    source: str
    """Page of the data."""
    licence: str
    note: str = ""
    torchvision: str | None = None
    """Class of `torchvision.datasets` that can download it."""
    folders: tuple[str, ...]
    """Names under which its folder is commonly found, torchvision's among them."""
    needs_train: tuple[str, ...] = ()
    """What has to be in the folder, for each split: paths or patterns; `A|B`: either."""
    needs_test: tuple[str, ...]
    get: str
    """What to download from `source`, and how it is laid out."""

    @property
    def dense(self) -> bool:
        """Whether it is scored pixel by pixel."""
        return self.kind in ("segmentation", "depth")

    def needs(self, split: Split) -> tuple[str, ...]:
        """What a split has to find in the folder."""
        return self.needs_train if split == "train" else self.needs_test

    def count(self, split: Split) -> int | None:
        """Images of a split."""
        return self.train if split == "train" else self.test


@functools.cache
def cards() -> dict[Name, BenchmarkCard]:
    """Every benchmark that has a name, in the order of the registry. `like` in the file takes over another's fields."""
    raw = tomllib.loads(resources.files("unic_pipe.schemas").joinpath("benchmarks.toml").read_text(encoding="utf-8"))
    for body in raw.values():
        like = body.pop("like", None)
        body |= {key: value for key, value in raw.get(like, {}).items() if key not in body}
    # TOML has lists where the model has tuples, which strict JSON takes and strict Python does not.
    return {name: BenchmarkCard.model_validate(body, strict=False) for name, body in raw.items()}


class BenchmarkConfig(Model):
    """A labelled dataset pair: probes are fitted on `train` and scored on `test`.

    One that has a name in the registry (`unic-pipe benchmarks`) needs neither: `dtd: {}`.
    """

    train: str = ""
    """Name of a dataset."""
    test: str = ""
    """Name of another one."""
    root: str | None = None
    """Folder of a benchmark that has a name; searched in `evaluate.root` by default. Outside every digest."""
    note: str = ""
    """Shown in the report, for instance that the data are synthetic."""


def named_benchmarks(benchmarks: object) -> object:
    """A list of names as the mapping that it stands for; anything else as it is."""
    if isinstance(benchmarks, list) and all(isinstance(name, str) for name in benchmarks):
        return {name: {} for name in benchmarks}
    return benchmarks


def check_reader(reader: str | None) -> str | None:
    """`NAME/SPLIT` as it is, if the registry has such images with labels.

    Raises:
        ValueError: no such benchmark or split.
    """
    if reader is None:
        return None
    name, _, split = reader.partition("/")
    readable = {known: card for known, card in cards().items() if card.reader}
    if name not in readable:
        raise ValueError(f"no benchmark with images and labels has this name{did_you_mean(name, list(readable))}")
    if split not in ("train", "test"):
        raise ValueError(f"write {name}/train or {name}/test")
    if split == "train" and not readable[name].needs_train:
        raise ValueError(f"{name} has no training set of its own")
    return reader


def benchmark_problems(benchmarks: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """What keeps a benchmark from being run as configured: its name (or name and field), and why.

    The value may be wrong in other ways, too.
    """
    named = named_benchmarks(benchmarks)
    for key, body in named.items() if isinstance(named, Mapping) else ():
        name, card = str(key), cards().get(str(key))
        if not isinstance(body, Mapping):
            continue
        lacks = [side for side in ("train", "test") if not body.get(side)]
        if card is None and len(lacks) == 1:
            yield (name, lacks[0]), "missing"
        elif card is None and lacks:
            near = did_you_mean(name, list(cards()))
            yield (name,), f"no benchmark of the registry has this name, and your own need train and test{near}"
        elif card is None and body.get("root"):
            yield (name, "root"), "only for benchmarks of the registry (unic-pipe benchmarks)"
        elif card is not None and card.dense:
            yield (name,), f"a {card.kind} benchmark: it belongs under evaluate.dense"
