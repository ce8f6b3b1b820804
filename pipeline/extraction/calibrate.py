"""Calibrating a feature folder before its first unit: random rows through the encoder, then the codec that fits them.

Legend: N rows, P patch tokens, D dimensions.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unic_pipe.pipeline.cache.calibration import Proposal, calibrated_tokens, ensure_calibration, propose
from unic_pipe.pipeline.cache.codecs import TokenCodec
from unic_pipe.pipeline.cache.needs import FeatureNeed
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.cache.spec import row_shape
from unic_pipe.pipeline.encoders import ResolvedEncoder
from unic_pipe.pipeline.extraction.forward import EncoderRun, Features, features_of_rows, loaded_encoder, pick_device
from unic_pipe.pipeline.extraction.unusable import broken
from unic_pipe.pipeline.process.crew import crew_of, results
from unic_pipe.pipeline.process.progress import Reporter
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.process.threads import torch_threads, usable_cores
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.schemas.codecs import AUTO, CODECS
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.features import CalibrationDocument, CodecDefinition, CodecTrial
from unic_pipe.schemas.losses import TOKENS

ROWS: dict[TokenType, int] = {"cls": 2048, "patch": 256}
"""Most rows: a few for every dimension of `cls`; patch tokens are many per row."""
FEWEST_ROWS = 256
FRACTION = 4
"""A small dataset gives a quarter of its rows (but `FEWEST_ROWS`), so that calibrating stays cheap beside extracting."""


def calibrate(
    folder: FeatureFolder,
    dataset: Dataset,
    need: FeatureNeed,
    encoder: ResolvedEncoder,
    device: str,
    batch: int,
    reporter: Reporter,
    call: Callable[..., Any],
    stop: Stop,
) -> None:
    """Create or repair what the folder's codec needs for the wanted token types; nothing for plain codecs.

    A pure function of dataset, definition and hardware: view 0 of rows that the definition's digest chooses, in the
    definition's batches and threads. `call` calls a function where blocks run (`Executor.call`).

    Raises:
        StageError: no usable row, or samples that are not what was indexed.
        Stopped: `stop` was requested; it is looked at after every few batches.
    """
    features: dict[TokenType, NDArray[np.float32]] = {}

    # As in a block, which may be smaller than a batch; and as they would be cut from all rows at once.
    batch = min(batch, need.definition.block_rows)
    together = batch * usable_cores()

    def make(token: TokenType) -> Proposal:
        chosen_N = calibration_rows(dataset, need)
        if not features:
            with reporter.task(f"calibrate {need.name}", total=len(chosen_N)) as task:
                parts: list[Features] = []
                for start in range(0, len(chosen_N), together):
                    stop.check()
                    some_N = chosen_N[start : start + together]
                    # Patches of all rows that calibrate cls would fill the memory.
                    tokens = TOKENS if start < ROWS["cls"] else TOKENS[:1]
                    parts += call(sample_batches, dataset, some_N, need, encoder, device, batch, tokens)
                    task.advance(len(some_N))
                stop.check()
            features.update(usable_features(parts, need, len(chosen_N)))
        most = len(chosen_N) if token == "cls" else ROWS["patch"]
        rows = len(dataset.rows())
        return calibration_of(need, token, chosen_N[:most], features[token][:most], rows, check=stop.check)

    for token in calibrated_tokens(folder):
        if need.views.get(token, 0) and ensure_calibration(folder, token, lambda token=token: make(token)):  # type: ignore[misc]
            reporter.say(f"{need.name}: {summary(folder, token)}")


def calibration_rows(dataset: Dataset, need: FeatureNeed) -> NDArray[np.int64]:
    """Random rows of a dataset, the same for the same definition."""
    rows_N = dataset.rows()
    generator = np.random.Generator(np.random.Philox(key=int(need.digest[:32], 16)))
    return rows_N[generator.permutation(len(rows_N))[: calibration_count(len(rows_N), need.definition.codec)]]


def calibration_count(rows: int, codec: CodecDefinition) -> int:
    """How many of a dataset's rows calibrate."""
    return min(codec.rows or min(ROWS["cls"], max(FEWEST_ROWS, rows // FRACTION)), rows)


def sample_features(
    dataset: Dataset,
    rows_N: Sequence[int] | NDArray[np.int64],
    need: FeatureNeed,
    encoder: ResolvedEncoder,
    device: str,
    batch: int,
) -> dict[TokenType, NDArray[np.float32]]:
    """Features of view 0 of these rows, (N, D) and (N, P, D); rows that cannot be used are left out. `device` may be
    `auto`. Raises StageError: samples that are not what was indexed, or none of them is usable."""
    parts = sample_batches(dataset, rows_N, need, encoder, device, batch)
    return usable_features(parts, need, len(rows_N))


def sample_batches(
    dataset: Dataset,
    rows_N: Sequence[int] | NDArray[np.int64],
    need: FeatureNeed,
    encoder: ResolvedEncoder,
    device: str,
    batch: int,
    tokens: Sequence[TokenType] = TOKENS,
) -> list[Features]:
    """Features of view 0 of these rows, batch by batch, non-finite ones included."""
    compute, rows, device = need.definition.compute, np.asarray(rows_N).tolist(), pick_device(device)
    loaded = loaded_encoder(encoder, device, compute.channels_last)
    run = EncoderRun.of(loaded, need.definition, [(0, token) for token in tokens])
    crew = crew_of(usable_cores(), compute.threads, device != "cpu")

    def encode(start: int) -> Features:
        [found] = features_of_rows(dataset, rows[start : start + batch], [run], batch, crew)
        return found.features

    with torch_threads(compute.threads), ThreadPoolExecutor(crew.width) as pool:
        return list(pool.map(encode, range(0, len(rows), batch)))


def usable_features(parts: Sequence[Features], need: FeatureNeed, rows: int) -> dict[TokenType, NDArray[np.float32]]:
    """The parts of each token type, one behind the other, of `rows` rows, without those not finite in all they have.
    Raises StageError: nothing is left, because of the encoder or of the images."""
    finite = [[np.isfinite(x).reshape(len(x), -1).all(axis=1) for x in part.values()] for part in parts]
    usable = [np.logical_and.reduce(found) for found in finite]
    if any(map(len, usable)) and not any(map(np.any, usable)):
        raise broken(need.encoder)
    if not any(map(np.any, usable)):
        raise StageError(f"{need.name}: none of {rows} sample rows can be used.", "Check the images.")
    return {
        token: np.concatenate([part[token][n] for part, n in zip(parts, usable, strict=True) if token in part])
        for token in parts[0]
    }


def summary(folder: FeatureFolder, token: TokenType) -> str:
    """What was chosen and why, in a line."""
    from unic_pipe.pipeline.cache.calibration import read_document

    document = read_document(folder, token)
    assert document is not None
    snr_db = folder.required_manifest().definition.codec.snr_db
    trials = ", ".join(
        f"{t.codec} {t.bits_per_value:.2f} bits{f' + {t.shared_bits:.2f} shared' if t.shared_bits >= 0.1 else ''}"
        f" at {t.snr_db:.1f} dB"
        for t in document.trials
    )
    return f"{token} is stored by {document.codec} for {snr_db:g} dB ({trials})"


def calibration_of(
    need: FeatureNeed,
    token: TokenType,
    rows_N: NDArray[np.int64],
    values: NDArray[np.float32],
    rows: int,
    check: Callable[[], None] = lambda: None,
) -> Proposal:
    """The calibration of a token type from sample features, (N, D) or (N, P, D), of these rows of a dataset's `rows`.
    Codecs are fitted side by side; `check` is called before each, and may raise.
    Raises StageError: of a single image, which says nothing about what others look like."""
    from unic_pipe.pipeline.cache.coefficients import Calibrated
    from unic_pipe.pipeline.cache.fitting import Sample, candidate, choose, finer, measure, reached, with_all_rows

    definition = need.definition
    assert definition.codec.snr_db is not None
    if len(values) < 2:
        raise StageError(
            f"{need.name}: a codec is calibrated with two images at least, and {need.dataset} has {len(values)}.",
            "Add images, or store features as they are: cache.codec: float16",
        )
    snr_db, shape = definition.codec.snr_db, row_shape(definition, token)
    names = list(CODECS) if definition.codec.name == AUTO else [definition.codec.name]
    crew = crew_of(usable_cores(), definition.compute.threads, False)
    with torch_threads(definition.compute.threads):
        sample = Sample.of(values)

        def tried(name: str) -> tuple[TokenCodec, CodecTrial]:
            check()
            codec, shared = candidate(name, token, sample, shape, definition.block_rows, snr_db), 0.0
            bits, ratio, _, _ = measure(codec, sample)
            if isinstance(codec, Calibrated):
                if not reached(ratio, snr_db):
                    check()
                    codec = finer(codec, sample, snr_db)
                    bits, ratio, _, _ = measure(codec, sample)
                shared = 8 * codec.transform.shared_bytes / (rows * math.prod(shape))
            found = {"bits_per_value": bits, "snr_db": ratio, "shared_bits": shared}
            return codec, CodecTrial(codec=name, **{field: round(value, 6) for field, value in found.items()})

        spectrum = crew.start(sample.principal_variances)
        # The last take longest, and begin first.
        found = results([crew.start(tried, name) for name in reversed(names)])[::-1]
        variances_D = spectrum.result()
    trials = [t for _, t in found]
    chosen = choose(trials, snr_db).codec
    codec = next(c for c, t in found if t.codec == chosen)
    transform = codec.transform if isinstance(codec, Calibrated) else None
    if transform is not None and definition.codec.rows:
        with torch_threads(definition.compute.threads):
            transform = with_all_rows(transform, sample)
    document = CalibrationDocument(
        definition=need.digest,
        token=token,
        codec=chosen,
        step=transform.step if transform else 0.0,
        rounding=transform.rounding if transform else 0.5,
        rows=len(values),
        rows_digest=hashlib.sha256(rows_N.astype("<i8").tobytes()).hexdigest(),
        trials=tuple(trials),
        variances=tuple(float(f"{v:.6g}") for v in variances_D.tolist()),
    )
    return propose(document, transform)
