"""Codecs, shards, sealed tables and moments: what goes in comes out, within the promised error, or not at all.

Legend: N rows, P tokens, D dimensions.
"""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unic_pipe.pipeline.cache.arrays import decode_part, encode_part
from unic_pipe.pipeline.cache.codecs import Float16, Int8
from unic_pipe.pipeline.cache.moments import Moments, merge, moments_of
from unic_pipe.pipeline.cache.tables import DamagedTable, read_core, read_sealed, sealed_parquet
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.schemas.errors import StageError

B, P, D = 6, 3, 4


def values_and_valid(largest: float):
    """(N, P, D) values of any magnitude, some dimensions constant, and which rows are valid."""
    floats = st.floats(-largest, largest, width=32)

    def with_constants(drawn):
        values, constant_D, valid_N = drawn
        values[:, :, constant_D] = values[0, 0, constant_D]
        return values, valid_N

    def of_rows(n: int):
        return st.tuples(
            hnp.arrays(np.float32, (n, P, D), elements=floats), hnp.arrays(bool, D), hnp.arrays(bool, n)
        ).map(with_constants)

    return st.integers(1, B).flatmap(of_rows)


def through_zarr(codec, values, valid_N):
    shards = [encode_part(s, p) for s, p in zip(codec.arrays, codec.encode(values, valid_N), strict=True)]
    parts = tuple(decode_part(s, x) for s, x in zip(codec.arrays, shards, strict=True))
    return codec.decode(parts, len(values))


@settings(deadline=None, max_examples=60)
@given(values_and_valid(2.0**122))
def test_int8_is_within_half_a_step_and_never_wraps(drawn):
    values, valid_N = drawn
    decoded = through_zarr(Int8("patch", (P, D), B), values, valid_N)
    assert np.array_equal(decoded.present, valid_N)
    back = decoded.values()
    assert np.isnan(back[~valid_N]).all()
    x, y = values[valid_N].astype(np.float64), back[valid_N].astype(np.float64)
    scale_D, offset_D = decoded.scale_D.astype(np.float64), decoded.offset_D.astype(np.float64)
    # Half a step, and the float32 rounding of x − offset, of the product and of the sum.
    rounding = 2**-22 * (np.abs(x) + np.abs(offset_D) + 127 * scale_D) + 2e-45
    assert (np.abs(x - y) <= 0.5 * scale_D + rounding).all()
    if valid_N.any():
        constant_D = (x == x[:1, :1]).all(axis=(0, 1))
        assert np.array_equal(x[..., constant_D], y[..., constant_D])


@settings(deadline=None, max_examples=40)
@given(values_and_valid(65504.0))
def test_float16_is_the_nearest_half(drawn):
    values, valid_N = drawn
    decoded = through_zarr(Float16("patch", (P, D), B), values, valid_N)
    assert np.array_equal(decoded.present, valid_N)
    assert np.array_equal(decoded.values()[valid_N], values[valid_N].astype(np.float16).astype(np.float32))
    assert np.isnan(decoded.values()[~valid_N]).all()


def test_a_narrow_range_far_from_zero_keeps_its_ends():
    low = np.float32(1000)
    values = np.array([[low, low], [np.nextafter(low, np.float32(2000)), low]])
    decoded = through_zarr(Int8("cls", (2,), B), values, np.ones(2, bool))
    assert np.array_equal(decoded.values(), values)


def test_int8_error_is_half_a_step_on_ordinary_features():
    values = np.random.default_rng(0).normal(3, 2, (B, P, D)).astype(np.float32)
    decoded = through_zarr(Int8("patch", (P, D), B), values, np.ones(B, bool))
    span_D = values.max(axis=(0, 1)) - values.min(axis=(0, 1))
    assert decoded.scale_D == pytest.approx(span_D / 254, rel=1e-5)
    assert (np.abs(decoded.values() - values) <= decoded.scale_D / 2 * (1 + 1e-4)).all()
    assert decoded.stored.min() >= -127


@pytest.mark.parametrize("codec", [Float16("cls", (D,), 128), Int8("cls", (D,), 128)])
def test_zeros_and_missing_rows_are_told_apart(codec):
    zeros = through_zarr(codec, np.zeros((100, D), np.float32), np.ones(100, bool))
    assert zeros.present.all()
    assert not zeros.values().any()
    nothing = through_zarr(codec, np.zeros((100, D), np.float32), np.zeros(100, bool))
    assert not nothing.present.any()
    assert np.isnan(nothing.values()).all()


