"""Evaluations as documents: what a result is made from, where it lives, and which results are in force.

Nothing here computes a score and nothing imports torch, so `status`, the report and the evaluate stage share it.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from unic_pipe.pipeline.cache.tables import read_table
from unic_pipe.pipeline.samples.classes import match_classes
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.storage import sha256_of_file
from unic_pipe.pipeline.workspace.documents import head_of, read_document
from unic_pipe.schemas.base import digest_of, json_digest, short
from unic_pipe.schemas.benchmarks import cards
from unic_pipe.schemas.config import EvaluateConfig
from unic_pipe.schemas.errors import DamagedError, UserError
from unic_pipe.schemas.evaluations import ResultDefinition, ResultRecord
from unic_pipe.schemas.probes import PROBES, PROTOCOL
from unic_pipe.schemas.samples import DatasetManifest

FOLDER = "evaluations"
EVALUATION = f"{FOLDER}/main"
"""The evaluation as an artefact: its benchmarks, settings and protocol give the eight digits of its folder."""
RESULTS = "results"
PROBES_KEPT = "probes"
RUNS = "runs"
"""Studies of searches by trials; not needed once a result is there."""
TABLE, CLASS_TABLE = "results.parquet", "classes.parquet"


def benchmark_digest(manifest: DatasetManifest) -> str:
    """Identity of one side of a benchmark: its rows and its labels, segment by segment, and which of its images were
    deleted, if any (64 hex digits)."""
    segments = [[s.rows_digest, s.labels_digest] for s in manifest.segments]
    return json_digest([*segments, list(manifest.gone)] if manifest.gone else segments)


def probes_of(config: EvaluateConfig, benchmark: str) -> tuple[str, ...]:
    """The probes of a benchmark of labelled images: the configured ones; one that has a name has its own linear probe, and
    what is tested with ImageNet's has no other."""
    card = cards().get(benchmark)
    if card is None:
        return config.probes
    linear = [p for p in config.probes if PROBES[p].linear]
    others = [p for p in config.probes if p not in linear and card.kind == "probe"]
    return (*([card.classifier] if linear and card.classifier in PROBES else []), *others)


def result_definition(
    config: EvaluateConfig,
    probe: str,
    *,
    train: DatasetManifest,
    test: DatasetManifest,
    features_train: str,
    features_test: str,
    encoder: str,
    asked: Sequence[int] | None = None,
) -> ResultDefinition:
    """What one result is made from: the datasets, the definition digests of both feature sets and of the encoder.

    `asked`: for each training class the test class that it counts as, in a test with another benchmark's probe; else
    classes are matched by name. Raises UserError: the sides have no class in common.
    """
    card, table = PROBES[probe], None
    if asked is None:
        table = match_classes((train.name, train.classes), (test.name, test.classes)).table
    pairs = asked if table is None else table
    return ResultDefinition(
        protocol=card.protocol_of(config, table is not None),
        benchmark_train=benchmark_digest(train),
        benchmark_test=benchmark_digest(test),
        features_train=features_train,
        features_test=features_test,
        encoder=encoder,
        probe=probe,
        settings=card.settings(config),
        seed=0 if card.seeds == "none" else config.seeds[0],
        seeds=config.seeds if card.seeds == "all" and len(config.seeds) > 1 else (),
        classes=None if pairs is None else json_digest(list(pairs)),
    )


def evaluation_digest(config: EvaluateConfig, benchmarks: Mapping[str, tuple[str, str]]) -> str:
    """Identity of an evaluation: protocol, settings, and every benchmark's (train, test) dataset digests.

    Encoders are not part of it: another student or teacher adds results to the same evaluation.
    """
    settings = {probe: PROBES[probe].settings(config) for probe in config.probes}
    pairs = {name: list(digests) for name, digests in benchmarks.items()}
    return json_digest({"protocol": PROTOCOL, "settings": settings, "seeds": list(config.seeds), "benchmarks": pairs})


def dataset_digest(definition: ResultDefinition) -> str:
    """The `dataset_digest` column of the results table: both sides of the benchmark, rows and labels."""
    return json_digest([definition.benchmark_train, definition.benchmark_test])


def evaluation_folder(workdir: Path, name: str, digest: str) -> Path:
    """`evaluations/<name>-<8>` of a working folder."""
    return workdir / FOLDER / f"{name}-{short(digest)}"


