"""Probes: rendered views of a few samples, kept beside the features and rendered again before they are used (R7).

Cached features are those of pixels that no longer exist. Another torchvision, Pillow or CPU may render other pixels
from the same parameters; the probes show it before features and views of different pixels are mixed.

    probes/view-000-<hash of key>.png   one picture per probe
    probes/view-000.json                the pictures' names, parameters and hashes; written last, and once
"""

import hashlib
import io
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from unic_pipe.pipeline.storage import Store, get_or_none, sha256
from unic_pipe.pipeline.views.parameters import view_parameters
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.recipes import Recipe
from unic_pipe.schemas.views import Probe, ProbesDocument, ViewParameters

MAX_DIFFERENCE = 2
"""Largest difference of one value, in 255ths, that another CPU's kernels may make."""

MEAN_DIFFERENCE = 0.05
"""Largest mean difference over a picture, in 255ths."""

_NEXT = (
    "Rendering depends on torchvision, Pillow and the CPU. Continue in the environment that extracted these features, "
    "or move their folder aside and run: unic-pipe extract"
)
_ON_DEVICE = (
    "This device's arithmetic cannot be used for views. Set compute.views: host, and run the same command again."
)
_REPAIR = "Run: unic-pipe verify"

Images = Sequence[tuple[str, np.ndarray]]
"""Probe samples: key, and decoded image uint8 (H, W, 3)."""


def write_probes(store: Store, recipe: Recipe, seed: int, view: int, size: int, images: Images) -> None:
    """Keep the probes of a view in a feature folder, once: where they exist already, only pictures that are gone are drawn
    again. They have the encoder's input `size`, in pixels.
    Raises StageError: a picture is gone, and rendering no longer gives the recorded one."""
    document = read_probes(store, view)
    if document is not None:
        _restore(store, document, recipe, dict(images))
        return
    probes = []
    for key, image_HWC in images:
        parameters = view_parameters(recipe, seed, key, view, _size_hw(image_HWC))
        file = f"probes/view-{view:03d}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.png"
        pixels_HWC = _render(image_HWC, parameters, recipe, size)
        png = _to_png(pixels_HWC)
        if not store.create(file, png):
            # Left by a killed process or made by one that runs beside this one; elsewhere, if it is not the same.
            there = store.get(file)
            kept_HWC = _from_png(there, size)
            if kept_HWC is not None and _difference(key, kept_HWC, pixels_HWC).allowed:
                png = there
            else:
                store.put(file, png)
        probes.append(Probe(key=key, parameters=parameters, file=file, png=sha256(png)))
    document = ProbesDocument(recipe=digest_of(recipe), seed=seed, view=view, size=size, probes=tuple(probes))
    store.create(_document_key(view), document.to_bytes())


def check_probes(
    store: Store,
    recipe: Recipe,
    seed: int,
    view: int,
    size: int,
    images: Images,
    device: str | None = None,
    deleted: Collection[str] = (),
) -> str | None:
    """Draw a view's probes again and compare: None when equal, one line when only rounding differs.

    Parameters must be equal exactly; pixels may differ by at most `MAX_DIFFERENCE` and on average by
    `MEAN_DIFFERENCE` per picture, as between the kernels of two CPUs. Arguments as for `write_probes`; further images
    are ignored, and so are probes of samples that were `deleted`. With `device`, their photometric part is drawn there,
    as `compute.views: device` does.
    Raises StageError: the view is rendered differently, the probes belong to another recipe, seed or size, a probe's
    sample is not among the images, or a picture is missing or damaged.
    """
    document = read_probes(store, view)
    if document is None:
        raise StageError(f"The probe pictures of view {view} are missing ({_document_key(view)}).", _REPAIR)
    found = (document.recipe, document.seed, document.view, document.size)
    if found != (digest_of(recipe), seed, view, size):
        raise StageError(f"{_document_key(view)} was made for another recipe, seed, view or size.", _REPAIR)
    samples = dict(images)
    differences = [
        _compare(store, probe, document, recipe, samples, device)
        for probe in document.probes
        if probe.key not in deleted
    ]
    unequal = [d for d in differences if d.largest > 0]
    if not unequal:
        return None
    worst = max(unequal, key=lambda d: (not d.allowed, d.largest, d.mean))
    text = f"up to {worst.largest}/255, {worst.mean:.3g}/255 on average (sample {worst.key!r})"
    if not worst.allowed:
        raise StageError(
            f"View {view} is rendered differently {f'on {device} ' if device else ''}from when its features were "
            f"extracted: {len(unequal)} of {len(differences)} probe pictures differ, {text}.",
            _ON_DEVICE if device else _NEXT,
        )
    return (
        f"View {view}: {len(unequal)} of {len(differences)} probe pictures differ by rounding, {text}; "
        "this is another CPU's or version's arithmetic, and harmless."
    )


