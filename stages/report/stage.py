"""The report as a command writes it: from the results in force, beside them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from unic_pipe.pipeline.loggers import Page, Value
from unic_pipe.pipeline.workspace.evaluation_plans import evaluated_encoders, evaluation_plans
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.results import CLASS_TABLE, current_record, read_results
from unic_pipe.pipeline.workspace.status import evaluates, evaluation_path
from unic_pipe.schemas.benchmarks import cards
from unic_pipe.schemas.evaluations import ResultRecord
from unic_pipe.stages.report.data import Skipped
from unic_pipe.stages.report.files import results_table, scores_table, write_text
from unic_pipe.stages.report.gather import gather
from unic_pipe.stages.report.mistakes import mistake_pictures
from unic_pipe.stages.report.pictures import patch_pictures, sheet
from unic_pipe.stages.report.render import write_report
from unic_pipe.stages.report.speeds import measured_speeds

COMMANDS = ("unic-pipe run", "unic-pipe verify")
"""What makes the results again from the configuration, and what checks them."""


def records_in_force(inventory: Inventory) -> list[ResultRecord]:
    """The results that the configuration asks for, as far as they are there."""
    folder = evaluation_path(inventory) if evaluates(inventory) else None
    if folder is None:
        return []
    plans = evaluation_plans(inventory).plans
    found = (current_record(folder, p.benchmark, p.encoder.name, p.definition) for p in plans)
    return [record for record in found if record is not None]


def skipped(inventory: Inventory) -> list[Skipped]:
    """What the configuration asks for and an evaluation cannot run now, with the reason."""
    planned = evaluation_plans(inventory)
    found = [Skipped(name, "the student is not finished (unic-pipe distill)") for name in planned.waiting]
    return found + [Skipped(name, reason) for name, reason in planned.skipped.items()]


def logged_results(inventory: Inventory, records: Sequence[ResultRecord], page: Path) -> dict[str, Value]:
    """What loggers show of an evaluation: `scores`, `classes` and `report`, and the pictures of `patches` by dataset."""
    found: dict[str, Value] = {"scores": scores_table(records), "report": Page(page.read_text(encoding="utf-8"))}
    classes = read_results(page.parent / CLASS_TABLE)
    if classes.num_rows:
        found["classes"] = classes
    pictures = patch_pictures(inventory)
    return found if pictures is None else {**found, f"patches/{pictures.dataset}": sheet(pictures)}


def report(inventory: Inventory, records: Sequence[ResultRecord]) -> tuple[Path, Table]:
    """Write the report into the evaluation's folder: `report.html`, `report.md`, `results.csv`.

    Returns the path of the page, and the main table for a terminal.
    """
    folder = evaluation_path(inventory)
    assert folder is not None, "records exist, so datasets are indexed"
    shown = {record.encoder for record in records if record.role == "student"}
    students = {name: s.folder for name, s in inventory.finished_students.items() if name in shown}
    notes = {name: b.note for name, b in inventory.config.evaluate.benchmarks.items() if b.note}
    for more in (inventory.config.evaluate.zero_shot, inventory.config.evaluate.dense):
        notes |= {name: config.note for name, config in more.items() if config.note}
    data = gather(
        inventory.folder,
        folder,
        students,
        records,
        notes=notes,
        axes={name: card.axis for name, card in cards().items()},
        skipped=skipped(inventory),
        commands=COMMANDS,
        features=inventory.workspace.features,
        pictures=patch_pictures(inventory),
        parameters={encoder.name: encoder.reading.parameters for encoder, _ in evaluated_encoders(inventory)[0]},
    )
    speeds = measured_speeds(inventory)
    encoders = tuple(replace(e, speed=speeds.by_name.get(e.name, 0.0)) for e in data.encoders)
    mistakes = mistake_pictures(inventory, data, records)
    data = replace(data, encoders=encoders, speed_device=speeds.device, mistakes=mistakes)
    write_text(folder, data, records)
    return write_report(folder, data), results_table(data)
