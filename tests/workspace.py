"""A tiny real working folder: scanned digits in tars, two real ImageNet teachers, a small student; and its stages."""

from __future__ import annotations

import io
import os
import platform
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unic_pipe.pipeline.extraction.executors import Executor
    from unic_pipe.pipeline.extraction.run import Extraction
    from unic_pipe.pipeline.samples import Dataset
    from unic_pipe.pipeline.workspace.inventory import Inventory
    from unic_pipe.schemas.evaluations import ResultRecord
    from unic_pipe.schemas.status import Artefact, StatusReport

CONFIG = """\
samples:
  block_rows: 16
  datasets:
    train: {source: "data/train-*.tar"}
    val: {source: "data/val-*.tar"}
    test: {source: "data/test-*.tar"}
views: {recipe: gentle, count: 2}
teachers:
  lite0: {encoder: efficientnet-lite0, image_size: 64}
  lite1: {encoder: efficientnet-lite1, image_size: 32}
compute: {batch: 8}
students:
  tiny:
    architecture: vit_tiny_patch16_224
    model_args: {patch_size: 8, depth: 2, embed_dim: 48, num_heads: 3}
    image_size: 32
    mean: [0.5, 0.5, 0.5]
    std: [0.5, 0.5, 0.5]
    threads: 1
    streams: 4
    window_blocks: 2
    ladder: {hidden: 16, last_hidden: 32}
    optimizer: {epochs: 3, warmup_epochs: 1, batch: 8, lr: 0.03}
distill: {validation: val, log_every: 3}
evaluate:
  benchmarks:
    digits: {train: train, test: test}
  c_values: [0.1, 1.0]
  k_values: [5]
"""
SHARDS = {"train": (0, (32, 32, 26)), "val": (90, (12,)), "test": (102, (40,))}
"""First digit and rows of each tar; the last train tar ends inside a block."""
Member = tuple[str, bytes]


class Quiet:
    """A reporter that keeps what was said, and calls `on_advance` with the units done so far."""

    def __init__(self, on_advance: Callable[[int], None] | None = None) -> None:
        self.said: list[str] = []
        self.done = 0
        self._on_advance = on_advance

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextmanager
    def task(self, title: str, total: int, unit: str = "img", done: int = 0) -> Iterator[Quiet]:
        del title, total, unit, done
        yield self

    def advance(self, amount: int = 1) -> None:
        self.done += amount
        if self._on_advance is not None:
            self._on_advance(self.done)

    def note(self, text: str) -> None:
        pass