def result_key(benchmark: str, encoder: str, definition: ResultDefinition) -> str:
    """Key of a result inside its evaluation's folder.

    The names are part of it, so that two names of the same encoder (or benchmark) each have their own file.
    """
    return f"{RESULTS}/{short(json_digest([benchmark, encoder, digest_of(definition)]))}.json"


def probe_key(benchmark: str, encoder: str, definition: ResultDefinition) -> str:
    """Where the fitted probe of a result is kept: weights and, in a last column, biases, (C, D + 1) float64."""
    return f"{PROBES_KEPT}/{Path(result_key(benchmark, encoder, definition)).stem}.npy"


def in_force(record: ResultRecord | None, benchmark: str, encoder: str, definition: ResultDefinition) -> bool:
    """Whether a record is a finished result of exactly this definition under these names."""
    return (
        record is not None
        and record.status == "done"
        and (record.benchmark, record.encoder) == (benchmark, encoder)
        and record.digest == digest_of(definition)
    )


def read_record(path: Path) -> ResultRecord | None:
    """The record in a file; None when there is none. Raises DamagedError: it is not what was written."""
    try:
        record = read_document(path, ResultRecord)
        if record is None or digest_of(record.definition) == record.digest:
            return record
        message = f"{path}: its digest is not that of its definition."
    except DamagedError as error:
        message = error.message
    raise DamagedError(message, "unic-pipe verify sets it aside; unic-pipe evaluate then computes it again.")


def read_results(path: Path) -> pa.Table:
    """`results.parquet` or `classes.parquet`, verified. Where all records beside it are sealed, it has to be as well.

    Raises:
        DamagedError: it is not what was written.
        OSError: it cannot be read.
    """
    heads = [head_of(record) for record in (path.parent / RESULTS).glob("*.json")]
    sealed = bool(heads) and not any(map(ResultRecord.unsealed, heads))
    return read_table(path.read_bytes(), str(path), "Make it again: unic-pipe evaluate", sealed)


def current_record(
    folder: Path, benchmark: str, encoder: str, definition: ResultDefinition, kept: bool = False
) -> ResultRecord | None:
    """The record of a result in an evaluation's folder: done and in force, or failed with this definition.

    `kept`: a finished one counts only with its fitted probe, as it was written.
    """
    record = read_record(folder / result_key(benchmark, encoder, definition))
    if record is None or record.digest != digest_of(definition):
        return None
    probe = folder / probe_key(benchmark, encoder, definition)
    if kept and record.status == "done" and not (probe.is_file() and sha256_of_file(probe) == record.classifier):
        return None
    return record if record.status == "failed" or in_force(record, benchmark, encoder, definition) else None


def why_stale(folder: Path, benchmark: str, encoder: str, definition: ResultDefinition) -> str:
    """Why a result of 0.1.0 that is there is computed again; empty where there is none."""
    first = PROBES[definition.probe].protocol
    if definition.protocol == first:
        return ""
    for classes, why in (
        (definition.classes, "of equally good values a search takes the middle one now, not the first"),
        (None, "classes are matched by name now, results by number are stale"),
    ):
        before = definition.model_copy(update={"protocol": first, "classes": classes})
        if current_record(folder, benchmark, encoder, before) is not None:
            return why
    return ""


def equal_results(workdir: Path, digests: Iterable[str]) -> dict[str, ResultRecord]:
    """Finished results of any evaluation in the working folder that have one of these definition digests.

    A new benchmark or a new name makes a new folder, but what was computed before holds for equal definitions.
    """
    wanted = set(digests)
    found: dict[str, ResultRecord] = {}
    paths = sorted((workdir / FOLDER).glob(f"*-????????/{RESULTS}/*.json")) if wanted else []
    for path in paths:
        record = read_record(path)
        if record is not None and record.status == "done" and record.digest in wanted:
            found.setdefault(record.digest, record)
    return found


def unlabelled(dataset: Dataset) -> UserError:
    """The error for a dataset whose samples do not all have labels."""
    return no_labels(dataset.manifest.name, int((dataset.labels() < 0).sum()), dataset.manifest.rows)


def no_labels(name: str, missing: int = 0, rows: int = 0) -> UserError:
    """The error for a dataset without any label, or with labels `missing` for some of its `rows`."""
    if missing < rows:
        return UserError(
            f"Dataset {name}: {missing:,} of {rows:,} samples have no label.",
            "Label all of them, or leave the others out of the dataset: scores over a part do not compare.",
        )
    return UserError(
        f"Dataset {name} has no labels to evaluate with.",
        f"Sort its images into class folders, give its samples a .cls member, or set samples.datasets.{name}.labels or "
        ".label_field.",
    )
