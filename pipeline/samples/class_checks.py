"""Whether a probe can be fitted and scored with the labels that two datasets have, before features cost hours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.samples.classes import (
    ClassMap,
    Names,
    listed_names,
    match_classes,
    named,
    whole_numbers,
)
from unic_pipe.schemas.errors import UserError


@dataclass(frozen=True)
class Side:
    """One side of a benchmark as its labels show it."""

    name: str
    """The dataset's name."""
    classes: Names
    numbers_C: NDArray[np.int64]
    """Class numbers of its samples, each once, in order."""


def comparable(train: Side, test: Side) -> ClassMap:
    """How the classes of a test set are found among those of a training set, where a score would mean something.

    Raises:
        UserError: a single class, no class in common, numbers that cannot be places among the other side's names, or
            more classes than the training set has and no names to tell them by.
    """
    require_several(train)
    matched = match_classes((train.name, train.classes), (test.name, test.classes))
    if len(test.numbers_C) > len(train.numbers_C) and matched.how != "names":
        raise UserError(
            f"Test set {test.name} has {len(test.numbers_C)} classes, training set {train.name} only "
            f"{len(train.numbers_C)}.",
            "Check the benchmark's train and test: are they swapped, or from different datasets?",
        )
    if matched.how == "places":
        places(train, test)
    if not np.isin(matched.in_training(test.numbers_C), train.numbers_C).any():
        there, here = (listed_names(named(side.classes, side.numbers_C.tolist())) for side in (test, train))
        raise UserError(
            f"Test set {test.name} and training set {train.name} have no class in common: {there} there, {here} here.",
            "Check that both use the same class numbers, or name their classes.",
        )
    return matched


def require_several(train: Side) -> None:
    """Raises UserError: a training set with a single class."""
    if len(train.numbers_C) < 2:
        raise UserError(
            f"Dataset {train.name} has a single class ({', '.join(map(str, train.numbers_C))}): a probe needs at least two.",
            "Use a training set that shows every class; for tars, check the .cls members.",
        )


def places(train: Side, test: Side) -> tuple[Side, Side, NDArray[np.int64]]:
    """The side with class names, the one with numbers, and these numbers, which are places among the names.

    Raises:
        UserError: a number beyond the names, or a training set without the number of some name.
    """
    names, numbered = (test, train) if train.classes is None else (train, test)
    if names.classes is None or numbered.classes is not None:  # numbers that an earlier index has as names
        names, numbered = (train, test) if whole_numbers(test.classes or ()) else (test, train)
    known, numbers = names.classes or (), numbered.numbers_C
    if numbered.classes is not None:
        numbers = np.array(sorted(whole_numbers(numbered.classes) or ()))
    if numbers[-1] >= len(known) or (numbered is train and len(numbers) < len(known)):
        raise UserError(
            f"Dataset {names.name} has the {len(known):,} class names {listed_names(known)}; {numbered.name} has "
            f"{len(numbers):,} class numbers, {numbers[0]} to {numbers[-1]}, which cannot be places among them.",
            f"Give {numbered.name} class names: class folders, or a labels file with names. Or, if its numbers count from 1: "
            f"samples.datasets.{numbered.name}.first_class: 1",
        )
    return names, numbered, numbers
