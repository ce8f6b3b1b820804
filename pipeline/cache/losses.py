"""What storing features lost: measured on every unit when it is committed, and summed up when an extraction ends.

Errors are those of features standardized per dimension, which is what a student sees. A unit is judged by a few of its
rows, decoded from the very bytes that are published; of a whole cache these are many.

Legend: N rows, M tokens, D dimensions.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.cache.calibration import bound_codec, calibrated_tokens, read_document
from unic_pipe.pipeline.cache.codecs import TokenCodec
from unic_pipe.pipeline.cache.layout import LOSSES
from unic_pipe.pipeline.cache.moments import Doubles, Moments, merge, moments_of
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.cache.spec import Floats
from unic_pipe.pipeline.cache.statistics import STD_FLOOR, STD_FLOOR_OF_MEDIAN
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.features import LossDocument, TokenLoss, UnitLoss, UnitRecord
from unic_pipe.schemas.losses import TOKENS


def gaussian_bits(variance_D: NDArray[np.float64], snr_db: float) -> float:
    """Bits per value of independent Gaussian components at a signal-to-noise ratio, by reverse water-filling.

    R = mean over d of max(0, log2(variance_d / level) / 2), where the level is such that the mean of min(variance_d,
    level) is the distortion (Cover and Thomas, Elements of Information Theory, theorem 10.3.3).
    """
    variance_D = np.maximum(np.asarray(variance_D, np.float64), 0)
    distortion = float(variance_D.mean()) * 10 ** (-snr_db / 10)
    low, high = 0.0, float(variance_D.max(initial=0.0))
    if not 0 < distortion < float(variance_D.mean()):
        return 0.0
    for _ in range(200):
        level = (low + high) / 2 if low == 0 or high / low < 4 else math.sqrt(low * high)
        low, high = (level, high) if float(np.minimum(variance_D, level).mean()) < distortion else (low, level)
    active_D = variance_D[variance_D > high]
    return float(np.log2(active_D / high).sum() / 2 / len(variance_D))


ROWS = 16
"""Rows of a unit that are compared."""
FEWEST_TOKENS = 16
"""With fewer, a unit's own standard deviations mean nothing."""
_DIGITS = 6


def measured(codec: TokenCodec, values: Floats, stored: Floats) -> tuple[Moments, UnitLoss | None]:
    """Moments of a unit's valid rows as they are stored, (N, D) or (N, P, D), with the noise that a few of them have
    against the originals `values`; and how like those they are, if there are enough tokens to say."""
    dims = stored.shape[-1]
    moments = moments_of(stored.reshape(-1, dims))
    some_N = np.unique(np.linspace(0, max(0, len(values) - 1), min(ROWS, len(values))).astype(np.int64))
    a_MD, b_MD = (x[some_N].reshape(-1, dims).astype(np.float64) for x in (values, stored))
    noise_D = np.square(a_MD - b_MD).sum(axis=0) * (moments.count / max(1, len(a_MD)))
    scale_D = _scale(codec, moments)
    loss = None
    if scale_D is not None and len(a_MD):
        cosine_M = cosines((a_MD - moments.mean_D) / scale_D, (b_MD - moments.mean_D) / scale_D)
        loss = UnitLoss(tokens=len(a_MD), cosine=_rounded(cosine_M.sum()), cosine_min=_rounded(cosine_M.min()))
    return replace(moments, noise_D=noise_D), loss


def _scale(codec: TokenCodec, moments: Moments) -> Doubles | None:
    """What a unit's tokens are divided by, (D,); None if they are too few to tell.

    Their own standard deviations, but at least those of the calibration: a dimension
    that rests in this unit is not a constant one, and one that rested in the calibration may have woken up.
    """
    known_D = None if codec.scale_D is None else codec.scale_D.astype(np.float64)
    if moments.count < FEWEST_TOKENS:
        return known_D
    own_D = _floored(codec, np.sqrt(moments.m2_D / moments.count))
    return own_D if known_D is None else np.maximum(own_D, known_D)


