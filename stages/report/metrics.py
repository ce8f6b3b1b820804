"""What scores measure: their names, how they are printed, and which of two is better."""

import math
import re
from dataclasses import dataclass

MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True)
class Metric:
    """One measure. `scale` turns a stored value into the printed one: 100 for a fraction that is printed in per cent."""

    title: str
    unit: str
    """After a printed value: `%`, or `m` for metres."""
    scale: float = 100.0
    digits: int = 1
    higher: bool = True
    """Whether more is better."""
    accuracy: bool = True
    """Whether it is a fraction of test images, so that its log-odds and its binomial error mean something."""

    @property
    def difference_unit(self) -> str:
        """Unit of a difference: points of per cent, else the unit itself."""
        return "points" if self.unit == "%" else self.unit

    def show(self, value: float, extra: int = 0) -> str:
        """A value without its unit: .9234 -> `92.3`; `extra` more digits."""
        return f"{self.scale * value:.{self.digits + extra}f}"

    def signed(self, difference: float) -> str:
        """A difference of stored values with a sign; what rounds to zero has none."""
        return signed(self.scale * difference, self.digits)

    def better(self, difference: float) -> float:
        """A difference as it is printed (rounded), positive where it is for the better."""
        return round(self.scale * difference, self.digits) * (1 if self.higher else -1)

    def ratio(self, value: float, reference: float) -> float | None:
        """How much of the reference's quality a value has: above 1 is better; None when that is undefined."""
        top, bottom = (value, reference) if self.higher else (reference, value)
        return top / bottom if bottom > 0 else None


METRICS = {
    "top1": Metric("top-1", "%"),
    "per_class": Metric("mean per class", "%"),
    "miou": Metric("mIoU", "%", accuracy=False),
    "rmse": Metric("RMSE", "m", scale=1.0, digits=3, higher=False, accuracy=False),
}
"""By the name in a result record, the one that a benchmark is judged by first."""


def named_metric(name: str) -> Metric:
    """The measure behind a metric's name in a results table: `top1_k20` is a top-1; an unknown one is shown as stored."""
    if name in METRICS:
        return METRICS[name]
    if match := re.fullmatch(r"top([0-9]+)(?:_(.+))?", name):
        setting = re.sub(r"([a-z]+)([0-9]+)", r"\1 = \2", match[2] or "").replace("_", " ")
        return Metric(f"top-{match[1]}" + (f", {setting}" if setting else ""), "%")
    return Metric(name, "", scale=1.0, digits=4, accuracy=False)


def signed(points: float, digits: int = 1) -> str:
    """Points with a sign; what rounds to zero has none."""
    text = f"{abs(points):.{digits}f}"
    if float(text) == 0:
        return f"±{text}"
    return ("+" if points > 0 else MINUS) + text


UNKNOWN_CLIP = 5e-4
"""Distance from 0 and 1 at which accuracies are clipped when the number of test images is not known."""


def log_odds(accuracy: float, samples: int | None) -> float:
    """log(p / (1 - p)) of an accuracy, in nats, finite: p is kept half a test image away from 0 and 1.

    Averaged over benchmarks it is the summary of t-ReX (Sariyildiz et al., ICLR 2023) and UNIC (ECCV 2024): a point
    counts for more where accuracies are near 100 %.
    """
    edge = 0.5 / samples if samples else UNKNOWN_CLIP
    p = min(max(accuracy, edge), 1 - edge)
    return math.log(p / (1 - p))
