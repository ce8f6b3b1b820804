"""The charts: each encoder's colour, dash and marker; a radar of relative scores, and panels of curves, as inline SVG."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup

from unic_pipe.pipeline.process.svg import element, fit, marker, nice_ticks, number, picture, text, tick_labels
from unic_pipe.stages.report.data import EncoderEntry, Series

DASHES = ("", "6 3", "2 3", "9 3 2 3", "12 4", "4 2 1 2")
MARKERS = ("circle", "square", "triangle", "diamond", "cross", "down")
STUDENT_COLOURS = (0, 1, 2, 8, 7, 6, 5, 4)
TEACHER_COLOURS = (3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class Style:
    """How one series is drawn: told apart by colour, and without colour by dash and marker."""

    colour: str
    """A CSS value, such as `var(--c0)`."""
    dash: str
    marker: str
    width: float


def styles(encoders: Iterable[EncoderEntry]) -> dict[str, Style]:
    """A style for every encoder. Students are thick and solid, teachers dashed, baselines grey and dotted."""
    found: dict[str, Style] = {}
    counts = {"student": 0, "teacher": 0, "baseline": 0}
    for encoder in encoders:
        role = "teacher" if encoder.role == "encoder" else encoder.role
        n = counts[role]
        counts[role] += 1
        if role == "student":
            found[encoder.name] = Style(_colour(STUDENT_COLOURS, n), "", MARKERS[n % len(MARKERS)], 2.4)
        elif role == "teacher":
            dash = DASHES[1 + n % (len(DASHES) - 1)]
            found[encoder.name] = Style(_colour(TEACHER_COLOURS, n), dash, MARKERS[(n + 1) % len(MARKERS)], 1.4)
        else:
            found[encoder.name] = Style("var(--grey)", "1.5 3", MARKERS[(4 + n) % len(MARKERS)], 1.6)
    return found


def _colour(choices: tuple[int, ...], n: int) -> str:
    return f"var(--c{choices[n % len(choices)]})"


def swatch(style: Style) -> Markup:
    """The sample of a line that stands in a legend."""
    stroke = f"stroke:{style.colour};stroke-width:{style.width};stroke-dasharray:{style.dash or 'none'}"
    return element(
        "svg",
        element("line", x1=1, y1=6, x2=29, y2=6, style=stroke),
        *([marker(style.marker, 15, 6, 3.2, style.colour)] if style.marker != "none" else []),
        viewBox="0 0 30 12",
        width=30,
        height=12,
        aria_hidden="true",
        class_="swatch",
    )


POINTS_PER_CURVE = 120
RELATIVE_TITLE = "Scores relative to the best teacher of each benchmark (100)"
CLIP_BELOW = 60.0
"""Per cent. A random baseline below this is drawn at the radar's centre instead of squeezing everything else."""


@dataclass(frozen=True)
class Axis:
    """A benchmark, or a group of them: its name, and a note under it."""

    name: str
    note: str


@dataclass(frozen=True)
class Polygon:
    """One encoder's relative scores in per cent, by axis; None where it has no result."""

    name: str
    role: str
    values: tuple[float | None, ...]
    style: Style


@dataclass(frozen=True)
class Line:
    """One curve of a panel; `name` is used in the description."""

    name: str
    series: Series
    style: Style
    band: bool = False
    """Also show the range of the values that each drawn point averages."""
    marks: bool = False


@dataclass(frozen=True)
class Radar:
    """A radar plot, the per cent at its centre, and what that cut off."""

    picture: Markup
    centre: float
    cut: tuple[str, ...]
    """Names with a value below the centre, drawn at the centre."""
    left_out: tuple[str, ...]
    """Names that lie below the centre everywhere."""


