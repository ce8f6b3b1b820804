"""`init`: look at the data, and write a commented `unic-pipe.yaml` for them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from unic_pipe.pipeline.encoders.locate import find_weights, repository_folder
from unic_pipe.pipeline.encoders.registry import parse_choice
from unic_pipe.pipeline.encoders.resolve import encoder_card, find_file
from unic_pipe.pipeline.process.threads import usable_cores
from unic_pipe.pipeline.samples.class_checks import Side, comparable
from unic_pipe.pipeline.samples.places import Root, where
from unic_pipe.pipeline.samples.splits import split_of
from unic_pipe.pipeline.samples.survey import Survey, survey_splits
from unic_pipe.pipeline.storage import is_remote
from unic_pipe.pipeline.workspace.configuration import CONFIG_NAME, to_yaml, write_configuration
from unic_pipe.pipeline.workspace.names import require_told_apart
from unic_pipe.schemas.config import Config, DistillConfig, EncoderConfig, EvaluateConfig, SamplesConfig
from unic_pipe.schemas.errors import UserError, did_you_mean
from unic_pipe.schemas.presets import ALIASES
from unic_pipe.schemas.starts import TEACHER
from unic_pipe.schemas.students import StudentShape
from unic_pipe.stages.init.fit import (
    WEIGHTS,
    Wishes,
    benchmarks,
    block_rows,
    comments,
    fitted_config,
    training_set,
    validation_set,
)
from unic_pipe.stages.init.presets import PRESETS, comments_of, preset_config

IMAGENET_ROWS = {"train": 1_281_167, "val": 50_000}
"""Images of ImageNet-1k's splits."""


def look(path: str | Path) -> dict[str, Survey]:
    """What is below a path or URL, by split (`train`, `val` ...), with counts and the time that indexing will take.
    Raises UserError: nothing there that can be a source."""
    if is_remote(str(path)):
        return survey_splits(str(path).rstrip("/"))
    path = Path(path)
    if not path.exists() and not any(c in str(path) for c in "*?{["):
        raise UserError(f"{path}: no such file or folder.", "Give --data a folder of tars or images, or a tar pattern.")
    return survey_splits(path)


def refuse_existing(folder: Path) -> None:
    """Raises UserError: the working folder has a configuration already."""
    if (folder / CONFIG_NAME).exists():
        raise UserError(
            f"{folder / CONFIG_NAME} exists already.", "Edit it, or move it away first; init never overwrites."
        )


def missing_weights(folder: Path, teachers: Sequence[str]) -> list[str]:
    """Those teachers whose weights are not on this machine yet.
    Raises UserError: a teacher is not known, or its file is nowhere."""
    missing = []
    for teacher in teachers:
        if teacher.startswith(TEACHER):
            continue
        kind, target = parse_choice(teacher)
        if kind == "checkpoint" or kind == "student":
            find_file(EncoderConfig(encoder=teacher), teacher, folder / WEIGHTS, folder)
        elif kind == "hub":
            missing += [] if repository_folder(target, folder / WEIGHTS) else [teacher]
        elif find_weights(encoder_card(kind, target, folder / WEIGHTS, None), folder / WEIGHTS) is None:
            missing.append(teacher)
    return missing


def expected_rows(name: str, surveys: Mapping[str, Survey]) -> int | None:
    """The number of rows that a dataset must have, if the data look like ImageNet-1k; else None.

    Train and validation folders are told apart by their names: swapped ones are noticed when they are indexed.
    """
    survey = surveys[name]
    labelled = survey.classes == 1000 or (survey.layout == "flat-folder" and survey.config.labels is not None)
    tolerance = 0.01 if survey.exact else 0.05
    near = [rows for rows in IMAGENET_ROWS.values() if abs(survey.rows - rows) <= tolerance * rows]
    if not labelled or not near:
        return None
    split = split_of(name)
    return IMAGENET_ROWS[split] if split in IMAGENET_ROWS and len(surveys) > 1 else near[0]


def fitted(
    folder: Path, surveys: Mapping[str, Survey], teachers: Sequence[str], shape: StudentShape, wishes: Wishes, gpu: bool
) -> Config:
    """The configuration that fits what was found. Raises UserError: a teacher is not known."""
    for teacher in teachers:
        parse_choice(teacher)
    rows = block_rows(surveys[training_set(surveys)].rows)
    return fitted_config(
        _samples(folder, surveys, block_rows=rows), surveys, teachers, shape, wishes, gpu, usable_cores()
    )


