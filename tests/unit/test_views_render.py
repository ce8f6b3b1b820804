"""Rendering: torchvision v2's own operations, pure, and unafraid of strange sizes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from unic_pipe.pipeline.views.blur import blurred
from unic_pipe.pipeline.views.colours import coloured
from unic_pipe.pipeline.views.hue import turn_hue
from unic_pipe.pipeline.views.parameters import view_parameters
from unic_pipe.pipeline.views.render import normalize, render, render_view
from unic_pipe.schemas.recipes import CENTER, GENTLE, RECIPES, UNIC, Recipe
from unic_pipe.schemas.views import ViewParameters

BICUBIC = v2.InterpolationMode.BICUBIC
WHOLE = ViewParameters(0, 0, 60, 80, False, (), False, None, False)


def photo(height: int = 60, width: int = 80, seed: int = 0) -> np.ndarray:
    """A smooth colour picture with some noise, uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = np.stack([np.sin(x / 9 + c) + np.cos(y / (7 + c)) for c in range(3)], -1)
    return np.clip(128 + 50 * waves + rng.normal(0, 12, waves.shape), 0, 255).astype(np.uint8)


def as_tensor(image_HWC: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image_HWC.copy()).permute(2, 0, 1).contiguous()


# ---- the same as torchvision ---------------------------------------------------------------------------------------


def test_unic_is_torchvisions_own_composition():
    image_HWC = photo()
    jitter = (("hue", 0.07), ("contrast", 1.3), ("brightness", 0.7), ("saturation", 1.15))
    p = ViewParameters(5, 11, 40, 52, True, jitter, False, 1.7, True)
    x = F.resized_crop(as_tensor(image_HWC), 5, 11, 40, 52, [224, 224], interpolation=BICUBIC, antialias=True)
    x = F.horizontal_flip(x)
    x = F.adjust_brightness(F.adjust_contrast(F.adjust_hue(x, 0.07), 1.3), 0.7)
    x = F.adjust_saturation(x, 1.15)
    x = F.gaussian_blur(x, [9, 9], [1.7, 1.7])
    x = F.solarize(x, 127.5)
    assert torch.equal(render(image_HWC, p, UNIC, 224), x)


@pytest.mark.parametrize("turn", [0.0, 0.1, -0.1, 0.5, -0.5, 1e-9, -1e-9, 1 / 6, -1 / 6, 0.0234567])
def test_hue_is_torchvisions_to_the_last_bit(turn):
    """Some reds with all greens and blues, among them every kind of tie between channels."""
    green, blue = torch.meshgrid(
        torch.arange(256, dtype=torch.uint8), torch.arange(256, dtype=torch.uint8), indexing="ij"
    )
    for red in (0, 1, 2, 127, 128, 253, 254, 255, *range(3, 250, 41)):
        x = torch.stack([torch.full_like(green, red), green, blue])
        assert np.array_equal(turn_hue(x.numpy(), turn), F.adjust_hue(x, turn).numpy())


@pytest.mark.parametrize(("half", "sigma"), [(1, 0.4), (2, 3.0), (4, 1.7), (4, 5.0), (10, 8.0)])
@pytest.mark.parametrize("kind", ["noise", "photo", "stripes"])
def test_blur_is_torchvisions_to_the_last_bit(kind, half, sigma):
    """Of noise some sums lie near the middle between two bytes; of stripes of two neighbouring bytes, most of them."""
    noise = np.random.default_rng(half).integers(0, 256, (96, 120, 3), dtype=np.uint8)
    stripes = np.broadcast_to(np.arange(120)[:, None] % 2 + 7, (96, 120, 3)).astype(np.uint8)
    x = as_tensor({"noise": noise, "photo": photo(96, 120), "stripes": stripes}[kind])
    side = [2 * half + 1] * 2
    assert torch.equal(blurred(x, half, sigma), F.gaussian_blur(x, side, [sigma, sigma]))


