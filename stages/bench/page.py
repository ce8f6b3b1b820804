"""The picture of a bench: for every stage, what its pieces allow beside the time that it really takes."""

from collections.abc import Sequence

from markupsafe import Markup, escape

from unic_pipe.pipeline.process.svg import element, fit, nice_ticks, picture, table, text, tick_labels
from unic_pipe.schemas.bench import BenchReport, BenchRow, Bound
from unic_pipe.stages.bench.words import TITLES, comparisons, conditions, headlines

WIDTH, LEFT, RIGHT = 760.0, 92.0, 24.0
BAR, GAP, TOP, BOTTOM = 30.0, 12.0, 10.0, 78.0
RESOURCES = ("device", "host", "disk")
STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfa; --ink: #1b2025; --soft: #5a636d; --line: #dfe0da; --grid: #e9e9e4;
  --c0: #0b5fa5; --c1: #c84f17; --c2: #7a3c9a; --c3: #00846a; --c4: #a87600; --c5: #bb4d7c; --grey: #7d858d; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e7e9eb; --soft: #a0a9b2;
  --line: #333a41; --grid: #262c31; --c0: #5fb0f5; --c1: #f28f4c; --c2: #c397e3; --c3: #36c6a2; --c4: #e3b53f;
  --c5: #ef93b6; --grey: #9aa3ab; } }
body { margin: 0 auto; padding: 2rem 1.25rem 3rem; max-width: 860px; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, "Liberation Sans", Arial, sans-serif; font-variant-numeric: tabular-nums; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .25rem; }
p { margin: .25rem 0; color: var(--soft); } svg { width: 100%; height: auto; display: block; margin: .5rem 0; }
svg .tick, svg .label { font-size: 12px; fill: var(--soft); }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .875rem; }
td, th { padding: .2rem .8rem .2rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
td:first-child, th:first-child { text-align: left; }
"""


def page(report: BenchReport) -> bytes:
    """One HTML file that needs nothing else."""
    said = headlines(report)
    parts = []
    for name, title in TITLES.items():
        rows = [row for row in report.rows if row.part == name]
        if not rows:
            continue
        parts += [element("h2", title), element("p", said.get(name, ""))]
        parts += [bars(report, bound) for bound in report.bounds if bound.part == name]
        parts.append(element("div", _table(rows), class_="scroll"))
    notes = [element("p", note) for note in (*comparisons(report), *report.notes)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Bench</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>Where the time goes</h1><p>{escape(conditions(report))}.</p>"
        f"{''.join(notes)}{''.join(parts)}</body></html>\n"
    ).encode()


def bars(report: BenchReport, bound: Bound) -> Markup:
    """What keeps each resource busy, piece by piece, and the wall time below; seconds of one repetition."""
    on_gpu = report.device != "cpu"
    pieces = [row for row in report.rows if row.part == bound.part and row.bound_share is not None]
    lines = {r: [p for p in pieces if p.resource == r] for r in RESOURCES} if on_gpu else {"pieces": pieces}
    lines = {name: mine for name, mine in lines.items() if mine}
    longest = max([bound.wall_seconds, *(sum(_seconds(p, report) for p in mine) for mine in lines.values())])
    ticks = nice_ticks(0.0, longest)
    height = TOP + (len(lines) + 1) * (BAR + GAP) + BOTTOM

    def x(seconds: float) -> float:
        return LEFT + seconds / ticks[-1] * (WIDTH - LEFT - RIGHT)

    parts: list[str] = []
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        down = height - BOTTOM
        parts.append(element("line", x1=x(tick), x2=x(tick), y1=TOP, y2=down, style="stroke:var(--grid)"))
        parts.append(text(x(tick), down + 16, f"{label} s", "tick", "middle"))
    for line, (name, mine) in enumerate(lines.items()):
        y, start = TOP + line * (BAR + GAP), 0.0
        parts.append(text(LEFT - 8, y + BAR / 2 + 4, name, "label", "end"))
        for piece in mine:
            seconds = _seconds(piece, report)
            parts.append(_bar(x(start), y, x(start + seconds) - x(start), _colour(pieces, piece), piece.name))
            start += seconds
    y = TOP + len(lines) * (BAR + GAP)
    parts.append(text(LEFT - 8, y + BAR / 2 + 4, "wall", "label", "end"))
    parts.append(_bar(x(0), y, x(bound.wall_seconds) - x(0), "var(--grey)", f"wall {bound.wall_seconds:.2f} s"))
    parts += _legend(pieces, report, height - 34)
    told = "; ".join(f"{p.name} {_seconds(p, report):.2f} s" for p in pieces)
    return picture(WIDTH, height, f"bars-{bound.part}", TITLES[bound.part], told, *parts)


def _bar(x: float, y: float, width: float, colour: str, name: str) -> Markup:
    return element("rect", element("title", name), x=x, y=y, width=max(width, 0.5), height=BAR, style=f"fill:{colour}")


def _legend(pieces: Sequence[BenchRow], report: BenchReport, y: float) -> list[str]:
    parts: list[str] = []
    columns = 4
    for i, piece in enumerate(pieces):
        x, line = LEFT + i % columns * (WIDTH - LEFT) / columns, y + i // columns * 18
        parts.append(element("rect", x=x, y=line - 10, width=11, height=11, style=f"fill:{_colour(pieces, piece)}"))
        label = f"{piece.name} {_seconds(piece, report):.2f} s"
        parts.append(text(x + 16, line, fit(label, (WIDTH - LEFT) / columns - 20, 12), "label", full=label))
    return parts


def _colour(pieces: Sequence[BenchRow], piece: BenchRow) -> str:
    return f"var(--c{[p.name for p in pieces].index(piece.name) % 6})"


def _seconds(piece: BenchRow, report: BenchReport) -> float:
    """Wall seconds of a device's or disk's piece; of the host's, CPU seconds over the cores."""
    return piece.seconds if report.device != "cpu" and piece.resource != "host" else piece.cpu_seconds / report.cores


def _table(rows: Sequence[BenchRow]) -> Markup:
    head = ("piece", "ms per image", "lowest", "highest", "CPU ms per image", "of the bound", "keeps busy")
    body = []
    for row in rows:
        times = (row.seconds, row.low_seconds, row.high_seconds, row.cpu_seconds)
        share = "" if row.bound_share is None else f"{row.bound_share:.1%}"
        body.append((row.name, *(f"{1000 * s / row.images:,.3f}" for s in times), share, row.resource or ""))
    return table(head, body)