def radar(axes: Sequence[Axis], polygons: Sequence[Polygon]) -> Radar:
    """A radar plot of at least three axes."""
    count = len(axes)
    bottom = max(-math.cos(2 * math.pi * i / count) for i in range(count))
    width, radius = 500.0, min(262 / (1 + bottom), 155.0)
    cx, cy = width / 2, radius + 42.0
    levels = rings(polygons)
    low, high = levels[0], levels[-1]
    drawn = [p for p in polygons if any(v is not None and v > low for v in p.values)]

    def at(axis: int, value: float, extra: float = 0.0) -> tuple[float, float]:
        angle = 2 * math.pi * axis / count
        r = radius * (min(max(value, low), high) - low) / (high - low) + extra
        return cx + r * math.sin(angle), cy - r * math.cos(angle)

    parts: list[Markup] = []
    for ring in levels[1:]:
        outline = " ".join(f"{number(x)},{number(y)}" for x, y in (at(i, ring) for i in range(count)))
        parts.append(element("polygon", points=outline, class_="ring best" if abs(ring - 100) < 1e-9 else "ring"))
    for i, axis in enumerate(axes):
        x, y = at(i, high)
        parts.append(element("line", x1=cx, y1=cy, x2=x, y2=y, class_="spoke"))
        parts += _axis_label(axis, at(i, high, 12), 2 * math.pi * i / count, width, count)
    # The first and last label would touch the centre's lines and the axis label.
    for ring, label in list(zip(levels, tick_labels(levels), strict=True))[1:-1]:
        parts.append(text(cx + 4, cy - radius * (ring - low) / (high - low) + 4, label, "halo"))
    for polygon in sorted(drawn, key=lambda p: p.role == "student"):
        parts += _polygon(polygon, [None if v is None else at(i, v) for i, v in enumerate(polygon.values)])
    description = "; ".join(f"{p.name}: {spoken(axes, p.values)}" for p in polygons)
    height = cy + radius * bottom + 42
    return Radar(
        picture(width, height, "radar", RELATIVE_TITLE, description, *parts),
        low,
        tuple(p.name for p in drawn if any(v is not None and v < low for v in p.values)),
        tuple(p.name for p in polygons if p not in drawn),
    )


def rings(polygons: Sequence[Polygon]) -> list[float]:
    """Round values that enclose what is to be shown; a baseline far below the others does not count."""
    values = [v for p in polygons for v in p.values if v is not None]
    core = [v for p in polygons if p.role != "baseline" for v in p.values if v is not None] or values
    low, high = min(core if min(values) < CLIP_BELOW else values), max(*values, 100.0)
    margin = max((high - low) * 0.15, 0.5)
    return nice_ticks(max(low - margin, 0.0), high, 6)


def _axis_label(axis: Axis, at: tuple[float, float], angle: float, width: float, count: int) -> list[Markup]:
    """Name and note at the end of a spoke: centred above or below where there is room, else beside it."""
    x, y = at
    sine, cosine = math.sin(angle), math.cos(angle)
    if abs(sine) < 0.2 or (count <= 5 and cosine < -0.4):
        anchor, room = "middle", 2 * min(x, width - x)
        y += -14 if cosine > 0 else 10
    else:
        anchor, room = ("start", width - x) if sine > 0 else ("end", x)
        y -= 2
    labels = [text(x, y, fit(axis.name, min(room, 170), 13), "label", anchor, axis.name)]
    if count <= 12:
        labels.append(text(x, y + 14, fit(axis.note, min(room, 170), 11.5), "faint", anchor, axis.note))
    return labels


def _polygon(polygon: Polygon, points: Sequence[tuple[float, float] | None]) -> list[Markup]:
    style = polygon.style
    closed = [*points, points[0]]
    path = "".join(
        f"{'L' if i and closed[i - 1] is not None else 'M'}{number(p[0])} {number(p[1])}"
        for i, p in enumerate(closed)
        if p is not None
    )
    fill = "none" if polygon.role != "student" or None in points else style.colour
    look = f"stroke:{style.colour};stroke-width:{style.width};stroke-dasharray:{style.dash or 'none'};fill:{fill}"
    shapes = [element("path", d=path, style=look, class_="shape")]
    for point, value in zip(points, polygon.values, strict=True):
        if point is not None:
            hover = element("title", f"{polygon.name}: {value:.1f}")
            shapes.append(element("g", hover, marker(style.marker, *point, 3.2, style.colour)))
    return shapes


def spoken(axes: Sequence[Axis], values: Sequence[float | None]) -> str:
    """One encoder's values in words, for those who do not see the picture."""
    said = (f"{a.name} {'no result' if v is None else f'{v:.1f}'}" for a, v in zip(axes, values, strict=True))
    return ", ".join(said)


