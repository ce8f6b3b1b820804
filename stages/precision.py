"""`teachers --measure`, and a part of `init`: which floating-point type each teacher is worth, on its images here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from unic_pipe.pipeline.encoders import ResolvedEncoder
from unic_pipe.pipeline.extraction.blocks import pick_device
from unic_pipe.pipeline.extraction.dtypes import FEWEST, THREADS, Way, choose, measure_ways, native_dtypes
from unic_pipe.pipeline.process.progress import Reporter
from unic_pipe.pipeline.process.threads import usable_cores
from unic_pipe.pipeline.samples.glimpse import some_images
from unic_pipe.pipeline.samples.images import UndecodableImage, decode_image
from unic_pipe.pipeline.samples.sources import data_roots, find_source
from unic_pipe.pipeline.workspace.inventory import Inventory
from unic_pipe.schemas.codecs import is_calibrated
from unic_pipe.schemas.config import ComputeConfig, Config, TokenType
from unic_pipe.schemas.errors import UnicPipeError, UserError
from unic_pipe.schemas.features import ComputeDefinition
from unic_pipe.schemas.places import Dtype
from unic_pipe.schemas.precision import TeacherPrecision
from unic_pipe.schemas.recipes import recipe_named

if TYPE_CHECKING:
    from unic_pipe.pipeline.views.photometric import Pixels
    from unic_pipe.schemas.views import ViewParameters

SECONDS = 10.0
"""Forward passes of one teacher, about."""
RENDER_S = 2.0
"""Seconds after which no more images are rendered, if there are enough."""


def worth_measuring(device: str) -> bool:
    """Whether a device has instructions for another type than float32: one that imitates them cannot win."""
    return len(native_dtypes(pick_device(device))) > 1


def measure_teachers(
    inventory: Inventory, reporter: Reporter, *, settings: bool = True, budget: float | None = None
) -> list[TeacherPrecision]:
    """Measure the configured teachers on some images of the first training set, which need not be indexed.

    `settings`: also all threads in one pass on a CPU, and a compiled one on an accelerator. `budget`: seconds after which
    no other teacher is begun.

    Raises:
        UserError: there is no such device, nothing can be timed on it, or the samples are not there.
    """
    config, device = inventory.config, pick_device(inventory.config.compute.device)
    if not device.startswith(("cpu", "cuda")):
        raise UserError(f"Nothing can be timed on {device}.", "Measure on the CPU: --set compute.device=cpu")
    images, found = _images(inventory), list[TeacherPrecision]()
    longest = SECONDS * len(config.teachers) if budget is None else budget
    reporter.say(
        f"Measuring {len(config.teachers)} teachers on {device}: {longest:.0f} s at most, beside loading them."
    )
    started = time.monotonic()
    with reporter.task("measure", total=len(config.teachers), unit="teachers") as task:
        for name in config.teachers:
            task.note(name)
            # Half of a teacher's share is for loading it.
            left = (
                None if budget is None else (budget - time.monotonic() + started) / (len(config.teachers) - len(found))
            )
            seconds = SECONDS if left is None else min(SECONDS, left / 2)
            if seconds <= 0:
                found.append(_with_remark(config, name, device, "no time left"))
            else:
                found.append(_measure(inventory, name, device, images, settings, seconds))
            task.advance()
    return found


def with_dtypes(config: Config, found: Sequence[TeacherPrecision]) -> Config:
    """The configuration with the type that each teacher is worth, where that is not the configured one."""
    chosen = {each.teacher: each.chosen for each in found if each.chosen != each.configured}
    teachers = {
        name: teacher.model_copy(update={"dtype": chosen[name]}) if name in chosen else teacher
        for name, teacher in config.teachers.items()
    }
    return config.model_copy(update={"teachers": teachers})


def _images(inventory: Inventory) -> list[bytes]:
    config, folder = inventory.config, inventory.folder
    students = [name for student in config.students.values() for name in student.datasets]
    dataset = next(iter([*students, *config.samples.datasets]))
    settings = config.samples.datasets[dataset]
    roots = data_roots(folder, settings, config.samples, config.storage.options)
    return some_images(find_source(dataset, settings, roots), config.compute.batch)


def _measure(
    inventory: Inventory, name: str, device: str, images: Sequence[bytes], settings: bool, seconds: float
) -> TeacherPrecision:
    from unic_pipe.pipeline.encoders import load_encoder

    config, cores = inventory.config, usable_cores()
    try:
        resolved = inventory.teacher(name)
        ways = _ways(config, resolved, images, device, cores, settings)
        fewest = min(len(way.pixels) for way in ways.values())
        if fewest < FEWEST:
            return _with_remark(config, name, device, f"{fewest} images that can be read; it takes {FEWEST}")
        tokens: tuple[TokenType, ...] = ("cls", "patch") if config.views.patch_views else ("cls",)
        trials = measure_ways(load_encoder(resolved, device=device), ways, tokens, cores, seconds)
    except UnicPipeError as error:
        return _with_remark(config, name, device, error.message)
    if not trials:
        return _with_remark(config, name, device, f"{FEWEST} images take longer than {seconds:.0f} s here")
    chosen = choose(trials, config.cache.snr_db) if is_calibrated(config.cache.codec) else _configured(config, name)
    return TeacherPrecision(
        teacher=name, device=device, configured=_configured(config, name), chosen=chosen, trials=trials
    )


def _ways(
    config: Config, encoder: ResolvedEncoder, images: Sequence[bytes], device: str, cores: int, settings: bool
) -> dict[str, Way]:
    """float32 with the configured settings, first; the other types; and settings of which it is good to know what they
    bring and change."""
    recipe, compute = recipe_named(config.views.recipe), config.compute
    host = _views(config, encoder, images, "host")
    types: tuple[Dtype, ...] = ("float32", "bfloat16") if device == "cpu" else ("float32", "bfloat16", "float16")
    found = {str(dtype): Way(_definition(compute, dtype=dtype), host) for dtype in types}
    if settings and device == "cpu" and cores > compute.threads:
        found[f"{THREADS}: {cores}"] = Way(_definition(compute, threads=cores), host)
    if device != "cpu" and recipe.photometric:
        found["views: device"] = Way(found["float32"].compute, _views(config, encoder, images, "device"))
    if settings and device != "cpu":
        found["compile: true"] = Way(_definition(compute, compile=True), host)
    return found


def _definition(compute: ComputeConfig, **changes: object) -> ComputeDefinition:
    settings = compute.model_dump(exclude={"device", "views"})
    return ComputeDefinition(**settings | {"dtype": "float32", "compile": False, **changes})


def _views(
    config: Config, encoder: ResolvedEncoder, images: Sequence[bytes], where: Literal["host", "device"]
) -> Pixels:
    """The first view of as many images as `RENDER_S` allows, and can be read."""
    import torch

    from unic_pipe.pipeline.views.photometric import Pixels
    from unic_pipe.pipeline.views.rows import Rendering

    rendering = Rendering(recipe_named(config.views.recipe), config.views.seed, encoder.definition.image_size, 0, where)
    drawn: list[tuple[torch.Tensor, ViewParameters]] = []
    end = time.monotonic() + RENDER_S
    for number, data in enumerate(images):
        if len(drawn) >= FEWEST and time.monotonic() > end:
            break
        try:
            drawn.append(rendering.draw(decode_image(data, config.samples.decoding), f"{number}"))
        except UndecodableImage:
            continue
    if not drawn:
        return Pixels(torch.empty(0, 3, rendering.size, rendering.size, dtype=torch.uint8))
    x_N3HW = torch.stack([x_3HW for x_3HW, _ in drawn])
    parameters = tuple(parameters for _, parameters in drawn) if where == "device" else None
    return Pixels(x_N3HW, rendering.recipe, parameters)


def _configured(config: Config, name: str) -> Dtype:
    return config.teachers[name].dtype or config.compute.dtype


def _with_remark(config: Config, name: str, device: str, remark: str) -> TeacherPrecision:
    configured = _configured(config, name)
    return TeacherPrecision(teacher=name, device=device, configured=configured, chosen=configured, remark=remark)
