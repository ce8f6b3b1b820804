"""`compute.views: device`: the photometric part of the views in batches where the encoder runs, here on the CPU.

Legend: N rows, D dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.encoders import encoder
from unic_pipe.pipeline.extraction.live_check import live_check
from unic_pipe.pipeline.views.photometric import finish
from unic_pipe.schemas.config import TokenType

UNIC = ("views.recipe=unic", "distill.validation=null", "samples.max_bad_fraction=0.05")
DEVICE = (*UNIC, "compute.views=device")
TOKENS: tuple[TokenType, ...] = ("cls", "patch")
TOLERANCE = 2e-3
"""Root mean square difference of features, in standard deviations: what the live check allows to float32."""


def read(work: Any, teacher: str, token: TokenType, view: int) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D), tokens of a row behind each other, and which rows are valid (N)."""
    cache = FeatureCache.open(work.features(f"train-{teacher}"))
    blocks = sorted(cache.records(view, token))
    values = np.concatenate([cache.read_block(view, token, b).values for b in blocks])
    return values.reshape(len(values), -1), np.concatenate([cache.valid(view, token, b) for b in blocks])


def test_features_are_those_of_views_made_on_the_host(raw: Any, tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a row without an image stands between the others."""
    members = tools.digit_members(0, 32)
    members[2 * 5] = (members[2 * 5][0], b"no image")
    tools.put_tar(raw.folder / "data/train-0000.tar", members)
    places = [(teacher, token, view) for teacher in ("lite0", "lite1") for token in TOKENS for view in (0, 1)]
    assert raw.extract(*UNIC)["train"].complete
    folder, host = raw.features("train-lite0"), {place: read(raw, *place) for place in places}
    finished: list[int] = []

    def counted(x_B3HW: torch.Tensor, *more: Any) -> torch.Tensor:
        finished.append(len(x_B3HW))
        return finish(x_B3HW, *more)

    monkeypatch.setattr(encoder, "finish", counted)
    made = raw.extract(*DEVICE)["train"]
    assert sum(finished) == 89 * 2 * 2, "rows, views and teachers"
    assert (made.complete, made.before, made.bad_rows) == (True, 0, 1)
    assert raw.features("train-lite0") != folder
    assert FeatureCache.open(raw.features("train-lite0")).definition.compute.views == "device"
    for place, (features_ND, valid_N) in host.items():
        found_ND, found_valid_N = read(raw, *place)
        assert np.array_equal(valid_N, found_valid_N)
        difference = np.sqrt(np.square(found_ND - features_ND)[valid_N].mean()) / features_ND[valid_N].std()
        assert difference <= TOLERANCE
    again = raw.extract(*DEVICE)["train"]
    assert (again.done, again.complete) == (0, True)
    cache = FeatureCache.open(raw.features("train-lite0"))
    findings = live_check(
        cache, raw.dataset(), raw.inventory(*DEVICE).teacher("lite0"), "cpu", 12, {"cls": 2, "patch": 2}, 6
    )
    assert [f.ok for f in findings] == [True, True]


def test_a_recipe_of_crops_alone_has_one_definition(extracted: Any) -> None:
    """There is nothing to be done on a device, so nothing is extracted anew."""
    assert [made.done for made in extracted.extract("compute.views=device").values()] == [0, 0]
