"""What an encoder is about to do with images, said before hours are spent on it."""

from __future__ import annotations

from unic_pipe.pipeline.encoders.resolve import ASSUMED, ResolvedEncoder


def facts(encoder: ResolvedEncoder) -> dict[str, object]:
    """Preprocessing, readout and section as JSON values."""
    definition, reading = encoder.definition, encoder.reading
    return {
        "image_size": definition.image_size,
        "mean": list(definition.mean),
        "std": list(definition.std),
        "normalisation": encoder.normalisation,
        "grid": list(definition.grid),
        "readout": definition.readout,
        "pooling": reading.pooling,
        "section": reading.section or None,
        "beside": list(reading.beside),
    }


def sentence(encoder: ResolvedEncoder) -> str:
    """The same in one line: size, grid, mean, std and why, readout, pooling, and the section that was read."""
    d, reading = encoder.definition, encoder.reading
    parts = [
        f"{d.image_size} px",
        f"grid {d.grid[0]} x {d.grid[1]}",
        f"readout {d.readout} (cls: {reading.pooling})",
    ]
    if encoder.weights_path is not None:
        beside = f" (beside it: {', '.join(section or 'the file itself' for section in reading.beside)})"
        parts.append(f"weights from {reading.section or 'the whole file'}{beside if reading.beside else ''}")
    if reading.untouched_statistics:
        parts.append("BatchNorm statistics as before any training (mean 0, variance 1: were they saved?)")
    parts.append(f"mean {_numbers(d.mean)} and std {_numbers(d.std)}: {encoder.normalisation}")
    return ", ".join(parts)


def assumption(encoder: ResolvedEncoder) -> str:
    """The remark on mean and std that nobody gave; empty where they are known."""
    if not encoder.normalisation.startswith(ASSUMED):
        return ""
    return f"mean {_numbers(encoder.definition.mean)} is {encoder.normalisation}"


def _numbers(values: tuple[float, ...]) -> str:
    shown = [f"{value:.3g}" for value in values]
    return shown[0] if len(set(shown)) == 1 else f"({', '.join(shown)})"
