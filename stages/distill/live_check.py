"""Before training: do the teachers still give the features that the caches hold?"""

from __future__ import annotations

from collections.abc import Sequence

from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.extraction.blocks import pick_device
from unic_pipe.pipeline.extraction.live_check import live_check
from unic_pipe.pipeline.extraction.sizes import codec_label
from unic_pipe.pipeline.process.progress import Reporter
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.workspace.documents import finished_student
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.students import student_folder
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.status import LiveFinding
from unic_pipe.stages.distill.data.rows import Source, trained_tokens
from unic_pipe.stages.distill.jobs import StudentJob

LIVE_SAMPLES = 4
"""Samples of each teacher."""


def check_teachers(
    inventory: Inventory, jobs: Sequence[StudentJob], device: str, reporter: Reporter, stop: Stop
) -> None:
    """Run each teacher again on a few samples: a cache that is not what it says is found before days of training.

    Raises:
        StageError: a teacher gives other features than its cache.
    """
    checked: dict[tuple[str, str], tuple[Source, int, dict[TokenType, int]]] = {}
    for job in jobs:
        finished = finished_student(job.name, student_folder(inventory.folder, job.name, job.definition))
        if finished is not None or job.definition.live:
            continue
        counts: dict[TokenType, int] = {t: job.definition.token_views(t) for t in trained_tokens(job.definition.config)}
        for source, (digest, blocks) in zip(job.training, job.definition.datasets, strict=True):
            checked |= dict.fromkeys(((name, digest) for name in source.caches), (source, blocks, counts))
    several = len({digest for _, digest in checked}) > 1
    for (name, _), (source, blocks, counts) in checked.items():
        if stop.requested:
            return
        label = f"{name} on {source.dataset.manifest.name}" if several else name
        try:
            encoder, cache = inventory.teacher(name), source.caches[name]
            found = live_check(cache, source.dataset, encoder, pick_device(device), LIVE_SAMPLES, counts, blocks)
        except (UserError, FileNotFoundError) as error:
            reporter.say(f"live check of {label} skipped: {str(error).splitlines()[0]}")
            continue
        for finding in found:
            if not finding.ok:
                raise StageError(
                    f"Teacher {label} no longer gives the {finding.token} features of its cache: {_compared(finding, cache)}.",
                    "Look closer with unic-pipe verify --live 64; --no-live-check trains all the same.",
                )
        if found:
            worst = max(found, key=lambda f: f.mean_error)
            reporter.say(f"live check of {label}: {_compared(worst, cache)}")


def _compared(finding: LiveFinding, cache: FeatureCache) -> str:
    """What was compared, and how far it may be apart: in parts of the features' standard deviation."""
    codec = codec_label(cache.definition.codec)
    return (
        f"cached features differ by {_percent(finding.mean_error)} of their spread from a fresh pass over "
        f"{finding.samples} views; rounding and codec {codec} may make {_percent(finding.mean_allowed)}"
    )


def _percent(part: float) -> str:
    return f"{100 * part:.0f} %" if part >= 0.1 else f"{100 * part:.2g} %"
