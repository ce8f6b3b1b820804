"""The registry of probes: everything by which features are judged, one entry each.

To add one: a file in `stages/evaluate` with a function `run(task, setting) -> Outcome`, and a line here. What it is given is
decided by its `task`. Free of torch, because plans and `status` read it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from unic_pipe.schemas.base import one_of

PROTOCOL = "probes/2"
"""Version of the protocol of probes of labelled images; results of different versions are never compared."""
BY_NAME = {PROTOCOL: "probes/3", "zero-shot/1": "zero-shot/2"}
"""By protocol that of results whose classes are matched by name, where equal names have other numbers: before, numbers were
compared all the same."""

SEARCHED = "probes/4"
"""Of linear probes that choose among several values: of equally good ones the middle is taken. Before (`PROTOCOL`) it was
the first, mostly the most strongly regularised. Classes were matched by name from the beginning."""

Settings = dict[str, tuple[float, ...] | float | int | str]
Task = Literal["labelled", "zero-shot", "segmentation", "depth"]


@dataclass(frozen=True)
class Probe:
    """One kind of result."""

    run: str
    """`module:function` of its code; a leading dot stands for `stages.evaluate`. Imported when it is run."""
    title: str
    """As the report calls it."""
    settings: Callable[[Any], Settings] = lambda config: {}
    """The part of the configuration that its result depends on: of `evaluate`, for dense tasks of the benchmark."""
    task: Task = "labelled"
    """`labelled`: cls features of a training and a test set with class numbers. `segmentation`, `depth`: patch tokens of
    both with label maps. `zero-shot`: cls features of a test set in the space of class texts."""
    option: str = ""
    """Of a dense probe: its name under `probes` of the benchmark."""
    protocol: str = PROTOCOL
    chooses: Callable[[Any], bool] = lambda config: False
    """Whether it searches among several values, of which some may be equally good."""
    seeds: Literal["none", "first", "all"] = "none"
    """Of `evaluate.seeds`, those that its result depends on."""
    linear: bool = False
    """Whether it is a linear probe of labelled images. Benchmarks of the registry choose their own of these."""

    def protocol_of(self, config: Any, by_name: bool) -> str:
        """Version of the protocol of a result; `by_name`: its classes are matched by name, and have other numbers."""
        if self.chooses(config):
            return SEARCHED
        return BY_NAME.get(self.protocol, self.protocol) if by_name else self.protocol


def _search(config: Any) -> Settings:
    found: Settings = {"search": config.search, "validation_fraction": config.validation_fraction}
    return found | ({"trials": config.trials} if config.search == "optuna" else {})


def _c(config: Any) -> Settings:
    listed = config.search == "fast" and config.c_values is not None
    return {"c_values": config.c_values} if listed else {"c_range": config.c_range}


def _several_c(config: Any) -> bool:
    return len(set(_c(config).get("c_values", (0, 1)))) > 1


def _classes(config: Any) -> Settings:
    return {"pixels": config.pixels, "classes": config.classes or 0, "first_class": config.first_class}


def _depths(config: Any) -> Settings:
    return {"pixels": config.pixels, "metres": config.metres, "max_depth": config.max_depth}


def _head(config: Any) -> Settings:
    return {"steps": config.steps, "batch": config.batch, "lr": config.lr}


def _memory(config: Any) -> Settings:
    return {"memory": config.memory, "k": config.k, "temperature": config.temperature}


def _shots(config: Any) -> Settings:
    return {"shots": tuple(float(n) for n in config.shots), "draws": config.draws}


PROBES: dict[str, Probe] = {
    "logistic": Probe(
        ".linear:logistic", "linear probe", lambda c: _search(c) | _c(c),
        chooses=_several_c, seeds="all", linear=True,
    ),
    "sgd": Probe(
        ".linear:sgd", "linear probe (SGD)", lambda c: _search(c) | {"epochs": c.sgd_epochs},
        chooses=lambda config: True, seeds="all", linear=True,
    ),
    "knn": Probe(".knn:run", "k-NN", lambda c: {"k_values": tuple(float(k) for k in c.k_values)}),
    "fewshot": Probe(".fewshot:run", "few-shot probe", _shots, seeds="first"),
    "zero-shot": Probe(".zero_shot:run", "zero-shot", task="zero-shot", protocol="zero-shot/1"),
    "segmentation": Probe(
        ".dense:segmentation", "linear segmentation", lambda c: _classes(c) | _head(c),
        task="segmentation", option="linear", protocol="segmentation-linear/1",
    ),
    "in-context": Probe(
        ".in_context:run", "in-context segmentation", lambda c: _classes(c) | _memory(c),
        task="segmentation", option="in-context", protocol="segmentation-in-context/1",
    ),
    "depth": Probe(
        ".dense:depth", "linear depth", lambda c: _depths(c) | _head(c),
        task="depth", option="linear", protocol="depth-linear/1",
    ),
}  # fmt: skip
"""By the name that results have."""


LabelledProbe = Annotated[str, one_of(lambda: [name for name, probe in PROBES.items() if probe.task == "labelled"])]
"""Name of a probe of labelled images."""
DenseOption = Annotated[str, one_of(lambda: dict.fromkeys(p.option for p in PROBES.values() if p.option))]
"""What a dense benchmark calls its probes."""
