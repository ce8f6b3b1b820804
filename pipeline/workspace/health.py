"""Whether a training looks as one should: a line where it does not, and what to change.

The marks are those of docs/normal.md, which has the curves that they were taken from.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from unic_pipe.schemas.losses import TOKENS

EARLY = 0.1
"""Part of the steps after which a student that has learned nothing is called collapsed."""
FEWEST = 50
"""Steps before which no student is called collapsed: new heads have not learned anything yet."""
NOTHING = 0.05
"""Cosine to every teacher below which nothing was learned: standardised targets have cosine 0 to any constant."""
LITTLE = 0.5
"""Mean cosine to the teachers below which the end of a training is early in its curve."""
BEHIND = 0.4
"""Cosine by which one teacher may be behind another."""


class Finding(NamedTuple):
    """What is wrong with a training, and what to change."""

    kind: str
    """`collapsed`, `under-trained` or `one-sided`."""
    text: str
    advice: str

    def __str__(self) -> str:
        return f"{self.text} {self.advice}"


def agreement(rows: Sequence[Mapping[str, float]], teachers: Sequence[str]) -> dict[str, float]:
    """The last cosine to each teacher, in [-1, 1], the mean of its token types: of the validation rows where there are
    some, else of training. A teacher without any is left out.

    `rows`: of the metrics table, in order of steps.
    """
    found = {}
    for teacher in teachers:
        for prefix in ("val/", ""):
            names = [f"{prefix}{teacher}/{token}/cosine" for token in TOKENS]
            last = next((row for row in reversed(rows) if any(name in row for name in names)), None)
            if last is not None:
                values = [1 - last[name] for name in names if name in last]
                found[teacher] = sum(values) / len(values)
                break
    return found


def finding(rows: Sequence[Mapping[str, float]], teachers: Sequence[str], done: int, steps: int) -> Finding | None:
    """What looks wrong in a training after `done` of its `steps` steps, of which `rows` tell; None while all is well.

    A student can be called collapsed from a tenth of its steps on (and the 50th), the rest is told at the end.
    """
    cosines = agreement(rows, teachers)
    if not cosines or done < EARLY * steps:
        return None
    worst, best = min(cosines, key=cosines.__getitem__), max(cosines, key=cosines.__getitem__)
    if cosines[best] < NOTHING and done >= FEWEST:
        return Finding(
            "collapsed",
            f"This training looks collapsed: after {done:,} steps its cosine to every teacher is below {NOTHING}.",
            "Stop it, lower optimizer.lr or raise optimizer.warmup_epochs, and see that mean and std fit the start.",
        )
    if done < steps:
        return None
    mean = sum(cosines.values()) / len(cosines)
    if cosines[best] - cosines[worst] > BEHIND:
        return Finding(
            "one-sided",
            f"This training looks dominated by {best}: cosine {cosines[best]:.2f}, but {cosines[worst]:.2f} to {worst}.",
            "Train longer, lower loss.drop_probability, or give the images on which that teacher is good.",
        )
    if mean < LITTLE:
        return Finding(
            "under-trained",
            f"This training looks too short: its mean cosine to the teachers ends at {mean:.2f}, below {LITTLE}.",
            "Raise optimizer.epochs; a student that starts from nothing may start from weights (init: pretrained).",
        )
    return None
