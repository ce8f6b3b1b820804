"""The documents of a working folder beside its features: where they are, whether each is as written, and sealing old ones.

Files of versions before there were seals (`Document.SEALED`) carry none. They are read; `status` and `verify` call them
unsealed, and `verify --seal` writes them again. Everything in `features/` has always been sealed.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from unic_pipe.pipeline.cache.tables import TAIL_BYTES, sealed_table, unsealed_table
from unic_pipe.pipeline.storage import LocalStore, Store, sha256_of_file
from unic_pipe.pipeline.workspace.configuration import Workspace
from unic_pipe.pipeline.workspace.documents import METRICS, stored_document, student_metrics
from unic_pipe.pipeline.workspace.results import CLASS_TABLE, RESULTS, TABLE, read_record, read_results
from unic_pipe.schemas.base import Document
from unic_pipe.schemas.encoders import EncoderCache
from unic_pipe.schemas.evaluations import ResultRecord
from unic_pipe.schemas.loggers import LoggedRun
from unic_pipe.schemas.plans import Measurement, StepMeasurement
from unic_pipe.schemas.runs import RunDocument
from unic_pipe.schemas.samples import DatasetManifest
from unic_pipe.schemas.students import CheckpointEntry, ExportManifest, ImportManifest, StudentManifest, StudentVerdicts

_HEAD_BYTES = 100
_FILES: dict[str, type[Document] | None] = {
    f"students/*-????????/{METRICS}": None,
    f"evaluations/*-????????/{TABLE}": None,
    f"evaluations/*-????????/{CLASS_TABLE}": None,
    "students/*-????????/manifest.json": StudentManifest,
    "students/*-????????/latest.json": CheckpointEntry,
    "students/*-????????/checkpoints/step-*.json": CheckpointEntry,
    "students/*-????????/export/manifest.json": ExportManifest,
    f"evaluations/*-????????/{RESULTS}/*.json": ResultRecord,
    "students/*-????????/logged/*.json": LoggedRun,
    "evaluations/*-????????/logged/*.json": LoggedRun,
    "runs/encoders.json": EncoderCache,
    "runs/students.json": StudentVerdicts,
    "runs/*-*.json": RunDocument,
    "runs/measurements/????????.json": Measurement,
    "runs/measurements/student-????????.json": StepMeasurement,
}
"""Tables come before the documents beside them: where those are sealed, a table without a seal is damaged."""
IMPORTED = "encoders"
"""Folder of the checkpoints that were brought in, each of them a folder."""


@dataclass(frozen=True)
class Sealed:
    """A file that carries a seal of itself, or should."""

    path: str
    """As it is shown: from the working folder on."""
    store: Store
    key: str
    kind: type[Document] | None
    """None: a table, which `table` reads."""
    table: Callable[[Path], pa.Table | None] = read_results

    @property
    def unsealed(self) -> bool:
        """Whether it is of a version that had no seals. `runs/encoders.json` is then not read, but measured again."""
        try:
            if self.kind is None:
                size = self.store.size(self.key) or 0
                return unsealed_table(self.store.get_range(self.key, max(0, size - TAIL_BYTES), min(size, TAIL_BYTES)))
            return self.kind is not EncoderCache and self.kind.unsealed(self.store.get_range(self.key, 0, _HEAD_BYTES))
        except FileNotFoundError:  # it has gone meanwhile, as old checkpoints do
            return False

    def read(self) -> Document | pa.Table | None:
        """Its content; None where it has gone meanwhile.

        Raises:
            DamagedError: it is not what was written.
            UserError: another kind of document, or a newer version.
        """
        if self.kind is None:
            return self.table(Path(self.store.describe(self.key)))
        if self.kind is ResultRecord:
            return read_record(Path(self.store.describe(self.key)))
        return stored_document(self.store, self.key, self.kind)

    def seal(self) -> None:
        """Write it again as it is, with a seal and, in a folder, its time of change. Raises what `read` does."""
        content = self.read()
        if content is None:
            return
        path = self.store.path(self.key) if isinstance(self.store, LocalStore) else None
        before = path.stat() if path is not None else None
        self.store.put(self.key, content.to_bytes() if isinstance(content, Document) else sealed_table(content))
        if path is not None and before is not None:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


class _Imported(Sealed):
    """The list of an imported folder's files, which older versions did not write."""

    @property
    def unsealed(self) -> bool:
        """Whether there is none."""
        return self.store.size(self.key) is None

    def seal(self) -> None:
        """Write the list for the folder as it is."""
        folder = Path(self.store.describe(self.key)).parent
        files = (path for path in sorted(folder.iterdir()) if path.is_file())
        manifest = ImportManifest(files={path.name: sha256_of_file(path) for path in files})
        self.store.put(self.key, manifest.to_bytes())


def sealed_files(workspace: Workspace) -> Iterator[Sealed]:
    """Every such file that is there, tables before the documents beside them."""
    root = LocalStore(workspace.folder)
    for pattern, kind in _FILES.items():
        for path in sorted(workspace.folder.glob(pattern)):
            name = path.relative_to(workspace.folder).as_posix()
            if "/." in name:  # half removed
                continue
            yield Sealed(name, root, name, kind, _metrics if path.name == METRICS else read_results)
    for path in sorted(workspace.folder.glob(f"{IMPORTED}/*/config.json")):
        name = path.with_name("manifest.json").relative_to(workspace.folder).as_posix()
        yield _Imported(name, root, name, ImportManifest)
    for index in [n for n in workspace.samples.folders() if n[-9:-8] == "-"]:
        store = workspace.samples.child(index)
        if store.size("manifest.json") is not None:
            yield Sealed(f"samples/{index}/manifest.json", store, "manifest.json", DatasetManifest)


def _metrics(path: Path) -> pa.Table | None:
    return student_metrics(path.parent)


def unsealed(workspace: Workspace) -> tuple[str, ...]:
    """Paths of the files that carry no seal because they are older."""
    return tuple(file.path for file in sealed_files(workspace) if file.unsealed)
