"""Which probes an evaluation consists of: every benchmark × encoder × probe, with the features each one needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.encoders import ResolvedEncoder
from pipeline.evaluations import Probe, result_definition
from pipeline.features import FeatureNeed
from pipeline.inventory import Inventory
from pipeline.samples.dataset import Dataset
from schemas.chains import named_student
from schemas.errors import UserError
from schemas.evaluations import ResultDefinition

Role = Literal["teacher", "student", "baseline", "encoder"]


@dataclass(frozen=True)
class ProbePlan:
    """One probe to compute: what it is made from and where its features come from."""

    benchmark: str
    note: str
    encoder: ResolvedEncoder
    role: Role
    probe: Probe
    definition: ResultDefinition
    train: tuple[FeatureNeed, Dataset]
    test: tuple[FeatureNeed, Dataset]


def probe_plans(inventory: Inventory) -> tuple[list[ProbePlan], list[str]]:
    """All probes that can be planned now, and the encoders that are still waited for (`students/main`).

    Raises:
        UserError: a teacher's weights are missing.
    """
    encoders, waiting = _encoders(inventory)
    plans = []
    for name, benchmark in inventory.config.evaluate.benchmarks.items():
        train, test = inventory.dataset(benchmark.train).dataset, inventory.dataset(benchmark.test).dataset
        if train is None or test is None:
            continue
        for encoder, role in encoders:
            needs = inventory.probe_need(train, encoder), inventory.probe_need(test, encoder)
            for probe in inventory.config.evaluate.probes:
                definition = result_definition(
                    inventory.config.evaluate,
                    probe,
                    train=train.manifest,
                    test=test.manifest,
                    features_train=needs[0].digest,
                    features_test=needs[1].digest,
                    encoder=encoder.digest,
                )
                sources = (needs[0], train), (needs[1], test)
                plans.append(ProbePlan(name, benchmark.note, encoder, role, probe, definition, *sources))
    return plans, waiting


def _encoders(inventory: Inventory) -> tuple[list[tuple[ResolvedEncoder, Role]], list[str]]:
    """Finished students, teachers, and each configured student's architecture at random initialisation,
    and the encoders of `evaluate`."""
    config = inventory.config
    finished = inventory.finished_students
    found: list[tuple[ResolvedEncoder, Role]] = [(inventory.student_encoder(s), "student") for s in finished.values()]
    # A student that teaches is there as a student.
    found += [(inventory.teacher(n), "teacher") for n, e in config.teachers.items() if named_student(e.encoder) is None]
    if config.evaluate.baseline:
        found += [(inventory.baseline(name, student), "baseline") for name, student in config.students.items()]
    taken: dict[str, Role] = {encoder.name: role for encoder, role in found}
    for name, encoder in config.evaluate.encoders.items():
        if name in {*taken, *config.students}:
            raise UserError(
                f"Encoder {name} cannot be evaluated under this name: a {taken.get(name, 'student')} has it.",
                f"Give it another one: --encoder OTHER=FILE, or under evaluate.encoders in {inventory.workspace.file.name}.",
            )
        found.append((inventory.encoder(name, encoder), "encoder"))
    wanted = [inventory.student_name(name) for name in config.students]
    return found, [f"students/{name}" for name in wanted if name not in finished]
