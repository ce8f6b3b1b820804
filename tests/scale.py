"""What planning costs on a dataset as large as ImageNet, or larger: real commands over a simulated working folder.

The tars hold tiny JPEGs, and all but the last are hard links to one file, so that the index is real and the disk stays
empty. Features are records (with shards of a few bytes) of units that were never extracted: planning reads records only.
Every step is a process of its own, as a person would start it; its memory is the most that the process ever held.

    .venv/bin/python tests/scale.py 1281167 12811670 [--teachers 50 --views 20]

Legend: N rows.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unic_pipe.pipeline.cache.calibration import bound_codec
from unic_pipe.pipeline.cache.commit import prepare_view
from unic_pipe.pipeline.cache.folded import Entry, folded_bytes
from unic_pipe.pipeline.cache.layout import folded_key, shard_key, statistics_key
from unic_pipe.pipeline.cache.ledger import write_ledger
from unic_pipe.pipeline.cache.losses import write_losses
from unic_pipe.pipeline.cache.moments import Moments
from unic_pipe.pipeline.cache.needs import FeatureNeed
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.process.progress import ConsoleReporter, Reporter
from unic_pipe.pipeline.storage import LocalStore, fast_hash
from unic_pipe.pipeline.storage.pointers import point
from unic_pipe.pipeline.workspace.configuration import CONFIG_NAME
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.features import FeatureManifest, FileEntry, UnitRecord

TAR_ROWS = 1000
POLL_S = 0.02
SIZE = 16
"""Pixels of an image's side."""
ARCHITECTURE = "vit_tiny_patch16_224"
MODEL: dict[str, int] = {"embed_dim": 8, "depth": 1, "num_heads": 1, "patch_size": 8}
CONFIG = f"""\
samples: {{{{datasets: {{{{train: {{{{source: "data/train-*.tar"}}}}}}}}}}}}
views: {{{{count: {{views}}}}}}
teachers:
{{teachers}}
students:
  main:
    architecture: {ARCHITECTURE}
    model_args: {{{{embed_dim: 8, depth: 1, num_heads: 1, patch_size: 8}}}}
    image_size: {SIZE}
    dataset: train
    ladder: {{{{hidden: 8, last_hidden: 8}}}}
cache: {{{{codec: float16}}}}
"""
TEACHER = f'  {{name}}: {{{{encoder: "checkpoint:weights/{{name}}", image_size: {SIZE}}}}}'
ORDER = """
import sys, numpy as np
from unic_pipe.pipeline.samples.order import epoch_order
rows = int(sys.argv[1])
epoch_order(np.arange(rows), 256, seed=0, epoch=0, batch=512, streams=8, window=8)
"""


TABLES = """
import sys
from pathlib import Path
import pyarrow.parquet as pq
for file in sorted(Path("features").glob("*/records/*/*.parquet")):
    pq.read_table(file)
"""
"""What commands that look at every unit cannot be quicker than."""


class ScaleRow(NamedTuple):
    """What a command over a simulated dataset took."""

    name: str
    rows: int
    seconds: float
    peak_bytes: int
    """The most memory that it held; 0 where the system does not say."""


def simulate(folder: Path, rows: int, reporter: Reporter, teachers: int = 1, views: int = 2) -> list[ScaleRow]:
    """Build a working folder of `rows` samples in an empty folder, and measure what commands cost there.

    Raises:
        StageError: a command failed.
    """
    names = [f"tiny{number}" for number in range(teachers)]
    _write_samples(folder, rows, names, views)
    commands: list[tuple[str, list[str]]] = [
        ("status", ["status"]),
        ("extract, nothing to do", ["extract", "--force"]),
        ("plan", ["plan"]),
        ("verify --quick", ["verify", "--quick"]),
        ("gc", ["gc"]),
    ]
    found: list[ScaleRow] = []
    with reporter.task(f"simulate {rows:,} rows", total=len(commands) + 3, unit="steps") as task:
        task.note("index")
        found.append(_measured(folder, rows, "index", _program("index")))
        task.advance()
        task.note("writing records")
        _write_features(folder, names)
        task.advance()
        found.append(_measured(folder, rows, "to read the records' tables", [sys.executable, "-c", TABLES]))
        for name, arguments in commands:
            task.note(name)
            found.append(_measured(folder, rows, name, _program(*arguments)))
            task.advance()
        task.note("order of an epoch")
        found.append(_measured(folder, rows, "order of an epoch", [sys.executable, "-c", ORDER, str(rows)]))
        task.advance()
    return found


def _program(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "unic_pipe", *arguments]


def _measured(folder: Path, rows: int, name: str, command: Sequence[str]) -> ScaleRow:
    """Run a command to its end; its wall time and peak memory."""
    peak = 0
    with (folder / "output.txt").open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        while process.poll() is None:
            peak = max(peak, _peak_bytes(process.pid))
            time.sleep(POLL_S)
        seconds = time.perf_counter() - started
    if process.returncode:
        raise StageError(
            f"{name} over {rows:,} simulated rows ended with exit code {process.returncode}.",
            (folder / "output.txt").read_text(errors="replace")[-2000:],
        )
    return ScaleRow(name=name, rows=rows, seconds=seconds, peak_bytes=peak)


