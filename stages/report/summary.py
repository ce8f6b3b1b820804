"""Numbers and sentences that are computed from the scores: the best teacher, differences, the headline."""

from collections.abc import Sequence

from unic_pipe.schemas.probes import PROBES
from unic_pipe.stages.report.data import EncoderEntry, ReportData
from unic_pipe.stages.report.metrics import signed
from unic_pipe.stages.report.view import Comparison, ProbeView, average


def probe_name(probe: str) -> str:
    """A probe as the report calls it; `linear` stands for each benchmark's own linear one."""
    return PROBES[probe].title if probe in PROBES else "linear probe" if probe == "linear" else probe


def percent(value: float) -> str:
    """A fraction as per cent, without the sign: .9234 -> `92.3`."""
    return f"{100 * value:.1f}"


def capital(probe: str) -> str:
    """A probe's name at the beginning of a heading; `k-NN` stays as it is."""
    return probe if probe.startswith("k-") else probe[:1].upper() + probe[1:]


def plural(count: int, word: str) -> str:
    """`1 benchmark`, `3 benchmarks`."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def mean_points(compared: Sequence[Comparison]) -> float | None:
    """Mean difference of accuracies, in points; other measures cannot be averaged with them."""
    return average(c.points for c in compared if c.metric.accuracy)


def mean_ratio(compared: Sequence[Comparison]) -> float | None:
    """Mean of the relative scores, over all measures."""
    return average(r for c in compared if (r := c.ratio) is not None)


def mean_text(compared: Sequence[Comparison]) -> str:
    """` (mean +1.2 points)`; empty where no accuracy is compared."""
    mean = mean_points(compared)
    return "" if mean is None else f" (mean {signed(mean)} points)"


def main_view(data: ReportData) -> ProbeView:
    """The scores that the headline speaks of: the linear probe where there is one."""
    return ProbeView(data, data.probes[0] if data.probes else "logistic")


def headline(data: ReportData) -> str:
    """One sentence that answers the question: how good is the student? Names stand in backticks."""
    view = main_view(data)
    if not any(s.value is not None for s in view.scores.values()):
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
        text = f"{subject} matches or beats the best teacher on {share} {len(compared)} benchmarks{mean_text(compared)}"
        text += _above_every_teacher(view, student.name, gain is None)
    if gain is not None:
        verb, than = ("gains", "over") if round(gain, 1) >= 0 else ("is", "below")
        text += f" and {verb} {abs(gain):.1f} points {than} random initialisation"
    return text + "."


def _above_every_teacher(view: ProbeView, student: str, last: bool) -> str:
    """Whether the student's mean is above that of every single teacher; empty where it is not, or is not known."""
    mean = view.mean(student)
    teachers = [m for t in view.data.named("teacher") if (m := view.mean(t.name)) is not None]
    if mean is None or len(teachers) < 2 or round(100 * (mean - max(teachers)), 1) <= 0:
        return ""
    return (
        f"{' and' if last else ','} is {100 * (mean - max(teachers)):.1f} points above every single teacher on average"
    )


def best_student(view: ProbeView) -> EncoderEntry | None:
    """The student with the best mean difference to the best teachers (or the best mean, without teachers)."""
    scored = [s for s in view.data.named("student") if _has_score(view, s)]

    def quality(student: EncoderEntry) -> tuple[int, float, float]:
        compared = view.comparisons(student.name)
        return len(compared), mean_points(compared) or 0.0, average(view.accuracy_values(student.name)) or 0.0

    return max(scored, key=quality, default=None)


def _has_score(view: ProbeView, encoder: EncoderEntry) -> bool:
    return any(view.value(b.name, encoder.name) is not None for b in view.benchmarks)


def _mean_text(view: ProbeView, encoder: str) -> str:
    values = view.accuracy_values(encoder)
    where = f" on average over {len(values)} benchmarks" if len(values) > 1 else ""
    return f"{percent(average(values) or 0.0)} %{where}"


def _single_sentence(compared: Comparison) -> str:
    metric = compared.metric
    against = f"the best teacher `{compared.teacher}`"
    distance = f"{abs(compared.better):.{metric.digits}f} {metric.difference_unit}"
    relation = "level with" if compared.better == 0 else f"{distance} {'above' if compared.better > 0 else 'below'}"
    if not metric.higher and compared.better:
        relation = f"{distance} {'better' if compared.better > 0 else 'worse'} than"
    if compared.reached and compared.better < 0:
        relation, against = "matching", f"{against} ({distance} below, within the error of the test set)"
    return f"scores {metric.show(compared.value)} {metric.unit} on `{compared.benchmark}`, {relation} {against}"


def _teachers_sentence(view: ProbeView) -> str:
    wins: dict[str, int] = {}
    for bench in view.benchmarks:
        best = view.best_teacher(bench.name)
        if best is not None:
            wins[best[0]] = wins.get(best[0], 0) + 1
    if not wins:
        nobody = "No student and no teacher has a result yet"
        others = [e for e in view.data.encoders if e.role == "encoder" and _has_score(view, e)]
        if not others:
            return f"{nobody}."

        def mean(other: EncoderEntry) -> float:
            return average(v for b in view.accuracies if (v := view.value(b.name, other.name)) is not None) or 0.0

        top = max(others, key=mean)
        which = f"encoder `{top.name}`" if len(others) == 1 else f"the best of {len(others)} encoders, `{top.name}`,"
        return f"{nobody}; {which} scores {_mean_text(view, top.name)}."
    name, count = max(wins.items(), key=lambda item: item[1])
    total = sum(wins.values())
    where = "the only benchmark" if total == 1 else f"{count} of {plural(total, 'benchmark')}"
    return f"No student has been evaluated yet; the best teacher is `{name}` on {where}."
