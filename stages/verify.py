"""`verify`: every file of every artefact against what was recorded (R11)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline.cache.reader import FeatureCache
from pipeline.cache.verify import verify_folder
from pipeline.evaluations import RESULTS, read_record
from pipeline.finished import read_document, stored_document
from pipeline.inventory import Inventory
from pipeline.planning import extraction_needs
from pipeline.progress import Reporter, Task
from pipeline.samples import Dataset, open_dataset
from pipeline.storage import Store, sha256_of_file
from schemas.base import digest_of
from schemas.errors import StageError, UnicPipeError
from schemas.features import FeatureManifest, StatisticsDocument
from schemas.status import LiveFinding, Problem, VerifyReport
from schemas.students import CheckpointEntry, ExportManifest, StudentManifest


@dataclass(frozen=True)
class VerifyOptions:
    """What to check, and how."""

    read_only: bool = False
    """Set nothing aside for repair."""
    quick: bool = False
    """Documents and sizes only."""
    live: int = 0
    """Samples on which every teacher is run again."""
    device: str = "auto"


def verify(inventory: Inventory, options: VerifyOptions | bool, reporter: Reporter) -> tuple[VerifyReport, str | None]:
    """Check samples' indexes, feature caches, students and results; the report, and the command that repairs.

    Damage is reported, never raised. Without `read_only`, damaged units of caches are set aside for the next extract.
    """
    if isinstance(options, bool):
        options = VerifyOptions(read_only=options)
    problems: list[Problem] = []
    checked = 0
    features = _artefacts(inventory.workspace.features)
    with reporter.task("verify", total=sum(map(_count_files, features)), unit="files") as task:
        for folder in features:
            dataset, inner = _dataset_of(inventory, folder), _Onto(task)
            found, count = verify_folder(folder, dataset, options.read_only, inner, options.quick)
            problems += [p.model_copy(update={"path": f"features/{folder.name}/{p.path}"}) for p in found]
            checked += count
            task.advance(max(0, _count_files(folder) - inner.done))
    for index in _artefacts(inventory.workspace.samples):
        count, wrong = _index_problems(index, options.quick)
        checked += count
        problems += [_problem(f"samples/{index.name}/{path}", what) for path, what in wrong]
    for kind, check in (
        ("students", _student_problems),
        ("evaluations", _result_problems),
    ):
        for path in _folders(inventory.folder, kind):
            count, wrong = check(path, options.quick)
            checked += count
            problems += [_problem(f"{kind}/{path.name}/{file}", what) for file, what in wrong]
    live, skipped = run_live(inventory, options, reporter) if options.live else ([], [])
    problems += [
        Problem(
            path=f"features/{f.dataset}-{f.teacher}",
            teacher=f.teacher,
            token=f.token,
            view=None,
            block=None,
            kind="live",
        )
        for f in live
        if not f.ok
    ]
    damaged = [p for p in problems if p.kind != "unexpected"]
    report = VerifyReport(
        ok=not damaged, checked=checked, problems=tuple(problems), live=tuple(live), skipped=tuple(skipped)
    )
    return report, _next(damaged)


def run_live(inventory: Inventory, options: VerifyOptions, reporter: Reporter) -> tuple[list[LiveFinding], list[str]]:
    """Run every teacher again on samples of every dataset; findings, and what could not be run and why."""
    from pipeline.engine import pick_device
    from pipeline.live import live_check

    findings: list[LiveFinding] = []
    skipped: list[str] = []
    with reporter.task("verify --live", total=len(inventory.config.teachers), unit="teachers") as task:
        for name in inventory.config.teachers:
            try:
                needs = extraction_needs(inventory, (name,))
            except UnicPipeError as error:
                skipped.append(f"{name}: {error.message}")
                needs = []
            for need in needs:
                dataset = inventory.dataset(need.dataset).dataset
                done, total = inventory.coverage(need, dataset.blocks if dataset is not None else 0)
                if dataset is None or done < total:
                    skipped.append(f"{name}: its features of {need.dataset} are not complete")
                    continue
                cache, encoder = FeatureCache(inventory.feature_folder(need)), inventory.teacher(name)
                try:
                    findings += live_check(
                        cache, dataset, encoder, pick_device(options.device), options.live, need.views, dataset.blocks
                    )
                except StageError as error:
                    skipped.append(f"{name}: {error.message}")
            task.advance()
    return findings, skipped


class _Onto:
    """A reporter that advances a task of another one."""

    def __init__(self, task: Task) -> None:
        self._task, self.done = task, 0

    def say(self, text: str) -> None:
        """Nothing is said here."""

    @contextmanager
    def task(self, title: str, total: int, unit: str = "img", done: int = 0) -> Iterator[Task]:
        """The other reporter's task."""
        yield self

    def advance(self, amount: int = 1) -> None:
        """Advance it."""
        self.done += amount
        self._task.advance(amount)

    def note(self, text: str) -> None:
        """Pass it on."""
        self._task.note(text)


