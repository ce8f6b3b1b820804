"""The demo's configuration file."""

from pathlib import Path

from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.workspace.configuration import CONFIG_NAME

TEXT = """\
# The unic-pipe demo: two ImageNet teachers, one small student, real digits. Change anything and run:
#   unic-pipe run

samples:
  datasets:
    digits-train: {source: "data/digits-train-*.tar"}
    digits-val: {source: "data/digits-val-*.tar"}
    digits-test: {source: "data/digits-test-*.tar"}
    digits-shifted: {source: "data/digits-shifted-*.tar"}
    shapes-train: {source: "data/shapes-train-*.tar"}
    shapes-test: {source: "data/shapes-test-*.tar"}

views:
  recipe: gentle   # mild crops: the paper's `unic` recipe destroys digits of 8 x 8 pixels
  count: 2

teachers:          # frozen, with their ImageNet weights
  lite0: {encoder: efficientnet-lite0, image_size: 96}
  lite1: {encoder: efficientnet-lite1, image_size: 96}

students:
  tiny:
    architecture: vit_tiny_patch16_224
    model_args: {patch_size: 8, depth: 6}
    image_size: 32
    mean: [0.5, 0.5, 0.5]
    std: [0.5, 0.5, 0.5]
    drop_path: 0.0
    dataset: digits-train
    ladder: {hidden: 64, last_hidden: 128}
    loss: {drop_probability: 0.25}
    optimizer: {epochs: 10, warmup_epochs: 1, batch: 32, lr: 0.016}   # per 256 images: the peak is 0.002

distill:
  validation: digits-val

evaluate:
  benchmarks:
    digits: {train: digits-train, test: digits-test}
    digits-shifted: {train: digits-train, test: digits-shifted, note: "same digits, moved and noisy"}
    shapes: {train: shapes-train, test: shapes-test, note: synthetic}
  # Up to C = 1 only: with less regularisation a probe separates digits of 8 x 8 pixels on anybody's features, also on
  # those of a random network (.92 at C = 100), and says nothing about the encoder.
  c_values: [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0]
  k_values: [10, 20]
"""


def write_config(folder: Path) -> Path:
    """Write the demo's `unic-pipe.yaml` unless there is one (a changed one is the user's)."""
    LocalStore(folder).create(CONFIG_NAME, TEXT.encode())
    return folder / CONFIG_NAME
