"""The scores of one probe: the best teacher of each benchmark, differences, means, log-odds."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from unic_pipe.stages.report.data import BenchmarkEntry, EncoderEntry, ReportData, Score
from unic_pipe.stages.report.metrics import METRICS, Metric, log_odds

MATCH = 0.5
"""Points of accuracy below which nothing is called a difference. Never the spread over seeds: a shaky student's is
wider."""


@dataclass(frozen=True)
class Comparison:
    """An encoder's score against another's on one benchmark."""

    benchmark: str
    value: float
    best: float
    """The other's score."""
    teacher: str
    """The other's name."""
    metric: Metric = METRICS["top1"]
    spread: float | None = None
    """Of the difference: both standard deviations over seeds, added as independent ones are."""
    samples: int | None = None
    """Test images, of an accuracy."""

    @property
    def points(self) -> float:
        """Difference as it is printed before rounding: points of per cent, or metres."""
        return self.metric.scale * (self.value - self.best)

    @property
    def ratio(self) -> float | None:
        """Quality relative to the other's, above 1 is better; None when that is undefined."""
        return self.metric.ratio(self.value, self.best)

    @property
    def better(self) -> float:
        """The rounded difference, positive where it is for the better."""
        return self.metric.better(self.value - self.best)

    @property
    def tolerance(self) -> float:
        """How far below an accuracy still matches it, in points: `MATCH`, or one binomial standard error of the test set
        at the other's accuracy where that is more. 0 for other measures and unknown test sets."""
        if not self.metric.accuracy or not self.samples:
            return 0.0
        return max(MATCH, binomial_error(self.best, self.samples))

    @property
    def reached(self) -> bool:
        """Whether the encoder matches or beats the other, at the precision that is shown."""
        return self.better >= -round(self.tolerance, self.metric.digits)


class ProbeView:
    """The scores of one probe, by benchmark and encoder."""

    def __init__(self, data: ReportData, probe: str) -> None:
        self.data, self.probe = data, probe
        self.scores: Mapping[tuple[str, str], Score] = {
            (s.benchmark, s.encoder): s for s in data.scores if s.probe == probe
        }

    @cached_property
    def benchmarks(self) -> tuple[BenchmarkEntry, ...]:
        """The benchmarks that this probe was run on, by axis in order of first appearance; those without come last."""
        run = {benchmark for benchmark, _ in self.scores}
        kept = [b for b in self.data.benchmarks if b.name in run]
        axes = list(dict.fromkeys(b.axis for b in kept if b.axis))
        return tuple(sorted(kept, key=lambda b: axes.index(b.axis) if b.axis else len(axes)))

    @cached_property
    def accuracies(self) -> tuple[BenchmarkEntry, ...]:
        """The benchmarks whose scores are accuracies: only these are averaged."""
        return tuple(b for b in self.benchmarks if self.metric(b.name).accuracy)

    def metric(self, benchmark: str) -> Metric:
        """What the benchmark's scores measure."""
        names = (s.metric for (b, _), s in self.scores.items() if b == benchmark and s.value is not None)
        return METRICS[next(names, "top1")]

    def value(self, benchmark: str, encoder: str) -> float | None:
        """The score as it is stored; None when it failed or was not run."""
        score = self.scores.get((benchmark, encoder))
        return None if score is None else score.value

    def accuracy_values(self, encoder: str) -> list[float]:
        """The encoder's accuracies, wherever it has one."""
        return [v for b in self.accuracies if (v := self.value(b.name, encoder)) is not None]

    def best_teacher(self, benchmark: str) -> tuple[str, float] | None:
        """Name and score of the best teacher of a benchmark; None when no teacher has a result."""
        found = [(v, t.name) for t in self.data.named("teacher") if (v := self.value(benchmark, t.name)) is not None]
        if not found:
            return None
        value = (max if self.metric(benchmark).higher else min)(v for v, _ in found)
        return next(name for v, name in found if v == value), value

    def comparison(self, benchmark: str, encoder: str, other: str) -> Comparison | None:
        """One encoder against another on one benchmark; None unless both have a result."""
        value, reference = self.value(benchmark, encoder), self.value(benchmark, other)
        if value is None or reference is None:
            return None
        spreads = [self.scores[benchmark, name].spread for name in (encoder, other)]
        known = [s for s in spreads if s is not None]
        spread = math.hypot(*known) if known else None
        samples = self.scores[benchmark, encoder].samples
        return Comparison(benchmark, value, reference, other, self.metric(benchmark), spread, samples)

    def comparisons(self, student: str, teacher: str = "") -> list[Comparison]:
        """The student against a teacher (by default the best of each benchmark), wherever both have a result."""
        found = []
        for bench in self.benchmarks:
            best = self.best_teacher(bench.name)
            other = teacher or (best[0] if best else "")
            one = self.comparison(bench.name, student, other) if other else None
            if one is not None:
                found.append(one)
        return found

    def gains(self, student: EncoderEntry) -> list[float]:
        """Points of accuracy above the same architecture at random initialisation, per benchmark."""
        if student.baseline is None:
            return []
        pairs = [(self.value(b.name, student.name), self.value(b.name, student.baseline)) for b in self.accuracies]
        return [100 * (v - r) for v, r in pairs if v is not None and r is not None]

    def mean(self, encoder: str) -> float | None:
        """Mean accuracy over the benchmarks that have one; None unless every one has a result."""
        return self._complete(encoder, lambda score: score.value or 0.0)

    def mean_log_odds(self, encoder: str) -> float | None:
        """Mean over the same benchmarks of log(p / (1 - p)), in nats; None unless every one has a result."""
        return self._complete(encoder, lambda score: log_odds(score.value or 0.0, score.samples))

    def _complete(self, encoder: str, of: Callable[[Score], float]) -> float | None:
        found = [self.scores.get((b.name, encoder)) for b in self.accuracies]
        done = [of(s) for s in found if s is not None and s.value is not None]
        return average(done) if done and len(done) == len(found) else None

    def samples(self, benchmark: str) -> int | None:
        """Test images of a benchmark, where its scores tell."""
        return next((s.samples for (b, _), s in self.scores.items() if b == benchmark and s.samples), None)

    def standard_error(self, score: Score) -> float | None:
        """One binomial standard error of an accuracy, in points; None of other measures."""
        if score.value is None or not score.samples or not self.metric(score.benchmark).accuracy:
            return None
        return binomial_error(score.value, score.samples)


def binomial_error(accuracy: float, samples: int) -> float:
    """One binomial standard error of an accuracy over so many test images, in points: 100 sqrt(p (1 - p) / n)."""
    return 100 * math.sqrt(accuracy * (1 - accuracy) / samples)


def average(values: Iterable[float]) -> float | None:
    """Mean; None of nothing."""
    items = list(values)
    return math.fsum(items) / len(items) if items else None
