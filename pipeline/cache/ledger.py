"""The ledger: every row that cannot be used, per view and token type, and why."""

import pyarrow as pa

from unic_pipe.pipeline.cache.layout import LEDGER
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.cache.tables import sealed_parquet

_SCHEMA = pa.schema(
    [("key", pa.string()), ("row", pa.int64()), ("view", pa.int32()), ("token", pa.string()), ("reason", pa.string())]
)


def write_ledger(folder: FeatureFolder) -> None:
    """Derive `ledger.parquet` from the records in force. Equal records, equal bytes."""
    block_rows = folder.required_manifest().definition.block_rows
    rows = [
        {"key": bad.key, "row": block * block_rows + bad.offset, "view": view, "token": token, "reason": bad.reason}
        for view, token in folder.planes()
        for block, record in folder.records(view, token).items()
        for bad in record.bad
    ]
    raw = sealed_parquet(pa.Table.from_pylist(rows, schema=_SCHEMA))
    if folder.store.size(LEDGER) is None or folder.store.get(LEDGER) != raw:
        folder.store.put(LEDGER, raw)
