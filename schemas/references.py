"""Names in a configuration that have to be defined elsewhere in it, and values that only the whole of it can refuse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import InitErrorDetails, PydanticCustomError

from unic_pipe.schemas.arguments import architecture_problem, argument_problems
from unic_pipe.schemas.benchmarks import benchmark_problems
from unic_pipe.schemas.errors import did_you_mean
from unic_pipe.schemas.places import CONSISTENCY

_REFERENCES = (
    ("students.*.dataset", "samples.datasets", "dataset"),
    ("students.*.teachers.*", "teachers", "teacher"),
    ("teachers.*.datasets.*", "samples.datasets", "dataset"),
    ("students.*.loss.terms.*.teachers.*", "teachers", "teacher"),
    ("students.*.loss.own.*.*", "teachers", "teacher"),
    ("distill.validation", "samples.datasets", "dataset"),
    ("distill.validation.*", "samples.datasets", "dataset"),
    ("evaluate.benchmarks.*.train", "samples.datasets", "dataset"),
    ("evaluate.benchmarks.*.test", "samples.datasets", "dataset"),
    ("evaluate.zero_shot.*.teacher", "teachers", "teacher"),
    ("evaluate.zero_shot.*.test", "samples.datasets", "dataset"),
    ("evaluate.dense.*.train", "samples.datasets", "dataset"),
    ("evaluate.dense.*.test", "samples.datasets", "dataset"),
)
"""Where the configuration names something, where that has to be defined, and what it is."""

VALIDATION = "val"
"""Begins the names of the columns of the validation loss in `metrics.parquet`."""

_MODELS = (("teachers", "*"), ("students", "*"), ("evaluate", "encoders", "*"))
"""Where the configuration gives arguments of a model."""


def reference_problems(body: Any) -> list[InitErrorDetails]:
    """Names that nothing has, and arguments of models that cannot be given, as pydantic problems with their places.

    `body` is a configuration as plain mappings and lists. It may be wrong in other ways, so that names are checked
    together with everything else.
    """
    problems = [*_share_problems(body), *_teaching_problems(body)]
    for reference, place, kind in _REFERENCES:
        known = sorted(str(loc[-1]) for loc, _ in _values(body, (*place.split("."), "*")))
        for loc, name in _named(body, reference):
            if isinstance(name, str) and name and name not in known:
                message = f"no {kind} is named {name!r}{did_you_mean(name, known)}"
                problems.append(problem(loc, message, name))
    for loc, value in _values(body, ("evaluate", "benchmarks")):
        problems += [problem((*loc, *place), why, place[-1]) for place, why in benchmark_problems(value)]
    for model in _MODELS:
        for loc, given in _values(body, (*model, "model_args")):
            problems += [problem((*loc, name), why, name) for name, why in argument_problems(given)]
        for loc, given in _values(body, (*model, "architecture")):
            if (why := architecture_problem(given)) is not None:
                problems.append(problem(loc, why, given))
    teachers = {loc[-1] for loc, _ in _values(body, ("teachers", "*"))}
    if VALIDATION in teachers:
        message = f"{VALIDATION!r} stands for the validation loss in the metrics of a training: choose another name"
        problems.append(problem(("teachers", VALIDATION), message, VALIDATION))
    for loc, _ in _values(body, ("students", "*")):
        if loc[-1] in teachers:
            message = f"{loc[-1]!r} names a teacher too; results are told apart by these names"
            error = PydanticCustomError(CONSISTENCY, "{message}", {"message": message})
            problems.append(InitErrorDetails(type=error, loc=loc, input=loc[-1]))
    return problems


def _share_problems(body: Any) -> list[InitErrorDetails]:
    """Mixtures of nothing, and shares that are no part of a dataset."""
    empty = [loc for loc, value in _values(body, ("students", "*", "dataset")) if value == {}]
    shares = [(loc, v) for loc, v in _values(body, ("students", "*", "dataset", "*")) if isinstance(v, int | float)]
    return [problem(loc, "a mixture of no datasets", {}) for loc in empty] + [
        problem(loc, "a share is how often an epoch passes through the dataset: above 0, and at most 1", value)
        for loc, value in shares
        if not 0 < value <= 1
    ]


def _teaching_problems(body: Any) -> list[InitErrorDetails]:
    """Datasets on which nobody teaches, and teachers that teach a student nothing."""
    limits = {loc[1]: set(_names(given)) for loc, given in _values(body, ("teachers", "*", "datasets")) if given}
    teachers = [loc[-1] for loc, _ in _values(body, ("teachers", "*"))]
    problems = []
    for (_, student, _), given in _values(body, ("students", "*", "dataset")):
        datasets = _names(given)
        named = next((found for _, found in _values(body, ("students", str(student), "teachers"))), None)
        chosen = [teacher for teacher in teachers if named is None or teacher in _names(named)]
        for teacher in chosen if named is not None else ():
            if limits.get(teacher, set(datasets)).isdisjoint(datasets):
                message = f"{teacher} teaches on none of its datasets (see teachers.{teacher}.datasets)"
                problems.append(problem(("students", student, "teachers"), message, teacher))
        problems += _untaught(("students", student, "dataset"), datasets, chosen, limits)
    for loc, teacher in _values(body, ("students", "*", "loss", "own", "*", "*")):
        if isinstance(teacher, str) and loc[4] not in limits.get(teacher, {loc[4]}):
            message = f"{teacher} does not teach on {loc[4]!r} (see teachers.{teacher}.datasets)"
            problems.append(problem(loc, message, teacher))
    for loc, given in _values(body, ("distill", "validation")):
        problems += _untaught(loc, _names(given), teachers, limits)
    return problems


def _names(given: Any) -> list[str]:
    """A name, several, or those of a mapping; of what is none of these, none."""
    found = list(given) if isinstance(given, Mapping | list | tuple) else [given]
    return [name for name in found if isinstance(name, str)]


def _untaught(
    loc: tuple[int | str, ...], datasets: list[str], teachers: list[Any], limits: Mapping[Any, set[str]]
) -> list[InitErrorDetails]:
    """One problem for each dataset that all of these teachers leave out."""
    left_out = [d for d in datasets if teachers and not any(d in limits.get(t, {d}) for t in teachers)]
    return [problem(loc, f"no teacher teaches on {d!r} (see teachers.*.datasets)", d) for d in left_out]


def _named(body: Any, reference: str) -> list[tuple[tuple[int | str, ...], Any]]:
    """Every (location, name) at a place that holds a name, or a mapping by names."""
    found: list[tuple[tuple[int | str, ...], Any]] = []
    for loc, value in _values(body, tuple(reference.split("."))):
        found += [((*loc, key), key) for key in value] if isinstance(value, Mapping) else [(loc, value)]
    return found


def problem(loc: tuple[int | str, ...], message: str, value: object) -> InitErrorDetails:
    """What is wrong with a value, and where, as pydantic wants it."""
    error = PydanticCustomError(CONSISTENCY, "{message}", {"message": message})
    return InitErrorDetails(type=error, loc=loc, input=value)


def _values(node: Any, pattern: tuple[str, ...]) -> list[tuple[tuple[int | str, ...], Any]]:
    """Every (location, value) below `node` that matches a pattern of keys; `*` is any key or item."""
    if not pattern:
        return [((), node)]
    first, *rest = pattern
    if isinstance(node, Mapping):
        items = list(node.items())
    else:
        items = list(enumerate(node)) if isinstance(node, list | tuple) else []
    found = [(key, pair) for key, value in items if first in ("*", key) for pair in _values(value, tuple(rest))]
    return [((key, *loc), value) for key, (loc, value) in found]
