"""The commands as a class: `from unic_pipe import Pipeline`. The steps are those of the commands, results are Arrow tables."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from unic_pipe.cli.distill import distill_step, variants_of
from unic_pipe.cli.embed import embed_step
from unic_pipe.cli.evaluate import evaluate_step
from unic_pipe.cli.export import Format, Written, export_step
from unic_pipe.cli.extract import extract_step
from unic_pipe.cli.run import run_everything
from unic_pipe.cli.running import Where, extract_options, staged
from unic_pipe.cli.status import judge_new, look
from unic_pipe.pipeline.process.progress import CallbackReporter, ConsoleReporter, Reporter, SilentReporter, Update
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.workspace.configuration import config_of, load_workspace, parse_rows, workspace_of
from unic_pipe.pipeline.workspace.documents import student_metrics
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.schemas.config import Config
from unic_pipe.schemas.errors import UserError, did_you_mean
from unic_pipe.schemas.status import Stage

if TYPE_CHECKING:
    from unic_pipe.pipeline.loggers import Tell
    from unic_pipe.stages.embed import Embedded

Names = str | Sequence[str]
"""One name, or several; none means all."""
Progress = bool | Callable[[Update], object]

_ARTEFACTS = pa.schema(
    [(name, pa.string()) for name in ("name", "stage", "state")]
    + [(name, pa.int64()) for name in ("done", "total")]
    + [(name, pa.string()) for name in ("reason", "next", "path", "digest")]
)


class Pipeline:
    """A working folder and its stages.

    Every method does what the command of its name does, with the same guarantees: what is finished is not done again,
    and what was killed goes on. Ctrl-C ends a stage after what is in flight, with KeyboardInterrupt; SIGTERM with
    SystemExit. Whatever is wrong is a `UserError` or a `StageError`, whose text is what the command would say.
    """

    def __init__(
        self,
        config: str | PathLike[str] | Config | Mapping[str, object] = ".",
        folder: str | PathLike[str] | None = None,
        *,
        overrides: Mapping[str, object] | None = None,
        progress: Progress = True,
        callback: Tell | None = None,
    ) -> None:
        """Open a working folder.

        Args:
            config: the folder, its `unic-pipe.yaml`, or a configuration, as an object or as what would stand in the file.
            folder: the working folder of a configuration object.
            overrides: values instead of those in the file: `{"students.main.seed": 1}`.
            progress: True: on stderr, as commands do; False: nothing; a function: it gets every `Update`.
            callback: a function that gets what loggers get: the run, the step, and the values by name.

        Raises:
            UserError: no such file, fields that do not validate, or a folder that is not asked for or lacking.
        """
        if isinstance(config, Mapping):
            config = config_of(config)
        if isinstance(config, Config) is (folder is None) or (isinstance(config, Config) and overrides):
            raise UserError(
                "A configuration object needs the folder that it governs; a file has its own, and may have overrides.",
                'Pipeline(config, "folder"), or Pipeline("folder", overrides={"students.main.seed": 1})',
            )
        if isinstance(config, Config):
            self.workspace = workspace_of(config, Path(folder or "."))
        else:
            texts = [f"{key}={json.dumps(value)}" for key, value in (overrides or {}).items()]
            self.workspace = load_workspace(Path(config), texts)
        self._progress, self._callback = progress, callback

    @property
    def config(self) -> Config:
        """The configuration, with the datasets of named benchmarks and a student for each of its seeds."""
        return self.workspace.config

    @property
    def folder(self) -> Path:
        """The working folder."""
        return self.workspace.folder

    def status(self, rows: str | int | None = None) -> pa.Table:
        """Every artefact: name, stage, state (`fresh`, `partial`, `stale`, `missing`), done, total, reason, the next
        command, path, digest. `rows`: of a pilot."""
        inventory = self._inventory(rows)
        judge_new(inventory, _reporter(self._progress))
        return pa.Table.from_pylist([a.model_dump() for a in look(inventory).artefacts], _ARTEFACTS)

    def index(self, datasets: Names = ()) -> pa.Table:
        """Index samples (by default of all datasets that are used); the datasets' status."""
        from unic_pipe.pipeline.workspace.status import only_evaluated, used_datasets
        from unic_pipe.stages.indexing import index

        inventory = self._inventory()
        names = _names(datasets) or used_datasets(inventory)
        with self._stage(inventory, "index") as (reporter, stop):
            index(inventory, names, reporter, stop, only_evaluated(inventory), compare=True)
            if inventory.refused:
                raise next(iter(inventory.refused.values()))
        return self._artefacts("index")

    def extract(
        self,
        teachers: Names = (),
        *,
        rows: str | int | None = None,
        device: str | None = None,
        batch: int | None = None,
        workers: int = 0,
        scheduler: str | None = None,
        part: str | None = None,
        force: bool = False,
    ) -> pa.Table:
        """Cache the features of teachers (by default of all); the features' status. Arguments are those of the command."""
        inventory, where = self._inventory(rows), Where(device, workers, scheduler, part)
        with (
            self._stage(inventory, "extract") as (reporter, stop),
            extract_options(inventory, where, reporter, stop, force, batch) as options,
        ):
            extract_step(inventory, _names(teachers), options, reporter, stop)
        return self._artefacts("extract", rows)

    def distill(
        self,
        students: Names = (),
        *,
        rows: str | int | None = None,
        device: str | None = None,
        restart: bool = False,
        ablation: bool = False,
        compare: Names = (),
        rates: Names = (),
        live_teachers: bool = False,
        live_check: bool = True,
    ) -> pa.Table:
        """Train students (by default all), in this process; the students' status. Arguments are those of the command."""
        recipes, speeds = ",".join(_names(compare)) or None, ",".join(_names(rates)) or None
        variants = variants_of(ablation, recipes, speeds)
        inventory = self._inventory(rows)
        if live_teachers:
            inventory = inventory.with_live_teachers()
        with self._stage(inventory, "distill") as (reporter, stop):
            distill_step(
                inventory, _names(students), device, restart, reporter, stop,
                variants=variants, live_check=live_check, tell=self._callback,
            )  # fmt: skip
        return self._artefacts("distill", rows)

    def evaluate(
        self,
        encoders: Names | Mapping[str, str] = (),
        *,
        device: str | None = None,
        workers: int = 0,
        scheduler: str | None = None,
        force: bool = False,
    ) -> pa.Table:
        """Probe students, teachers and `encoders` (files or names, or these by a name of your own) on the benchmarks, and
        write the report; all scores, as `scores` gives them."""
        from unic_pipe.stages.evaluate.named import with_encoders
        from unic_pipe.stages.report.files import scores_table

        more = [f"{k}={v}" for k, v in encoders.items()] if isinstance(encoders, Mapping) else _names(encoders)
        inventory, where = with_encoders(self._inventory(), more), Where(device, workers, scheduler)
        with (
            self._stage(inventory, "evaluate") as (reporter, stop),
            extract_options(inventory, where, reporter, stop, force) as options,
        ):
            records = evaluate_step(inventory, options, reporter, stop, self._progress is True, self._callback)
        return scores_table(records)

    def export(
        self,
        student: str,
        target: str | PathLike[str] | None = None,
        *,
        to: Format = "timm",
        push: str | None = None,
        adaptors: bool = True,
        overwrite: bool = False,
    ) -> Written:
        """Write a finished student for other programs, as the command does: `target` is seen from the current folder.
        With `push` ("hf:USER/NAME") timm's folder is uploaded, and only written where there is a `target`; `adaptors`: with
        the heads that predict its teachers' features."""
        file, reporter = Path(target) if target is not None else None, _reporter(self._progress)
        return export_step(student, file, to, push, overwrite, self._inventory(), reporter, adaptors)

    def run(
        self,
        *,
        rows: str | int | None = None,
        device: str | None = None,
        workers: int = 0,
        scheduler: str | None = None,
        restart: bool = False,
        force: bool = False,
    ) -> pa.Table:
        """Index, extract, distill, evaluate, report: whatever is not fresh; all scores."""
        first, where = self._inventory(rows), Where(device, workers, scheduler)
        with (
            self._stage(first, "run") as (reporter, stop),
            extract_options(first, where, reporter, stop, force) as options,
        ):
            run_everything(
                lambda: self._inventory(rows), options, device, restart, reporter, stop,
                table=self._progress is True, tell=self._callback,
            )  # fmt: skip
        return self.scores(rows)

    def scores(self, rows: str | int | None = None) -> pa.Table:
        """The results that the configuration asks for, as far as they are there: a row for every benchmark, encoder,
        probe and metric (fractions from 0 to 1), with the columns of `results.csv`."""
        from unic_pipe.stages.report.files import scores_table
        from unic_pipe.stages.report.stage import records_in_force

        return scores_table(records_in_force(self._inventory(rows)))

    def curves(self, student: str, rows: str | int | None = None) -> pa.Table:
        """What was measured while a student was trained (`metrics.parquet`): `step`, `loss`, `val/loss`, and others.
        Raises UserError: no student of that name has any."""
        inventory = self._inventory(rows)
        folder = inventory.folder / "students" / inventory.student_name(student)
        found = student_metrics(folder)
        if found is None:
            raise UserError(
                f"No student {student!r} has been trained{did_you_mean(student, list(self.config.students))}",
                f"unic-pipe distill --student {student}",
            )
        return found

    def _inventory(self, rows: str | int | None = None) -> Inventory:
        if rows is not None:
            parse_rows(str(rows))
        return Inventory(self.workspace, None if rows is None else str(rows))

    def _artefacts(self, stage: Stage, rows: str | int | None = None) -> pa.Table:
        found = look(self._inventory(rows)).artefacts
        return pa.Table.from_pylist([a.model_dump() for a in found if a.stage == stage], _ARTEFACTS)

    @contextmanager
    def _stage(self, inventory: Inventory, stage: str) -> Iterator[tuple[Reporter, Stop]]:
        """What a stage runs with."""
        with staged(inventory, stage, _reporter(self._progress), f"Pipeline.{stage}()") as (reporter, stop):
            yield reporter, stop
        _end(stop, stage)