@dataclass
class Work:
    """A working folder, and its stages as the commands run them."""

    folder: Path
    said: list[str] = field(default_factory=list)

    def inventory(self, *overrides: str, rows: str | None = None) -> Inventory:
        from unic_pipe.pipeline.workspace.configuration import load_workspace
        from unic_pipe.pipeline.workspace.inventory import Inventory

        return Inventory(load_workspace(self.folder, overrides), rows)

    def dataset(self, name: str = "train") -> Dataset:
        found = self.inventory().dataset(name).dataset
        assert found is not None
        return found

    def index(self, *overrides: str) -> None:
        from unic_pipe.pipeline.process.stopping import Stop
        from unic_pipe.pipeline.workspace.status import used_datasets
        from unic_pipe.stages.indexing import index

        inventory = self.inventory(*overrides)
        index(inventory, used_datasets(inventory), Quiet(), Stop(), compare=True)

    def extract(
        self, *overrides: str, teachers: Iterable[str] = (), rows: str | None = None, workers: int = 0, **more: Any
    ) -> dict[str, Extraction]:
        """Index and extract; what became of each dataset. `more`: `on_advance`, or options of the stage.

        An `executor` among them is left open.
        """
        from unic_pipe.pipeline.extraction.run import ExtractOptions
        from unic_pipe.pipeline.process.stopping import Stop
        from unic_pipe.pipeline.workspace.status import training_datasets
        from unic_pipe.stages.extract import extract
        from unic_pipe.stages.indexing import index

        reporter = Quiet(more.pop("on_advance", None))
        inventory = self.inventory(*overrides, rows=rows)
        index(inventory, training_datasets(inventory), reporter, Stop())
        try:
            with executor_of(workers) as executor:
                options = ExtractOptions(device="cpu", **{"executor": executor} | more)
                return extract(inventory, tuple(teachers), options, reporter, Stop())
        finally:
            self.said += reporter.said

    def distill(
        self, *overrides: str, student: str = "tiny", rows: str | None = None, stop_at: int = 0, **more: bool
    ) -> None:
        """Train; with `stop_at`, a stop is requested after so many images. `more`: `restart`, `live_check`.

        Teachers are not run again first, unless it is asked for: that takes as long as the training.
        """
        from unic_pipe.pipeline.process.stopping import Stop
        from unic_pipe.stages.distill.parallel.world import Context
        from unic_pipe.stages.distill.stage import distill_students, named_students

        stop = Stop()
        reporter = Quiet(lambda done: stop.request() if stop_at and done >= stop_at else None)
        try:
            inventory = named_students(self.inventory(*overrides, rows=rows), [student])
            options = {"live_check": False} | more
            distill_students(inventory, [student], Context(reporter, stop), device="cpu", **options)
        finally:
            self.said += reporter.said

    def evaluate(self, *overrides: str) -> list[ResultRecord]:
        from unic_pipe.pipeline.extraction.run import ExtractOptions
        from unic_pipe.pipeline.process.stopping import Stop
        from unic_pipe.stages.evaluate.stage import evaluate_all

        return evaluate_all(self.inventory(*overrides), ExtractOptions(device="cpu"), Quiet(), Stop())

    def status(self, *overrides: str, rows: str | None = None) -> StatusReport:
        from unic_pipe.pipeline.workspace.status import make_plan

        return make_plan(self.inventory(*overrides, rows=rows))

    def artefact(self, name: str, *overrides: str) -> Artefact:
        return next(a for a in self.status(*overrides).artefacts if a.name == name)

    def states(self, *overrides: str, rows: str | None = None) -> dict[str, str]:
        return {a.name: a.state for a in self.status(*overrides, rows=rows).artefacts}

    def features(self, name: str) -> Path:
        """The feature folder that a pointer means now."""
        return (self.folder / "features" / name).resolve()

    def student(self, name: str = "tiny") -> Path:
        return (self.folder / "students" / name).resolve()

    def content(self, *parts: str) -> dict[str, bytes]:
        """Every file and link that identity covers, by path: its bytes, or where it points."""
        return {name: _bytes(self.folder / name) for name in self._names(*parts)}

    def times(self, *parts: str) -> dict[str, tuple[int, int]]:
        """Inode and modification time of the same files: both change when a file is written again."""
        stats = {name: (self.folder / name).lstat() for name in self._names(*parts)}
        return {name: (s.st_ino, s.st_mtime_ns) for name, s in stats.items()}

    def _names(self, *parts: str) -> list[str]:
        found = []
        for part in parts or ("samples", "features", "students", "evaluations"):
            for folder, folders, files in os.walk(self.folder / part):
                links = [f for f in folders if Path(folder, f).is_symlink()]
                folders[:] = [f for f in folders if f not in (".tmp", "tensorboard")]
                found += [Path(folder, f).relative_to(self.folder).as_posix() for f in files + links]
        return sorted(found)


def executor_of(workers: int) -> Executor:
    """Threads, or so many worker processes."""
    from unic_pipe.pipeline.extraction.executors import Threads

    if not workers:
        return Threads()
    from unic_pipe.pipeline.extraction.dask import Processes
    from unic_pipe.pipeline.process.stopping import Stop

    return Processes(workers, "cpu", Stop())


def _bytes(path: Path) -> bytes:
    return b"-> " + os.readlink(path).encode() if path.is_symlink() else path.read_bytes()


def digit_members(first: int, count: int, keys: str = "digit{:04d}") -> list[Member]:
    """Members of `count` labelled samples: scikit-learn's digits, 32 × 32 pixels, from number `first` on."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    members: list[Member] = []
    for i in range(first, first + count):
        grey = Image.fromarray((digits.images[i] * (255 / 16)).round().astype("uint8"))
        png = io.BytesIO()
        grey.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB").save(png, "PNG")
        key = keys.format(i)
        members += [(f"{key}.png", png.getvalue()), (f"{key}.cls", str(int(digits.target[i])).encode())]
    return members


def put_tar(path: Path, members: Iterable[Member]) -> Path:
    """Write a tar as WebDataset does: one member after the other, USTAR headers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def kernels() -> dict[str, str]:
    """What the bits of features and weights depend on: the processor, and the versions of what computes and compresses."""
    import torch

    facts = {name: version(name).partition("+")[0] for name in ("torch", "timm", "numpy", "numcodecs")}
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    vendor = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), platform.machine()
    )
    return facts | {"processor": vendor, "instructions": torch.backends.cpu.get_cpu_capability()}


def make_workspace(folder: Path, members: Mapping[str, list[Member]] | None = None) -> Work:
    """Write the configuration, and one tar for every name in `members` (by default digits as in `SHARDS`)."""
    if members is None:
        members, keys = {}, "digit{:04d}"
        for name, (first, counts) in SHARDS.items():
            for shard, count in enumerate(counts):
                members[f"{name}-{shard:04d}"] = digit_members(first, count, keys)
                first += count
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "unic-pipe.yaml").write_text(CONFIG)
    for name, content in members.items():
        put_tar(folder / "data" / f"{name}.tar", content)
    return Work(folder)


def copy_of(work: Work, parent: Path) -> Work:
    shutil.copytree(work.folder, parent / "work", symlinks=True)
    return Work(parent / "work")
