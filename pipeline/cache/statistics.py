"""Exact statistics of many units, merged from their records, and the standardization that follows from them.

Legend: D dimensions.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from unic_pipe.pipeline.cache.moments import Doubles, Moments, merge
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.features import StatisticsDocument, TokenStatistics, UnitRecord
from unic_pipe.schemas.losses import TOKENS

STD_FLOOR = 1e-6
STD_FLOOR_OF_MEDIAN = 0.01


def merge_statistics(
    folder: FeatureFolder,
    views: Sequence[int],
    blocks: int,
    tokens: Sequence[TokenType] = TOKENS,
    patch_views: Sequence[int] | None = None,
) -> StatisticsDocument:
    """Statistics of blocks 0 to `blocks` - 1 of these views, each token type apart; `patch_views`: those with patches.

    Merged block by block, and within a block view by view in the given order, so that neither the order nor the time
    of extraction changes a bit. Raises StageError: a unit is not extracted yet, or its statistics are damaged.
    """
    names = hashlib.sha256()
    found: dict[TokenType, TokenStatistics] = {}
    for token in [t for t in TOKENS if t in tokens]:
        covered = views if token == "cls" or patch_views is None else patch_views
        records = {view: _complete(folder, view, token, blocks) for view in covered}
        sidecars = {view: folder.statistics(view, token, records[view]) for view in covered}
        total: Moments | None = None
        for block in range(blocks):
            for view in covered:
                unit = Moments.from_bytes(sidecars[view][block])
                total = unit if total is None else merge(total, unit)
                names.update("".join(f.xxh3 for f in records[view][block].files[:-1]).encode())
        if total is not None:
            mean, m2 = tuple(total.mean_D.tolist()), tuple(total.m2_D.tolist())
            found[token] = TokenStatistics(count=total.count, mean=mean, m2=m2)
    return StatisticsDocument(
        definition=folder.required_manifest().digest,
        views=tuple(views),
        patch_views=None if patch_views is None else tuple(patch_views),
        blocks=blocks,
        units=names.hexdigest(),
        cls=found.get("cls"),
        patch=found.get("patch"),
    )


def mixed_statistics(documents: Sequence[StatisticsDocument], shares: Sequence[float]) -> StatisticsDocument:
    """Statistics of one teacher's tokens over a mixture: merged, with counts times shares (Chan, Golub and LeVeque, 1979).

    `units` covers every dataset's definition, share and units; the other fields are the first dataset's.
    """
    if len(documents) == 1:
        return documents[0]
    names = hashlib.sha256()
    for document, share in zip(documents, shares, strict=True):
        names.update(f"{document.definition} {share!r} {document.units}\n".encode())
    cls, patch = _mixed([d.cls for d in documents], shares), _mixed([d.patch for d in documents], shares)
    return documents[0].model_copy(update={"units": names.hexdigest(), "cls": cls, "patch": patch})


def _mixed(parts: Sequence[TokenStatistics | None], shares: Sequence[float]) -> TokenStatistics | None:
    """The count is rounded to a whole number of tokens; mean and variance are those of the exact weights."""
    weight, mean_D, m2_D = 0.0, np.zeros(1), np.zeros(1)
    for part, share in zip(parts, shares, strict=True):
        if part is None:
            return None
        if not part.count:
            continue
        mine, before = share * part.count, weight
        weight = before + mine
        delta_D = np.array(part.mean) - mean_D
        mean_D = mean_D + delta_D * (mine / weight)
        m2_D = m2_D + share * np.array(part.m2) + delta_D**2 * (before * mine / weight)
    count = round(weight)
    scale = count / weight if weight else 0.0
    return TokenStatistics(count=count, mean=tuple(mean_D.tolist()), m2=tuple((m2_D * scale).tolist()))


def standardization(statistics: TokenStatistics) -> tuple[Doubles, Doubles]:
    """(mean_D, std_D) in float64; a target is (x − mean) / std.

    std = sqrt(M2 / count), at least 1e-6 and at least a hundredth of the median std: some dimensions are constant.
    Raises UserError: there is no valid token.
    """
    if not statistics.count:
        raise UserError("No valid token to take statistics of.", "The ledger says why: features/*/ledger.parquet.")
    std_D = np.sqrt(np.array(statistics.m2) / statistics.count)
    return np.array(statistics.mean), np.maximum(std_D, max(STD_FLOOR, STD_FLOOR_OF_MEDIAN * float(np.median(std_D))))


def _complete(folder: FeatureFolder, view: int, token: TokenType, blocks: int) -> dict[int, UnitRecord]:
    records = folder.records(view, token)
    missing = [block for block in range(blocks) if block not in records]
    if missing:
        raise StageError(
            f"{folder.name} is not extracted yet: view {view}, {token}, "
            f"{len(missing)} of {blocks} blocks (first: {missing[0]}).",
            "Run `unic-pipe extract`.",
        )
    return {block: records[block] for block in range(blocks)}