def embed(
    encoder: str,
    images: str | PathLike[str],
    output: str | PathLike[str],
    *,
    tokens: Literal["cls", "patch", "both"] = "cls",
    image_size: int | None = None,
    architecture: str | None = None,
    device: str | None = None,
    batch: int | None = None,
    fetch: bool = False,
    overwrite: bool = False,
    progress: Progress = True,
) -> Embedded:
    """Write the features of any images by any encoder to a file, as the command `embed` does; what was written."""
    with Stop() as stop:
        found = embed_step(
            encoder, fspath(images), Path(output), tokens, _reporter(progress), stop, image_size=image_size,
            architecture=architecture, device=device, batch=batch, fetch=fetch, overwrite=overwrite,
        )  # fmt: skip
    _end(stop, "embed")
    assert found is not None, "not stopped"
    return found


def _reporter(progress: Progress) -> Reporter:
    if callable(progress):
        return CallbackReporter(progress)
    return ConsoleReporter() if progress else SilentReporter()


def _end(stop: Stop, stage: str) -> None:
    """A stop as Python raises it, once everything is written."""
    if stop.signal == signal.SIGINT:
        raise KeyboardInterrupt(f"Stopped; finished work is kept, and {stage}() goes on.")
    if stop.requested:
        raise SystemExit(0)


def _names(names: Names) -> Sequence[str]:
    return (names,) if isinstance(names, str) else tuple(names)
