"""The picture of README's table of the demo: docs/demo.svg.

usage: python docs/hooks/demo_figure.py     after the table has changed (a test says so)
"""

from __future__ import annotations

import html
from pathlib import Path

ROOT = Path(__file__).parents[2]
WIDTH, LEFT, RIGHT, TOP, ROW = 640, 200, 30, 92, 50
"""Of the picture in units of its own; `ROW` is the height of a benchmark's band."""
LOWEST, STEP = 20, 20
"""Per cent at the left end, and between grid lines."""
STYLE = """\
.bg{fill:#fdfdfc}text{fill:#1c2430;font-size:14px}.s{fill:#566170;font-size:12.5px}.g{stroke:#dfe4ea;stroke-width:1}
.t0,.t1{fill:none;stroke:#b3541e;stroke-width:2.4}.t1{stroke:#8a6d00}
.p{fill:#0f5c9c;fill-opacity:.75}
@media (prefers-color-scheme:dark){
.bg{fill:#14181d}text{fill:#e8edf2}.s{fill:#9aa7b5}.g{stroke:#2a333d}
.t0{stroke:#f0915a}.t1{stroke:#e0c04a}.p{fill:#57b0f2}
}"""


def table(readme: str) -> tuple[list[str], list[tuple[str, list[float]]]]:
    """Benchmarks, and every encoder with its scores, as README's table has them."""
    text = readme.partition("<!-- demo -->")[2].partition("<!-- /demo -->")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in lines]
    return rows[0][1:], [(row[0].replace("`", ""), [float(x) for x in row[1:]]) for row in rows[2:]]


def place(score: float) -> float:
    """Where a score in per cent is, from left to right."""
    return round(LEFT + (WIDTH - LEFT - RIGHT) * (score - LOWEST) / (100 - LOWEST), 1)


def mark(name: str, teachers: list[str], x: float, y: float) -> str:
    """A diamond for a teacher, a disc for a student."""
    title = f"<title>{html.escape(name)}</title>"
    if name in teachers:
        kind = f"t{teachers.index(name)}"
        return f'<path class="{kind}" d="M{x} {y - 8}l8 8-8 8-8-8z">{title}</path>'
    return f'<circle class="p" cx="{x}" cy="{y}" r="6">{title}</circle>'


def picture(readme: str) -> str:
    """The SVG: a band for every benchmark, a mark for every encoder."""
    benchmarks, encoders = table(readme)
    teachers = [name for name, _ in encoders if name.startswith("teacher")]
    bottom = TOP + ROW * len(benchmarks)
    parts = [f'<rect class="bg" width="{WIDTH}" height="{bottom + 40}" rx="10"/>']
    others = [("student", "students, each of them a training")]
    for i, (name, label) in enumerate([*((teacher, teacher) for teacher in teachers), *others]):
        x, y = 26 + WIDTH // 2 * (i % 2), 26 + 28 * (i // 2)
        parts += [mark(name, teachers, x, y), f'<text class="s" x="{x + 16}" y="{y + 4}">{html.escape(label)}</text>']
    for score in range(LOWEST, 101, STEP):
        parts.append(f'<path class="g" d="M{place(score)} {TOP - 8}V{bottom}"/>')
        parts.append(f'<text class="s" x="{place(score)}" y="{bottom + 20}" text-anchor="middle">{score} %</text>')
    for i, benchmark in enumerate(benchmarks):
        y = TOP + ROW * i + ROW // 2
        parts.append(f'<text x="16" y="{y + 5}">{html.escape(benchmark)}</text>')
        parts += [mark(name, teachers, place(scores[i]), y) for name, scores in reversed(encoders)]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 40}" role="img" '
    head += "font-family=\"system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif\">"
    title = "<title>Linear probes of the demo's students and teachers, top-1 in per cent</title>"
    return "\n".join([head, title, f"<style>\n{STYLE}\n</style>", *parts, "</svg>", ""])


if __name__ == "__main__":
    (ROOT / "docs/demo.svg").write_text(picture((ROOT / "README.md").read_text()))
