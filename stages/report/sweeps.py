"""Curves over a setting that no validation chose: k of k-NN, labelled images per class."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from unic_pipe.pipeline.process.svg import element, nice_ticks, number, picture, text, tick_labels
from unic_pipe.stages.report.charts import Style, curve, swatch
from unic_pipe.stages.report.data import BenchmarkEntry, ReportData
from unic_pipe.stages.report.figures import Chart, looks_of
from unic_pipe.stages.report.summary import capital, probe_name
from unic_pipe.stages.report.view import ProbeView

SETTINGS = {"k": "k (neighbours)"}
SHOTS = "training images per class"
"""The setting of every other curve, which is named by its classifier."""
POINTS = 3
"""Fewer values are no curve; the list of all results has them."""
WIDTH, HEIGHT, LEFT, EDGE, BOTTOM = 360.0, 220.0, 40.0, 12.0, 34.0

Named = tuple[str, Style, tuple[tuple[float, float], ...]]
"""An encoder, its look, and its points (setting, top-1)."""


@dataclass(frozen=True)
class Sweep:
    """A heading, one legend, and a panel per benchmark."""

    title: str
    legend: tuple[tuple[Markup, str], ...]
    charts: tuple[Chart, ...]


def sweep_panels(data: ReportData) -> list[Sweep]:
    """Panels for every probe and setting with at least `POINTS` values."""
    looks = looks_of(data)
    found: list[Sweep] = []
    for probe in data.probes:
        view = ProbeView(data, probe)
        for setting in dict.fromkeys(name for s in view.scores.values() for name in s.curves):
            shown: dict[str, Style] = {}
            charts: list[Chart] = []
            for bench in view.benchmarks:
                curves = _curves(view, bench, setting, looks)
                if any(len(points) >= POINTS for _, _, points in curves):
                    shown |= {name: look for name, look, _ in curves}
                    identity = f"s-{len(found)}-{len(charts)}"
                    charts.append(Chart(bench.name, _panel(identity, bench.name, setting, curves)))
            if charts:
                classifier = "" if setting in SETTINGS else f" ({setting})"
                title = f"{capital(probe_name(probe))}{classifier} by {SETTINGS.get(setting, SHOTS)}"
                legend = tuple((swatch(look), name) for name, look in shown.items())
                found.append(Sweep(title, legend, tuple(charts)))
    return found


def _curves(view: ProbeView, bench: BenchmarkEntry, setting: str, looks: dict[str, Style]) -> list[Named]:
    scores = [(e.name, view.scores.get((bench.name, e.name))) for e in view.data.ordered()]
    return [(name, looks[name], s.curves[setting]) for name, s in scores if s is not None and setting in s.curves]


def _panel(identity: str, title: str, setting: str, curves: Sequence[Named]) -> Markup:
    """Top-1 in per cent over the setting, which is spaced by its logarithm."""
    settings = sorted({x for _, _, points in curves for x, _ in points})
    values = [100 * y for _, _, points in curves for _, y in points]
    ticks = nice_ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]
    width = math.log(settings[-1] / settings[0]) or 1.0

    def at(x: float, y: float) -> tuple[float, float, float, float]:
        across = LEFT + EDGE + (WIDTH - LEFT - 2 * EDGE) * math.log(x / settings[0]) / width
        up = HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 10) * (100 * y - low) / (high - low)
        return across, up, up, up

    parts = []
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        y = at(settings[0], tick / 100)[1]
        parts.append(element("line", x1=LEFT, y1=y, x2=WIDTH, y2=y, class_="grid"))
        parts.append(text(LEFT - 6, y + 4, label, "tick", "end"))
    parts += [text(at(x, 0)[0], HEIGHT - BOTTOM + 16, number(x), "tick", "middle") for x in settings]
    parts.append(text((LEFT + WIDTH) / 2, HEIGHT - 3, SETTINGS.get(setting, SHOTS), "faint", "middle"))
    parts.append(element("line", x1=LEFT, y1=HEIGHT - BOTTOM, x2=WIDTH, y2=HEIGHT - BOTTOM, class_="axis"))
    # Students come first and are drawn last, on top.
    for _, look, points in reversed(curves):
        parts += curve(look, [at(x, y) for x, y in points], marks=True)
    said = (f"{name} " + ", ".join(f"{100 * y:.1f} at {x:g}" for x, y in points) for name, _, points in curves)
    return picture(
        WIDTH,
        HEIGHT,
        identity,
        f"{title}: top-1 in per cent by {SETTINGS.get(setting, SHOTS)}",
        "; ".join(said),
        *parts,
    )
