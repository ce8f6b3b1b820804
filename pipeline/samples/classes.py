"""Classes by name: which class of a training set each class of a test set is.

A dataset's manifest lists its class names in the order of its class numbers; where it has none (tars, numbered folders,
lists of numbers) a class is known by its number. Names that are whole numbers are numbers: `007` is 7. Names are compared
after Unicode's NFC and without spaces around them, nothing else: `Dog` and `dog` are two classes.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.samples.shards import LARGEST_LABEL
from unic_pipe.schemas.errors import UserError

Names = tuple[str, ...] | None
"""A manifest's `classes`."""
SHOWN = 5
"""Classes that a message names."""


@dataclass(frozen=True)
class ClassMap:
    """How the classes of a test set are found among those of a training set."""

    how: Literal["numbers", "names", "places"]
    """`places`: one side has names and the other numbers, which are taken as places among the names."""
    table: tuple[tuple[int, int], ...] | None
    """Pairs (test's number, training's number), sorted; a class without a counterpart is in none. None: equal numbers."""

    def in_training(self, labels_M: NDArray[np.int64]) -> NDArray[np.int64]:
        """The training set's class numbers (M,) of the test set's; -1 where there is no counterpart."""
        if self.table is None:
            return labels_M
        numbers, inverse_M = np.unique(labels_M, return_inverse=True)
        known = dict(self.table)
        found: NDArray[np.int64] = np.array([known.get(int(n), -1) for n in numbers], np.int64)[inverse_M]
        return found


def class_key(name: str) -> str:
    """The form in which class names are compared."""
    name = unicodedata.normalize("NFC", name).strip()
    return str(int(name)) if re.fullmatch(r"[0-9]{1,18}", name) else name


def whole_numbers(names: Sequence[str]) -> tuple[int, ...] | None:
    """The class numbers that names are, where all are whole numbers and no two the same; else None."""
    if not names or not all(re.fullmatch(r"[0-9]{1,10}", name.strip()) for name in names):
        return None
    numbers = tuple(int(name) for name in names)
    return numbers if len(set(numbers)) == len(numbers) and max(numbers) <= LARGEST_LABEL else None


def named(classes: Names, numbers: Iterable[int]) -> tuple[str, ...]:
    """The names of class numbers; where there is none, the number itself."""
    known = classes or ()
    return tuple(known[n] if 0 <= n < len(known) else str(n) for n in numbers)


def listed_names(names: Sequence[str]) -> str:
    """Names for a message: the first `SHOWN`, and how many more there are."""
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def match_classes(train: tuple[str, Names], test: tuple[str, Names]) -> ClassMap:
    """Match a test set's classes with a training set's; each side is (dataset, class names or None).
    Raises UserError: no class in common, or a name that two classes have."""
    (train_name, ours), (test_name, theirs) = train, test
    if ours == theirs:
        return ClassMap("numbers" if ours is None else "names", None)
    our_numbers, their_numbers = (None if side is None else whole_numbers(side) for side in (ours, theirs))
    if (ours is None or our_numbers is not None) and (theirs is None or their_numbers is not None):
        return ClassMap("numbers", _by_number(train, our_numbers, test, their_numbers))
    if ours is None or our_numbers is not None:
        # The names' places are numbers.
        assert theirs is not None
        return ClassMap("places", _by_number(train, our_numbers, test, tuple(range(len(theirs)))))
    if theirs is None or their_numbers is not None:
        return ClassMap("places", _by_number(train, tuple(range(len(ours))), test, their_numbers))
    position = _positions(train_name, ours)
    table = {n: position[key] for key, n in _positions(test_name, theirs).items() if key in position}
    if not table:
        raise _nothing_in_common(train, test)
    return ClassMap("names", _unless_equal(table, len(ours), len(theirs)))


def match_texts(dataset: str, classes: Names, texts: Sequence[str]) -> tuple[tuple[int, int], ...] | None:
    """For each class number of a dataset its place among named text embeddings, as sorted pairs; None: equal numbers.

    By name where the texts have all names of the classes; where they have none of them (`n02084071` and `dog`), by order.
    Raises UserError: only some of the names, or none and another number of classes.
    """
    numbers = None if classes is None else whole_numbers(classes)
    if classes is None or numbers is not None:
        return _unless_equal(dict(enumerate(numbers or ())), len(texts), len(numbers or ()))
    position = {class_key(name): place for place, name in reversed(list(enumerate(texts)))}
    table = {n: position[class_key(name)] for n, name in enumerate(classes) if class_key(name) in position}
    if len(table) == len(classes) and len(set(table.values())) == len(classes):
        return _unless_equal(table, len(texts), len(classes))
    if len(classes) == len(texts) and all(n == place for n, place in table.items()):
        return None
    missing = [name for n, name in enumerate(classes) if n not in table]
    raise UserError(
        f"Dataset {dataset} has {len(classes):,} classes and there are {len(texts):,} text embeddings, without "
        f"{listed_names(missing)} among their names.",
        "Give every class one text, by the class's name or in the order of the class numbers.",
    )


def _by_number(
    train: tuple[str, Names], ours: tuple[int, ...] | None, test: tuple[str, Names], theirs: tuple[int, ...] | None
) -> tuple[tuple[int, int], ...] | None:
    """Pairs of positions that mean equal numbers; None for a side: its class numbers are the numbers themselves."""
    if ours is None and theirs is None:
        return None
    if ours is None:
        assert theirs is not None
        return _unless_equal(dict(enumerate(theirs)), 0, len(theirs))
    place = {number: position for position, number in enumerate(ours)}
    table = place if theirs is None else {n: place[value] for n, value in enumerate(theirs) if value in place}
    if not table:
        raise _nothing_in_common(train, test)
    return _unless_equal(table, len(ours), 0 if theirs is None else len(theirs))


def _unless_equal(table: dict[int, int], ours: int, theirs: int) -> tuple[tuple[int, int], ...] | None:
    """None where equal numbers say the same: every pair is equal, and no class without a counterpart would find one."""
    equal = all(a == b for a, b in table.items()) and all(n in table for n in range(min(ours, theirs)))
    return None if equal else tuple(sorted(table.items()))


def _positions(dataset: str, names: Sequence[str]) -> dict[str, int]:
    keys = [class_key(name) for name in names]
    if len(set(keys)) < len(keys):
        keys = list(names)  # `dog` and `dog ` are two folders of one dataset
    if len(set(keys)) < len(keys):
        twice = next(key for place, key in enumerate(keys) if key in keys[:place])
        raise UserError(
            f"Dataset {dataset} has two classes named {twice!r}, so its classes cannot be matched by name.",
            "Rename one of them.",
        )
    return {key: place for place, key in enumerate(keys)}


def _nothing_in_common(train: tuple[str, Names], test: tuple[str, Names]) -> UserError:
    (train_name, ours), (test_name, theirs) = train, test
    loose = {name.casefold().strip() for name in ours or ()} & {name.casefold().strip() for name in theirs or ()}
    same = f" Some differ only in capitals: {listed_names(sorted(loose))}." if loose else ""
    return UserError(
        f"Training set {train_name} and test set {test_name} have no class in common: "
        f"{listed_names(ours or ('numbers',))} there, {listed_names(theirs or ('numbers',))} here.{same}",
        "Name the classes alike (folders, or the classes of the labels file), or check the benchmark's train and test.",
    )