def _peak_bytes(pid: int) -> int:
    """The most memory that a running process has held so far; 0 where the system does not say (only Linux does).

    Not `ru_maxrss`: a child's begins with the memory of the process that started it.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def _write_samples(folder: Path, rows: int, teachers: Sequence[str], views: int) -> None:
    """Configuration, weights of tiny encoders, and the tars."""
    import timm
    import torch

    from unic_pipe.pipeline.encoders.export import export_student

    torch.manual_seed(0)
    half = (0.5, 0.5, 0.5)
    for teacher in teachers:
        model = timm.create_model(ARCHITECTURE, num_classes=0, img_size=SIZE, **MODEL)
        export_student(
            LocalStore(folder), model, architecture=ARCHITECTURE, model_args={**MODEL, "img_size": SIZE}, image_size=SIZE,
            mean=half, std=half, prefix=f"weights/{teacher}/",
        )  # fmt: skip
    described = "\n".join(TEACHER.format(name=teacher) for teacher in teachers)
    (folder / CONFIG_NAME).write_text(CONFIG.format(views=views, teachers=described))
    data = folder / "data"
    data.mkdir()
    whole, rest = divmod(rows, TAR_ROWS)
    if whole:
        first = data / "train-000000.tar"
        first.write_bytes(_tar(TAR_ROWS))
        for number in range(1, whole):
            # A file has at most 65,000 links on ext4.
            original = data / f"train-{number - number % 50_000:06d}.tar"
            target = data / f"train-{number:06d}.tar"
            if original == target:
                target.write_bytes(first.read_bytes())
            else:
                os.link(original, target)
    if rest:
        (data / f"train-{whole:06d}.tar").write_bytes(_tar(rest))


def _tar(rows: int) -> bytes:
    """Numbered noise with labels."""
    from PIL import Image

    generator, buffer = np.random.default_rng(0), io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row in range(rows):
            image = io.BytesIO()
            pixels = generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(image, "JPEG", quality=30)
            for ending, content in (("jpg", image.getvalue()), ("cls", str(row % 1000).encode())):
                member = tarfile.TarInfo(f"{row:06d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _write_features(folder: Path, teachers: Sequence[str]) -> None:
    """Records of every unit that the configuration asks for."""
    from unic_pipe.pipeline.workspace.configuration import load_workspace

    inventory = Inventory(load_workspace(folder / CONFIG_NAME))
    dataset = inventory.dataset("train").dataset
    assert dataset is not None, "indexed before"
    for need in inventory.training_needs(tuple(teachers), "train"):
        features = inventory.workspace.features
        target = FeatureFolder(features.child(need.folder_name))
        target.create(
            FeatureManifest(dataset=need.dataset, encoder=need.encoder, definition=need.definition, digest=need.digest)
        )
        point(features, need.pointer, need.folder_name)
        digests = [dataset.block_digest(block) for block in range(dataset.blocks)]
        counts = [dataset.block_range(block)[1] for block in range(dataset.blocks)]
        for view, token in need.planes():
            prepare_view(target, view, token, dataset.manifest.end_row)
            entries = _plane(target, need, view, token, digests, counts)
            target.store.put(folded_key(view, token), folded_bytes(entries))
        write_ledger(target)
        write_losses(target)


def _plane(
    target: FeatureFolder, need: FeatureNeed, view: int, token: TokenType, digests: Sequence[str], counts: Sequence[int]
) -> dict[int, Entry]:
    """The units of a (view, token type): shards of four bytes, written without waiting for the disk."""
    (spec,) = bound_codec(target, token).arrays
    dims = spec.shard[-1]
    statistics = Moments(1, np.zeros(dims), np.ones(dims)).to_bytes()
    content = b"unit"
    entries: dict[int, Entry] = {}
    for block, (digest, count) in enumerate(zip(digests, counts, strict=True)):
        key = shard_key(view, spec, block)
        path = Path(target.store.describe(key))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        files = {key: content, statistics_key(view, token, block): statistics}
        record = UnitRecord(
            definition=need.digest,
            view=view,
            token=token,
            block=block,
            rows=digest,
            valid=np.packbits(np.ones(count, bool)).tobytes().hex(),
            count=count,
            files=tuple(FileEntry(path=k, size=len(v), xxh3=fast_hash(v)) for k, v in files.items()),
            batch=need.definition.compute.batch,
        )
        entries[block] = Entry(record.to_bytes(), statistics)
    return entries


def main() -> None:
    """Simulate datasets of the given sizes in temporary folders here; seconds and peak memory of every command."""
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", type=int)
    parser.add_argument("--teachers", type=int, default=1)
    parser.add_argument("--views", type=int, default=2)
    asked = parser.parse_args()
    sizes = asked.rows
    found: dict[str, list[ScaleRow]] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="unic-pipe-scale-", dir=".") as folder:
            for row in simulate(Path(folder).absolute(), size, ConsoleReporter(), asked.teachers, asked.views):
                found.setdefault(row.name, []).append(row)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("command", *(name for size in sizes for name in (f"{size:,} rows", "memory"))):
        table.add_column(title, justify="left" if title == "command" else "right", no_wrap=True)
    for name, rows in found.items():
        cells = []
        for row in rows:
            times = "" if row is rows[0] else f" (× {row.seconds / rows[0].seconds:.1f})"
            cells += [f"{row.seconds:.2f} s{times}", f"{row.peak_bytes / 2**20:,.0f} MiB" if row.peak_bytes else "–"]
        table.add_row(name, *cells)
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
