"""`verify`: every file of every artefact against what was recorded (R11)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from unic_pipe.pipeline.cache.layout import MANIFEST
from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.cache.verify import verify_folder
from unic_pipe.pipeline.process.progress import Reporter
from unic_pipe.pipeline.samples import Dataset, open_dataset
from unic_pipe.pipeline.storage import LocalStore, Store
from unic_pipe.pipeline.storage.pointers import pointed, pointers
from unic_pipe.pipeline.workspace.documents import usable_document
from unic_pipe.pipeline.workspace.evaluation_plans import evaluation_plans
from unic_pipe.pipeline.workspace.integrity import import_findings, student_findings
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.pipeline.workspace.leftovers import cut_off, leftovers, temporary_files
from unic_pipe.pipeline.workspace.seals import IMPORTED, Sealed, sealed_files
from unic_pipe.pipeline.workspace.status import extraction_needs
from unic_pipe.schemas.errors import DamagedError, UnicPipeError, UserError
from unic_pipe.schemas.features import FeatureManifest
from unic_pipe.schemas.status import LiveFinding, Problem, VerifyReport


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
    that the next extract and evaluate make them again. Raises UserError: both to seal and to change nothing.
    """
    if isinstance(options, bool):
        options = VerifyOptions(read_only=options)
    if options.seal and options.read_only:
        raise UserError(
            "--seal writes files again, and --read-only changes none.", "Choose one: unic-pipe verify --seal"
        )
    look = _Look(inventory, options)
    look.indexes()
    look.features(reporter)
    look.folders()
    old = look.sealed()
    problems = look.problems
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
        checked=look.checked,
        problems=tuple(problems),
        quick=options.quick,
        leftovers=look.leftovers(),
        live=tuple(live),
        skipped=tuple(skipped),
        unsealed=() if options.seal else tuple(file.path for file in old),
        sealed=tuple(file.path for file in old) if options.seal else (),
    )
    return report, _next(damaged, inventory)


class _Look:
    """One look at a working folder: what was found, and how many files were checked."""

    def __init__(self, inventory: Inventory, options: VerifyOptions) -> None:
        self.inventory, self.options = inventory, options
        self.workspace = inventory.workspace
        self.problems: list[Problem] = []
        self.checked = 0
        self._sound: dict[str, Dataset] = {}
        """Datasets whose index is as recorded, by digest."""
        self._left: list[str] = []
        local = {kind: LocalStore(inventory.folder / kind) for kind in ("students", "evaluations")}
        self.places: dict[str, Store] = {
            "samples": self.workspace.samples,
            "features": self.workspace.features,
            **local,
        }

    def indexes(self) -> None:
        """Manifests and tables of samples. Both are read for the features' sake, so that `quick` is no difference."""
        for folder in self._artefacts("samples"):
            try:
                dataset = open_dataset(folder, self.workspace.roots)
            except UnicPipeError:
                self._add(f"samples/{folder.name}/manifest.json", "document")
                continue
            damaged = dataset.damaged()
            self.checked += len(dataset.segments)
            for name in (*damaged, *dataset.spoiled()):
                self._add(f"samples/{folder.name}/{name}", "content")
            if not damaged:
                self._sound[dataset.digest] = dataset

    def features(self, reporter: Reporter) -> None:
        """Every file of the caches; records have to be of the rows of a dataset whose index is sound."""
        folders = [(folder, self._files(folder)) for folder in self._artefacts("features")]
        with reporter.task("verify", total=sum(files for _, files in folders), unit="files") as task:
            for folder, files in folders:
                counted = 0

                def advance() -> None:
                    nonlocal counted
                    counted += 1
                    task.advance()

                try:
                    manifest = usable_document(folder, MANIFEST, FeatureManifest)
                    dataset = self._sound.get(manifest.definition.dataset) if manifest is not None else None
                    found, count = verify_folder(folder, dataset, self.options.read_only, advance, self.options.quick)
                except (UnicPipeError, OSError):
                    found, count = [_problem("manifest.json", "unreadable")], 1
                self.problems += [p.model_copy(update={"path": f"features/{folder.name}/{p.path}"}) for p in found]
                self.checked += count
                task.advance(max(0, files - counted))

    def _files(self, folder: Store) -> int:
        """About how many files the units of a feature folder have once it is finished; to list them takes long."""
        # What is wrong with a folder that cannot be read is said when it is looked at.
        with suppress(UnicPipeError, OSError):
            manifest = usable_document(folder, MANIFEST, FeatureManifest)
            dataset = self._sound.get(manifest.definition.dataset) if manifest is not None else None
            if dataset is not None:
                return 2 * dataset.blocks * len(FeatureFolder(folder).planes())
        return 0

    def folders(self) -> None:
        """Students, and checkpoints that were brought in."""
        imported = LocalStore(self.inventory.folder / IMPORTED)
        checks = [(f"students/{f.name}", student_findings, f) for f in self._artefacts("students")]
        checks += [(f"{IMPORTED}/{name}", import_findings, imported.child(name)) for name in imported.folders()]
        for path, check, folder in checks:
            try:
                count, wrong = check(Path(folder.location), self.options.quick)
            except (UnicPipeError, OSError):
                count, wrong = 1, [("manifest.json", "unreadable")]
            self.checked += count
            for file, kind in wrong:
                self._add(f"{path}/{file}", kind)

    def sealed(self) -> list[Sealed]:
        """Documents and tables that carry a seal, and pointers; those files that are older than seals (now sealed, if
        that was asked for)."""
        files = list(sealed_files(self.workspace))
        for path, kind in [*_unreadable(files, self.options.read_only), *_wrong_pointers(self.places)]:
            self._add(path, kind)
        self.checked += len(files)
        named = {p.path for p in self.problems}
        old = [file for file in files if file.path not in named and file.unsealed]
        for file in old if self.options.seal else ():
            file.seal()
        return old

    def leftovers(self) -> tuple[str, ...]:
        """What killed processes left, from the working folder on."""
        base = self.inventory.folder
        found = [path for path, _ in leftovers(base, self.places.values())]
        found += [
            path
            for place in self.places.values()
            for name in place.folders()
            if isinstance(place, LocalStore)
            for path, _ in temporary_files(place.root / name)
        ]
        inside = [path.relative_to(base).as_posix() if path.is_relative_to(base) else str(path) for path in found]
        return tuple(sorted({*inside, *self._left}))

    def _artefacts(self, kind: str) -> list[Store]:
        place = self.places[kind]
        names = [name for name in place.folders() if name[-9:-8] == "-"]
        cut = [name for name in names if cut_off(kind, place, name) is not None]
        self._left += [f"{kind}/{name}" for name in cut]
        return [place.child(name) for name in names if name not in cut]

    def _add(self, path: str, kind: str) -> None:
        problem = _problem(path, kind)
        if problem not in self.problems:
            self.problems.append(problem)


