"""Pictures of what a student's probe gets wrong: test images with their class, and what they were taken for."""

from collections.abc import Sequence

from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.schemas.errors import UnicPipeError
from unic_pipe.schemas.evaluations import Mistakes, ResultRecord
from unic_pipe.schemas.probes import PROBES
from unic_pipe.stages.report.data import Picture, PictureRow, ReportData
from unic_pipe.stages.report.summary import best_student, main_view
from unic_pipe.stages.report.thumbnails import kept_rows, png, thumbnail


def mistake_pictures(inventory: Inventory, data: ReportData, records: Sequence[ResultRecord]) -> tuple[PictureRow, ...]:
    """A row a benchmark, of the student that the headline is about, by its linear probe; none where results of an earlier
    version do not tell, nothing is wrong, or the images cannot be read."""
    student = best_student(main_view(data))
    found: dict[str, PictureRow] = {}
    for record in records:
        told = record.mistakes
        if student is None or record.encoder != student.name or told is None or not told.rows:
            continue
        if PROBES[record.definition.probe].linear and record.benchmark not in found:
            benchmark = inventory.config.evaluate.benchmarks.get(record.benchmark)
            dataset = inventory.dataset(benchmark.test).dataset if benchmark is not None else None
            row = _row(inventory, dataset, record, told) if dataset is not None else None
            found |= {record.benchmark: row} if row is not None else {}
    return tuple(found.values())


def _row(inventory: Inventory, dataset: Dataset, record: ResultRecord, told: Mistakes) -> PictureRow | None:
    def draw() -> list[PictureRow]:
        words = [f"{true} → {taken}" for true, taken in zip(told.true, told.predicted, strict=True)]
        pictures = tuple(Picture(png(thumbnail(dataset, r)), w) for r, w in zip(told.rows, words, strict=True))
        return [PictureRow(record.benchmark, pictures)]

    try:
        [row] = kept_rows(inventory, [record.benchmark, record.definition.benchmark_test, told.model_dump()], draw)
    except UnicPipeError:
        return None  # a picture is no reason to have no report
    return row
