"""RADIO's adaptor heads, with its own weights."""

from __future__ import annotations

import json

import pytest
import torch
from recipe_numbers import close, close_gradient, loaded, tensor, under

from unic_pipe.pipeline.students.heads.mlp import MlpV1, MlpV2


def test_heads(recipes):
    numbers = recipes("radio_heads")
    cases = json.loads(str(numbers["options"]))
    assert len(cases) == len({key.split("/")[0] for key in numbers if "/" in key})
    for case, options in cases.items():
        mine, upsample = under(numbers, case), options.get("upsample_factor", 1)
        sizes = options["input_size"], options["hidden_size"], options["output_size"] // upsample**2
        if case.startswith("mlp_v1"):
            head = MlpV1(*sizes, inner=options["num_inner"])
        else:
            more = {"pre_norm": options.get("pre_norm", False), "upsample": upsample, "grid": tuple(options["grid"])}
            head = MlpV2(*sizes, inner=options["num_inner"], **more)
        x = tensor(mine["x"], grad=True)
        y = loaded(head, under(mine, "state"))(x)
        close(y, mine["y"], atol=1e-5)
        y.square().sum().backward()
        close_gradient(x, mine["grad_x_of_sum_y2"])


def test_an_upsampled_token_is_where_it_was():
    """Rows first: of 2 by 3 tokens, the second row's first becomes the block below the first row's."""
    head = MlpV2(4, 4, 1, upsample=2, grid=(2, 3))
    with pytest.raises(AssertionError, match="grid"):
        MlpV2(4, 4, 1, upsample=2)
    x = torch.zeros(1, 6, 4)
    before = head(x).view(4, 6)
    x[0, 3] = torch.arange(4.0)
    changed = (head(x).view(4, 6) - before).abs() > 0
    assert changed.nonzero().tolist() == [[2, 0], [2, 1], [3, 0], [3, 1]]
