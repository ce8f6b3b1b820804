"""Cached features as one file for other programs: Parquet, npz or safetensors, block by block.

What is in the file: `key` of every row, `cls` and `patch`, and a text with what they are made from and which rows are left
out. Half precision as it is cached, but float32 in Parquet, whose readers often know no half floats.

Shapes: N usable rows, P patch tokens, D dimensions; of a block n rows.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.schemas.config import TokenType

ABOUT = "unic_pipe"
"""Under which each format keeps the text, JSON."""


@dataclass(frozen=True)
class Rows:
    """The usable rows of view 0 of a cache, in the order of the dataset."""

    cache: FeatureCache
    dataset: Dataset
    tokens: tuple[TokenType, ...]

    @cached_property
    def usable(self) -> list[NDArray[np.bool_]]:
        """Of each block, which rows have features of all token types."""
        return [
            np.logical_and.reduce([self.cache.valid(0, token, block) for token in self.tokens])
            for block in range(self.dataset.blocks)
        ]

    @property
    def count(self) -> int:
        """N."""
        return sum(int(valid.sum()) for valid in self.usable)

    def keys(self, block: int) -> list[str]:
        """Keys of a block's usable rows."""
        return [key for key, ok in zip(self.dataset.block_keys(block), self.usable[block], strict=True) if ok]

    def all_keys(self) -> list[str]:
        """Keys of all of them."""
        return [key for block in range(self.dataset.blocks) for key in self.keys(block)]

    def values(self, token: TokenType, block: int) -> NDArray[np.float32]:
        """Features of a block's usable rows: (n, D), or (n, P, D).
        Raises StageError: damaged, or of other rows."""
        read = self.cache.read_block(0, token, block, self.dataset.block_digest(block))
        return read.values[self.usable[block]]

    def shape(self, token: TokenType) -> tuple[int, ...]:
        """(N, D), or (N, P, D)."""
        return (self.count, *self.cache.shapes[token])

    def halves(self, token: TokenType) -> Iterator[bytes]:
        """The bytes of all features of a type as little-endian float16, in C order, block by block."""
        for block in range(self.dataset.blocks):
            yield self.values(token, block).astype("<f2").tobytes()


def write_parquet(path: Path, rows: Rows, about: Mapping[str, object]) -> None:
    """A row group for every block: `key`, `cls` (D float32), `patch` (P * D float32, token by token)."""
    sizes = {token: math.prod(rows.cache.shapes[token]) for token in rows.tokens}
    fields = [pa.field("key", pa.large_string(), nullable=False)]
    fields += [pa.field(token, pa.list_(pa.float32(), size), nullable=False) for token, size in sizes.items()]
    schema = pa.schema(fields, metadata={ABOUT: json.dumps(about)})
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        for block in range(rows.dataset.blocks):
            columns = [pa.array(rows.keys(block), pa.large_string())]
            for token, size in sizes.items():
                flat = pa.array(rows.values(token, block).reshape(-1))
                columns.append(pa.FixedSizeListArray.from_arrays(flat, size))
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def write_npz(path: Path, rows: Rows, about: Mapping[str, object]) -> None:
    """What `numpy.load` opens without pickle: `key` (N,), `cls` (N, D) and `patch` (N, P, D) float16, `unic_pipe` ()."""

    @contextmanager
    def member(name: str) -> Iterator[BinaryIO]:
        with archive.open(f"{name}.npy", "w", force_zip64=True) as handle:
            yield handle  # type: ignore[misc]

    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, text in (("key", np.array(rows.all_keys())), (ABOUT, np.array(json.dumps(about)))):
            with member(name) as handle:
                np.lib.format.write_array(handle, text, allow_pickle=False)
        for token in rows.tokens:
            header = io.BytesIO()
            described = {"descr": "<f2", "fortran_order": False, "shape": rows.shape(token)}
            np.lib.format.write_array_header_1_0(header, described)
            with member(token) as handle:
                handle.write(header.getvalue())
                for piece in rows.halves(token):
                    handle.write(piece)


def write_safetensors(path: Path, rows: Rows, about: Mapping[str, object]) -> None:
    """`cls` (N, D) and `patch` (N, P, D) float16; `key`, uint8: a JSON list of the N keys (tensors hold no text)."""
    keys = json.dumps(rows.all_keys()).encode()
    entries: dict[str, object] = {"__metadata__": {ABOUT: json.dumps(about)}}
    end = 0
    for token in rows.tokens:
        start, end = end, end + 2 * math.prod(rows.shape(token))
        entries[token] = {"dtype": "F16", "shape": rows.shape(token), "data_offsets": (start, end)}
    entries["key"] = {"dtype": "U8", "shape": (len(keys),), "data_offsets": (end, end + len(keys))}
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as handle:
        handle.write(len(header).to_bytes(8, "little") + header)
        for token in rows.tokens:
            for piece in rows.halves(token):
                handle.write(piece)
        handle.write(keys)


WRITERS: dict[str, Callable[[Path, Rows, Mapping[str, object]], None]] = {
    ".parquet": write_parquet,
    ".npz": write_npz,
    ".safetensors": write_safetensors,
}
"""By the ending of the file."""
