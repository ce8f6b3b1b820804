"""Rows that cannot be used: which, why, and whose fault it is."""

from collections.abc import Iterable, Mapping, Sequence

from unic_pipe.pipeline.cache.layout import LEDGER
from unic_pipe.pipeline.cache.needs import FeatureNeed
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.features import UnitRecord

NON_FINITE = "non-finite"
"""How reasons begin that lie with the encoder."""

_SHOWN = 3


def unusable_rows(folder: FeatureFolder, need: FeatureNeed, blocks: int) -> dict[str, str]:
    """Keys and reasons of the recorded rows of blocks 0 to `blocks` - 1 that cannot be used."""
    return {row.key: row.reason for record in _records(folder, need, blocks) for row in record.bad}


def too_many(
    bad: Mapping[str, str],
    rows: int,
    dataset: str,
    max_bad_fraction: float,
    caches: Sequence[tuple[FeatureFolder, FeatureNeed]],
    blocks: int,
) -> StageError:
    """The error for more rows than are allowed, by key and reason, among `rows`; `caches` hold what was extracted.

    An encoder none of whose features is finite is to blame, and not the data.
    """
    for folder, need in caches:
        records = list(_records(folder, need, blocks))
        faults = any(row.reason.startswith(NON_FINITE) for record in records for row in record.bad)
        if faults and not any(int(record.valid, 16) for record in records):
            return broken(need.encoder)
    shown = "; ".join(f"{key}: {reason}" for key, reason in list(bad.items())[:_SHOWN])
    more = f"; and {len(bad) - _SHOWN:,} more" if len(bad) > _SHOWN else ""
    ledgers = ", ".join(folder.store.describe(LEDGER) for folder, _ in caches)
    return StageError(
        f"{len(bad):,} of {rows:,} rows of {dataset} cannot be used "
        f"(limit {max_bad_fraction:.2%}, samples.max_bad_fraction): {shown}{more}.",
        f"All of them: {ledgers}. Mend the data, or raise the limit and run the same command again.",
    )


def broken(encoder: str) -> StageError:
    """The error for an encoder that has no finite feature."""
    return StageError(
        f"Teacher {encoder} gives NaN for every image: check its weights or its dtype (compute.dtype, where it has none).",
        "Other weights are another encoder; float16 overflows in some models, where bfloat16 and float32 do not.",
    )


def _records(folder: FeatureFolder, need: FeatureNeed, blocks: int) -> Iterable[UnitRecord]:
    for view, token in need.planes():
        for record in folder.records(view, token).values():
            if record.block < blocks:
                yield record
