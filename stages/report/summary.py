"""Numbers and sentences that are computed from the scores: the best teacher, differences, the headline."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from stages.report.data import EncoderEntry, ReportData, Score

MINUS = "\N{MINUS SIGN}"
PROBE_NAMES = {"logistic": "linear probe", "knn": "k-NN"}


def percent(value: float, digits: int = 1) -> str:
    """A fraction as per cent, without the sign: .9234 -> `92.3`."""
    return f"{100 * value:.{digits}f}"


def signed(points: float, digits: int = 1) -> str:
    """Points with a sign; what rounds to zero has none."""
    text = f"{abs(points):.{digits}f}"
    if float(text) == 0:
        return f"±{text}"
    return ("+" if points > 0 else MINUS) + text


def plural(count: int, word: str) -> str:
    """`1 benchmark`, `3 benchmarks`."""
    return f"{count} {word}{'' if count == 1 else 's'}"


@dataclass(frozen=True)
class Comparison:
    """A student against the best teacher of one benchmark."""

    benchmark: str
    value: float
    best: float
    teacher: str

    @property
    def points(self) -> float:
        """Difference in points (per cent of the test images)."""
        return 100 * (self.value - self.best)

    @property
    def ratio(self) -> float | None:
        """Value relative to the best teacher's; None when that is 0."""
        return self.value / self.best if self.best > 0 else None

    @property
    def reached(self) -> bool:
        """Whether the student matches or beats the teacher at the precision that is shown (.1 point)."""
        return round(self.points, 1) >= 0


class ProbeView:
    """The scores of one probe, by benchmark and encoder."""

    def __init__(self, data: ReportData, probe: str) -> None:
        self.data, self.probe = data, probe
        self.scores: Mapping[tuple[str, str], Score] = {
            (s.benchmark, s.encoder): s for s in data.scores if s.probe == probe
        }

    def value(self, benchmark: str, encoder: str) -> float | None:
        """Top-1 as a fraction; None when it failed or was not run."""
        score = self.scores.get((benchmark, encoder))
        return None if score is None else score.top1

    def best_teacher(self, benchmark: str) -> tuple[str, float] | None:
        """Name and top-1 of the best teacher of a benchmark; None when no teacher has a result."""
        found = [(self.value(benchmark, t.name), t.name) for t in self.data.named("teacher")]
        done = [(v, name) for v, name in found if v is not None]
        if not done:
            return None
        value = max(v for v, _ in done)
        return next(name for v, name in done if v == value), value

    def comparisons(self, student: str) -> list[Comparison]:
        """The student against the best teacher, for every benchmark where both have a result."""
        found = []
        for bench in self.data.benchmarks:
            value, best = self.value(bench.name, student), self.best_teacher(bench.name)
            if value is not None and best is not None:
                found.append(Comparison(bench.name, value, best[1], best[0]))
        return found

    def gains(self, student: EncoderEntry) -> list[float]:
        """Points above the same architecture at random initialisation, per benchmark."""
        if student.baseline is None:
            return []
        pairs = [(self.value(b.name, student.name), self.value(b.name, student.baseline)) for b in self.data.benchmarks]
        return [100 * (v - r) for v, r in pairs if v is not None and r is not None]

    def mean(self, encoder: str) -> float | None:
        """Mean top-1 over all benchmarks; None unless every one has a result."""
        values = [self.value(b.name, encoder) for b in self.data.benchmarks]
        done = [v for v in values if v is not None]
        return average(done) if done and len(done) == len(values) else None

    def standard_error(self, benchmark: str) -> tuple[int, float] | None:
        """Test images of a benchmark and one binomial standard error, in points, at its best top-1."""
        scores = [s for (b, _), s in self.scores.items() if b == benchmark and s.top1 is not None and s.samples]
        if not scores:
            return None
        best = max(scores, key=lambda s: s.top1 or 0.0)
        p, n = best.top1 or 0.0, best.samples or 1
        return n, 100 * math.sqrt(p * (1 - p) / n)


def average(values: Iterable[float]) -> float | None:
    """Mean; None of nothing."""
    items = list(values)
    return math.fsum(items) / len(items) if items else None


def main_view(data: ReportData) -> ProbeView:
    """The scores that the headline speaks of: the linear probe where there is one."""
    return ProbeView(data, data.probes[0] if data.probes else "logistic")


def headline(data: ReportData) -> str:
    """One sentence that answers the question: how good is the student? Names stand in backticks."""
    view = main_view(data)
    if not any(s.top1 is not None for s in view.scores.values()):
        return "No benchmark has a result yet."
    student = best_student(view)
    if student is None:
        return _teachers_sentence(view)
    compared, gain = view.comparisons(student.name), average(view.gains(student))
    several = len([s for s in data.named("student") if _has_score(view, s)]) > 1
    subject = f"Best of the students, `{student.name}`" if several else f"Student `{student.name}`"
    if not compared:
        text = f"{subject} scores {_mean_text(view, student.name)}; no teacher has a result to compare it with"
    elif len(compared) == 1:
        text = f"{subject} {_single_sentence(compared[0])}" + ("," if gain is not None else "")
    else:
        reached = sum(c.reached for c in compared)
        share = "all" if reached == len(compared) else "none of" if reached == 0 else f"{reached} of"
        mean = signed(average(c.points for c in compared) or 0.0)
        text = f"{subject} matches or beats the best teacher on {share} {len(compared)} benchmarks (mean {mean} points)"
    if gain is not None:
        verb = "gains" if round(gain, 1) >= 0 else "loses"
        text += f" and {verb} {abs(gain):.1f} points over random initialisation"
    return text + "."


def best_student(view: ProbeView) -> EncoderEntry | None:
    """The student with the best mean difference to the best teachers (or the best mean, without teachers)."""
    scored = [s for s in view.data.named("student") if _has_score(view, s)]

    def quality(student: EncoderEntry) -> tuple[int, float, float]:
        compared = view.comparisons(student.name)
        values = [v for b in view.data.benchmarks if (v := view.value(b.name, student.name)) is not None]
        return len(compared), average(c.points for c in compared) or 0.0, average(values) or 0.0

    return max(scored, key=quality, default=None)


def _has_score(view: ProbeView, encoder: EncoderEntry) -> bool:
    return any(view.value(b.name, encoder.name) is not None for b in view.data.benchmarks)


def _mean_text(view: ProbeView, encoder: str) -> str:
    values = [v for b in view.data.benchmarks if (v := view.value(b.name, encoder)) is not None]
    where = f" on average over {len(values)} benchmarks" if len(values) > 1 else ""
    return f"{percent(average(values) or 0.0)} %{where}"


def _single_sentence(compared: Comparison) -> str:
    points = round(compared.points, 1)
    against = f"the best teacher `{compared.teacher}`"
    relation = "level with" if points == 0 else f"{abs(points):.1f} points {'above' if points > 0 else 'below'}"
    return f"scores {percent(compared.value)} % on `{compared.benchmark}`, {relation} {against}"


def _teachers_sentence(view: ProbeView) -> str:
    wins: dict[str, int] = {}
    for bench in view.data.benchmarks:
        best = view.best_teacher(bench.name)
        if best is not None:
            wins[best[0]] = wins.get(best[0], 0) + 1
    if not wins:
        return "No student and no teacher has a result yet."
    name, count = max(wins.items(), key=lambda item: item[1])
    total = sum(wins.values())
    where = "the only benchmark" if total == 1 else f"{count} of {plural(total, 'benchmark')}"
    return f"No student has been evaluated yet; the best teacher is `{name}` on {where}."
