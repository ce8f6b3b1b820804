"""`init`: look at the data, and write a commented `unic-pipe.yaml` for them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from unic_pipe.pipeline.encoders.locate import find_weights
from unic_pipe.pipeline.encoders.registry import parse_choice
from unic_pipe.pipeline.encoders.resolve import encoder_card, find_file
from unic_pipe.pipeline.samples.places import Root, where
from unic_pipe.pipeline.samples.survey import Survey, survey_splits
from unic_pipe.pipeline.storage import LocalStore, is_remote
from unic_pipe.pipeline.workspace.configuration import CONFIG_NAME, to_yaml
from unic_pipe.schemas.benchmarks import BenchmarkConfig
from unic_pipe.schemas.config import DistillConfig, EncoderConfig, EvaluateConfig, SamplesConfig
from unic_pipe.schemas.errors import UserError, did_you_mean
from unic_pipe.stages.init.presets import COMMENTS, PRESETS

WEIGHTS = "weights"
IMAGENET_ROWS = {"train": 1_281_167, "val": 50_000}
"""Images of ImageNet-1k's splits."""
PAPER_DROP = {1: 0.0, 2: 0.25}
"""Drop probability by number of teachers (UNIC: .25 for two, .5 for four)."""


def look(path: str | Path) -> dict[str, Survey]:
    """What is below a path or URL, by split (`train`, `val` ...), with counts and the time that indexing will take.

    Raises:
        UserError: nothing there that can be a source.
    """
    if is_remote(str(path)):
        return survey_splits(str(path).rstrip("/"))
    path = Path(path)
    if not path.exists() and not any(c in str(path) for c in "*?{["):
        raise UserError(f"{path}: no such file or folder.", "Give --data a folder of tars or images, or a tar pattern.")
    return survey_splits(path)


def missing_weights(folder: Path, teachers: Sequence[str]) -> list[str]:
    """Those teachers whose weights are not on this machine yet.

    Raises:
        UserError: a teacher is not known, or its file is nowhere.
    """
    missing = []
    for teacher in teachers:
        kind, target = parse_choice(teacher)
        if kind == "checkpoint" or kind == "student":
            find_file(EncoderConfig(encoder=teacher), teacher, folder / WEIGHTS, folder)
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
    split = next((split for split in IMAGENET_ROWS if name.startswith(split)), None)
    return IMAGENET_ROWS[split] if split is not None and len(surveys) > 1 else near[0]


def write_config(
    folder: Path, surveys: Mapping[str, Survey], teachers: Sequence[str], student: str, views: int, gpu: bool
) -> Path:
    """Write `unic-pipe.yaml` into the working folder, which must not have one.

    Raises:
        UserError: there is one already, or a teacher is not known.
    """
    for teacher in teachers:
        parse_choice(teacher)
    return _create(folder, _text(folder, surveys, teachers, student, views, gpu))


def write_preset(folder: Path, surveys: Mapping[str, Survey], preset: str, views: int) -> tuple[Path, list[str]]:
    """Write `unic-pipe.yaml` for one of the paper's settings into the working folder, which must not have one; its
    path, and the encoders that it names.

    Raises:
        UserError: there is one already, or no preset has that name.
    """
    if preset not in PRESETS:
        raise UserError(f"No preset is named {preset!r}{did_you_mean(preset, list(PRESETS))}")
    config = PRESETS[preset](
        SamplesConfig(
            roots=tuple(sorted({_from(folder, survey.root) for survey in surveys.values()})),
            datasets={
                name: survey.config.model_copy(update={"rows": expected_rows(name, surveys)})
                for name, survey in surveys.items()
            },
        ),
        DistillConfig(validation="val" if "val" in surveys else None),
        EvaluateConfig(benchmarks=_benchmarks(surveys)),
        views,
    )
    head = [
        f"# unic-pipe: {preset}, a setting of the UNIC paper (arXiv 2408.05088), and what of it is ours.",
        "# unic-pipe status shows the plan, unic-pipe run carries it out. Every field and its default: schemas/config.py.",
    ]
    path = _create(folder, "\n".join([*head, "", to_yaml(config, COMMENTS)]))
    return path, list(dict.fromkeys(teacher.encoder or name for name, teacher in config.teachers.items()))


def _create(folder: Path, text: str) -> Path:
    path = folder / CONFIG_NAME
    if not LocalStore(folder).create(CONFIG_NAME, text.encode()):
        raise UserError(f"{path} exists already.", "Edit it, or move it away first; init never overwrites.")
    return path