def panel(
    identity: str, title: str, lines: Sequence[Line], end: float, limits: tuple[float, float] | None = None
) -> Markup:
    """Curves over epochs 0 to `end`; the vertical range is round and fits the data unless `limits` are given."""
    width, height, left, right, top, bottom = 360.0, 220.0, 46.0, 10.0, 10.0, 34.0
    thinned = [(line, thin(line.series)) for line in lines]
    low, high = limits or _span([t for _, t in thinned])
    ticks = nice_ticks(low, high, 6 if limits else 5)
    low, high = (low, high) if limits else (ticks[0], ticks[-1])

    def x_of(epoch: float) -> float:
        return left + (width - left - right) * epoch / end

    def y_of(value: float) -> float:
        return height - bottom - (height - top - bottom) * (value - low) / (high - low)

    labels = [f"{100 * t:.0f} %" for t in ticks] if limits else tick_labels(ticks)
    parts = []
    for tick, label in zip(ticks, labels, strict=True):
        y = y_of(tick)
        parts.append(element("line", x1=left, y1=y, x2=width - right, y2=y, class_="grid"))
        parts.append(text(left - 6, y + 4, label, "tick", "end"))
    across = [t for t in nice_ticks(0, end, 6) if t <= end * 1.0001]
    for tick, label in zip(across, tick_labels(across), strict=True):
        parts.append(text(x_of(tick), height - bottom + 16, label, "tick", "middle"))
    parts.append(text((left + width - right) / 2, height - 3, "epoch", "faint", "middle"))
    parts.append(element("line", x1=left, y1=height - bottom, x2=width - right, y2=height - bottom, class_="axis"))
    for line, points in thinned:
        places = [(x_of(e), y_of(m), y_of(lo), y_of(hi)) for e, m, lo, hi in points]
        parts += curve(line.style, places, band=line.band, marks=line.marks)
    said = (f"{line.name} from {p[0][1]:.3g} to {p[-1][1]:.3g}" for line, p in thinned if p)
    return picture(width, height, identity, title, "; ".join(said), *parts)


Thinned = list[tuple[float, float, float, float]]
"""Epoch, mean, minimum and maximum of each drawn point."""


def thin(series: Series, limit: int = POINTS_PER_CURVE) -> Thinned:
    """At most `limit` points: means over runs of equally many rows, with the range of each run."""
    count = len(series.values)
    cuts = [round(i * count / min(limit, count)) for i in range(min(limit, count) + 1)] if count else [0]
    runs = [(series.epochs[a:b], series.values[a:b]) for a, b in pairwise(cuts)]
    return [(math.fsum(e) / len(e), math.fsum(v) / len(v), min(v), max(v)) for e, v in runs]


def _span(curves: Sequence[Thinned]) -> tuple[float, float]:
    values = [bound for curve in curves for _, _, low, high in curve for bound in (low, high)]
    low, high = min(values), max(values)
    # An axis that almost reaches zero may as well start there.
    return (0.0 if 0 <= low < 0.25 * high else low), high


def curve(
    style: Style, points: Sequence[tuple[float, float, float, float]], *, band: bool = False, marks: bool = False
) -> list[Markup]:
    """The shapes of one curve, of points (x, mean y, y of the minimum, y of the maximum) on the drawing."""
    if not points:
        return []
    shapes = []
    if band:
        edge = [(x, hi) for x, _, _, hi in points] + [(x, lo) for x, _, lo, _ in reversed(points)]
        outline = " ".join(f"{number(x)},{number(y)}" for x, y in edge)
        shapes.append(element("polygon", points=outline, style=f"fill:{style.colour}", class_="band"))
    d = "".join(f"{'L' if i else 'M'}{number(x)} {number(y)}" for i, (x, y, _, _) in enumerate(points))
    look = f"stroke:{style.colour};stroke-width:{style.width};stroke-dasharray:{style.dash or 'none'}"
    shapes.append(element("path", d=d, style=look, class_="curve"))
    if marks or len(points) == 1:
        every = max(1, len(points) // 8)
        shape = "circle" if style.marker == "none" else style.marker
        shapes += [marker(shape, x, y, 2.6, style.colour) for x, y, _, _ in points[::-every][::-1]]
    return shapes
