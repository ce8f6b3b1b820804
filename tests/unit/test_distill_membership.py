"""Which of several processes this is, as the environment says it, and which GPU is its own."""

from __future__ import annotations

import numpy as np
import pytest

from unic_pipe.schemas.config import StudentConfig
from unic_pipe.schemas.errors import UserError
from unic_pipe.stages.distill.data.batches import BatchPlan, Share
from unic_pipe.stages.distill.parallel.members import STORE, Member, gpu_of, member, refuse_uneven

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "10.0.0.1"}


def test_alone_or_one_of_several() -> None:
    assert member({}) is None
    assert member({"WORLD_SIZE": "8", "RANK": "1"}) is None, "nobody says where they meet"
    assert member({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1"}) is None
    assert member(TORCHRUN) == Member(5, 8, 1, 4, None)
    found = member({**TORCHRUN, STORE: "/tmp/store"})
    assert found is not None
    assert str(found.store) == "/tmp/store"


@pytest.mark.parametrize("wrong", [{"RANK": "8"}, {"RANK": "x"}, {"LOCAL_RANK": "4"}, {"LOCAL_WORLD_SIZE": "9"}])
def test_impossible_numbers(wrong: dict[str, str]) -> None:
    with pytest.raises(UserError, match="impossible process"):
        member({**TORCHRUN, **wrong})


def test_every_process_has_a_gpu_of_its_own() -> None:
    assert [gpu_of(rank, 4, 8, None) for rank in range(4)] == [0, 1, 2, 3]
    assert gpu_of(2, 4, 2, None) is None
    assert gpu_of(1, 2, 1, None) is None
    # A cluster manager shows each its own.
    assert gpu_of(3, 4, 1, "7") == 0


def test_streams_are_shared_evenly() -> None:
    for size in (1, 2, 4, 8):
        refuse_uneven({"main": StudentConfig(streams=8)}, size)
    with pytest.raises(UserError, match="Use 1 or 2 or 4 or 8 processes"):
        refuse_uneven({"main": StudentConfig(streams=8)}, 16)


@pytest.mark.parametrize("micro", [None, 1, 3, 4, 99])
def test_shares_and_parts_make_up_the_batch(micro: int | None) -> None:
    plan = BatchPlan(np.arange(24), view=1, epoch=2)
    rows: list[int] = []
    for rank in range(4):
        parts = Share(rank, 4, micro).micro_batches(plan)
        assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
        assert max(len(part.rows_B) for part in parts) <= (micro or 6)
        rows += [row for part in parts for row in part.rows_B.tolist()]
    assert rows == list(range(24))


def test_whole_batches_are_dealt_out_in_equal_numbers() -> None:
    plans = [BatchPlan(np.arange(i, i + 1), 0, 0) for i in range(6)]
    dealt = [Share(rank, 4).batches(plans) for rank in range(4)]
    assert [len(mine) for mine in dealt] == [2] * 4
    assert sorted(int(p.rows_B[0]) for mine in dealt for p in mine if p.counted) == list(range(6))
