"""Students and imported checkpoints against the digests in their own documents: for `verify`. No torch here."""

from collections.abc import Iterator
from pathlib import Path

from unic_pipe.pipeline.storage import LocalStore, sha256_of_file
from unic_pipe.pipeline.workspace.documents import usable_document
from unic_pipe.pipeline.workspace.targets import array_digests, document_key
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.features import StatisticsDocument
from unic_pipe.schemas.students import (
    CheckpointEntry,
    ExportManifest,
    ImportManifest,
    StudentManifest,
    TargetStatistics,
)

Findings = tuple[int, list[tuple[str, str]]]
"""Number of files checked, and (path inside the folder, kind of problem)."""


def student_findings(folder: Path, quick: bool) -> Findings:
    """Frozen statistics, checkpoints and the exported files, by the digests in the student's documents.

    `quick` looks at documents, and whether the other files are there.
    """
    store, wrong = LocalStore(folder), list[tuple[str, str]]()
    manifest = usable_document(store, "manifest.json", StudentManifest)
    if manifest is None or digest_of(manifest.definition) != manifest.digest:
        return 0, [("manifest.json", "document")]
    checked = len(manifest.statistics)
    for teacher, digest in manifest.statistics.items():
        key = f"statistics/{teacher}.json"
        statistics = usable_document(store, key, StatisticsDocument)
        if statistics is None or digest_of(statistics) != digest:
            wrong.append((key, "missing" if store.size(key) is None else "content"))
    for teacher, digest in manifest.targets.items():
        targets = usable_document(store, document_key(teacher), TargetStatistics)
        checked += 1
        if targets is None or digest_of(targets) != digest:
            wrong.append((document_key(teacher), "missing" if store.size(document_key(teacher)) is None else "content"))
        for key, array in array_digests(teacher, targets).items() if targets is not None else ():
            checked += 1
            wrong += _differs(folder, key, array, quick)
    names = ["latest.json", *(key for key in store.keys("checkpoints") if key.endswith(".json"))]
    entries = [entry for name in names if (entry := usable_document(store, name, CheckpointEntry)) is not None]
    for file, digest in {entry.file: entry.digest for entry in reversed(entries)}.items():
        checked += 1
        wrong += _differs(folder, file, digest, quick)
    export = usable_document(store, "export/manifest.json", ExportManifest)
    if export is not None:
        checked += 2
        if entries and store.size("latest.json") is None:  # without any checkpoint they were removed to save room
            wrong.append(("latest.json", "missing"))
        if export.student != manifest.digest:
            wrong.append(("export/manifest.json", "document"))
        wrong += _differs(folder, "export/model.safetensors", export.weights, quick)
        wrong += _differs(folder, "export/config.json", export.config, quick)
        if export.adaptors is not None:
            checked += 1
            wrong += _differs(folder, "export/adaptors.safetensors", export.adaptors, quick)
    return checked, wrong


def import_findings(folder: Path, quick: bool) -> Findings:
    """The files of an imported checkpoint; nothing where its list is missing (an older version) or damaged (a finding of
    its own)."""
    manifest = usable_document(LocalStore(folder), "manifest.json", ImportManifest)
    files = manifest.files if manifest is not None else {}
    return len(files), [found for file, digest in files.items() for found in _differs(folder, file, digest, quick)]


def _differs(folder: Path, name: str, digest: str, quick: bool) -> Iterator[tuple[str, str]]:
    path = folder / name
    if not path.is_file():
        yield name, "missing"
    elif not quick and sha256_of_file(path) != digest:
        yield name, "content"
