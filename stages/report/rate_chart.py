"""The picture of a cache report: bits per value against signal-to-noise ratio, all codecs on the user's own features."""

import math
from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup, escape

from unic_pipe.pipeline.process.svg import element, marker, nice_ticks, number, picture, table, text
from unic_pipe.schemas.status import CacheLoss, CacheReport, RateCurve
from unic_pipe.stages.report.charts import Style

WIDTH, HEIGHT = 640.0, 380.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 118.0, 16.0, 46.0
BITS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
STYLES = {
    "klt": Style("var(--c0)", "", "circle", 2.4),
    "scalar": Style("var(--c1)", "6 3", "square", 1.8),
    "int8": Style("var(--c3)", "", "triangle", 1.4),
    "float16": Style("var(--c4)", "", "diamond", 1.4),
    "Gaussian R(D)": Style("var(--grey)", "1.5 3", "none", 1.6),
}
OTHER = Style("var(--grey)", "", "circle", 1.4)


def rate_chart(curve: RateCurve, written: CacheLoss | None) -> Markup:
    """One chart; `written` is marked where the cache itself lies."""
    points = [p for p in curve.points if p.bits_per_value > 0]
    low = max(BITS[0], min(p.bits_per_value for p in points) * 0.8)
    high = max(p.bits_per_value for p in points) * 1.25
    top = max(p.snr_db for p in points)
    ticks = nice_ticks(0.0, top)

    def x(bits: float) -> float:
        share = math.log(max(bits, low) / low) / math.log(high / low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(snr_db: float) -> float:
        return HEIGHT - BOTTOM - (snr_db / ticks[-1]) * (HEIGHT - TOP - BOTTOM)

    parts: list[str] = [
        element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(t), y2=y(t), style="stroke:var(--grid)") for t in ticks
    ]
    parts += [text(LEFT - 8, y(t) + 4, f"{t:g}", "tick", "end") for t in ticks]
    for bits in (b for b in BITS if low <= b <= high):
        parts.append(element("line", x1=x(bits), x2=x(bits), y1=TOP, y2=HEIGHT - BOTTOM, style="stroke:var(--grid)"))
        parts.append(text(x(bits), HEIGHT - BOTTOM + 18, f"{bits:g}", "tick", "middle"))
    parts.append(text(LEFT, HEIGHT - 6, "bits per value (logarithmic)", "tick"))
    parts.append(text(LEFT + 6, TOP + 10, "SNR in dB", "tick"))
    others = {p.codec: OTHER for p in points if p.codec not in STYLES}
    for name, style in (STYLES | others).items():
        mine = sorted((p for p in points if p.codec == name), key=lambda p: p.snr_db)
        parts += _series(name, style, [(x(p.bits_per_value), y(p.snr_db)) for p in mine])
    title = f"{curve.teacher}, {curve.token} tokens of {curve.dataset}"
    told = "; ".join(f"{p.codec} {p.bits_per_value:.2f} bits at {p.snr_db:.1f} dB" for p in points)
    if written is not None:
        spot = x(written.bits_per_value), y(min(written.snr_db, ticks[-1]))
        parts.append(element("circle", cx=spot[0], cy=spot[1], r=8, style="fill:none;stroke:var(--ink);stroke-width:2"))
        parts.append(text(spot[0] + 12, spot[1] + 16, "written", "label"))
    return picture(WIDTH, HEIGHT, f"rate-{curve.teacher}-{curve.token}", title, told, *parts)


def write_cache_report(path: Path, report: CacheReport) -> bytes:
    """The page: a table of what was written, and a chart for each teacher and token type."""
    css = (Path(__file__).parent / "report.css").read_text()
    written = {(row.teacher, row.dataset, row.token): row for row in report.rows}
    charts = [
        element("h2", f"{c.teacher}, {c.token} ({c.dataset})")
        + rate_chart(c, written.get((c.teacher, c.dataset, c.token)))
        for c in report.curves
    ]
    head = ("teacher", "dataset", "token", "codec", "bits/value", "MB", "SNR dB", "cosine", "worst", "Gaussian R(D)")
    body = [
        (row.teacher, row.dataset, row.token, row.codec, f"{row.bits_per_value:.3f}", f"{row.bytes / 1e6:.2f}",
         f"{row.snr_db:.1f}", f"{row.cosine_mean:.4f}", f"{row.cosine_min:.4f}", f"{row.gaussian_rd_bits:.3f}")
        for row in report.rows
    ]  # fmt: skip
    style = (
        f"{css}\nsvg .tick,svg .label{{font-size:12px;fill:var(--soft)}}td,th{{padding:.25rem .75rem;text-align:left}}"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Cache report</title>'
        f"<style>{style}</style></head><body><h1>What compression cost</h1>"
        "<p>Measured on features standardized per dimension, read back from the cache, against the teacher run again. "
        f"Report of {escape(path.parent.parent.name)}.</p>{table(head, body)}{''.join(charts)}</body></html>\n"
    ).encode()


def _series(name: str, style: Style, at: Sequence[tuple[float, float]]) -> list[str]:
    """A line with its signs, and its name at its upper end."""
    if not at:
        return []
    parts: list[str] = []
    if len(at) > 1:
        d = "M" + "L".join(f"{number(px)} {number(py)}" for px, py in at)
        stroke = f"fill:none;stroke:{style.colour};stroke-width:{style.width};stroke-dasharray:{style.dash or 'none'}"
        parts.append(element("path", d=d, style=stroke))
    if style.marker != "none":
        parts += [marker(style.marker, px, py, 3.2, style.colour) for px, py in at]
    # The curves end beside each other: the reference is named at its lower end.
    px, py = at[0] if name == "Gaussian R(D)" else at[-1]
    parts.append(text(px + 8, py - 6, name, "label"))
    return parts
