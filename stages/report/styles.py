"""Each encoder's colour, dash and marker, and its sample in a legend."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup

from unic_pipe.pipeline.process.svg import element, marker
from unic_pipe.stages.report.data import EncoderEntry

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
