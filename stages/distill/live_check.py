"""Before training: do the teachers still give the features that the caches hold?"""

from __future__ import annotations

from collections.abc import Sequence

from unic_pipe.pipeline.extraction.blocks import pick_device
from unic_pipe.pipeline.extraction.live_check import live_check
from unic_pipe.pipeline.process.progress import Reporter
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.workspace.documents import finished_student
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.students import student_folder
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.stages.distill.data.rows import trained_tokens
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
    views: dict[str, tuple[StudentJob, dict[TokenType, int]]] = {}
    for job in jobs:
        finished = finished_student(job.name, student_folder(inventory.folder, job.name, job.definition))
        if finished is not None or job.definition.live:
            continue
        counts: dict[TokenType, int] = {t: job.definition.token_views(t) for t in trained_tokens(job.definition.config)}
        views |= dict.fromkeys(job.training.caches, (job, counts))
    for name, (job, counts) in views.items():
        if stop.requested:
            return
        cache, dataset = job.training.caches[name], job.training.dataset
        try:
            encoder = inventory.teacher(name)
            found = live_check(
                cache, dataset, encoder, pick_device(device), LIVE_SAMPLES, counts, job.definition.blocks
            )
        except (UserError, FileNotFoundError) as error:
            reporter.say(f"live check of {name} skipped: {str(error).splitlines()[0]}")
            continue
        for finding in found:
            if not finding.ok:
                raise StageError(
                    f"Teacher {name} no longer gives the {finding.token} features of its cache: error "
                    f"{finding.mean_error:.3g} on {finding.samples} samples, {finding.mean_allowed:.2g} are allowed.",
                    "Look closer with unic-pipe verify --live 64; --no-live-check trains all the same.",
                )
        if found:
            worst = max(found, key=lambda f: f.mean_error)
            reporter.say(f"live check of {name}: error {worst.mean_error:.2g}, {worst.mean_allowed:.2g} allowed")
