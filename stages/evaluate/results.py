"""Results on disk: one record a probe, and the table that is made from the records in force."""

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from unic_pipe.pipeline.cache.tables import sealed_table
from unic_pipe.pipeline.storage import Store, get_or_none
from unic_pipe.pipeline.workspace.results import CLASS_TABLE, TABLE, dataset_digest, result_key
from unic_pipe.schemas.evaluations import CLASS_COLUMNS, RESULT_COLUMNS, ResultRecord

_TYPES = dict.fromkeys(("seed", "class", "samples"), pa.int64()) | dict.fromkeys(("value", "accuracy"), pa.float64())
_SCHEMA, _CLASS_SCHEMA = (
    pa.schema([(column, _TYPES.get(column, pa.string())) for column in columns])
    for columns in (RESULT_COLUMNS, CLASS_COLUMNS)
)


def write_record(store: Store, record: ResultRecord) -> None:
    """Write a result, replacing an earlier attempt at the same definition."""
    store.put(result_key(record.benchmark, record.encoder, record.definition), record.to_bytes())


def write_table(store: Store, records: Iterable[ResultRecord]) -> None:
    """Write `results.parquet` from these records, one row a metric, sorted; failed probes have no row.

    With several seeds (few-shot: draws) each has its rows, and beside them, without a seed, stand the means under the
    metrics' own names and the standard deviations under `<metric>_spread`. Equal records give equal bytes.
    """
    rows = [
        _common(record) | {"metric": metric, "value": value, "seed": seed}
        for record in records
        if record.status == "done"
        for metric, value, seed in _values(record)
    ]
    # Means come first.
    rows.sort(
        key=lambda row: [
            *(str(row[c]) for c in ("benchmark", "encoder", "probe", "metric")),
            -1 if row["seed"] is None else row["seed"],
        ]
    )
    _put(store, TABLE, rows, _SCHEMA)


def write_classes(store: Store, records: Iterable[ResultRecord]) -> None:
    """Write `classes.parquet`: accuracy class by class (the test set's numbers and names), means over the seeds."""
    rows = [
        _common(record) | {"class": number, "name": name, "samples": samples, "accuracy": accuracy}
        for record in sorted(records, key=lambda r: (r.benchmark, r.encoder, r.definition.probe))
        if record.status == "done" and record.classes is not None
        for number, name, samples, accuracy in zip(
            record.classes.classes,
            record.classes.names or map(str, record.classes.classes),
            record.classes.samples,
            record.classes.accuracy,
            strict=True,
        )
    ]
    _put(store, CLASS_TABLE, rows, _CLASS_SCHEMA)


def _values(record: ResultRecord) -> Iterator[tuple[str, float, int | None]]:
    """(metric, value, seed) of every row; without a seed: over all of them."""
    if not record.per_seed:
        yield from ((metric, value, record.definition.seed) for metric, value in record.metrics.items())
        return
    yield from ((metric, value, None) for metric, value in record.metrics.items())
    yield from ((f"{metric}_spread", value, None) for metric, value in record.spread.items())
    for seed, metrics in record.per_seed.items():
        yield from ((metric, value, int(seed)) for metric, value in metrics.items())


def _common(record: ResultRecord) -> dict[str, Any]:
    return {
        "benchmark": record.benchmark,
        "encoder": record.encoder,
        "probe": record.definition.probe,
        "encoder_digest": record.definition.encoder,
        "dataset_digest": dataset_digest(record.definition),
        "protocol": record.definition.protocol,
    }


def _put(store: Store, key: str, rows: list[dict[str, Any]], schema: pa.Schema) -> None:
    """Write a table unless an equal one is there."""
    data = sealed_table(pa.Table.from_pylist(rows, schema=schema))
    if get_or_none(store, key) != data:
        store.put(key, data)
