"""View parameters: pure, frozen by golden values, and distributed as torchvision's."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from unic_pipe.pipeline.views.parameters import DRAWS, MAX_ASPECT, _uniforms, view_parameters
from unic_pipe.schemas.base import canonical_json, digest_of
from unic_pipe.schemas.recipes import CENTER, GENTLE, RECIPES, UNIC, Recipe
from unic_pipe.schemas.views import ViewParameters

ROOT = Path(__file__).resolve().parents[2]
KEYS = [f"n0{i % 7}/img-{i:05d}" for i in range(4000)]


@pytest.fixture(scope="module")
def unic_views() -> list[ViewParameters]:
    return [view_parameters(UNIC, 0, key, 0, (375, 500)) for key in KEYS]


GOLDEN = {
    ("unic", 0, "n01440764/a", 1, (375, 500)): ViewParameters(
        top=139,
        left=96,
        height=208,
        width=213,
        flip=False,
        jitter=(
            ("brightness", 1.058201702555883),
            ("hue", -0.05659617472692116),
            ("saturation", 0.9227697217431134),
            ("contrast", 1.2823696569667806),
        ),
        grayscale=False,
        blur_sigma=None,
        solarize=True,
    ),
    ("unic", 0, "n01440764/a", 2, (375, 500)): ViewParameters(
        top=5,
        left=36,
        height=301,
        width=280,
        flip=True,
        jitter=(
            ("brightness", 0.843319961265023),
            ("contrast", 1.1023466318961381),
            ("saturation", 1.061437705644928),
            ("hue", -0.023543884718423946),
        ),
        grayscale=False,
        blur_sigma=0.45805394275870515,
        solarize=False,
    ),
    ("gentle", 7, "clé/é", 0, (80, 80)): ViewParameters(0, 1, 80, 79, False, (), False, None, False),
}
"""A change of these numbers makes every cached view stale: it needs a new format version, not a new golden."""


# ---- pure ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN, ids=str)
def test_golden_values(name):
    recipe, seed, key, view, size_hw = name
    assert view_parameters(RECIPES[recipe], seed, key, view, size_hw) == GOLDEN[name]


def test_parameters_depend_on_each_part_of_their_name():
    base = view_parameters(UNIC, 0, "a", 0, (375, 500))
    others = [
        view_parameters(UNIC, 1, "a", 0, (375, 500)),
        view_parameters(UNIC, 0, "b", 0, (375, 500)),
        view_parameters(UNIC, 0, "a", 1, (375, 500)),
        view_parameters(replace_recipe(UNIC, blur_kernel=11), 0, "a", 0, (375, 500)),
    ]
    assert len({base, *others}) == 5
    # Names that a careless concatenation would confuse.
    assert view_parameters(UNIC, 1, "1", 1, (375, 500)) != view_parameters(UNIC, 11, "", 1, (375, 500))


def test_a_recipe_written_out_is_the_named_recipe():
    assert view_parameters(Recipe(scale=(0.08, 1.0), flip=0.5), 3, "k", 0, (64, 48)) == view_parameters(
        UNIC, 3, "k", 0, (64, 48)
    )


def test_global_random_state_neither_matters_nor_changes():
    np.random.seed(1)
    random.seed(1)
    before = np.random.get_state()[1].tobytes(), random.getstate()
    first = view_parameters(UNIC, 0, "a", 0, (100, 100))
    assert (np.random.get_state()[1].tobytes(), random.getstate()) == before
    np.random.seed(2)
    random.seed(2)
    assert view_parameters(UNIC, 0, "a", 0, (100, 100)) == first


def test_order_threads_and_process_do_not_matter():
    keys = KEYS[:200]
    here = [view_parameters(UNIC, 5, key, 2, (120, 90)) for key in keys]
    with ThreadPoolExecutor(4) as pool:
        backwards = list(pool.map(lambda key: view_parameters(UNIC, 5, key, 2, (120, 90)), reversed(keys)))
    assert backwards[::-1] == here
    program = (
        "import json, sys; from dataclasses import asdict\n"
        "from unic_pipe.pipeline.views.parameters import view_parameters\n"
        "from unic_pipe.schemas.recipes import UNIC\n"
        "print(json.dumps([asdict(view_parameters(UNIC, 5, k, 2, (120, 90))) for k in json.load(sys.stdin)]))\n"
        "assert 'torch' not in sys.modules, 'planning would pay seconds for torch'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(keys),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "77", "PATH": ""},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(json.dumps([asdict(p) for p in here]))


def test_parameters_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        view_parameters(UNIC, 0, "a", 0, (9, 9)).flip = True  # type: ignore[misc]


# ---- distribution --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size_hw", [(375, 500), (64, 640)], ids=["photo", "panorama"])
def test_boxes_are_distributed_as_torchvisions(size_hw):
    import torch
    from scipy.stats import ks_2samp
    from torchvision.transforms import RandomResizedCrop

    height, width = size_hw
    image = torch.empty(3, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = np.array([RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in KEYS], float)
    ours = np.array([box(view_parameters(UNIC, 0, key, 0, size_hw)) for key in KEYS], float)
    features = {
        "area": lambda b: b[:, 2] * b[:, 3] / (height * width),
        "log ratio": lambda b: np.log(b[:, 3] / b[:, 2]),
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
    }
    for name, of in features.items():
        a, b = of(ours), of(theirs)
        # Four standard errors of the difference of two means.
        assert abs(a.mean() - b.mean()) < 4 * np.sqrt((a.var() + b.var()) / len(KEYS)), name
        assert a.std() == pytest.approx(b.std(), rel=0.06), name
        assert ks_2samp(a, b).pvalue > 1e-3, name


def test_probabilities_of_unic(unic_views):
    """p of each operation within four standard errors."""
    for name, p, happened in [
        ("flip", 0.5, [v.flip for v in unic_views]),
        ("jitter", 0.8, [bool(v.jitter) for v in unic_views]),
        ("grayscale", 0.2, [v.grayscale for v in unic_views]),
        ("blur", 0.2, [v.blur_sigma is not None for v in unic_views]),
        ("solarize", 0.2, [v.solarize for v in unic_views]),
    ]:
        assert abs(np.mean(happened) - p) < 4 * np.sqrt(p * (1 - p) / len(unic_views)), name


def test_operations_are_independent(unic_views):
    flags = np.array([[v.flip, bool(v.jitter), v.grayscale, v.blur_sigma is not None, v.solarize] for v in unic_views])
    correlation = np.corrcoef(flags.T.astype(float))
    assert np.abs(correlation - np.eye(5)).max() < 4 / np.sqrt(len(unic_views))


def test_jitter_factors_and_order(unic_views):
    applied = [dict(v.jitter) for v in unic_views if v.jitter]
    for name, low, high in [
        ("brightness", 0.6, 1.4),
        ("contrast", 0.6, 1.4),
        ("saturation", 0.8, 1.2),
        ("hue", -0.1, 0.1),
    ]:
        values = np.array([factors[name] for factors in applied])
        assert low <= values.min() < low + 0.02 * (high - low) < high - 0.02 * (high - low) < values.max() <= high
        assert values.mean() == pytest.approx((low + high) / 2, abs=4 * (high - low) / np.sqrt(12 * len(values)))
    orders = Counter(tuple(name for name, _ in v.jitter) for v in unic_views if v.jitter)
    assert len(orders) == 24
    expected = len(applied) / 24
    # Chi-squared with 23 degrees of freedom: 49.7 is exceeded once in a thousand.
    assert sum((n - expected) ** 2 / expected for n in orders.values()) < 49.7


def test_blur_sigma_is_uniform_in_its_range(unic_views):
    sigmas = np.array([v.blur_sigma for v in unic_views if v.blur_sigma is not None])
    assert 0.1 <= sigmas.min() < 0.2
    assert 4.9 < sigmas.max() <= 5.0
    assert sigmas.mean() == pytest.approx(2.55, abs=4 * 4.9 / np.sqrt(12 * len(sigmas)))


# ---- boxes ---------------------------------------------------------------------------------------------------------


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    key=st.text(max_size=8),
    seed=st.integers(-(2**40), 2**70),
    recipe=st.sampled_from([*RECIPES.values(), Recipe(ratio=(2.0, 3.0)), Recipe(scale=(0.9, 1.0), ratio=(0.1, 0.2))]),
)
def test_every_box_lies_inside_its_image(height, width, key, seed, recipe):
    p = view_parameters(recipe, seed, key, 0, (height, width))
    assert p.height >= 1
    assert p.width >= 1
    assert 0 <= p.top <= height - p.height
    assert 0 <= p.left <= width - p.width


def test_gentle_keeps_most_of_the_image_and_its_colours():
    for key in KEYS[:300]:
        p = view_parameters(GENTLE, 0, key, 0, (80, 80))
        assert 0.75 <= p.height * p.width / 6400 <= 1
        assert (p.flip, p.jitter, p.grayscale, p.blur_sigma, p.solarize) == (False, (), False, None, False)


def test_center_takes_everything_and_draws_nothing():
    plain = ViewParameters(0, 0, 375, 500, False, (), False, None, False)
    assert {view_parameters(CENTER, seed, key, seed, (375, 500)) for seed in (0, 1) for key in KEYS[:9]} == {plain}
    long = view_parameters(CENTER, 0, "a", 0, (3, 9001))
    assert box(long) == ((0, (9001 - 3 * MAX_ASPECT) // 2, 3, 3 * MAX_ASPECT + 1))


def test_an_operation_of_no_strength_is_left_out():
    recipe = replace_recipe(UNIC, jitter=(0.4, 0.0, 0.2, 0.0), jitter_probability=1.0)
    names = {name for key in KEYS[:50] for name, _ in view_parameters(recipe, 0, key, 0, (50, 50)).jitter}
    assert names == {"brightness", "saturation"}


def test_an_empty_image_has_no_views():
    with pytest.raises(ValueError, match="0 x 5"):
        view_parameters(UNIC, 0, "a", 0, (0, 5))


# ---- recipes -------------------------------------------------------------------------------------------------------


def test_impossible_recipes_are_refused_with_all_reasons():
    with pytest.raises(ValidationError) as caught:
        Recipe(scale=(0.9, 0.1), ratio=(0.0, 1.0), jitter=(-1, 0, 0, 0.7), blur_kernel=8, blur_sigma=(2.0, 1.0))
    for words in ("scale:", "ratio:", "negative", "hue 0.7", "8 is even; choose 9", "blur_sigma:"):
        assert words in str(caught.value)


def box(p: ViewParameters) -> tuple[int, int, int, int]:
    return p.top, p.left, p.height, p.width


def replace_recipe(recipe: Recipe, **changes) -> Recipe:
    return Recipe(**{**recipe.model_dump(), **changes})


def test_numbers_are_those_of_a_generator_of_its_own() -> None:
    def expected(recipe: Recipe, seed: int, key: str, view: int) -> list[float]:
        name = canonical_json([digest_of(recipe), seed, key, view])
        philox_key = int.from_bytes(hashlib.blake2b(name, digest_size=16).digest(), "big")
        return ((np.random.Philox(key=philox_key).random_raw(DRAWS) >> np.uint64(11)) * 2.0**-53).tolist()

    # Equal recipes, whose digests differ.
    cases = [(Recipe(flip=flip), i, f"n{i}", i % 3) for i in range(100) for flip in (0.0, -0.0, 0.5)]
    assert Recipe(flip=0.0) == Recipe(flip=-0.0)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda case: _uniforms(*case), cases)) == [expected(*case) for case in cases]
