"""Mixtures of datasets: how many places each has in a batch, and which rows fill them. One dataset is a mixture, too.

A dataset's share is how often it is passed through in an epoch, at most once. Its places are the same in every batch and
in every stream, so any world size that divides the streams sees the same batches. They are filled in the order of the
dataset's own `epoch_order`. No dataset gets more than its share, and an epoch is as long as that allows: places are
dealt out by D'Hondt's method, which makes the smallest ratio of rows to places as large as it can be.

A row of a mixture is known by one number: which dataset in the upper bits, its row there in the lower ones. So rows of
the first dataset have the numbers that they have alone.

Shapes: N usable rows, B rows of a batch, C streams, S steps of an epoch, L lanes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.samples.draws import Purpose, uniforms
from unic_pipe.pipeline.samples.order import epoch_order
from unic_pipe.schemas.errors import UserError

_SHIFT = 40
WORTH_SAYING = 0.01
"""From which relative difference on the passes of an epoch are said to be other than asked."""


def stream_places(rows: Sequence[float], places: int) -> tuple[int, ...]:
    """How many of the `places` that a stream has in a batch each dataset gets; `rows`: that each may give in an epoch."""
    if len(rows) == 1:
        return (places,)
    given = [0] * len(rows)
    for _ in range(places):
        most = max(range(len(rows)), key=lambda part: rows[part] / (given[part] + 1))
        given[most] += 1
    return tuple(given)


def epoch_steps(rows: Sequence[float], batch: int, streams: int) -> int:
    """Whole batches of an epoch, of datasets that may give so many rows each; 0 where one has no place or too few."""
    places = stream_places(rows, batch // streams)
    return min(int(mine) // (count * streams) if count else 0 for mine, count in zip(rows, places, strict=True))


def dealt(rows: Mapping[str, int], shares: Mapping[str, float], batch: int, streams: int) -> str | None:
    """What whole places in a batch make of the shares, in words; None where they come within 1 % of all of them.

    Args:
        rows: of every dataset.
        shares: how often each was to be passed through in an epoch.
        batch: rows of a batch.
        streams: streams of a batch.
    """
    given = [shares[name] * count for name, count in rows.items()]
    steps = epoch_steps(given, batch, streams)
    places = {n: streams * count for n, count in zip(rows, stream_places(given, batch // streams), strict=True)}
    passes = {name: steps * places[name] / count for name, count in rows.items()}
    if len(rows) == 1 or all(abs(passes[name] / shares[name] - 1) <= WORTH_SAYING for name in rows):
        return None
    each = [f"{places[n]:,} for {n} ({passes[n]:.2g} passes an epoch, {shares[n]:g} asked)" for n in rows]
    return f"{batch:,} places of a batch: {', '.join(each)}"


def without_place(student: str, rows: Mapping[str, float], batch: int, streams: int) -> UserError | None:
    """The error of a student whose batches have no place for one of its datasets, with the numbers that work.

    Args:
        student: its name under `students:`.
        rows: by dataset, that each may give in an epoch.
        batch: rows of a batch.
        streams: streams of a batch.
    """
    found = zip(rows, stream_places(list(rows.values()), batch // streams), strict=True)
    left_out = [name for name, count in found if not count]
    if not left_out:
        return None
    name, total = left_out[0], sum(rows.values())
    message = (
        f"Student {student}: {name} gives {int(rows[name]):,} of {int(total):,} images an epoch, less than a place in each of "
        f"{streams} streams of a batch of {batch:,}."
    )
    fewest = min(rows.values())
    if int(fewest) == 0:
        return UserError(message, f"Take {name} out of students.{student}.dataset.")
    given = list(rows.values())
    fitting = [n for n in range(1, streams) if batch % n == 0 and epoch_steps(given, batch, n)]
    ways = [f"students.{student}.streams to {fitting[-1]}"] if fitting else []
    # D'Hondt's method gives everybody at least the whole places of his proportion; an epoch must hold a batch of them.
    larger = -(-int(total) // int(fewest)) * streams
    if fewest >= streams and epoch_steps(given, larger, streams):
        ways.append(f"students.{student}.optimizer.batch to {larger}")
    ways.append(f"the share of {name} higher")
    without = "" if len(ways) > 1 else f", or take it out of students.{student}.dataset"
    return UserError(message, f"Set {', or '.join(ways)}{without}.")


@dataclass(frozen=True)
class Part:
    """One dataset of a mixture."""

    dataset: str
    """Its digest."""
    block_rows: int
    rows_N: NDArray[np.int64]
    """Usable row numbers, ascending."""
    share: float = 1.0


@dataclass(frozen=True)
class Mixture:
    """Datasets in the order of their names, and how batches are made of them; arguments as for `epoch_order`."""

    parts: tuple[Part, ...]
    seed: int
    batch: int
    streams: int
    window: int

    @cached_property
    def places(self) -> tuple[int, ...]:
        """Places of each dataset in every stream of a batch."""
        return stream_places(self._rows, self.batch // self.streams)

    @cached_property
    def steps(self) -> int:
        """Whole batches of an epoch."""
        return epoch_steps(self._rows, self.batch, self.streams)

    @property
    def rows_N(self) -> NDArray[np.int64]:
        """All rows, by their numbers in the mixture."""
        return np.concatenate([part.rows_N + (i << _SHIFT) for i, part in enumerate(self.parts)])

    def order(self, epoch: int) -> NDArray[np.int64]:
        """Rows of every batch of an epoch, (S, B) int64. Within a stream's columns, the datasets follow each other."""
        columns = []
        for i, (part, places) in enumerate(zip(self.parts, self.places, strict=True)):
            order_SB = epoch_order(
                part.rows_N,
                part.block_rows,
                seed=self._seed(i),
                epoch=epoch,
                batch=places * self.streams,
                streams=self.streams,
                window=self.window,
            )
            columns.append(order_SB[: self.steps].reshape(self.steps, self.streams, places) + (i << _SHIFT))
        return np.concatenate(columns, axis=2).reshape(self.steps, self.batch)

    def uniforms(self, purpose: Purpose, epoch: int, rows_B: NDArray[np.int64], lanes: int) -> NDArray[np.float64]:
        """Draws of a batch's rows, (B, L), as `draws.uniforms` makes them of each dataset's own rows."""
        draws_BL = np.empty((len(rows_B), lanes))
        for i, place_M, rows_M in split(rows_B):
            draws_BL[place_M] = uniforms(self._seed(i), purpose, epoch, rows_M, lanes)
        return draws_BL

    @property
    def _rows(self) -> list[float]:
        return [part.share * len(part.rows_N) for part in self.parts]

    def _seed(self, i: int) -> int:
        """From the second dataset on its digest joins the key, or equal row numbers would have equal draws."""
        if i == 0:
            return self.seed
        return int(hashlib.sha256(f"{self.seed} {self.parts[i].dataset}".encode()).hexdigest()[:16], 16)


def parts_of(rows_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which dataset of a mixture each row is of, (B,)."""
    return rows_B >> _SHIFT


def split(rows_B: NDArray[np.int64]) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
    """For each dataset that a batch has rows of: which it is, their places in the batch, and their rows there."""
    part_B = parts_of(rows_B)
    found = []
    for part in np.unique(part_B).tolist():
        place_M = np.flatnonzero(part_B == part)
        found.append((part, place_M, rows_B[place_M] - (part << _SHIFT)))
    return found
