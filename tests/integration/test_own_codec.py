"""A codec of one's own: one file, and one line in the registry."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unic_pipe.schemas.codecs import CODECS, Codec

CODE = '''
"""Half precision with the low six bits of the mantissa rounded away, so that zstd has less to do."""

import numpy as np

from unic_pipe.pipeline.cache.codecs import Float16


class Coarse(Float16):
    name = "coarse"

    def encode(self, values, valid_N):
        (part,) = super().encode(values, valid_N)
        bits = part.view(np.uint16)
        kept = np.where(np.isnan(part), bits, (bits + np.uint16(0x20)) & np.uint16(0xFFC0))
        return (kept.astype(np.uint16).view(np.float16),)
'''


def test_a_codec_is_one_file_and_one_line(raw: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from unic_pipe.pipeline.cache.reader import FeatureCache

    (tmp_path / "own").mkdir()
    (tmp_path / "own/coarse.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path / "own")
    monkeypatch.delitem(sys.modules, "coarse", raising=False)
    monkeypatch.setitem(CODECS, "coarse", Codec("coarse:Coarse", "Half precision, four bits of it.", value_bytes=2))

    asked = "cache.codec=coarse"
    raw.extract(asked, teachers=["lite0"])
    raw.extract(teachers=["lite0"])
    pairs = []
    for overrides in ((asked,), ()):
        inventory = raw.inventory(*overrides)
        (need,) = inventory.training_needs(("lite0",), "train")
        cache = FeatureCache(inventory.feature_folder(need))
        assert cache.definition.codec.name == ((overrides and "coarse") or "float16")
        values, valid = cache.read_block(0, "cls", 0)
        pairs.append(values[valid])
    assert not np.array_equal(*pairs)
    np.testing.assert_allclose(*pairs, rtol=2.0**-5, atol=1e-6)
    assert raw.artefact("features/train/lite0", asked).state == "fresh"