@pytest.mark.parametrize("value", [65520.0, -1e6, 3e38])
def test_a_value_beyond_float16_names_the_codec_to_use(value):
    values = np.zeros((B, D), np.float32)
    values[2, 1] = value
    with pytest.raises(StageError, match="65504") as caught:
        Float16("cls", (D,), B).encode(values, np.ones(B, bool))
    assert "int8" in caught.value.hint
    valid_N = np.arange(B) != 2
    assert through_zarr(Float16("cls", (D,), B), values, valid_N).present.sum() == B - 1


@pytest.mark.parametrize("largest", [3.4e38, 3.4028234e38])
def test_what_int8_could_not_decode_again_is_refused(largest):
    """Near the end of float32 the wider steps may overflow: then nothing is stored rather than infinity."""
    values = np.array([[-largest], [largest]], np.float32)
    codec = Int8("cls", (1,), B)
    if largest < 3.402e38:
        assert through_zarr(codec, values, np.ones(2, bool)).values() == pytest.approx(values, rel=1e-6)
    else:
        with pytest.raises(StageError, match="too large"):
            codec.encode(values, np.ones(2, bool))


def test_a_part_of_another_type_is_not_written():
    with pytest.raises(ValueError, match="int8"):
        encode_part(Int8("cls", (D,), B).arrays[0], np.full((B, D), 300.0, np.float32))


def test_equal_parts_give_equal_bytes_wherever_they_are_encoded():
    from concurrent.futures import ThreadPoolExecutor

    codec = Float16("patch", (49, 64), 256)
    part = codec.encode(np.random.default_rng(1).normal(size=(256, 49, 64)).astype(np.float32), np.ones(256, bool))[0]
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(lambda _: encode_part(codec.arrays[0], part), range(8)))) == 1


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.just(D)), elements=st.floats(-1e4, 1e4, width=32)),
    st.integers(0, 40),
)
def test_moments_are_numpys_and_merge(values_MD, cut):
    whole = moments_of(values_MD)
    x = values_MD.astype(np.float64)
    scale = np.abs(x).max() + 1
    assert np.allclose(whole.mean_D, x.mean(axis=0), rtol=1e-13, atol=1e-13 * scale)
    assert np.allclose(whole.m2_D, ((x - x.mean(axis=0)) ** 2).sum(axis=0), rtol=1e-11, atol=1e-12 * scale**2)
    parts = merge(moments_of(values_MD[:cut]), moments_of(values_MD[cut:]))
    assert parts.count == whole.count
    assert np.allclose(parts.mean_D, whole.mean_D, rtol=1e-12, atol=1e-12 * scale)
    assert np.allclose(parts.m2_D, whole.m2_D, rtol=1e-10, atol=1e-11 * scale**2)
    again = Moments.from_bytes(whole.to_bytes())
    assert again.count == whole.count
    assert np.array_equal(again.m2_D, whole.m2_D)


def test_moments_of_a_constant_are_exact():
    moments = moments_of(np.full((100_000, 3), 0.1, np.float32))
    assert (moments.mean_D == np.float32(0.1)).all()
    assert not moments.m2_D.any()


def small_table() -> pa.Table:
    return pa.table({"block": pa.array([3, 5], pa.int32()), "text": ["a", "bb"], "payload": [b"x" * 900, b"y" * 900]})


def test_a_sealed_table_is_parquet_and_reads_without_its_payload(tmp_path):
    raw = sealed_parquet(small_table(), "payload")
    assert pq.read_table(io.BytesIO(raw)).to_pylist() == small_table().to_pylist()
    assert read_sealed(raw).to_pylist() == small_table().to_pylist()
    path = tmp_path / "t.parquet"
    start = raw.index(b"x" * 900)
    path.write_bytes(raw[:start] + b"?" + raw[start + 1 :])
    assert read_core(LocalStore(tmp_path), path.name, ["block", "text"]).to_pydict() == {
        "block": [3, 5],
        "text": ["a", "bb"],
    }
    with pytest.raises(DamagedTable):
        read_sealed(path.read_bytes())


def test_any_flipped_bit_or_cut_of_a_sealed_table_is_found(tmp_path):
    raw = sealed_parquet(small_table())
    path = tmp_path / "t.parquet"
    rng = np.random.default_rng(2)
    for position in range(0, len(raw), 3):
        damaged = bytearray(raw)
        damaged[position] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(DamagedTable):
            read_sealed(bytes(damaged))
        with pytest.raises(DamagedTable):
            read_core(LocalStore(tmp_path), path.name, ["block"])
    for size in (0, 1, 7, 8, 70, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:size])
        with pytest.raises(DamagedTable):
            read_core(LocalStore(tmp_path), path.name, ["block"])
        with pytest.raises(DamagedTable):
            read_sealed(raw[:size])