def _floored(codec: TokenCodec, std_D: Doubles) -> Doubles:
    """Standard deviations floored as in calibration: what rests there comes back with a little noise, not as zero."""
    if codec.scale_D is not None:
        floor = float(codec.scale_D.min())
    else:
        awake = std_D[std_D > 0]
        floor = max(STD_FLOOR, STD_FLOOR_OF_MEDIAN * float(np.median(awake)) if len(awake) else 0.0)
    return np.maximum(std_D, floor)


def cosines(a_MD: NDArray[np.floating], b_MD: NDArray[np.floating]) -> Doubles:
    """Of each token with what came back; 1 where there is nothing."""
    product_M = (a_MD * b_MD).sum(axis=1, dtype=np.float64)
    norms_M = np.linalg.norm(a_MD, axis=1).astype(np.float64) * np.linalg.norm(b_MD, axis=1)
    cosine_M: Doubles = np.where(norms_M > 0, product_M / np.maximum(norms_M, 1e-30), 1.0)
    return cosine_M


def write_losses(folder: FeatureFolder) -> None:
    """Derive `losses.json` from the records in force. Equal records, equal bytes."""
    by_token: dict[TokenType, dict[int, dict[int, UnitRecord]]] = {token: {} for token in TOKENS}
    for view, token in folder.planes():
        by_token[token][view] = folder.records(view, token)
    document = LossDocument(
        definition=folder.required_manifest().digest,
        tokens=tuple(_token_loss(folder, token, planes) for token, planes in by_token.items() if any(planes.values())),
    )
    raw = document.to_bytes()
    if folder.store.size(LOSSES) is None or folder.store.get(LOSSES) != raw:
        folder.store.put(LOSSES, raw)


def read_losses(folder: FeatureFolder) -> LossDocument | None:
    """The losses as they were when the last extraction ended; None if there are none, or they are damaged."""
    try:
        return LossDocument.from_bytes(folder.store.get(LOSSES), LOSSES)
    except (FileNotFoundError, NotADirectoryError, UserError):
        return None


def _token_loss(folder: FeatureFolder, token: TokenType, planes: Mapping[int, dict[int, UnitRecord]]) -> TokenLoss:
    """The row of one token type, from its records by view and block."""
    codec = bound_codec(folder, token)
    records = [record for view in planes.values() for record in view.values()]
    size = sum(entry.size for record in records for entry in record.files[:-1])
    values = sum(record.count for record in records) * math.prod(codec.row_shape)
    row = TokenLoss(
        token=token, codec=codec.name, units=len(records), bytes=size, bits_per_value=_rounded(8 * size / values)
    )
    snr_db = _snr_db(folder, codec, token, planes)
    losses = [record.loss for record in records if record.loss is not None]
    if snr_db is None or not losses:
        return row
    calibration = read_document(folder, token) if token in calibrated_tokens(folder) else None
    variances = calibration.variances if calibration is not None else ()
    return row.model_copy(
        update={
            "snr_db": _rounded(snr_db),
            "cosine_mean": _rounded(math.fsum(x.cosine for x in losses) / sum(x.tokens for x in losses)),
            "cosine_min": min(x.cosine_min for x in losses),
            "gaussian_rd_bits": _rounded(gaussian_bits(np.array(variances), snr_db)) if variances else None,
        }
    )


def _snr_db(
    folder: FeatureFolder, codec: TokenCodec, token: TokenType, planes: Mapping[int, dict[int, UnitRecord]]
) -> float | None:
    total = Moments(0, np.zeros(1), np.zeros(1))
    for view, records in planes.items():
        for raw in folder.statistics(view, token, records).values():
            total = merge(total, Moments.from_bytes(raw))
    if not total.count or total.noise_D is None:
        return None
    square_D = np.square(_floored(codec, np.sqrt(total.m2_D / total.count)))
    power, noise = (float((x_D / square_D).sum()) for x_D in (total.m2_D, total.noise_D))
    # Constant features come back exactly; the figure must stay finite.
    return min(200.0, 10 * math.log10(max(power, 1e-300) / max(noise, 1e-300)))


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
