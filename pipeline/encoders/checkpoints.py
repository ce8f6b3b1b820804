"""Reading weights files: safetensors, or pickles restricted to tensors and a short list of harmless classes."""

from __future__ import annotations

import argparse
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unic_pipe.pipeline.encoders.sections import StateDict
from unic_pipe.pipeline.storage.regular import require_regular
from unic_pipe.schemas.errors import UserError


def read_file(path: Path) -> dict[str, Any]:
    """The content of a weights file, on the CPU.

    Raises:
        UserError: damaged, not a weights file, or a pickle that holds other classes than tensors.
    """
    require_regular(path)
    if path.suffix == ".safetensors":
        return dict(_read_safetensors(path))
    content = _read_pickle(path)
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not a dictionary of tensors.")
    return dict(content)


def named_architecture(path: Path) -> str | None:
    """The architecture that timm's training script notes in its checkpoints, if there is one."""
    if path.suffix == ".safetensors":
        return None
    name = read_file(path).get("arch")
    return name if isinstance(name, str) else None


def _read_safetensors(path: Path) -> StateDict:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError, MemoryError) as error:
        # The headers of damaged files may name types and shapes that nobody has.
        raise _damaged(path, _first_line(error)) from None


def _read_pickle(path: Path) -> Any:
    with torch.serialization.safe_globals(_allowed()):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            refused = re.search(r"(?:GLOBAL|unsupported class:?) ([\w.]+)", str(error))
            if refused is None:
                raise _damaged(path, "it is not a PyTorch file") from None
            raise UserError(
                f"{path}: refused: contains {refused[1]}. Only tensors, numbers and argparse.Namespace are loaded,"
                " because other classes can run code.",
                "If you trust it, save its state_dict as safetensors and use that file.",
            ) from None
        except Exception as error:  # what PyTorch raises for damaged and foreign files depends on where they break off
            raise _damaged(path, _first_line(error)) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def _damaged(path: Path, why: str) -> UserError:
    return UserError(f"{path}: cannot be read ({why}).", "It is damaged or incomplete; download it again.")


def _allowed() -> list[Any]:
    """Classes that official checkpoints hold beside tensors, and that only hold data themselves."""
    scalar = np.float64(0).__reduce__()[0]
    dtypes = [type(np.dtype(code)) for code in ("f4", "f8", "i4", "i8", "u1", "?")]
    return [argparse.Namespace, scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *dtypes]