def _text(
    folder: Path, surveys: Mapping[str, Survey], teachers: Sequence[str], student: str, views: int, gpu: bool
) -> str:
    roots = sorted({_from(folder, survey.root) for survey in surveys.values()})
    drop = PAPER_DROP.get(len(teachers), 0.5)
    lines = [
        "# unic-pipe: what to distil, from which samples, and how to judge it.   unic-pipe status shows the plan,",
        "# unic-pipe run carries it out. Every field and its default: schemas/config.py.",
        "",
        "samples:",
        f"  roots: {_flow(roots)}   # folders in which the sources are searched; may change when data move",
        "  datasets:",
        *(_dataset(name, surveys) for name in surveys),
        "",
        "views:                # what is cached of every training sample",
        "  recipe: unic        # the paper's crops and colours; gentle suits tiny images",
        f"  count: {views}            # more views: more disk, better students",
        "",
        f"weights_dir: {WEIGHTS}  # searched first for teachers' weights (unic-pipe teachers)",
        "teachers:             # frozen; also mine: {encoder: timm:NAME} or {encoder: checkpoint:PATH}",
        *(f"  {line}" for line in _teachers(teachers)),
        "",
        "cache:",
        "  codec: auto         # the fewest bits that reach snr_db (15 dB), per teacher; float16 keeps everything",
        "",
        "compute:              # part of a feature's identity, except device",
        "  device: auto",
        f"  dtype: {'bfloat16' if gpu else 'float32 '}     # of the teachers' forward pass",
        "",
        "students:",
        "  main:",
        f"    architecture: {student}",
        f"    dataset: {'train' if 'train' in surveys else next(iter(surveys))}",
        f"    loss: {{drop_probability: {drop}}}   # the paper: .25 for two teachers, .5 for four",
        "    optimizer: {epochs: 200, batch: 512, lr: 3e-4}   # lr per 256 images",
        f"    dtype: {'bfloat16' if gpu else 'float32'}",
    ]
    if "val" in surveys and surveys["val"].classes is not None:
        lines += ["", "distill:", "  validation: val     # validation loss after every epoch"]
    lines += ["", *_evaluate(surveys)]
    return "\n".join(lines) + "\n"


def _dataset(name: str, surveys: Mapping[str, Survey]) -> str:
    survey, rows = surveys[name], expected_rows(name, surveys)
    fields = [f'source: "{survey.config.source}"']
    if survey.config.labels is not None:
        fields.append(f'labels: "{survey.config.labels}"')
    if rows is not None:
        fields.append(f"rows: {rows}")
    about = "" if survey.exact else "about "
    classes = f", {survey.classes:,} classes" if survey.classes else ""
    return f"    {name}: {{{', '.join(fields)}}}   # {about}{survey.rows:,} images{classes}"


def _teachers(teachers: Sequence[str]) -> list[str]:
    """A line for each teacher; two of one architecture are told apart by the rest of their names."""
    lines: dict[str, str] = {}
    for teacher in dict.fromkeys(teachers):
        target = teacher.partition(":")[2]
        file = Path(target).name
        names = (file.split(".")[0], file.replace(".", "-"), target.replace("/", "-").replace(".", "-"))
        name = next((n for n in names if n not in lines), names[-1]) if target else teacher
        lines[name] = f'{name}: {{encoder: "{teacher}"}}' if target else f"{name}: {{}}"
    return list(lines.values())


def _benchmarks(surveys: Mapping[str, Survey]) -> dict[str, BenchmarkConfig]:
    """The one benchmark that is there when train and a test set have labels."""
    labelled = [name for name, survey in surveys.items() if survey.classes is not None or survey.config.labels]
    tests = [name for name in ("test", "val") if name in labelled]
    return {tests[0]: BenchmarkConfig(train="train", test=tests[0])} if "train" in labelled and tests else {}


def _evaluate(surveys: Mapping[str, Survey]) -> list[str]:
    benchmarks = _benchmarks(surveys)
    if benchmarks:
        return [
            "evaluate:             # any labelled pair of datasets is a benchmark",
            "  benchmarks:",
            *(f"    {name}: {{train: {b.train}, test: {b.test}}}" for name, b in benchmarks.items()),
        ]
    return [
        "# evaluate:           # any labelled pair of datasets is a benchmark",
        "#   benchmarks:",
        "#     pets: {train: pets-train, test: pets-test}   # name both under samples.datasets",
    ]


def _flow(values: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{value}"' for value in values) + "]"


def _from(folder: Path, root: Root) -> str:
    """A root as it is written: a URL, or a path: relative when it lies in the working folder, absolute otherwise."""
    if isinstance(root, Path) and root.is_relative_to(folder):
        return os.path.relpath(root, folder)
    return where(root)
