"""Views per token type: the configuration, an epoch's view, a student's identity, steps without patches."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from pydantic import ValidationError

from unic_pipe.pipeline.cache.needs import training_need
from unic_pipe.pipeline.samples.mixtures import Mixture, Part
from unic_pipe.pipeline.samples.order import epoch_view
from unic_pipe.schemas.base import digest_of
from unic_pipe.schemas.config import LossConfig, ViewsConfig
from unic_pipe.stages.distill.data.batches import training_plans
from unic_pipe.stages.distill.metrics import Meter
from unic_pipe.stages.distill.model.loss import teacher_losses


def test_defaults_ask_for_the_same_as_before():
    views = ViewsConfig(count=3)
    assert (views.patch_views, views.patch_every) == (3, None)
    assert [epoch_view(7, e, 3) for e in range(6)] == [epoch_view(7, e, 3, None, None) for e in range(6)]


@pytest.mark.parametrize(
    ("settings", "place", "words"),
    [
        ({"count": 2, "patch": 3}, "patch", "more than count (2)"),
        ({"count": 2, "patch_every": 2}, "patch_every", "0 < patch < count (2)"),
        ({"count": 2, "patch": 0, "patch_every": 2}, "patch_every", "0 < patch < count (2)"),
        ({"count": 2, "patch": 1, "patch_every": 1}, "patch_every", "never use the views without patches"),
    ],
)
def test_views_that_do_not_go_together(settings, place, words):
    with pytest.raises(ValidationError) as caught:
        ViewsConfig(**settings)
    (problem,) = caught.value.errors()
    assert problem["loc"] == (place,)
    assert words in problem["msg"]


def test_every_second_epoch_has_patches_and_all_views_take_turns():
    views = [epoch_view(3, epoch, 8, 2, 2) for epoch in range(24)]
    assert all((view < 2) == (epoch % 2 == 0) for epoch, view in enumerate(views))
    assert set(Counter(views[::2]).values()) == {6}
    assert Counter(views[1::2]) == dict.fromkeys(range(2, 8), 2)
    assert views != [epoch_view(4, epoch, 8, 2, 2) for epoch in range(24)]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_plan_says_whether_its_view_has_patches(fresh):
    import numpy as np

    mixture = Mixture((Part("ab" * 32, 4, np.arange(8)),), seed=0, batch=4, streams=2, window=2)
    plans = list(training_plans(mixture, start=0, epochs=6, views=4, fresh=fresh, patch_views=1, patch_every=3))
    assert [plan.patches for plan in plans[::2]] == [True, False, False, True, False, False]
    if fresh:
        assert [plan.view for plan in plans[::2]] == list(range(6))
    else:
        assert all((plan.view == 0) == plan.patches for plan in plans)


def test_the_loss_of_a_step_without_patches_is_that_of_cls():
    random = torch.Generator().manual_seed(0)
    predictions = {"cls": {"t": torch.randn(3, 5, generator=random)}, "patch": {"t": torch.randn(3, 4, 5)}}
    targets = {"cls": {"t": torch.randn(3, 5, generator=random)}}
    alone = teacher_losses({"cls": predictions["cls"]}, targets, LossConfig())
    both = teacher_losses(predictions, targets, LossConfig())
    assert torch.equal(both.loss_BT, alone.loss_BT)
    assert both.terms.keys() == {("t", "cls", "cosine"), ("t", "cls", "smooth_l1")}


def test_means_are_over_the_steps_that_had_the_value():
    meter = Meter()
    one = torch.tensor(1.0)
    meter.add({"loss": one, "t/patch/cosine": 3 * one})
    meter.add({"loss": 3 * one})
    meter.add({"loss": 2 * one, "t/patch/cosine": 5 * one})
    assert meter.means() == {"loss": 2.0, "t/patch/cosine": 4.0}
    again = Meter.from_state(meter.state())
    assert (again.means(), again.weight) == (meter.means(), 3.0)
    assert Meter.from_state(Meter().state()).means() == {}


def test_cls_only_students_use_every_view_and_patch_only_ones_those_with_patches(here):
    here.index()
    settings = ("views.count=4", "views.patch=1", "views.patch_every=2")
    inventory = here.look(*settings)
    both = inventory.student_definition("main")
    assert (both.views, both.patch_views, both.patch_every) == (4, 1, 2)
    cls = here.look(*settings, "students.main.loss.tokens=cls").student_definition("main")
    assert (cls.views, cls.patch_views, cls.patch_every) == (4, None, None)
    patch = here.look(*settings, "students.main.loss.tokens=patch").student_definition("main")
    assert (patch.views, patch.patch_views, patch.patch_every) == (1, None, None)
    same = here.look("views.patch=2").student_definition("main")
    assert digest_of(same) == digest_of(here.look().student_definition("main"))
    dataset = inventory.dataset("train").dataset
    need = training_need(inventory.config, dataset.manifest, "dino", inventory.teacher("dino").definition)
    assert need.planes() == [(0, "cls"), (0, "patch"), (1, "cls"), (2, "cls"), (3, "cls")]


def test_no_view_with_patches_and_a_student_that_wants_them(here):
    here.index()
    (problem,) = [a.reason for name, a in here.plan("views.patch=0").items() if name == "students/main"]
    assert problem == "Student main is trained on patch tokens, and no view carries them (views.patch: 0)."
    assert here.look("views.patch=0", "students.main.loss.tokens=cls").student_definition("main").views == 2
