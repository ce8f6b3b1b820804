"""Small pieces of SVG and HTML: escaped elements, tables, labels, round ticks, markers."""

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup, escape


def element(tag: str, *children: str, **attributes: str | float | None) -> Markup:
    """One element with escaped attributes and text; `_` in attribute names stands for `-`, a final one is dropped."""
    parts = [
        f' {key.rstrip("_").replace("_", "-")}="{escape(number(value) if isinstance(value, (int, float)) else value)}"'
        for key, value in attributes.items()
        if value is not None
    ]
    inside = "".join(escape(child) for child in children)
    return Markup(f"<{tag}{''.join(parts)}>{inside}</{tag}>")


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> Markup:
    """An HTML table of texts under a row of heads."""
    rows = (element("tr", *(element("td", cell) for cell in cells)) for cells in body)
    return element("table", element("tr", *(element("th", name) for name in head)), *rows)


def number(value: float) -> str:
    """A coordinate with at most two decimals."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def picture(width: float, height: float, identity: str, title: str, description: str, *children: str) -> Markup:
    """An accessible <svg> that scales with its container."""
    return element(
        "svg",
        element("title", title, id=f"{identity}-t"),
        element("desc", description, id=f"{identity}-d"),
        *children,
        viewBox=f"0 0 {number(width)} {number(height)}",
        role="img",
        aria_labelledby=f"{identity}-t {identity}-d",
        xmlns="http://www.w3.org/2000/svg",
    )


def text(x: float, y: float, content: str, class_: str = "", anchor: str | None = None, full: str = "") -> Markup:
    """A label; `full` is shown on hover when the label was shortened."""
    hover = (element("title", full),) if full and full != content else ()
    return element("text", content, *hover, x=x, y=y, class_=class_ or None, text_anchor=anchor)


def shorten(name: str, limit: int) -> str:
    """A name of at most `limit` characters; both ends of a longer one survive."""
    if len(name) <= limit:
        return name
    head = (limit - 1) * 2 // 3
    return f"{name[:head]}…{name[len(name) - (limit - 1 - head) :]}"


def fit(name: str, room: float, size: float) -> str:
    """The name, shortened until it is at most `room` wide in a sans-serif font of this size, even a wide one."""
    limit = len(name)
    while limit > 4 and size * sum(map(_em, shorten(name, limit))) > room:
        limit -= 1
    return shorten(name, limit)


def _em(character: str) -> float:
    """Upper estimate of a character's width, in ems."""
    if character in "ijlI.,:;'|!":
        return 0.33
    if character in "frt-/()":
        return 0.42
    return 1.0 if character in "mwMW…@%" or not character.isascii() else 0.7 if character.isupper() else 0.64


def marker(shape: str, x: float, y: float, size: float, colour: str) -> Markup:
    """A small filled sign centred on (x, y)."""
    s = size
    corners = {
        "square": ((-s, -s), (s, -s), (s, s), (-s, s)),
        "triangle": ((0, -1.2 * s), (1.15 * s, s), (-1.15 * s, s)),
        "down": ((0, 1.2 * s), (1.15 * s, -s), (-1.15 * s, -s)),
        "diamond": ((0, -1.35 * s), (1.35 * s, 0), (0, 1.35 * s), (-1.35 * s, 0)),
    }
    style = f"fill:{colour}"
    if shape == "circle":
        return element("circle", cx=x, cy=y, r=s * 1.1, style=style)
    if shape == "cross":
        d = f"M{number(x - s)} {number(y - s)}L{number(x + s)} {number(y + s)}"
        d += f"M{number(x - s)} {number(y + s)}L{number(x + s)} {number(y - s)}"
        return element("path", d=d, style=f"stroke:{colour};stroke-width:2;fill:none")
    points = " ".join(f"{number(x + dx)},{number(y + dy)}" for dx, dy in corners[shape])
    return element("polygon", points=points, style=style)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten) that enclose [low, high]."""
    if not high > low:
        spread = abs(low) * 0.05 or 0.5
        low, high = low - spread, high + spread
    raw = (high - low) / max(count - 1, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.8)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def tick_labels(ticks: list[float]) -> list[str]:
    """Labels with exactly the decimals that tell the ticks apart; thousands grouped; tiny ones as powers of ten."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    largest = max(map(abs, ticks))
    if largest < 0.01:
        power = math.floor(math.log10(largest) + 1e-9)
        decimals = max(0, power - math.floor(math.log10(step) + 1e-9))
        return ["0" if t == 0 else f"{t / 10.0**power:.{decimals}f}e{power}".replace("-", "−") for t in ticks]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{t:,.{decimals}f}".replace("-", "−") for t in ticks]
