"""A student as a graph without Python: by torch.export, and as ONNX. Both are compared with PyTorch before anybody has them.

Input `images` (B, 3, S, S), normalised float32, B any number; outputs `cls` (B, D) and `patch` (B, P, D), float32: what
`load_student` gives. How images are prepared stands in the file.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from unic_pipe.pipeline.encoders.encoder import Encoder
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.recipes import CENTER
from unic_pipe.stages.export.subject import resized

ENDINGS = {"onnx": ".onnx", "torch-export": ".pt2"}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch-export": ()}
ABOUT = "unic_pipe.json"
"""Name of the file inside a `.pt2` that says what ONNX has as metadata."""
CLOSE = 1e-4
"""A graph is right if no value differs from PyTorch's by more than this part of the largest one."""
_TRACED, _CHECKED = 2, (1, 3)
"""Numbers of images with which a graph is made, and compared."""
_CHATTY = ("onnxscript", "onnx_ir", "torch.onnx")


def require_packages(to: str) -> None:
    """Raises UserError: a package that a format needs is not installed."""
    missing = [name for name in PACKAGES[to] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"--to {to} needs {' and '.join(missing)}, not installed here.", f"pip install {' '.join(missing)}"
        )


def about(encoder: Encoder, **more: object) -> dict[str, object]:
    """What whoever runs the graph has to know: how images are prepared, and what comes out."""
    definition = encoder.definition
    return {
        "architecture": definition.architecture,
        "image_size": definition.image_size,
        "resize_short_side": resized(definition.image_size),
        "crop": "center",
        "crop_pct": CENTER.center_fraction,
        "interpolation": "bicubic",
        "mean": list(definition.mean),
        "std": list(definition.std),
        "grid": list(definition.grid),
        "input": "images: (B, 3, S, S) float32, RGB, (pixels / 255 - mean) / std",
        "output": "cls: (B, D) and patch: (B, P, D) float32; P patches row by row",
        "weights": definition.weights,
        **more,
    }


def write_torch_export(path: Path, encoder: Encoder, facts: Mapping[str, object]) -> float:
    """Write a `.pt2` for `torch.export.load`; the largest difference from the encoder.
    Raises StageError: torch cannot trace the network, or what it made of it computes something else."""
    with _quiet(encoder, "torch.export"):
        # Through memory, because torch's own writer of files ends the process where the disk is full.
        made = io.BytesIO()
        torch.export.save(_traced(encoder), made, extra_files={ABOUT: json.dumps(facts)})
        path.write_bytes(made.getbuffer())
        graph = torch.export.load(path).module()
    return compared(encoder, lambda images: graph(images), path)


def write_onnx(path: Path, encoder: Encoder, facts: Mapping[str, object]) -> float:
    """Write an ONNX file (above 2 GB with its weights beside it, in `PATH.data`); the largest difference from the encoder,
    when onnxruntime runs it.
    Raises StageError: torch cannot express the network, or what it made of it computes something else."""
    with _quiet(encoder, "torch.onnx"):
        program = _traced(encoder)
        try:
            made = _onnx(program)
        except torch.onnx.OnnxExporterError:
            # It knows attention on batches of sequences; any other (Hiera's windows) as the products that it is made of.
            with sdpa_kernel(SDPBackend.MATH):
                made = _onnx(program.run_decompositions())
        made.model.metadata_props.update({k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()})
        made.save(path)
    return compared(encoder, _in_onnxruntime(path), path)


def compared(encoder: Encoder, graph: Callable[[Tensor], Mapping[str, Tensor]], path: Path) -> float:
    """The largest difference of a graph's values from the encoder's, on other numbers of images than it was made with.
    Raises StageError: it is not small; the message names the file."""
    worst, size = 0.0, encoder.definition.image_size
    for count in _CHECKED:
        images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))
        with torch.inference_mode():
            expected = encoder(images)._asdict()
            given = graph(images)
        for token, tokens in expected.items():
            if given[token].shape != tokens.shape:
                shapes = f"{tuple(given[token].shape)} for {tuple(tokens.shape)}"
                raise StageError(f"{path.name}: {token} of {count} images has another shape: {shapes}.", _OTHER)
            difference = (given[token] - tokens).abs().max().item()
            # Written so that NaN is not close.
            if not difference <= CLOSE * tokens.abs().max().item():
                raise StageError(
                    f"{path.name}: {token} differs from PyTorch's by {difference:.2g}, where values go up to"
                    f" {tokens.abs().max().item():.2g}; it is not kept.",
                    _OTHER,
                )
            worst = max(worst, difference)
    return worst


_OTHER = "Use another format (--to timm is the student as it is); another version of torch may do better."


class _Named(nn.Module):
    """The encoder with names for what goes in and comes out."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Both kinds of tokens."""
        cls_BD, patch_BPD = self.encoder(images)
        return {"cls": cls_BD, "patch": patch_BPD}


def _traced(encoder: Encoder) -> ExportedProgram:
    size = encoder.definition.image_size
    images = torch.zeros(_TRACED, 3, size, size)
    with torch.no_grad():
        return torch.export.export(_Named(encoder), (images,), dynamic_shapes={"images": {0: Dim("batch", min=1)}})


def _onnx(program: ExportedProgram) -> torch.onnx.ONNXProgram:
    made = torch.onnx.export(program, input_names=["images"], output_names=["cls", "patch"], dynamo=True, verbose=False)
    assert made is not None, "no file is named"
    for value in (*made.model.graph.inputs, *made.model.graph.outputs):
        assert value.shape is not None, "traced"
        value.shape = type(value.shape)(["batch", *value.shape[1:]])  # torch invents a name for it
    return made


def _in_onnxruntime(path: Path) -> Callable[[Tensor], Mapping[str, Tensor]]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> dict[str, Tensor]:
        names = ("cls", "patch")
        return {
            n: torch.from_numpy(x) for n, x in zip(names, session.run(names, {"images": images.numpy()}), strict=True)
        }

    return run


@contextmanager
def _quiet(encoder: Encoder, what: str) -> Iterator[None]:
    """Work of an exporter: silent about its own business, and with one error for all that it may stumble over."""
    levels: dict[str, Any] = {name: logging.getLogger(name).level for name in _CHATTY}
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except OSError:
        raise
    except Exception as error:  # it may raise anything; that it cannot do a network is no mistake of ours
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        architecture = encoder.definition.architecture
        raise StageError(
            f"{what} of torch {torch.__version__} cannot do {architecture}: {said[:200]}", _OTHER
        ) from error
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
