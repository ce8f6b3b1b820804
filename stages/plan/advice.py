"""Settings that fit a disk and a deadline: the first of a list that gives up what costs a student least, first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from unic_pipe.pipeline.cache.needs import FeatureNeed
from unic_pipe.pipeline.extraction.sizes import Extent, Size, codec_label, shared_size, token_size
from unic_pipe.pipeline.process.progress import duration, human_bytes
from unic_pipe.schemas.config import Config, TokenType
from unic_pipe.schemas.plans import Measurement, PlanReport
from unic_pipe.schemas.recipes import CENTER
from unic_pipe.schemas.status import Stage

HOUR_S = 3600.0


@dataclass(frozen=True)
class Job:
    """One feature folder of the plan: what it needs, what it was measured with, and how much of it is there."""

    need: FeatureNeed
    measured: Measurement
    extent: Extent
    missing: Mapping[TokenType, int]
    """Units still to be made by token type."""
    forwards: int
    """Images × views still to be encoded."""
    stage: Stage

    def left(self, token: TokenType) -> float:
        """Fraction of a token type that is still to be made."""
        views = self.need.views.get(token, 0)
        return self.missing[token] / max(1, views * self.extent.blocks)

    @property
    def untouched(self) -> bool:
        """Whether nothing of it is there, not even its calibration."""
        return sum(self.missing.values()) == self.extent.blocks * sum(self.need.views.values())

    @property
    def trains(self) -> bool:
        """Whether `views:` decides how much there is of it."""
        return self.stage == "extract" and self.need.definition.recipe != CENTER


@dataclass(frozen=True)
class Setting:
    """One combination: views of each token type, and the codec."""

    count: int
    patch: int
    codec: str


def advise(config: Config, jobs: Sequence[Job], report: PlanReport, disk: float | None, deadline: float | None) -> str:
    """The lines of `unic-pipe.yaml` under which everything fits, with what they take, as YAML.

    A smaller codec goes first, then views with patches, then views, then patches altogether.
    """
    least: tuple[float, float] | None = None
    for setting in _settings(config, jobs):
        size, hours = _cost(setting, jobs, report)
        if (disk is None or size <= disk) and (deadline is None or hours * HOUR_S <= deadline):
            return _yaml(config, setting, size, hours)
        least = min(least or (size, hours), (size, hours))
    if least is None:
        return "# Nothing to choose: no teacher's features can be planned yet."
    what = f"{human_bytes(least[0])} and {duration(least[1] * HOUR_S)}"
    return (
        f"# Nothing fits: by codec and views the least is {what}. Use smaller images (image_size of the student, and of each"
        " teacher), fewer epochs, fewer rows (--rows 10%), or fewer teachers."
    )


def _settings(config: Config, jobs: Sequence[Job]) -> Iterator[Setting]:
    """From the configured settings down."""
    labels = _codecs(jobs)
    count, patch = config.views.count, config.views.patch_views
    for codec in labels:
        yield Setting(count, patch, codec)
    smallest = labels[-1] if labels else config.cache.codec
    for fewer in range(min(patch, count) - 1, 0, -1):
        yield Setting(count, fewer, smallest)
    for fewer in range(count - 1, 0, -1):
        yield Setting(fewer, min(1, patch), smallest)
    for fewer in range(count, 0, -1):
        yield Setting(fewer, 0, smallest)


def _codecs(jobs: Sequence[Job]) -> list[str]:
    """Codecs that were measured for all training features: the configured one, then smaller ones."""
    training = [job for job in jobs if job.trains]
    if not training:
        return []
    common = set.intersection(*(set(tokens) for c in training for tokens in c.measured.codecs.values()))
    sizes = {label: sum(_folder(c, c.need.views, label).bytes for c in training) for label in common}
    own = codec_label(training[0].need.definition.codec)
    smaller = sorted((s for s in common if sizes[s] < sizes.get(own, 0)), key=lambda s: -sizes[s])
    return [own, *smaller]


def _cost(setting: Setting, jobs: Sequence[Job], report: PlanReport) -> tuple[float, float]:
    """Bytes still to be written, and hours still to be worked, under a setting."""
    size, forwards, before = float(report.stages["distill"].bytes), 0.0, 0
    for job in jobs:
        own = codec_label(job.need.definition.codec)
        if job.stage == "extract":
            before += job.forwards
        if not job.trains:
            label = "float16" if "@" in setting.codec else setting.codec
            label = label if all(label in codecs for codecs in job.measured.codecs.values()) else own
            left = 1.0 if label != own else _missing(job)
            size += left * _folder(job, job.need.views, label).bytes
            forwards += job.forwards if job.stage == "extract" else 0
            continue
        views: dict[TokenType, int] = {"cls": setting.count, "patch": setting.patch}
        total = _folder(job, views, setting.codec).bytes
        there = (1 - _missing(job)) * _folder(job, job.need.views, own).bytes if setting.codec == own else 0.0
        size += max(0.0, total - there)
        rows = job.extent.rows
        done = max(job.need.views.values()) * rows - job.forwards if setting.codec == own else 0
        forwards += max(0, setting.count * rows - done)
    hours = {stage: plan.hours or 0.0 for stage, plan in report.stages.items()}
    scale = forwards / before if before else 1.0
    return size, sum(hours.values()) + hours["extract"] * (scale - 1)


def _missing(job: Job) -> float:
    units = job.extent.blocks * sum(job.need.views.values())
    return sum(job.missing.values()) / max(1, units)


def _folder(job: Job, views: Mapping[TokenType, int], label: str) -> Size:
    total = shared_size(job.measured, max(views.values()))
    for token in job.measured.codecs:
        total += token_size(job.measured, token, label, views.get(token, 0), job.extent)
    return total


def _yaml(config: Config, setting: Setting, size: float, hours: float) -> str:
    views = [f"count: {setting.count}"]
    if setting.patch != setting.count:
        views.append(f"patch: {setting.patch}")
    every = config.views.patch_every
    if every is not None and 0 < setting.patch < setting.count:
        views.append(f"patch_every: {every}")
    recipe, seed = config.views.recipe, config.views.seed
    views += [f"recipe: {recipe}"] if isinstance(recipe, str) and recipe != "unic" else []
    views += [f"seed: {seed}"] if seed else []
    codec, _, target = setting.codec.partition("@")
    cache = [f"codec: {codec}"] + ([f"snr_db: {target.removesuffix('dB')}"] if target else [])
    lines = [
        f"# {human_bytes(size)} still to be written, {duration(hours * HOUR_S)}",
        f"views: {{{', '.join(views)}}}",
        f"cache: {{{', '.join(cache)}}}",
    ]
    if setting.patch == 0:
        wanting = [name for name, s in config.students.items() if "patch" in s.loss.trained]
        lines += [f"# and for student {name}: loss: {{tokens: cls}}" for name in wanting]
    return "\n".join(lines)
