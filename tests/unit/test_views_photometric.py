"""The photometric part for a batch: what rendering image by image gives, whatever was drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.views.parameters import view_parameters
from unic_pipe.pipeline.views.photometric import Pixels, apply, plan_of
from unic_pipe.pipeline.views.probes import MAX_DIFFERENCE, MEAN_DIFFERENCE, check_probes, write_probes
from unic_pipe.pipeline.views.render import render, render_geometry
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.recipes import UNIC, Recipe
from unic_pipe.schemas.views import JitterOperation, ViewParameters

SIDE = 41
Views = list[tuple[np.ndarray, ViewParameters]]
JITTER: tuple[JitterOperation, ...] = ("brightness", "contrast", "saturation", "hue")
# Any crop, and all that may follow it, more often than in the recipe.
BUSY = Recipe(jitter=(0.8, 0.8, 0.8, 0.5), grayscale=0.3, blur_probability=0.5, solarize_probability=0.3)


def picture(kind: str, seed: int) -> np.ndarray:
    """uint8 (SIDE, SIDE, 3): noise, grey noise (where rounding shows), flat colours, or black and white."""
    rng = np.random.default_rng(seed)
    if kind == "flat":
        return np.full((SIDE, SIDE, 3), rng.integers(0, 256, 3), np.uint8)
    if kind == "grey":
        return np.repeat(rng.integers(0, 256, (SIDE, SIDE, 1), dtype=np.uint8), 3, axis=2)
    if kind == "extreme":
        return (rng.integers(0, 2, (SIDE, SIDE, 3)) * 255).astype(np.uint8)
    return rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


@st.composite
def drawn(draw: st.DrawFn) -> tuple[np.ndarray, ViewParameters]:
    image_HWC = picture(draw(st.sampled_from(["noise", "grey", "flat", "extreme"])), draw(st.integers(0, 2**20)))
    order = draw(st.permutations(JITTER))[: draw(st.integers(0, 4))]
    bounds = {"hue": st.floats(-0.5, 0.5)}
    jitter = tuple((name, draw(bounds.get(name, st.floats(0, 2.5)))) for name in order)
    sigma = draw(st.none() | st.floats(0.01, 40))
    flags = [draw(st.booleans()) for _ in range(3)]
    return image_HWC, ViewParameters(0, 0, SIDE, SIDE, flags[0], jitter, flags[1], sigma, flags[2])


def both(views: Views, recipe: Recipe, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The views image by image and in a batch, uint8 (B, 3, size, size)."""
    alone_B3HW = torch.stack([render(image, p, recipe, size) for image, p in views])
    x_B3HW = torch.stack([render_geometry(image, p, recipe, size) for image, p in views])
    before = x_B3HW.clone()
    batched_B3HW = apply(x_B3HW, plan_of([p for _, p in views], recipe, size))
    assert torch.equal(x_B3HW, before), "encoders with equal renderings share these pixels"
    return alone_B3HW, batched_B3HW


def assert_close(a_B3HW: torch.Tensor, b_B3HW: torch.Tensor) -> None:
    """R7's tolerance, for every picture."""
    distance = (a_B3HW.int() - b_B3HW.int()).abs().float()
    assert distance.max() <= MAX_DIFFERENCE
    assert distance.mean(dim=(1, 2, 3)).max() <= MEAN_DIFFERENCE


@settings(deadline=None, max_examples=60)
@given(st.lists(drawn(), min_size=1, max_size=6), st.sampled_from([SIDE, 32, 7]))
def test_a_batch_has_the_pixels_of_single_images_but_for_the_blur(views: Views, size: int) -> None:
    alone, batched = both([(image, replace(p, blur_sigma=None)) for image, p in views], BUSY, size)
    assert torch.equal(alone, batched)


