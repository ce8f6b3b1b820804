"""Fills `ReportData` from a working folder: result records, students' metrics, feature records, digests."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from unic_pipe.pipeline.cache.records import FeatureFolder, folder_of
from unic_pipe.pipeline.storage import LocalStore, Store
from unic_pipe.pipeline.workspace.documents import read_document, student_metrics
from unic_pipe.pipeline.workspace.labels import origins
from unic_pipe.pipeline.workspace.seeds import seed_groups
from unic_pipe.schemas.evaluations import ResultRecord, Role
from unic_pipe.schemas.features import FeatureManifest
from unic_pipe.schemas.losses import TOKENS
from unic_pipe.schemas.students import StudentManifest
from unic_pipe.stages.report.data import (
    BenchmarkEntry,
    EncoderEntry,
    FeatureRow,
    Origin,
    Pictures,
    ReportData,
    Series,
    Skipped,
    StudentCurves,
)  # fmt: skip
from unic_pipe.stages.report.scores import scores_of
from unic_pipe.stages.report.trainings import facts, warning

RANDOM = "-random"
"""Endings of names: a student's architecture at random initialisation, a student trained on a part of the rows."""


def gather(
    workdir: Path,
    evaluation_folder: Path,
    students: Mapping[str, Path],
    results: Sequence[ResultRecord],
    *,
    notes: Mapping[str, str] | None = None,
    axes: Mapping[str, str] | None = None,
    skipped: Sequence[Skipped] = (),
    commands: Sequence[str] = (),
    features: Store | None = None,
    pictures: Pictures | None = None,
    parameters: Mapping[str, int] | None = None,
) -> ReportData:
    """Read everything that a report shows. What has gone missing since is left out, not an error.

    The name of `evaluation_folder`, `evaluations/<name>-<8>`, is the title. `students` are folders, `notes` and `axes` (as
    `fine-grained`) belong to benchmarks, `parameters` to encoders, all by name; `features`: where feature folders are, by
    default in `workdir`.
    Raises DamagedError, StageError: a student's or a feature folder's documents are not what was written.
    """
    found = {name: read_document(folder / "manifest.json", StudentManifest) for name, folder in students.items()}
    manifests = {name: manifest for name, manifest in found.items() if manifest is not None}
    roles: dict[str, Role] = {record.encoder: record.role for record in results}
    roles |= {name: "student" for name in manifests if name not in roles}
    remarks, groups, sizes = notes or {}, axes or {}, parameters or {}
    benchmarks = dict.fromkeys(record.benchmark for record in results)
    trained_on = {digest for m in manifests.values() for digest in m.definition.features}
    evaluated = {d for r in results for d in (r.definition.features_train, r.definition.features_test)}
    places = features or LocalStore(workdir / "features")
    folders = [f for d in sorted(trained_on | evaluated) if (f := folder_of(places, d)) is not None]
    rows = [row for folder in folders for row in feature_rows(folder, trained_on)]
    order = {name: place for place, name in enumerate(roles)}
    rows.sort(key=lambda f: (f.dataset, order.get(f.encoder, len(order)), f.encoder, f.token))
    name, _, digits = evaluation_folder.name.rpartition("-")
    return ReportData(
        title=name or evaluation_folder.name,
        benchmarks=tuple(BenchmarkEntry(b, remarks.get(b, ""), groups.get(b, "")) for b in benchmarks),
        encoders=tuple(EncoderEntry(n, r, _baseline_of(n, roles), sizes.get(n, 0)) for n, r in roles.items()),
        scores=scores_of(results),
        training=tuple(training_curves(manifests[n], students[n], n) for n in manifests),
        features=tuple(rows),
        origins=tuple(_origins(manifests, folders, results, trained_on, digits, name)),
        protocol=", ".join(sorted({record.definition.protocol for record in results})),
        commands=tuple(commands),
        skipped=tuple(skipped),
        seed_groups=seed_groups({name: manifest.definition for name, manifest in manifests.items()}),
        pictures=pictures,
    )


def _baseline_of(name: str, roles: Mapping[str, Role]) -> str | None:
    if roles[name] != "student":
        return None
    candidates = (f"{origin}{RANDOM}" for origin in origins(name))
    return next((candidate for candidate in candidates if roles.get(candidate) == "baseline"), None)