def label_remarks(surveys: Mapping[str, Survey]) -> list[str]:
    """That nothing will be scored; or which of the benchmarks that are written cannot be, and why, as far as a look at the
    data shows."""
    found = []
    if not benchmarks(surveys):
        found.append(
            "Nothing will be scored: no labelled test set was found. Put some images of each class into test/CLASS, the others "
            "into train/CLASS, remove unic-pipe.yaml and init again; or name two labelled datasets under evaluate.benchmarks."
        )
    for name, pair in benchmarks(surveys).items():
        train, test = (
            Side(side, surveys[side].class_names, np.array(surveys[side].class_numbers, np.int64))
            for side in (pair.train, pair.test)
        )
        if not (train.numbers_C.size and test.numbers_C.size):
            continue
        try:
            comparable(train, test)
        except UserError as error:
            found.append(f"benchmark {name} will be skipped as it is: {error.message} {error.hint or ''}".rstrip())
    return found


def write_config(folder: Path, config: Config, surveys: Mapping[str, Survey]) -> Path:
    """Write `unic-pipe.yaml` into the working folder, which must not have one; its path.
    Raises UserError: there is one already, or names would collide."""
    require_told_apart(config, folder / CONFIG_NAME)
    head = ["# unic-pipe: what to distil, from which samples, and how to judge it.", *_HELP, ""]
    end = [] if config.evaluate.benchmarks else ["", *_NO_BENCHMARK]
    return _create(folder, "\n".join([*head, to_yaml(config, comments(config, surveys)).rstrip("\n"), *end, ""]))


def preset_for(folder: Path, surveys: Mapping[str, Survey], preset: str, views: int) -> tuple[Config, list[str]]:
    """The configuration of a published recipe for what was found, and the encoders that it names.
    Raises UserError: no preset has that name."""
    config = preset_config(
        _preset(preset),
        _samples(folder, surveys),
        DistillConfig(validation=validation_set(surveys)),
        EvaluateConfig(benchmarks=benchmarks(surveys)),
        views,
    )
    return config, list(dict.fromkeys(teacher.encoder or name for name, teacher in config.teachers.items()))


def write_preset(folder: Path, preset: str, config: Config) -> Path:
    """Write `unic-pipe.yaml` with the configuration of a published recipe into the working folder, which must not have
    one; its path. Raises UserError: there is one already."""
    preset = _preset(preset)
    head = [f"# unic-pipe: {preset}, a published recipe, and what of it is ours (docs/recipes.md).", *_HELP]
    return _create(folder, "\n".join([*head, "", to_yaml(config, comments_of(preset))]))


def _preset(name: str) -> str:
    name = ALIASES.get(name, name)
    if name not in PRESETS:
        raise UserError(f"No preset is named {name!r}{did_you_mean(name, list(PRESETS))}")
    return name


_HELP = (
    "# unic-pipe status shows the plan, unic-pipe plan what it takes, unic-pipe run carries it out.",
    "# Every field, with its type and its default: unic-pipe config --describe",
)
_NO_BENCHMARK = (
    "# evaluate:           # any labelled pair of datasets is a benchmark",
    "#   benchmarks:",
    "#     pets: {train: pets-train, test: pets-test}   # name both under samples.datasets",
)


def _samples(folder: Path, surveys: Mapping[str, Survey], block_rows: int | None = None) -> SamplesConfig:
    datasets = {}
    for name, survey in surveys.items():
        rows = expected_rows(name, surveys)
        datasets[name] = survey.config if rows is None else survey.config.model_copy(update={"rows": rows})
    roots = tuple(sorted({_from(folder, survey.root) for survey in surveys.values()}))
    samples = SamplesConfig(roots=roots, datasets=datasets)
    return samples if block_rows is None else samples.model_copy(update={"block_rows": block_rows})


def _create(folder: Path, text: str) -> Path:
    if not write_configuration(folder, text):
        refuse_existing(folder)
    return folder / CONFIG_NAME


def _from(folder: Path, root: Root) -> str:
    """A root as it is written: a URL, or a path: relative when it lies in the working folder, absolute otherwise."""
    if isinstance(root, Path) and root.is_relative_to(folder):
        return os.path.relpath(root, folder)
    return where(root)