@settings(deadline=None, max_examples=60)
@given(st.lists(drawn(), min_size=1, max_size=6), st.sampled_from([1, 5, SIDE, 300]))
def test_any_batch_is_within_the_tolerance_of_probes(views: Views, size: int) -> None:
    """Solarize comes after the blur; its default threshold maps 127 and 128 to the same value."""
    assert_close(*both(views, BUSY, size))


def test_a_recipes_own_views_are_within_the_tolerance() -> None:
    """All orders of the jitter occur, and solarize after the blur."""
    images = [picture("noise", i) for i in range(64)]
    views = [(x, view_parameters(BUSY, 3, f"{i}", 0, (SIDE, SIDE))) for i, x in enumerate(images)]
    assert len({tuple(name for name, _ in p.jitter) for _, p in views}) > 15
    assert any(p.solarize and p.blur_sigma for _, p in views)
    assert_close(*both(views, BUSY, 64))


@pytest.mark.parametrize("batch", [1, 5, 12])
def test_pixels_depend_on_no_batch_and_no_thread_count(batch: int) -> None:
    views = [(picture("noise", i), view_parameters(BUSY, 3, f"{i}", 0, (SIDE, SIDE))) for i in range(12)]
    x_N3HW = torch.stack([render_geometry(image, p, BUSY, 32) for image, p in views])
    pixels = Pixels(x_N3HW, BUSY, tuple(p for _, p in views))

    def finished(batch: int) -> torch.Tensor:
        parts = [pixels.batch(slice(start, start + batch)) for start in range(0, 12, batch)]
        return torch.cat([apply(x, plan) for x, plan in parts if plan is not None])

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        whole = finished(12)
        torch.set_num_threads(2)
        assert torch.equal(finished(batch), whole)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(finished(batch), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_pixels_of_the_cpu() -> None:
    """But for the blur, whose sums a GPU rounds otherwise; also inside another precision's autocast."""
    views = [(picture("noise", i), view_parameters(BUSY, 3, f"{i}", 0, (SIDE, SIDE))) for i in range(64)]
    for keep_blur in (False, True):
        parameters = [p if keep_blur else replace(p, blur_sigma=None) for _, p in views]
        x_B3HW = torch.stack(
            [render_geometry(image, p, BUSY, 64) for (image, _), p in zip(views, parameters, strict=True)]
        )
        plan = plan_of(parameters, BUSY, 64)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            found_B3HW = apply(x_B3HW.cuda(), plan.to("cuda", pinned=True)).cpu()
        assert_close(apply(x_B3HW, plan), found_B3HW)
        assert keep_blur or torch.equal(apply(x_B3HW, plan), found_B3HW)


def test_nothing_to_do_changes_nothing() -> None:
    plain = ViewParameters(0, 0, SIDE, SIDE, True, (), False, None, False)
    x_13HW = torch.from_numpy(picture("noise", 1)).permute(2, 0, 1)[None]
    assert torch.equal(apply(x_13HW, plan_of([plain], UNIC, SIDE)), x_13HW)
    assert apply(x_13HW[:0], plan_of([], UNIC, SIDE)).shape == (0, 3, SIDE, SIDE)
    # A blur too weak to change a byte is left out, as it is image by image.
    assert plan_of([replace(plain, blur_sigma=0.1)], UNIC, SIDE).steps == ()


def test_a_device_that_renders_differently_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LocalStore(tmp_path)
    images = [(f"{i}", picture("noise", i)) for i in range(4)]
    write_probes(store, BUSY, 3, 0, SIDE, images)
    check_probes(store, BUSY, 3, 0, SIDE, images, "cpu")
    monkeypatch.setattr(
        "unic_pipe.pipeline.views.photometric._mean", lambda grey: grey.mean(dim=(1, 2, 3), keepdim=True) + 9
    )
    assert check_probes(store, BUSY, 3, 0, SIDE, images) is None
    with pytest.raises(StageError, match="View 0 is rendered differently on cpu from when") as error:
        check_probes(store, BUSY, 3, 0, SIDE, images, "cpu")
    assert "compute.views: host" in str(error.value.hint)