def run_live(inventory: Inventory, options: VerifyOptions, reporter: Reporter) -> tuple[list[LiveFinding], list[str]]:
    """Run every teacher again on samples of every dataset; findings, and what could not be run and why."""
    from unic_pipe.pipeline.extraction.blocks import pick_device
    from unic_pipe.pipeline.extraction.live_check import live_check

    findings: list[LiveFinding] = []
    skipped: list[str] = []
    with reporter.task("verify --live", total=len(inventory.config.teachers), unit="teachers") as task:
        for name in inventory.config.teachers:
            try:
                for need in extraction_needs(inventory, (name,)):
                    dataset = inventory.dataset(need.dataset).dataset
                    done, total = inventory.coverage(need, dataset.blocks if dataset is not None else 0)
                    if dataset is None or done < total:
                        skipped.append(f"{name}: its features of {need.dataset} are not complete")
                        continue
                    cache, encoder = FeatureCache(inventory.feature_folder(need)), inventory.teacher(name)
                    findings += live_check(
                        cache, dataset, encoder, pick_device(options.device), options.live, need.views, dataset.blocks
                    )
            except UnicPipeError as error:
                skipped.append(f"{name}: {error.message}")
            task.advance()
    return findings, skipped


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


def _wrong_pointers(places: Mapping[str, Store]) -> Iterator[tuple[str, str]]:
    """Names that lead to no folder, or to another name's."""
    for kind, place in places.items():
        for name in pointers(place):
            try:
                sound = pointed(place, name) is not None
            except UserError:
                sound = False
            if not sound:
                yield f"{kind}/{name}", "pointer"


def _problem(path: str, kind: str) -> Problem:
    return Problem(path=path, teacher=None, token=None, view=None, block=None, kind=kind)


def _next(problems: list[Problem], inventory: Inventory) -> str | None:
    """The command that repairs what can be repaired."""
    if problems and all(p.kind == "live" for p in problems):
        return "unic-pipe teachers   (a teacher's weights, or this machine's arithmetic, are not those of its features)"
    if problems and all(p.path.startswith("samples/") and p.path.endswith(".blocks") for p in problems):
        return "unic-pipe verify   (after removing the named files: what they hold follows from the rows)"
    repairs: list[tuple[str, str]] = [
        ("samples/", "unic-pipe index   (after moving the damaged folder away)"),
        ("features/", f"{_extraction(problems, inventory)}   (makes again only what is damaged)"),
        ("students/", "unic-pipe distill   (goes on from the last good checkpoint; move a damaged export/ away)"),
        ("evaluations/", "unic-pipe evaluate"),
        ("encoders/", "unic-pipe import   (again from the official file, after moving the damaged folder away)"),
        ("runs/", "unic-pipe status   (after removing the named files: what is needed is measured again)"),
    ]
    return next((command for top, command in repairs if any(p.path.startswith(top) for p in problems)), None)


def _extraction(problems: Sequence[Problem], inventory: Inventory) -> str:
    """The commands that make damaged features again: those that only probes read are made by `evaluate`."""
    damaged = {p.path.split("/")[1] for p in problems if p.path.startswith("features/")}
    try:
        probed = {need.folder_name for plan in evaluation_plans(inventory).plans for need, _ in plan.needs}
        probed -= {need.folder_name for need in extraction_needs(inventory)}
    except UnicPipeError:
        probed = set()
    commands = ["unic-pipe extract"] * bool(damaged - probed) + ["unic-pipe evaluate"] * bool(damaged & probed)
    return "; ".join(commands)
