"""What does a codec cost logits? In which part of the images the first class stays the same by stored cls tokens.

usage: python examples/proof/logits.py TEACHER EXACT STORED

In a working folder with a teacher of that name. EXACT and STORED are two of its feature folders of the same images; the
first was extracted with `--set cache.codec=float16`. Prints a line about view 0.
"""

import sys
from pathlib import Path

import numpy as np

from unic_pipe import FeatureCache
from unic_pipe.pipeline.encoders.classifier import agreement, read_classifier
from unic_pipe.pipeline.workspace.configuration import load_workspace
from unic_pipe.pipeline.workspace.inventory import Inventory


def tokens(folder: str) -> np.ndarray:
    """The cls tokens of all usable rows of view 0, (N, D)."""
    cache = FeatureCache.open(Path(folder))
    blocks = [cache.read_block(0, "cls", block) for block in sorted(cache.records(0, "cls"))]
    return np.concatenate([block.values[block.valid] for block in blocks])


def main() -> None:
    """Compare the two folders."""
    teacher, exact, stored = sys.argv[1:]
    weights_CD = read_classifier(Inventory(load_workspace(Path.cwd())).teacher(teacher))
    exact_ND, stored_ND = tokens(exact), tokens(stored)
    same = agreement(weights_CD, stored_ND, exact_ND)
    noise = np.square(stored_ND - exact_ND).sum() / np.square(exact_ND - exact_ND.mean(0)).sum()
    print(
        f"{teacher}: the same first class in {100 * same:.1f} % of {len(exact_ND):,} images at {-10 * np.log10(noise):.1f} dB"
    )


if __name__ == "__main__":
    main()
