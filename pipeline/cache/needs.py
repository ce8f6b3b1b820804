"""What a feature cache is made from, and where it lives. Free of torch, so that planning is quick."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from unic_pipe.schemas.base import digest_of, short
from unic_pipe.schemas.codecs import CODECS, is_calibrated
from unic_pipe.schemas.config import CacheConfig, ComputeConfig, Config, TokenType
from unic_pipe.schemas.features import CodecDefinition, ComputeDefinition, EncoderDefinition, FeatureDefinition
from unic_pipe.schemas.losses import TOKENS
from unic_pipe.schemas.places import Dtype
from unic_pipe.schemas.recipes import CENTER, Recipe, recipe_named
from unic_pipe.schemas.samples import DatasetManifest


@dataclass(frozen=True)
class FeatureNeed:
    """Features that somebody needs: one encoder over one dataset, and how many views of each token type."""

    dataset: str
    encoder: str
    definition: FeatureDefinition
    views: Mapping[TokenType, int]

    @property
    def digest(self) -> str:
        """Digest of the definition."""
        return digest_of(self.definition)

    @property
    def name(self) -> str:
        """Name of the artefact: `features/<dataset>/<encoder>`, with `-center` (and a seed that is not 0) for centre crops."""
        return f"features/{self.dataset}/{self.encoder}{self._variant}"

    @property
    def pointer(self) -> str:
        """Name of the pointer in `features/`."""
        return f"{self.dataset}-{self.encoder}{self._variant}"

    @property
    def _variant(self) -> str:
        # Training views and centre crops of one dataset exist side by side, also where both are centre crops.
        seed = self.definition.view_seed
        return "" if self.definition.recipe != CENTER else f"-center-{seed}" if seed else "-center"

    @property
    def folder_name(self) -> str:
        """Name of the feature folder in `features/`."""
        return f"{self.pointer}-{short(self.digest)}"

    def folder(self, workdir: Path) -> Path:
        """The feature folder in a working folder that keeps its features itself."""
        return workdir / "features" / self.folder_name

    def planes(self) -> list[tuple[int, TokenType]]:
        """All (view, token type) pairs."""
        most = max(self.views.values(), default=0)
        return [(v, t) for v in range(most) for t in TOKENS if v < self.views.get(t, 0)]


def compute_definition(compute: ComputeConfig, recipe: Recipe, dtype: Dtype | None = None) -> ComputeDefinition:
    """The part of the compute settings that may change the bits of features under a recipe; `dtype`: the encoder's own."""
    settings = compute.model_dump(exclude={"device"} if recipe.photometric else {"device", "views"})
    return ComputeDefinition(**settings | ({} if dtype is None else {"dtype": dtype}))


def codec_definition(cache: CacheConfig, recipe: Recipe) -> CodecDefinition:
    """How features under a recipe are stored: those of centre crops are measured with, so they are never `klt`."""
    if not is_calibrated(cache.codec):
        return CodecDefinition(name=cache.codec)
    if recipe == CENTER:
        return CodecDefinition(name="float16")
    return CodecDefinition(name=cache.codec, snr_db=cache.snr_db, rows=cache.calibration_rows)


def feature_definition(
    config: Config, dataset: DatasetManifest, name: str, encoder: EncoderDefinition, recipe: Recipe, view_seed: int
) -> FeatureDefinition:
    """The definition of an encoder's features of a dataset under a recipe; `name` is the encoder's."""
    settings = config.teachers.get(name) or config.evaluate.encoders.get(name)
    return FeatureDefinition(
        dataset=dataset.digest,
        block_rows=dataset.block_rows,
        encoder=encoder,
        recipe=recipe,
        view_seed=view_seed,
        codec=codec_definition(config.cache, recipe),
        compute=compute_definition(config.compute, recipe, settings.dtype if settings else None),
        decoding=dataset.decoding,
    )


def training_need(config: Config, dataset: DatasetManifest, name: str, encoder: EncoderDefinition) -> FeatureNeed:
    """Features for distillation: the configured recipe, and the configured views of each token type."""
    recipe = recipe_named(config.views.recipe)
    definition = feature_definition(config, dataset, name, encoder, recipe, config.views.seed)
    return FeatureNeed(dataset.name, name, definition, {"cls": config.views.count, "patch": config.views.patch_views})


def center_need(
    config: Config, dataset: DatasetManifest, name: str, encoder: EncoderDefinition, tokens: tuple[TokenType, ...]
) -> FeatureNeed:
    """Features of the centre crop: for probes (`cls`) and for the validation loss (both)."""
    definition = feature_definition(config, dataset, name, encoder, CENTER, 0)
    return FeatureNeed(dataset.name, name, definition, dict.fromkeys(tokens, 1))


def raw_bytes(need: FeatureNeed, rows: int) -> int:
    """Upper estimate of the bytes of a cache over `rows` rows, before lossless compression."""
    encoder = need.definition.encoder
    total = rows * sum(math.prod(encoder.shape(token)) * count for token, count in need.views.items())
    codec = need.definition.codec
    if codec.snr_db is not None:
        # One bit for 6.02 dB is what independent Gaussian features would need; real ones need less.
        return int(total * (codec.snr_db / 6.02 + 0.25) / 8)
    return total * CODECS[codec.name].value_bytes


def merge_needs(needs: list[FeatureNeed]) -> list[FeatureNeed]:
    """One need per feature folder, asking for the most views of each token type."""
    merged: dict[tuple[str, str, str], FeatureNeed] = {}
    for need in needs:
        key = (need.dataset, need.encoder, need.digest)
        old = merged.get(key)
        if old is None:
            merged[key] = need
            continue
        views = {t: max(need.views.get(t, 0), old.views.get(t, 0)) for t in {*need.views, *old.views}}
        merged[key] = FeatureNeed(need.dataset, need.encoder, need.definition, views)
    return list(merged.values())