def training_curves(manifest: StudentManifest, folder: Path, name: str) -> StudentCurves:
    """The curves in a student's `metrics.parquet`; none when there is no table. Raises DamagedError."""
    teachers = tuple(t.name for t in manifest.definition.teachers)
    table = student_metrics(folder)
    rows = [{k: v for k, v in row.items() if v is not None} for row in table.to_pylist()] if table is not None else []
    told = facts(manifest, folder, rows), warning(manifest, folder, rows)
    if table is None or "epoch" not in table.column_names:
        return StudentCurves(name, teachers, {}, *told)
    epochs = table.column("epoch").to_pylist()
    curves = {
        column: _series(epochs, table.column(column).to_pylist())
        for column in table.column_names
        if column not in ("step", "epoch", "data_wait", "images_per_s", "queue", "gpu_use")
    }
    return StudentCurves(name, teachers, {column: c for column, c in curves.items() if c.values}, *told)


def _series(epochs: Iterable[float | None], values: Iterable[float | None]) -> Series:
    """Pairs where both are there and finite: a diverged loss ends its curve instead of breaking the chart."""
    pairs = [
        (e, v)
        for e, v in zip(epochs, values, strict=True)
        if e is not None and v is not None and math.isfinite(e) and math.isfinite(v)
    ]
    return Series(tuple(e for e, _ in pairs), tuple(v for _, v in pairs))


def feature_rows(found: tuple[FeatureManifest, FeatureFolder], trained_on: set[str]) -> list[FeatureRow]:
    """One row per token type that the folder has records of."""
    manifest, folder = found
    encoder = manifest.definition.encoder
    planes = folder.planes()
    rows = []
    for token in TOKENS:
        views = [folder.records(view, t) for view, t in planes if t == token]
        units = [record for records in views for record in records.values()]
        if not units:
            continue
        shape = encoder.shape(token)
        rows.append(
            FeatureRow(
                encoder=manifest.encoder,
                dataset=manifest.dataset,
                architecture=encoder.architecture,
                image_size=encoder.image_size,
                token=token,
                dim=shape[-1],
                grid=encoder.grid,
                codec=manifest.definition.codec.name,
                size=sum(entry.size for unit in units for entry in unit.files[:-1]),
                values=sum(unit.count for unit in units) * math.prod(shape),
                views=len([records for records in views if records]),
                rows=max(sum(unit.count for unit in records.values()) for records in views),
                bad_rows=len({(unit.block, row.offset) for unit in units for row in unit.bad}),
                training=manifest.digest in trained_on,
                digest=manifest.digest,
            )
        )
    return rows


def _origins(
    students: Mapping[str, StudentManifest],
    folders: Sequence[tuple[FeatureManifest, FeatureFolder]],
    results: Sequence[ResultRecord],
    trained_on: set[str],
    evaluation: str,
    evaluation_name: str,
) -> Iterable[Origin]:
    """Digests from the data to the evaluation, each once. Features of benchmarks stand in their own table."""
    found: list[Origin] = []
    for manifest, _ in folders:
        found.append(Origin("dataset", manifest.dataset, manifest.definition.dataset))
    for record in results:
        found.append(Origin("benchmark", f"{record.benchmark}, train", record.definition.benchmark_train))
        found.append(Origin("benchmark", f"{record.benchmark}, test", record.definition.benchmark_test))
    for manifest, _ in folders:
        weights = manifest.definition.encoder.weights
        if re.fullmatch(r"[0-9a-f]{64}", weights):
            found.append(Origin("weights", manifest.encoder, weights))
    for name, student in students.items():
        start, parent = student.definition.config.start, student.definition.parent
        if start is not None and parent is not None:
            found.append(Origin("weights", f"{name}, which starts from {start.encoder}", parent))
    found += [Origin("encoder", record.encoder, record.definition.encoder) for record in results]
    for manifest, _ in folders:
        if manifest.digest in trained_on:
            found.append(Origin("features", f"{manifest.dataset} / {manifest.encoder}", manifest.digest))
    for name, student in students.items():
        found += [Origin("statistics", f"{name} / {teacher}", d) for teacher, d in student.statistics.items()]
        found.append(Origin("student", name, student.digest))
    if evaluation:
        found.append(Origin("evaluation", evaluation_name, evaluation))
    rank = {kind: i for i, kind in enumerate(dict.fromkeys(o.kind for o in found))}
    return sorted(dict.fromkeys(found), key=lambda o: rank[o.kind])
