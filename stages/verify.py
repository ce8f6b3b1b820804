"""`verify`: every file of every artefact against what was recorded (R11)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path

from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.cache.verify import verify_folder
from unic_pipe.pipeline.process.progress import Reporter, Task
from unic_pipe.pipeline.samples import Dataset, open_dataset
from unic_pipe.pipeline.storage import LocalStore, Store, sha256_of_file
from unic_pipe.pipeline.storage.pointers import pointed, pointers
from unic_pipe.pipeline.workspace.documents import usable_document
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.seals import Sealed, sealed_files
from unic_pipe.pipeline.workspace.status import extraction_needs
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.errors import DamagedError, StageError, UnicPipeError, UserError
from unic_pipe.schemas.features import FeatureManifest, StatisticsDocument
from unic_pipe.schemas.status import LiveFinding, Problem, VerifyReport
from unic_pipe.schemas.students import CheckpointEntry, ExportManifest, StudentManifest


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
    seal: bool = False
    """Write files that are unsealed, because they are older, again with a seal."""


def verify(inventory: Inventory, options: VerifyOptions | bool, reporter: Reporter) -> tuple[VerifyReport, str | None]:
    """Check samples' indexes, feature caches, students and results; the report, and the command that repairs.

    Damage is reported, never raised. Without `read_only`, damaged units of caches and damaged results are set aside, so
    that the next extract and evaluate make them again.

    Raises:
        UserError: both to seal and to change nothing.
    """
    if isinstance(options, bool):
        options = VerifyOptions(read_only=options)
    if options.seal and options.read_only:
        raise UserError(
            "--seal writes files again, and --read-only changes none.", "Choose one: unic-pipe verify --seal"
        )
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
    for path in _folders(inventory.folder, "students"):
        count, wrong = _student_problems(path, options.quick)
        checked += count
        problems += [_problem(f"students/{path.name}/{file}", what) for file, what in wrong]
    files = list(sealed_files(inventory.workspace))
    wrong = [*_unreadable(files, options.read_only), *_wrong_pointers(inventory)]
    problems += [p for p in starmap(_problem, wrong) if p not in problems]
    checked += len(files)
    paths = {p.path for p in problems}
    old = [file for file in files if file.path not in paths and file.unsealed]
    for file in old if options.seal else ():
        file.seal()
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
        ok=not damaged,
        checked=checked,
        problems=tuple(problems),
        live=tuple(live),
        skipped=tuple(skipped),
        unsealed=() if options.seal else tuple(file.path for file in old),
        sealed=tuple(file.path for file in old) if options.seal else (),
    )
    return report, _next(damaged)


def run_live(inventory: Inventory, options: VerifyOptions, reporter: Reporter) -> tuple[list[LiveFinding], list[str]]:
    """Run every teacher again on samples of every dataset; findings, and what could not be run and why."""
    from unic_pipe.pipeline.extraction.blocks import pick_device
    from unic_pipe.pipeline.extraction.live_check import live_check

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
    manifest = usable_document(folder, "manifest.json", FeatureManifest)
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
        return 0, [("manifest.json", "document")]
    return len(dataset.manifest.segments), [] if quick else [(name, "content") for name in dataset.damaged()]


def _student_problems(folder: Path, quick: bool) -> Findings:
    """Frozen statistics, checkpoints and the exported files, by the digests in the student's documents."""
    store, wrong = LocalStore(folder), list[tuple[str, str]]()
    manifest = usable_document(store, "manifest.json", StudentManifest)
    if not {"manifest.json", "checkpoints", "export"} & set(store.names()):
        return 0, []  # a training that was killed before it began
    if manifest is None or digest_of(manifest.definition) != manifest.digest:
        return 0, [("manifest.json", "document")]
    checked = len(manifest.statistics)
    for teacher, digest in manifest.statistics.items():
        key = f"statistics/{teacher}.json"
        statistics = usable_document(store, key, StatisticsDocument)
        if statistics is None or digest_of(statistics) != digest:
            wrong.append((key, "missing" if store.size(key) is None else "content"))
    names = ["latest.json", *(key for key in store.keys("checkpoints") if key.endswith(".json"))]
    entries = [entry for name in names if (entry := usable_document(store, name, CheckpointEntry)) is not None]
    for file, digest in {entry.file: entry.digest for entry in reversed(entries)}.items():
        checked += 1
        wrong += list(_differs(folder, file, digest, quick))
    export = usable_document(store, "export/manifest.json", ExportManifest)
    if export is not None:
        checked += 2
        if entries and store.size("latest.json") is None:  # without any checkpoint they were removed to save room
            wrong.append(("latest.json", "missing"))
        if export.student != manifest.digest:
            wrong.append(("export/manifest.json", "document"))
        wrong += list(_differs(folder, "export/model.safetensors", export.weights, quick))
        wrong += list(_differs(folder, "export/config.json", export.config, quick))
    return checked, wrong


def _unreadable(files: Sequence[Sealed], read_only: bool) -> Iterator[tuple[str, str]]:
    """Documents and tables that are not as written; results among them are set aside."""
    for file in files:
        try:
            file.read()
        except (UserError, OSError) as error:
            yield file.path, "document"
            top, folder, *rest = file.path.split("/")
            if top == "evaluations" and isinstance(error, DamagedError) and not read_only:
                FeatureFolder(LocalStore(Path(file.store.location, top, folder))).set_aside("/".join(rest))


def _wrong_pointers(inventory: Inventory) -> Iterator[tuple[str, str]]:
    """Names that lead to no folder, or to another name's."""
    local = {kind: LocalStore(inventory.folder / kind) for kind in ("students", "evaluations")}
    places = {"samples": inventory.workspace.samples, "features": inventory.workspace.features, **local}
    for kind, place in places.items():
        for name in pointers(place):
            try:
                sound = pointed(place, name) is not None
            except UserError:
                sound = False
            if not sound:
                yield f"{kind}/{name}", "pointer"


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
        ("runs/", "unic-pipe status   (after removing the named files: what is needed is measured again)"),
    ]
    return next((command for top, command in repairs if any(p.path.startswith(top) for p in problems)), None)
