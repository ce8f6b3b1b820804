"""Losses that compare with the targets of the batches before: the queue is the same however a training is shared out."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from distill_world import BLOCK, STUDENT, TEACHERS, World, assert_same_student
from pydantic import ValidationError

from unic_pipe.schemas.config import LadderConfig, LossConfig, StudentConfig
from unic_pipe.stages.distill.data import queues
from unic_pipe.stages.distill.data.batches import Share
from unic_pipe.stages.distill.data.feed import Demand, Feed
from unic_pipe.stages.distill.data.rows import training_rows
from unic_pipe.stages.distill.model.distiller import Distiller

LOSS = LossConfig.model_validate_json(
    json.dumps(
        {"terms": [{"token": "cls", "kind": "queue_similarity"}], "balance": "sum", "standardize": "none"},
    )
)
CONFIG = STUDENT.model_copy(
    update={
        "loss": LOSS,
        "ladder": LadderConfig(kind="linear"),
        "optimizer": STUDENT.optimizer.model_copy(update={"epochs": 2, "lr": 0.05}),
    }
)
BATCHES = 3


@pytest.fixture(autouse=True)
def short_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "QUEUED_IMAGES", BATCHES * CONFIG.optimizer.batch - 1)


def test_a_queue_holds_the_last_global_batches_however_they_are_shared_out(world: World) -> None:
    definition, source = world.definition(CONFIG), world.source()
    rows = training_rows([source], definition)

    def queue(share: Share, start: int, end: int) -> torch.Tensor:
        model = Distiller(CONFIG, definition.teachers, torch.device("cpu"))
        demand = Demand(16, None, model.standards, len(TEACHERS), 0, 2, queued=frozenset(model.queues))
        with ThreadPoolExecutor(1) as pool:
            feed = Feed(rows, (), definition, pool, torch.device("cpu"), {}, share)
            for batch in feed.batches([demand], start, end):
                model._queue(batch)
            plans.extend(islice(feed._plans([demand], 0), end))
        return model.queues["beta", "cls"]

    plans: list[Any] = []
    found = queue(Share(), 0, 6)
    values = []
    for plan in plans[5:2:-1]:  # across two epochs, of two views
        values += [
            source.caches["beta"].read_block(plan.view, "cls", r // BLOCK).values[r % BLOCK] for r in plan.rows_B
        ]
    expected_QE = np.stack(values) / np.linalg.norm(np.stack(values), axis=1, keepdims=True)
    np.testing.assert_allclose(found.numpy(), expected_QE, rtol=1e-5, atol=1e-6)
    for share, start in ((Share(), 5), (Share(), 1), (Share(1, 2), 0), (Share(0, 2, micro=3), 2)):
        assert torch.equal(queue(share, start, 6), found)
    first = queue(Share(), 0, 1)
    assert not first[8:].any()
    assert first[:8].any(1).all()


def test_a_resumed_training_has_the_same_bits(world: World, tmp_path: Any) -> None:
    other = World(shutil.copytree(world.folder, tmp_path / "other", symlinks=True))
    assert world.distill(CONFIG, validation=True)
    assert not other.distill(CONFIG, stop_after=6, validation=True)
    assert other.distill(CONFIG, validation=True)
    assert_same_student(world, other)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loss": {**LOSS.model_dump(mode="json"), "standardize": "ema"}}, "nothing moves targets in a queue"),
        ({"dataset": {"a": 1.0, "b": 1.0}}, "a queue holds the targets of one dataset"),
    ],
)
def test_what_has_no_queue_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        StudentConfig.model_validate_json(json.dumps({"loss": LOSS.model_dump(mode="json"), **changes}))
    assert words in str(caught.value)
