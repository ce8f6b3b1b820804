"""ScaleKD's spatial and frequency terms: sums over cells, means over images."""

from __future__ import annotations

import pytest
from recipe_numbers import close, close_gradient, tensor

from unic_pipe.stages.distill.losses.unit_maps import unit_maps, unit_maps_without_mean


@pytest.mark.parametrize(("name", "kind", "place"), [("spat", unit_maps, 0), ("freq", unit_maps_without_mean, 1)])
def test_terms(recipes, name, kind, place):
    numbers = recipes("scalekd")
    student = tensor(numbers["student_tokens"], grad=True)
    loss = float(numbers["alpha"][place]) * kind(student, tensor(numbers["teacher_map"]).flatten(2).mT).mean()
    close(loss, numbers[f"{name}/loss"])
    loss.backward()
    close_gradient(student, numbers[f"{name}/grad_student_tokens"])
