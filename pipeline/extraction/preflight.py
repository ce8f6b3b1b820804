"""Looking before leaping: does it fit on the disk, and does it end in a time that people wait?"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from unic_pipe.pipeline.cache.needs import FeatureNeed, raw_bytes
from unic_pipe.pipeline.encoders import ResolvedEncoder
from unic_pipe.pipeline.extraction.sizes import Extent, codec_label, folder_size, read_measurement
from unic_pipe.pipeline.process.progress import duration, human_bytes
from unic_pipe.pipeline.process.stopwatch import Stopwatch
from unic_pipe.pipeline.process.threads import torch_threads, usable_cores
from unic_pipe.pipeline.storage import LocalStore, Store
from unic_pipe.schemas.codecs import CODECS
from unic_pipe.schemas.errors import StageError, UserError

PATIENCE_S = 12 * 3600.0
"""An extraction that a CPU would need longer for does not start by itself."""
SMALL_WORK = 50_000
"""Forward passes that are not worth an estimate."""


def check_disk(workdir: Path, needs: Sequence[tuple[FeatureNeed, Store]], rows: int) -> None:
    """Compare what the caches will take, less what they hold already, with the free disk. An object store has no end.
    Raises StageError: too little room; says how much is needed and what would make it fit."""
    local = [(need, store) for need, store in needs if isinstance(store, LocalStore)]
    if not local:
        return
    needed = sum(max(0, _bytes(workdir, need, rows) - sum(store.sizes().values())) for need, store in local)
    place = existing_folder(local[0][1])
    free = shutil.disk_usage(place).free
    if needed > free:
        smaller = "" if needs[0][0].definition.codec.calibrated else "cache.codec: auto (a tenth of float16's size), "
        raise StageError(
            f"Disk too small: the features need about {human_bytes(needed)}, {place} has {human_bytes(free)} free.",
            f"Make it fit with {smaller}fewer views.count, or a pilot (--rows 1%); --force starts all the same.",
        )


def existing_folder(store: LocalStore) -> Path:
    """The folder of a store, or the nearest one above it that exists."""
    return next(folder for folder in (store.root, *store.root.parents) if folder.is_dir())


def _bytes(workdir: Path, need: FeatureNeed, rows: int) -> int:
    """What `plan` measured where it has, and otherwise what ViT tokens take."""
    extent = Extent(rows, -(-rows // need.definition.block_rows))
    for device in ("cpu", "cuda", "mps"):
        measured = read_measurement(workdir, need, device)
        if measured is not None and codec_label(need.definition.codec) in next(iter(measured.codecs.values())):
            return int(folder_size(need, measured, extent).bytes)
    codec = CODECS.get(need.definition.codec.name)
    return int(raw_bytes(need, rows) * (codec.compressed if codec is not None else 1.0))


def check_time(
    jobs: Sequence[tuple[FeatureNeed, ResolvedEncoder]],
    tasks: Sequence[tuple[tuple[tuple[tuple[int, str], ...], ...], int]],
) -> None:
    """Estimate how long a CPU would need, from a short measurement of each encoder, when there is much to do.

    `tasks` holds, per block, the missing planes of each job and the number of rows.
    Raises UserError: longer than `PATIENCE_S`; says how long, and what to do.
    """
    forwards = [sum(len({v for v, _ in planes[i]}) * rows for planes, rows in tasks) for i in range(len(jobs))]
    if sum(forwards) < SMALL_WORK:
        return
    seconds = sum(
        count * _seconds_per_image(encoder, need) for count, (need, encoder) in zip(forwards, jobs, strict=True)
    )
    seconds /= usable_cores()
    if seconds > PATIENCE_S:
        raise UserError(
            f"No GPU was found. CPU: about {duration(seconds)} for {sum(forwards):,} forward passes on {usable_cores()} cores.",
            "Run it where there is a GPU, try a pilot (--rows 1%), or insist with --device cpu.",
        )


def _seconds_per_image(encoder: ResolvedEncoder, need: FeatureNeed) -> float:
    """Seconds of one core for one forward pass, measured on four images."""
    import torch

    from unic_pipe.pipeline.encoders import load_encoder

    clock = Stopwatch()
    with torch_threads(1):
        model = load_encoder(encoder, device="cpu")
        size = need.definition.encoder.image_size
        x_B3HW = torch.zeros((4, 3, size, size), dtype=torch.uint8)
        # Compiling takes longer than all this, and does not change by how much a CPU is too slow.
        compute = need.definition.compute.model_copy(update={"compile": False})
        model.encode(x_B3HW[:1], compute)
        with clock.time("forward"):
            model.encode(x_B3HW, compute)
    return clock.seconds["forward"] / len(x_B3HW)
