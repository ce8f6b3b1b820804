"""Every kind of term of a loss: one number an image, in float32, by its formula in NumPy's float64 at odd sizes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from unic_pipe.stages.distill.losses.angle import angle
from unic_pipe.stages.distill.losses.class_direction import class_direction
from unic_pipe.stages.distill.losses.cosine import cosine
from unic_pipe.stages.distill.losses.cross_entropy import hard_cross_entropy, soft_cross_entropy
from unic_pipe.stages.distill.losses.flat_cosine import flat_cosine
from unic_pipe.stages.distill.losses.gram import gram
from unic_pipe.stages.distill.losses.kl import decoupled_kl, kl
from unic_pipe.stages.distill.losses.masked_mse import masked_mse
from unic_pipe.stages.distill.losses.mse import mse, sequence_shares
from unic_pipe.stages.distill.losses.similarity import cell_similarity, pushed, queue_similarity
from unic_pipe.stages.distill.losses.smooth_l1 import smooth_l1
from unic_pipe.stages.distill.losses.unit_maps import unit_maps, unit_maps_without_mean

B, P, E = 5, 7, 11
RANDOM = np.random.default_rng(5)
QUEUE = RANDOM.standard_normal((13, E))
MASK = RANDOM.random((B, P)) < 0.4
LABELS = RANDOM.integers(0, E, B)
CENTERS = RANDOM.standard_normal((B, E))


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def divergence(t, s):
    return (t * np.log(t / s)).sum(-1)


def per_image(x):
    return x.reshape(B, -1).mean(1)


def np_cosine(s, t):
    return per_image(1 - (unit(s) * unit(t)).sum(-1))


def np_smooth_l1(s, t):
    d = np.abs(s - t)
    return per_image(np.where(d < 1, d**2 / 2, d - 0.5))


def np_angle(s, t):
    return per_image(np.arccos((unit(s) * unit(t)).sum(-1)) ** 2 / 0.3)


def np_gram(s, t, normalize=unit):
    s, t = normalize(s), normalize(t)
    return per_image((s @ s.swapaxes(1, 2) - t @ t.swapaxes(1, 2)) ** 2)


def np_queue(s, t):
    return divergence(softmax(unit(t) @ QUEUE.T / 0.07), softmax(unit(s) @ QUEUE.T / 0.07))


def np_cells(s, t):
    s, t = (unit(x) @ unit(x).swapaxes(1, 2) / 0.105 for x in (s, t))
    return divergence(softmax(t), softmax(s)).mean(1)


def np_dkd(s, t):
    (s, t), rows = (softmax(x / 4) for x in (s, t)), np.arange(B)
    own_s, own_t, others = s[rows, LABELS], t[rows, LABELS], np.ones((B, E), bool)
    others[rows, LABELS] = False
    two_s, two_t = (np.stack([own, 1 - own], 1) for own in (own_s, own_t))
    rest_s, rest_t = s[others].reshape(B, -1) / two_s[:, 1:], t[others].reshape(B, -1) / two_t[:, 1:]
    return 16 * (divergence(two_t, two_s) + 2 * divergence(rest_t, rest_s))


def np_class_direction(s, t):
    longest = np.maximum(np.linalg.norm(s, axis=1), np.linalg.norm(t, axis=1))
    return 1 - (s * unit(CENTERS)).sum(1) / longest


def np_unit_maps(s, t):
    return ((unit(s) - unit(t)) ** 2).sum((1, 2))


ANY = {
    "cosine": (cosine, np_cosine),
    "smooth_l1": (smooth_l1, np_smooth_l1),
    "mse": (mse, lambda s, t: per_image((s - t) ** 2)),
    "flat_cosine": (flat_cosine, lambda s, t: np_cosine(s.reshape(B, -1), t.reshape(B, -1))),
    "angle": (partial(angle, dispersion=0.3), np_angle),
}
CLS = {
    "queue_similarity": (partial(queue_similarity, queue=torch.from_numpy(QUEUE)), np_queue),
    "class_direction": (partial(class_direction, centers=torch.from_numpy(CENTERS)), np_class_direction),
    "kl": (partial(kl, temperature=3.0), lambda s, t: 9 * divergence(softmax(t / 3), softmax(s / 3))),
    "decoupled_kl": (partial(decoupled_kl, labels_B=torch.from_numpy(LABELS)), np_dkd),
    "soft_cross_entropy": (soft_cross_entropy, lambda s, t: -(softmax(t) * np.log(softmax(s))).sum(1)),
    "hard_cross_entropy": (hard_cross_entropy, lambda s, t: -np.log(softmax(s)[np.arange(B), t.argmax(1)])),
}
PATCH = {
    "masked_mse": (
        partial(masked_mse, mask_BP=torch.from_numpy(MASK), cells=MASK.sum() / B),
        lambda s, t: (((s - t) ** 2).mean(-1) * MASK).sum(1) / (MASK.sum() / B),
    ),
    "gram": (gram, np_gram),
    "gram_of_lengths": (partial(gram, unit=False), partial(np_gram, normalize=lambda x: x)),
    "cell_similarity": (cell_similarity, np_cells),
    "unit_maps": (unit_maps, np_unit_maps),
    "unit_maps_without_mean": (
        unit_maps_without_mean,
        lambda s, t: np_unit_maps(s - s.mean(1, keepdims=True), t - t.mean(1, keepdims=True)),
    ),
}
CASES = [
    *((f"{name} {shape}", *both, shape) for name, both in ANY.items() for shape in ((B, E), (B, P, E))),
    *((name, *both, (B, E)) for name, both in CLS.items()),
    *((name, *both, (B, P, E)) for name, both in PATCH.items()),
]


@pytest.mark.parametrize(("kind", "formula", "shape"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_kinds(kind, formula, shape):
    """Also that bfloat16 is computed with in float32."""
    # Values of bfloat16, so that both ways have the same inputs.
    s, t = (torch.from_numpy(RANDOM.standard_normal(shape) * 1.5).bfloat16() for _ in range(2))
    expected_B = formula(s.double().numpy(), t.double().numpy())
    assert expected_B.shape == (B,)
    for prediction, target in ((s.float(), t.float()), (s, t)):
        found_B = kind(prediction, target)
        assert (found_B.dtype, found_B.shape) == (torch.float32, (B,))
        np.testing.assert_allclose(found_B.numpy(), expected_B, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [*ANY, "gram", "cell_similarity", "unit_maps", "unit_maps_without_mean"])
def test_an_images_loss_does_not_depend_on_the_others(name):
    kind = {**ANY, **PATCH}[name][0]
    s, t = (torch.from_numpy(RANDOM.standard_normal((B, P, E)).astype(np.float32)) for _ in range(2))
    torch.testing.assert_close(torch.cat([kind(s[:2], t[:2]), kind(s[2:], t[2:])]), kind(s, t))


def test_a_sequence_is_its_cls_and_its_patches():
    s, t = (torch.from_numpy(RANDOM.standard_normal((B, 1 + P, E))) for _ in range(2))
    cls_share, patch_share = sequence_shares(P)
    found_B = cls_share * mse(s[:, 0], t[:, 0]) + patch_share * mse(s[:, 1:], t[:, 1:])
    torch.testing.assert_close(found_B, mse(s, t))


def test_the_queue_is_first_in_first_out():
    batches = torch.from_numpy(RANDOM.standard_normal((4, 3, E)))
    queue = torch.zeros(8, E)
    for batch in batches:
        queue = pushed(queue, batch)
    newest_first = torch.cat([batches[3], batches[2], batches[1, :2]])
    torch.testing.assert_close(queue, torch.nn.functional.normalize(newest_first, dim=-1).float())
