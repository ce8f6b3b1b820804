"""The chart of all benchmarks: a row each, a dot per encoder, on a scale where the best teacher is 100."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from unic_pipe.pipeline.process.svg import element, fit, marker, picture, text, tick_labels
from unic_pipe.stages.report.charts import RELATIVE_TITLE, Axis, Polygon, rings, spoken

WIDTH, LEFT, RIGHT, HEAD, GAP = 440.0, 8.0, 10.0, 24.0, 12.0
ROOMY, DENSE = 10.0, 8.0
"""Height of an encoder's lane, for at most five encoders and for more."""


@dataclass(frozen=True)
class Scale:
    """From relative scores in per cent to places on the drawing; what lies below `low` is drawn at its edge."""

    ticks: tuple[float, ...]

    @property
    def low(self) -> float:
        """The value at the left edge."""
        return self.ticks[0]

    def __call__(self, value: float) -> float:
        """The place of a value."""
        share = (max(value, self.low) - self.low) / (self.ticks[-1] - self.low)
        return LEFT + (WIDTH - LEFT - RIGHT) * share


def dots(axes: Sequence[Axis], encoders: Sequence[Polygon], spreads: Sequence[Sequence[float | None]]) -> Markup:
    """One row per benchmark; the bar of a student reaches from the best teacher (100) to its own score.

    `spreads` are relative standard deviations over seeds in per cent, by encoder and axis; drawn as whiskers.
    """
    scale, lane = Scale(tuple(rings(encoders))), ROOMY if len(encoders) <= 5 else DENSE
    parts: list[Markup] = []
    y = 4.0
    for place, axis in enumerate(axes):
        parts.append(text(0, y + 12, fit(axis.name, 250, 13), "label", full=axis.name))
        parts.append(text(WIDTH, y + 12, fit(axis.note, 170, 11.5), "faint", "end", axis.note))
        y += HEAD
        bottom = y + lane * len(encoders)
        for tick in scale.ticks:
            best = "grid best" if abs(tick - 100) < 1e-9 else "grid"
            parts.append(element("line", x1=scale(tick), y1=y - 5, x2=scale(tick), y2=bottom - 2, class_=best))
        if 100 not in scale.ticks:
            parts.append(element("line", x1=scale(100), y1=y - 5, x2=scale(100), y2=bottom - 2, class_="grid best"))
        for encoder, spread in zip(encoders, spreads, strict=True):
            parts += _lane(encoder, place, spread[place], scale, y)
            y += lane
        y += GAP
    for tick, label in zip(scale.ticks, tick_labels(list(scale.ticks)), strict=True):
        anchor = "start" if tick == scale.low else "end" if tick == scale.ticks[-1] else "middle"
        parts.append(text(scale(tick), y + 4, label, "tick", anchor))
    description = "; ".join(f"{e.name}: {spoken(axes, e.values)}" for e in encoders)
    return picture(WIDTH, y + 8, "dots", RELATIVE_TITLE, description, *parts)


def _lane(encoder: Polygon, place: int, spread: float | None, scale: Scale, y: float) -> list[Markup]:
    value, colour = encoder.values[place], encoder.style.colour
    if value is None:
        return []
    x, parts = scale(value), []
    if encoder.role == "student":
        # From the best teacher to the student: the difference that the tables print.
        left, right = sorted((x, scale(100)))
        parts.append(
            element("rect", x=left, y=y - 2, width=right - left, height=4, style=f"fill:{colour}", class_="reach")
        )
    if spread:
        look = f"stroke:{colour};stroke-width:1.4"
        parts.append(element("line", x1=scale(value - spread), y1=y, x2=scale(value + spread), y2=y, style=look))
    size = 4.0 if encoder.role == "student" else 3.0
    hover = element("title", f"{encoder.name}: {value:.1f}")
    parts.append(element("g", hover, marker(encoder.style.marker, x, y, size, colour)))
    if value < scale.low:
        parts.append(text(x + 8, y + 4, f"{value:.0f}", "faint"))
    return parts
