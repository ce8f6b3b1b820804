"""The sweep over timm: a model of every module is read as its own head or its makers do, or is refused in words."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
from families import QUICK, REFUSED, SLOW, SLOW_REFUSED, Family, check_family, check_refused


@pytest.mark.parametrize("family", SLOW, ids=[name for name, *_ in SLOW])
def test_slower_families_are_read_as_their_own_heads_pool(tmp_path: Path, family: Family) -> None:
    check_family(tmp_path, family)


@pytest.mark.parametrize("family", SLOW_REFUSED, ids=[name for name, *_ in SLOW_REFUSED])
def test_slower_families_without_vector_or_map_are_refused(tmp_path: Path, family: Family) -> None:
    check_refused(tmp_path, family)


def test_no_module_of_timm_is_left_out() -> None:
    tried = {name.partition(".")[0] for name, *_ in (*QUICK, *SLOW, *REFUSED, *SLOW_REFUSED)}
    own = [m for m in timm.list_modules() if find_spec(f"timm.models.{m}")]  # other tests may have registered models
    assert [m for m in own if tried.isdisjoint(timm.list_models(module=m))] == []
