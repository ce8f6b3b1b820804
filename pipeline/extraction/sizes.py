"""What features take on disk and in time: pure functions of needs and measurements. Free of torch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path

from unic_pipe.pipeline.cache.needs import FeatureNeed
from unic_pipe.schemas.base import canonical_json, digest_of, short
from unic_pipe.schemas.config import TokenType
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.features import CodecDefinition
from unic_pipe.schemas.plans import CodecMeasurement, Measurement

VIEWS_AT_ONCE = 4
"""Views that are rendered from one decoding of the rows; bounds memory when there are many."""


def codec_label(codec: CodecDefinition) -> str:
    """The codec's name, with its target where it has one: `klt@20dB`."""
    return codec.name if codec.snr_db is None else f"{codec.name}@{codec.snr_db:g}dB"


def measurement_key(need: FeatureNeed, device: str) -> str:
    """Where below `runs/` a need's measurement is kept: one per encoder, dataset, recipe, compute and kind of device."""
    d = need.definition
    parts = [d.dataset, d.block_rows, digest_of(d.encoder), digest_of(d.recipe), digest_of(d.compute)]
    # Measurements of views on the device were once taken of views on the host; those are not found any more.
    parts += ["views on the device"] if d.compute.views == "device" else []
    identity = canonical_json([*parts, sorted(t for t, v in need.views.items() if v), device.partition(":")[0]])
    return f"measurements/{short(hashlib.sha256(identity).hexdigest())}.json"


def read_measurement(workdir: Path, need: FeatureNeed, device: str) -> Measurement | None:
    """What was measured before for a need on this kind of device; None when nothing was, or it cannot be read."""
    path = workdir / "runs" / measurement_key(need, device)
    try:
        return Measurement.from_bytes(path.read_bytes(), str(path))
    except (OSError, UserError):
        return None


@dataclass(frozen=True)
class Extent:
    """How much of a dataset there is to do."""

    rows: int
    blocks: int


@dataclass(frozen=True)
class Size:
    """Bytes, files, and folders."""

    bytes: float = 0.0
    files: int = 0
    folders: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(self.bytes + other.bytes, self.files + other.files, self.folders + other.folders)


def token_size(measured: Measurement, token: TokenType, label: str, views: int, extent: Extent) -> Size:
    """What `views` views of one token type take, without what token types share."""
    codec = measured.codecs[token][label]
    per_view = extent.rows * codec.row_bytes + extent.blocks * codec.unit_bytes + codec.plane_bytes
    files = extent.blocks * codec.unit_files + codec.plane_files
    folders = extent.blocks * codec.unit_folders + codec.plane_folders
    once = min(views, 1)
    return Size(views * per_view + once * codec.token_bytes, views * files + once * codec.token_files, views * folders)


def shared_size(measured: Measurement, views: int) -> Size:
    """What a feature folder takes beside its token types: documents, probe pictures, folders."""
    size = measured.folder_bytes + views * measured.view_bytes
    return Size(size, measured.folder_files + views * measured.view_files, 4 + 2 * views)


def folder_size(need: FeatureNeed, measured: Measurement, extent: Extent) -> Size:
    """Everything of a need's feature folder."""
    label, total = codec_label(need.definition.codec), shared_size(measured, max(need.views.values(), default=0))
    for token, views in need.views.items():
        if views:
            total += token_size(measured, token, label, views, extent)
    return total


@dataclass(frozen=True)
class Work:
    """Seconds that a dataset's extraction costs: of one core each, of the device, and for the disk alone."""

    decoding: float = 0.0
    rendering: float = 0.0
    encoders: float = 0.0
    encoding: float = 0.0
    disk: float = 0.0
    on_device: bool = False
    """Whether the encoders run beside the cores."""

    def __add__(self, other: Work) -> Work:
        return Work(
            self.decoding + other.decoding,
            self.rendering + other.rendering,
            self.encoders + other.encoders,
            self.encoding + other.encoding,
            self.disk + other.disk,
            self.on_device or other.on_device,
        )

    def seconds(self, cores: int) -> float:
        """Wall time: cores work beside the device and the disk, and a CPU that does everything does it in turn."""
        cpu = self.decoding + self.rendering + self.encoding + (0.0 if self.on_device else self.encoders)
        return max(cpu / cores, self.encoders if self.on_device else 0.0, self.disk)

    def bottleneck(self, cores: int) -> str | None:
        """What the time is spent on first; None when there is nothing to do."""
        cpu = {"decoding": self.decoding, "rendering": self.rendering, "encoding": self.encoding}
        costs = {name: seconds / cores for name, seconds in cpu.items()}
        costs["encoders"] = self.encoders / (1 if self.on_device else cores)
        costs["disk"] = self.disk
        name = max(costs, key=lambda n: costs[n])
        return name if costs[name] > 0 else None


def dataset_work(
    needs: Sequence[tuple[FeatureNeed, Measurement]], forwards: Mapping[str, int], rows: int, disk_rate: float | None
) -> Work:
    """The cost of one dataset's pass. `forwards`: images × views still to be encoded, by need's digest.

    Needs that agree in recipe, view seed and input size share the pixels; all share decoded images.
    """
    total, rendered, most = Work(), dict[tuple[object, ...], tuple[int, float]](), 0
    for need, measured in needs:
        count = forwards[need.digest]
        definition = need.definition
        pixels = digest_of(definition.recipe), definition.view_seed, definition.encoder.image_size
        rendered[pixels] = max(rendered.get(pixels, (0, 0.0)), (count, measured.render_seconds))
        most = max(most, count)
        label = codec_label(definition.codec)
        encoding = sum(_row_seconds(measured, token, label) for token, views in need.views.items() if views)
        share = count / max(1, max(need.views.values(), default=1))
        written = share * sum(measured.codecs[t][label].row_bytes * v for t, v in need.views.items() if v)
        total += Work(
            encoders=count * measured.forward_seconds,
            encoding=count * encoding,
            disk=written / disk_rate if disk_rate else 0.0,
            on_device=measured.device != "cpu",
        )
    passes = ceil(most / max(1, rows) / VIEWS_AT_ONCE) if most else 0
    decode_s = max((m.decode_seconds for _, m in needs), default=0.0)
    decoding = min(most, passes * rows) * decode_s
    return total + Work(decoding=decoding, rendering=sum(count * seconds for count, seconds in rendered.values()))


def calibration_work(need: FeatureNeed, measured: Measurement, rows: int) -> Work:
    """The cost of calibrating on `rows` rows: their features, and fitting, of which the axes take as long for few."""
    label = codec_label(need.definition.codec)
    fitted = sum(measured.codecs[t][label].calibration_seconds for t, views in need.views.items() if views)
    return Work(
        decoding=rows * measured.decode_seconds,
        rendering=rows * measured.render_seconds,
        encoders=rows * measured.forward_seconds,
        encoding=fitted * sqrt(rows / max(1, measured.calibration_rows)),
        on_device=measured.device != "cpu",
    )


def _row_seconds(measured: Measurement, token: TokenType, label: str) -> float:
    codec: CodecMeasurement = measured.codecs[token][label]
    return codec.row_seconds
