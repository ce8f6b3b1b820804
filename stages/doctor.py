"""`doctor`: what this machine can do, measured in a few seconds."""

import io
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from unic_pipe.pipeline.process.progress import human_bytes
from unic_pipe.pipeline.process.threads import usable_cores
from unic_pipe.pipeline.samples.images import decode_image
from unic_pipe.pipeline.workspace.configuration import CONFIG_NAME, Workspace, load_workspace
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.schemas.errors import NotFinishedError, UnicPipeError

MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Check:
    """One finding; `advice` says what to do when it is not well."""

    name: str
    ok: bool
    finding: str
    advice: str = ""


def examine(config: Path | None, overrides: Sequence[str]) -> list[Check]:
    """All checks. Without a configuration file those that need one are left out."""
    workspace: Workspace | None = None
    checks = [_versions(), _device(), _decode()]
    try:
        workspace = load_workspace(config, overrides)
    except UnicPipeError as error:
        missing = config is None and not Path(CONFIG_NAME).exists()
        checks.append(Check("config", missing, error.message, error.hint or "Mend these lines."))
    folder = workspace.folder if workspace is not None else Path.cwd()
    checks += [_disk(folder)]
    if workspace is not None:
        inventory = Inventory(workspace)
        checks += [_weights(inventory, name) for name in workspace.config.teachers]
    return checks


def _versions() -> Check:
    packages = " · ".join(f"{name} {version(name)}" for name in ("torch", "timm", "zarr", "numcodecs"))
    return Check("versions", True, f"python {platform.python_version()} · {packages}")


def _device() -> Check:
    import torch

    cores = usable_cores()
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
        text = ", ".join(f"{p.name} ({human_bytes(p.total_memory)})" for p in names)
        return Check("device", True, f"{text}, {cores} CPU cores")
    return Check("device", True, f"no GPU: CPU with {cores} cores (fine for the demo; ImageNet wants a GPU)")


def _decode() -> Check:
    """JPEG decoding of a photograph-sized image (500 × 375), on one core."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).normal(128, 40, (47, 63, 3)).clip(0, 255).astype(np.uint8)
    picture = io.BytesIO()
    Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC).save(picture, "JPEG", quality=90)
    rate = _rate(lambda: decode_image(picture.getvalue()), 0.5)
    return Check("decode", True, f"{rate:,.0f} images/s per core (JPEG, 500 × 375)")


def _disk(folder: Path) -> Check:
    """Free space, write access, and the rate of durable writes in the working folder."""
    free = shutil.disk_usage(folder).free
    data = os.urandom(16 * MEGABYTE)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".unic-pipe-doctor-") as handle:
            started = time.perf_counter()
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
            written = len(data) / (time.perf_counter() - started)
    except OSError as error:
        return Check("disk", False, f"cannot write in {folder}: {error.strerror}", "Choose another working folder.")
    return Check("disk", True, f"{human_bytes(free)} free in {folder}, durable writes at {human_bytes(written)}/s")


def _weights(inventory: Inventory, name: str) -> Check:
    try:
        encoder = inventory.teacher(name)
    except NotFinishedError as error:
        return Check(name, True, f"will be there when {error.waits_for} is finished")
    except UnicPipeError as error:
        return Check(name, False, error.message.removeprefix(f"{name}: "), error.hint or "")
    d = encoder.definition
    grid = f"{d.grid[0]}×{d.grid[1]}"
    return Check(name, True, f"{d.architecture}, {d.image_size} px, {grid} patches of {d.patch_dim}, {encoder.licence}")


def _rate(action: Callable[[], object], seconds: float) -> float:
    action()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        action()
        count += 1
    return count / (time.perf_counter() - started)
