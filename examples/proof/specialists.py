"""The proof's two specialists: networks of 0.1 million parameters, each taught the labels of one training set."""

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import save

from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.stages.demo.expert import train

STEPS = {"digits": 240, "photos": 600}


def write_specialists(images: Path, folder: Path) -> None:
    """Train what is not there yet; about two minutes on two cores."""
    for kind, steps in STEPS.items():
        if not (folder / f"{kind}.safetensors").exists():
            pictures, labels_N = labelled(images, f"{kind}-train")
            LocalStore(folder).put(f"{kind}.safetensors", save(train(pictures, labels_N, steps)))


def labelled(images: Path, name: str) -> tuple[list[Image.Image], np.ndarray]:
    """The images of a set of shards, and their labels (N,)."""
    pictures, labels = [], []
    for shard in sorted(images.glob(f"{name}-*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None, "a regular file"
                if member.name.endswith(".png"):
                    pictures.append(Image.open(io.BytesIO(file.read())).convert("RGB"))
                else:
                    labels.append(int(file.read()))
    return pictures, np.array(labels)