@pytest.mark.parametrize("operation", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("factor", [0.0, 0.3721, 1.0, 1.4, 2.5])
def test_colours_are_torchvisions_to_the_last_bit(operation, factor):
    x = as_tensor(np.random.default_rng(0).integers(0, 256, (61, 67, 3), dtype=np.uint8))
    p = replace(WHOLE, jitter=((operation, factor),), solarize=True)
    expected = F.solarize(getattr(F, f"adjust_{operation}")(x, factor), 127.5)
    assert torch.equal(coloured(x, p, UNIC), expected)


def test_grayscale_has_three_equal_channels():
    x = render(photo(), replace(WHOLE, grayscale=True), UNIC, 64)
    expected = F.resize(as_tensor(photo()), [64, 64], interpolation=BICUBIC, antialias=True)
    assert torch.equal(x, F.rgb_to_grayscale(expected, num_output_channels=3))
    assert x.is_contiguous()


def test_the_order_of_the_jitter_matters():
    there = (("brightness", 1.4), ("contrast", 0.6))
    a = render(photo(), replace(WHOLE, jitter=there), UNIC, 64)
    b = render(photo(), replace(WHOLE, jitter=there[::-1]), UNIC, 64)
    assert not torch.equal(a, b)


@pytest.mark.parametrize("size", [32, 96, 224])
@pytest.mark.parametrize("size_hw", [(60, 80), (333, 250), (8, 8), (97, 1)])
def test_center_is_torchvisions_resize_and_center_crop(size_hw, size):
    image_HWC = photo(*size_hw)
    transform = v2.Compose([v2.Resize(round(size / 0.875), BICUBIC, antialias=True), v2.CenterCrop(size)])
    # 97 x 1 is beyond the longest aspect ratio: there its central part stands for the image.
    cut_HWC = image_HWC[16:81] if size_hw == (97, 1) else image_HWC
    assert torch.equal(render_view(image_HWC, CENTER, 0, "a", 0, size), transform(as_tensor(cut_HWC)))


def test_blur_scales_with_the_input_size():
    """A picture twice as large, blurred in reference pixels, looks like the smaller one."""
    image_HWC = photo(448, 448)
    p = ViewParameters(0, 0, 448, 448, False, (), False, 3.0, False)
    large = F.resize(render(image_HWC, p, UNIC, 448), [224, 224], interpolation=BICUBIC, antialias=True)
    small = render(image_HWC, p, UNIC, 224)
    unblurred = render(image_HWC, replace(p, blur_sigma=None), UNIC, 224)
    assert (large.float() - small.float()).abs().mean() < 1.0
    assert (unblurred.float() - small.float()).abs().mean() > 4.0


def test_blur_kernel_of_one_pixel_or_no_width_changes_nothing():
    p = replace(WHOLE, blur_sigma=5.0)
    assert torch.equal(render(photo(), p, UNIC, 32), render(photo(), WHOLE, UNIC, 32))
    # The sigma below which blurring is skipped: doing it all the same gives the same pixels.
    plain = render(photo(), WHOLE, UNIC, 224)
    assert torch.equal(F.gaussian_blur(plain, [9, 9], [0.2, 0.2]), plain)
    for sigma in (0.0, 0.19):
        assert torch.equal(render(photo(), replace(WHOLE, blur_sigma=sigma), UNIC, 224), plain)


def test_solarize_at_the_recipes_threshold():
    plain = render(photo(), WHOLE, UNIC, 60)
    bright = Recipe(solarize_threshold=0.8)
    assert torch.equal(
        render(photo(), replace(WHOLE, solarize=True), bright, 60), torch.where(plain >= 204, 255 - plain, plain)
    )


def test_two_encoders_see_the_same_box():
    """The view at 96 pixels is, but for sampling, the view at 224: one crop, two renderings."""
    image_HWC = photo(300, 400)
    for key in ("a", "b", "c"):
        large = render_view(image_HWC, GENTLE, 0, key, 0, 224)
        small = render_view(image_HWC, GENTLE, 0, key, 0, 96)
        reduced = F.resize(large, [96, 96], interpolation=BICUBIC, antialias=True)
        assert (reduced.float() - small.float()).abs().mean() < 2


# ---- pure ----------------------------------------------------------------------------------------------------------


def test_nothing_global_matters_or_changes():
    image_HWC = photo(200, 150)
    p = ViewParameters(3, 4, 150, 140, True, (("hue", 0.05), ("contrast", 1.2)), True, 3.0, True)
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), torch.get_num_threads(), torch.get_default_dtype()
    first = render(image_HWC, p, UNIC, 224)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert (torch.get_num_threads(), torch.get_default_dtype()) == before[2:]
    assert torch.is_grad_enabled()
    torch.manual_seed(1)
    np.random.seed(1)
    assert torch.equal(render(image_HWC, p, UNIC, 224), first)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        assert torch.equal(render(image_HWC, p, UNIC, 224), first)
        assert torch.is_autocast_enabled("cpu")