def _count_files(folder: Store) -> int:
    return sum(1 for _ in folder.keys())  # noqa: SIM118


def _artefacts(place: Store) -> list[Store]:
    return [place.child(name) for name in place.folders() if name[-9:-8] == "-"]


def _folders(workdir: Path, kind: str) -> list[Path]:
    base = workdir / kind
    named = base.iterdir() if base.is_dir() else iter(())
    return sorted(f for f in named if f.is_dir() and not f.is_symlink() and f.name[-9:-8] == "-")


def _dataset_of(inventory: Inventory, folder: Store) -> Dataset | None:
    """The indexed dataset of a feature folder, for checking that records are of its rows."""
    manifest = stored_document(folder, "manifest.json", FeatureManifest)
    if manifest is None:
        return None
    samples = inventory.workspace.samples
    for name in [n for n in samples.folders() if n.endswith(f"-{manifest.definition.dataset[:8]}")]:
        try:
            dataset = open_dataset(samples.child(name), inventory.workspace.roots)
        except UnicPipeError:
            continue
        if dataset.digest == manifest.definition.dataset:
            return dataset
    return None


Findings = tuple[int, list[tuple[str, str]]]
"""Number of files checked, and (path inside the folder, kind of problem)."""


def _index_problems(folder: Store, quick: bool) -> Findings:
    try:
        dataset = open_dataset(folder, ())
    except UnicPipeError:
        return 1, [("manifest.json", "document")]
    return 1 + len(dataset.manifest.segments), [] if quick else [(name, "content") for name in dataset.damaged()]


def _student_problems(folder: Path, quick: bool) -> Findings:
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
            wrong += list(_differs(folder, entry.file, entry.digest, quick))
    if (folder / "export" / "manifest.json").exists():
        export = read_document(folder / "export" / "manifest.json", ExportManifest)
        checked += 3
        if export is None or export.student != manifest.digest:
            wrong.append(("export/manifest.json", "document"))
        else:
            wrong += list(_differs(folder, "export/model.safetensors", export.weights, quick))
            wrong += list(_differs(folder, "export/config.json", export.config, quick))
    return checked, wrong


def _result_problems(folder: Path, quick: bool) -> Findings:
    del quick  # all of it is documents
    files = sorted((folder / RESULTS).glob("*.json"))
    records = ((path, read_record(path)) for path in files)
    return len(files), [
        (f"{RESULTS}/{path.name}", "document")
        for path, record in records
        if record is None or digest_of(record.definition) != record.digest
    ]


def _differs(folder: Path, name: str, digest: str, quick: bool) -> Iterator[tuple[str, str]]:
    path = folder / name
    if not path.is_file():
        yield name, "missing"
    elif not quick and sha256_of_file(path) != digest:
        yield name, "content"


def _problem(path: str, kind: str) -> Problem:
    return Problem(path=path, teacher=None, token=None, view=None, block=None, kind=kind)


def _next(problems: list[Problem]) -> str | None:
    """The command that repairs what can be repaired."""
    if problems and all(p.kind == "live" for p in problems):
        return "unic-pipe teachers   (a teacher's weights, or this machine's arithmetic, are not those of its features)"
    repairs: list[tuple[str, str]] = [
        ("samples/", "unic-pipe index   (after moving the damaged folder away)"),
        ("features/", "unic-pipe extract   (makes again only what is damaged)"),
        ("students/", "unic-pipe distill   (goes on from the last good checkpoint; move a damaged export/ away)"),
        ("evaluations/", "unic-pipe evaluate"),
    ]
    return next((command for top, command in repairs if any(p.path.startswith(top) for p in problems)), None)