def read_probes(store: Store, view: int) -> ProbesDocument | None:
    """The document of a view's probes, or None. Raises UserError: it cannot be read."""
    raw = get_or_none(store, _document_key(view))
    return None if raw is None else ProbesDocument.from_bytes(raw, _document_key(view))


@dataclass(frozen=True)
class _Difference:
    """How far a picture is from the kept one, in 255ths."""

    key: str
    largest: int
    mean: float

    @property
    def allowed(self) -> bool:
        return self.largest <= MAX_DIFFERENCE and self.mean <= MEAN_DIFFERENCE


def _compare(
    store: Store,
    probe: Probe,
    document: ProbesDocument,
    recipe: Recipe,
    samples: dict[str, np.ndarray],
    device: str | None,
) -> _Difference:
    image_HWC = _sample(probe, document, samples)
    drawn = view_parameters(recipe, document.seed, probe.key, document.view, _size_hw(image_HWC))
    if drawn != probe.parameters:
        was, now = asdict(probe.parameters), asdict(drawn)
        changed = ", ".join(f"{name} was {was[name]}, is {now[name]}" for name in was if was[name] != now[name])
        raise StageError(
            f"View {document.view} of sample {probe.key!r} has other parameters than when its features were "
            f"extracted: {changed}.",
            _NEXT,
        )
    png = get_or_none(store, probe.file)
    if png is None or sha256(png) != probe.png:
        state = "missing" if png is None else "damaged"
        raise StageError(f"The probe picture {probe.file} of sample {probe.key!r} is {state}.", _REPAIR)
    kept_HWC = _from_png(png, document.size)
    drawn_HWC = _render(image_HWC, drawn, recipe, document.size, device)
    assert kept_HWC is not None, f"{probe.file}: its hash is right and yet it is no picture of its size"
    return _difference(probe.key, kept_HWC, drawn_HWC)


def _restore(store: Store, document: ProbesDocument, recipe: Recipe, samples: dict[str, np.ndarray]) -> None:
    """Draw again the pictures that are gone; only exactly the recorded bytes may take their place."""
    for probe in document.probes:
        if store.size(probe.file) is not None:
            continue
        image_HWC = _sample(probe, document, samples)
        png = _to_png(_render(image_HWC, probe.parameters, recipe, document.size))
        if sha256(png) != probe.png:
            raise StageError(
                f"The probe picture {probe.file} of sample {probe.key!r} is gone and cannot be drawn again here: "
                "this environment renders other pixels.",
                _NEXT,
            )
        store.create(probe.file, png)


def _sample(probe: Probe, document: ProbesDocument, samples: dict[str, np.ndarray]) -> np.ndarray:
    if probe.key not in samples:
        raise StageError(
            f"Sample {probe.key!r}, a probe of view {document.view}, cannot be read any more.",
            "Restore the dataset's files, then run the same command again.",
        )
    return samples[probe.key]


def _difference(key: str, a_HWC: np.ndarray, b_HWC: np.ndarray) -> _Difference:
    distance_HWC = np.abs(a_HWC.astype(np.int16) - b_HWC)
    return _Difference(key, int(distance_HWC.max()), float(distance_HWC.mean()))


def _render(
    image_HWC: np.ndarray, parameters: ViewParameters, recipe: Recipe, size: int, device: str | None = None
) -> np.ndarray:
    """uint8 (size, size, 3). torch is imported only where something is drawn."""
    import torch

    from unic_pipe.pipeline.views.photometric import finish, plan_of
    from unic_pipe.pipeline.views.render import render, render_geometry

    if device is None:
        x_CHW = render(image_HWC, parameters, recipe, size)
    else:
        x_CHW = render_geometry(image_HWC, parameters, recipe, size)
        x_CHW = finish(x_CHW[None], plan_of([parameters], recipe, size), torch.device(device))[0].cpu()
    pixels_HWC: np.ndarray = x_CHW.permute(1, 2, 0).numpy()
    return pixels_HWC


def _to_png(pixels_HWC: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels_HWC)).save(buffer, "PNG", optimize=False, compress_level=6)
    return buffer.getvalue()


def _from_png(png: bytes, size: int) -> np.ndarray | None:
    """The pixels, uint8 (size, size, 3); None if this is not such a picture."""
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
            pixels_HWC = np.asarray(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    return pixels_HWC if pixels_HWC.shape == (size, size, 3) else None


def _size_hw(image_HWC: np.ndarray) -> tuple[int, int]:
    return image_HWC.shape[0], image_HWC.shape[1]


def _document_key(view: int) -> str:
    return f"probes/view-{view:03d}.json"
