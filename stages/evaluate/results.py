"""Results on disk: one record a probe, and the table that is made from the records in force."""

from __future__ import annotations

import io
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.evaluations import TABLE, dataset_digest, result_key
from pipeline.storage import Store
from schemas.evaluations import RESULT_COLUMNS, ResultRecord

_INTEGERS, _FLOATS = ("seed",), ("value",)
_SCHEMA = pa.schema(
    [(c, pa.int64() if c in _INTEGERS else pa.float64() if c in _FLOATS else pa.string()) for c in RESULT_COLUMNS]
)


def write_record(store: Store, record: ResultRecord) -> None:
    """Write a result, replacing an earlier attempt at the same definition."""
    store.put(result_key(record.benchmark, record.encoder, record.definition), record.to_bytes())


def write_table(store: Store, records: Iterable[ResultRecord]) -> None:
    """Write `results.parquet` from these records, one row a metric, sorted; failed probes have no row.

    Equal records give equal bytes. An equal table is left alone.
    """
    rows = sorted(
        (
            {
                "benchmark": record.benchmark,
                "encoder": record.encoder,
                "probe": record.definition.probe,
                "metric": metric,
                "value": value,
                "seed": record.definition.seed,
                "encoder_digest": record.definition.encoder,
                "dataset_digest": dataset_digest(record.definition),
                "protocol": record.definition.protocol,
            }
            for record in records
            if record.status == "done"
            for metric, value in record.metrics.items()
        ),
        key=lambda row: [str(row[c]) for c in ("benchmark", "encoder", "probe", "metric")],
    )
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), buffer, compression="zstd")
    data = buffer.getvalue()
    try:
        if store.get(TABLE) == data:
            return
    except FileNotFoundError:
        pass
    store.put(TABLE, data)
