"""Scanned rows in compressed memory: those of twelve million images take a few hundred megabytes until they are written."""

from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)


class Packed:
    """A table of rows, which `table` unpacks."""

    def __init__(self, rows: pa.Table) -> None:
        self.num_rows: int = rows.num_rows
        self.image_bytes: int = int(np.sum(rows["size"].to_numpy()))
        self.metadata: dict[bytes, bytes] | None = rows.schema.metadata
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema.remove_metadata(), options=_OPTIONS) as writer:
            writer.write_table(rows.replace_schema_metadata())
        # A copy: the stream's own buffer is up to twice as large.
        self._data: bytes = sink.getvalue().to_pybytes()

    def table(self) -> pa.Table:
        """The rows, without metadata."""
        return pa.ipc.open_stream(self._data).read_all()


def regrouped(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of this many; the last may be shorter."""
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        waiting.append(table)
        count += table.num_rows
        if count >= rows:
            whole = pa.concat_tables(waiting)
            full = count - count % rows
            yield from (whole.slice(start, rows) for start in range(0, full, rows))
            waiting, count = [whole.slice(full)], count - full
    if count:
        yield pa.concat_tables(waiting)
