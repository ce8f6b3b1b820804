"""The end of a training: the encoder is exported, and the student's name points to it."""

from __future__ import annotations

from pipeline.encoders.export import export_student
from pipeline.pointers import point
from schemas.base import digest_of
from schemas.students import ExportManifest
from stages.distill.model.student import build_student
from stages.distill.training import Training

EXPORT = "export/"


def finish(student: Training) -> None:
    """Export a student that has done all its steps; all processes call this, and the first one writes."""
    student.checkpoints.settle()
    store, config = student.store, student.config
    vit = build_student(config).vit
    with student.measuring():
        weights = student.weights()
        if student.world.first:
            vit.load_state_dict(weights)
    if not student.world.first:
        return
    digests = export_student(
        store,
        vit,
        architecture=config.architecture,
        model_args=config.model_args,
        image_size=config.image_size,
        mean=config.mean,
        std=config.std,
        prefix=EXPORT,
    )
    manifest = ExportManifest(
        student=digest_of(student.definition), step=student.steps, weights=digests.weights, config=digests.config
    )
    store.put(f"{EXPORT}manifest.json", manifest.to_bytes())
    point(store.root.parent, student.name, store.root.name)