def test_the_number_of_threads_does_not_matter():
    image_HWC = photo(300, 400)
    views = []
    threads = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            views.append(torch.stack([render_view(image_HWC, UNIC, 0, f"{i}", 0, 224) for i in range(12)]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*views)


def test_order_and_threads_do_not_matter():
    images = {f"k{i}": photo(40 + i, 60, seed=i) for i in range(24)}
    one_by_one = [render_view(image, UNIC, 1, key, 0, 48) for key, image in images.items()]
    with ThreadPoolExecutor(4) as pool:
        turned = list(pool.map(lambda item: render_view(item[1], UNIC, 1, item[0], 0, 48), reversed(images.items())))
    assert all(torch.equal(a, b) for a, b in zip(one_by_one, reversed(turned), strict=True))


def test_the_image_is_read_only_read():
    image_HWC = photo()
    image_HWC.flags.writeable = False
    kept = image_HWC.copy()
    p = replace(WHOLE, jitter=(("brightness", 1.4),), solarize=True)
    expected = render(kept, p, UNIC, 60)
    assert torch.equal(render(image_HWC, p, UNIC, 60), expected)
    assert np.array_equal(image_HWC, kept)
    assert torch.equal(render(image_HWC[:, ::-1], p, UNIC, 60), render(kept[:, ::-1].copy(), p, UNIC, 60))
    # A view that needs no resizing is a copy too.
    square_HWC = photo(32, 32)
    x = render(square_HWC, ViewParameters(0, 0, 32, 32, False, (), False, None, False), UNIC, 32)
    x.zero_()
    assert square_HWC.any()


# ---- strange sizes -------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    size=st.sampled_from([1, 2, 7, 8, 32, 65, 96]),
    recipe=st.sampled_from([*RECIPES.values(), Recipe(blur_kernel=101, reference_size=8, blur_probability=1.0)]),
    key=st.text(max_size=3),
)
def test_any_image_gives_a_view(height, width, size, recipe, key):
    x = render_view(np.full((height, width, 3), 77, np.uint8), recipe, 0, key, 0, size)
    assert (x.shape, x.dtype, x.is_contiguous()) == ((3, size, size), torch.uint8, True)
    if recipe in (GENTLE, CENTER):
        assert (x == 77).all()


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 20_000), (20_000, 1)])
def test_extreme_images_stay_small(size_hw):
    for recipe in RECIPES.values():
        assert render_view(np.zeros((*size_hw, 3), np.uint8), recipe, 0, "a", 0, 224).shape == (3, 224, 224)


def test_what_is_not_an_rgb_image_is_refused():
    for wrong in (np.zeros((5, 5), np.uint8), np.zeros((5, 5, 4), np.uint8), np.zeros((5, 5, 3), np.float32)):
        with pytest.raises(ValueError, match="uint8 image"):
            render(wrong, WHOLE, UNIC, 8)
    with pytest.raises(ValueError, match="another image"):
        render(photo(30, 80), view_parameters(CENTER, 0, "a", 0, (60, 80)), CENTER, 8)


# ---- normalize -----------------------------------------------------------------------------------------------------


def test_normalize_is_torchvisions():
    x_B3HW = torch.stack([as_tensor(photo(seed=i)) for i in range(3)])
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = F.normalize(F.to_dtype(x_B3HW, torch.float32, scale=True), list(mean), list(std))
    kept = x_B3HW.clone()
    torch.testing.assert_close(normalize(x_B3HW, mean, std), expected, rtol=0, atol=2e-6)
    assert torch.equal(x_B3HW, kept)
    half = normalize(x_B3HW.to(memory_format=torch.channels_last), mean, std, torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(half, expected.bfloat16(), rtol=0.01, atol=1e-5)


def test_mean_and_std_come_to_a_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy to a GPU waits for all that it has yet to do."""
    x_B3HW = torch.full((1, 3, 2, 2), 51, dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.1, 0.2, 0.4)
    first = normalize(x_B3HW, mean, std)
    monkeypatch.setattr(torch, "tensor", None)
    assert torch.equal(normalize(x_B3HW, mean, std), first)
