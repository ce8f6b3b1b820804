"""`verify`: every file of every artefact against what was recorded (R11)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipeline.cache.verify import verify_folder
from pipeline.evaluations import RESULTS, read_record
from pipeline.finished import read_document
from pipeline.inventory import Inventory
from pipeline.progress import Reporter
from pipeline.samples import Dataset, open_dataset
from pipeline.storage import sha256_of_file
from schemas.base import digest_of
from schemas.errors import UnicPipeError, UserError
from schemas.features import FeatureManifest, StatisticsDocument
from schemas.status import Problem, VerifyReport
from schemas.students import CheckpointEntry, ExportManifest, StudentManifest


def verify(inventory: Inventory, read_only: bool, reporter: Reporter) -> tuple[VerifyReport, str | None]:
    """Check samples' indexes, feature caches, students and results; the report, and the command that repairs.

    Damage is reported, never raised. Without `read_only`, damaged units of caches are set aside for the next extract.
    """
    problems: list[Problem] = []
    checked = 0
    features = _folders(inventory.folder, "features")
    with reporter.task("verify", total=len(features), unit="caches") as task:
        for folder in features:
            found, count = verify_folder(folder, _dataset_of(inventory, folder), read_only)
            problems += [p.model_copy(update={"path": f"features/{folder.name}/{p.path}"}) for p in found]
            checked += count
            task.advance()
    for kind, check in (
        ("samples", _index_problems),
        ("students", _student_problems),
        ("evaluations", _result_problems),
    ):
        for folder in _folders(inventory.folder, kind):
            count, wrong = check(folder)
            checked += count
            problems += [_problem(f"{kind}/{folder.name}/{path}", what) for path, what in wrong]
    damaged = [p for p in problems if p.kind != "unexpected"]
    report = VerifyReport(ok=not damaged, checked=checked, problems=tuple(problems))
    return report, _next(damaged)


def _folders(workdir: Path, kind: str) -> list[Path]:
    base = workdir / kind
    named = base.iterdir() if base.is_dir() else iter(())
    return sorted(f for f in named if f.is_dir() and not f.is_symlink() and f.name[-9:-8] == "-")


def _dataset_of(inventory: Inventory, folder: Path) -> Dataset | None:
    """The indexed dataset of a feature folder, for checking that records are of its rows."""
    try:
        manifest = FeatureManifest.from_bytes((folder / "manifest.json").read_bytes(), str(folder))
    except (OSError, UserError):
        return None
    for index in sorted((inventory.folder / "samples").glob(f"*-{manifest.definition.dataset[:8]}")):
        try:
            dataset = open_dataset(index, inventory.workspace.roots)
        except UnicPipeError:
            continue
        if dataset.digest == manifest.definition.dataset:
            return dataset
    return None


Findings = tuple[int, list[tuple[str, str]]]
"""Number of files checked, and (path inside the folder, kind of problem)."""


def _index_problems(folder: Path) -> Findings:
    try:
        dataset = open_dataset(folder, ())
    except UnicPipeError:
        return 1, [("manifest.json", "document")]
    return 1 + len(dataset.manifest.segments), [(name, "content") for name in dataset.damaged()]


def _student_problems(folder: Path) -> Findings:
    """Manifest, frozen statistics, the checkpoint that `latest.json` names, and the exported files."""
    wrong: list[tuple[str, str]] = []
    manifest = read_document(folder / "manifest.json", StudentManifest)
    if manifest is None or digest_of(manifest.definition) != manifest.digest:
        return 1, [("manifest.json", "document")]
    checked = 1 + len(manifest.statistics)
    for teacher, digest in manifest.statistics.items():
        statistics = read_document(folder / "statistics" / f"{teacher}.json", StatisticsDocument)
        if statistics is None or digest_of(statistics) != digest:
            wrong.append((f"statistics/{teacher}.json", "content"))
    if (folder / "latest.json").exists():
        entry = read_document(folder / "latest.json", CheckpointEntry)
        checked += 2
        if entry is None:
            wrong.append(("latest.json", "document"))
        else:
            wrong += list(_differs(folder, entry.file, entry.digest))
    if (folder / "export" / "manifest.json").exists():
        export = read_document(folder / "export" / "manifest.json", ExportManifest)
        checked += 3
        if export is None or export.student != manifest.digest:
            wrong.append(("export/manifest.json", "document"))
        else:
            wrong += list(_differs(folder, "export/model.safetensors", export.weights))
            wrong += list(_differs(folder, "export/config.json", export.config))
    return checked, wrong


def _result_problems(folder: Path) -> Findings:
    files = sorted((folder / RESULTS).glob("*.json"))
    records = ((path, read_record(path)) for path in files)
    return len(files), [
        (f"{RESULTS}/{path.name}", "document")
        for path, record in records
        if record is None or digest_of(record.definition) != record.digest
    ]


def _differs(folder: Path, name: str, digest: str) -> Iterator[tuple[str, str]]:
    path = folder / name
    if not path.is_file():
        yield name, "missing"
    elif sha256_of_file(path) != digest:
        yield name, "content"


def _problem(path: str, kind: str) -> Problem:
    return Problem(path=path, teacher=None, token=None, view=None, block=None, kind=kind)


def _next(problems: list[Problem]) -> str | None:
    """The command that repairs what can be repaired."""
    repairs: list[tuple[str, str]] = [
        ("samples/", "unic-pipe index   (after moving the damaged folder away)"),
        ("features/", "unic-pipe extract   (makes again only what is damaged)"),
        ("students/", "unic-pipe distill   (goes on from the last good checkpoint; move a damaged export/ away)"),
        ("evaluations/", "unic-pipe evaluate"),
    ]
    return next((command for top, command in repairs if any(p.path.startswith(top) for p in problems)), None)
