"""The demo's working folder: its configuration file, and the weights of one of its teachers."""

from pathlib import Path

from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.workspace.configuration import CONFIG_NAME, write_configuration
from unic_pipe.schemas.config import Config

ARCHITECTURE = "test_efficientnet"
"""Of the digit expert: timm's name for an EfficientNet of 0.1 million parameters."""
WEIGHTS = Path(__file__).with_name("expert.safetensors")
"""Its weights, as `stages.demo.expert` made them."""
IMAGES = "images-2"
"""Folder of its images. Other images get another number, so that those of an older demo are never mixed with them."""
EXPERT = "weights/digit-expert.safetensors"
TEXT = f"""\
# The unic-pipe demo: a teacher that knows the world, a teacher that knows digits, and one student of both.
# Change anything and run:
#   unic-pipe run

samples:
  datasets:
    pool: {{source: "{IMAGES}/*-train-*.tar"}}           # what the student learns from: no label of it is used
    digits-train: {{source: "{IMAGES}/digits-train-*.tar"}}
    digits-val: {{source: "{IMAGES}/digits-val-*.tar"}}
    digits-test: {{source: "{IMAGES}/digits-test-*.tar"}}
    shifted-train: {{source: "{IMAGES}/shifted-train-*.tar"}}
    shifted-test: {{source: "{IMAGES}/shifted-test-*.tar"}}
    shapes-train: {{source: "{IMAGES}/shapes-train-*.tar"}}
    shapes-test: {{source: "{IMAGES}/shapes-test-*.tar"}}

views:
  recipe: gentle   # mild crops: the paper's `unic` recipe destroys digits of 8 x 8 pixels
  count: 2

teachers:          # frozen
  generalist: {{encoder: efficientnet-lite0, image_size: 48}}   # with its ImageNet weights
  digit-expert:    # 0.1 million parameters, trained on 200 labelled digits (stages/demo/expert.py)
    encoder: checkpoint:{EXPERT}
    architecture: {ARCHITECTURE}
    image_size: 48
    mean: [0.5, 0.5, 0.5]
    std: [0.5, 0.5, 0.5]

students:
  student:
    architecture: tf_efficientnet_lite0
    init: pretrained   # begins as the generalist, with its ImageNet weights
    image_size: 48
    drop_path: 0.0
    dataset: pool
    ladder: {{hidden: 64, last_hidden: 512}}
    loss: {{drop_probability: 0.25}}
    batch_norm: frozen   # its statistics are the weights' own
    optimizer: {{epochs: 5, warmup_epochs: 0, frozen_steps: 20, batch: 32, lr: 0.0028}}   # per 256 images: at most 0.00035

distill:
  validation: digits-val

evaluate:
  baseline: false    # no student at random initialisation: this one begins as the generalist
  benchmarks:
    digits: {{train: digits-train, test: digits-test}}
    digits-shifted: {{train: shifted-train, test: shifted-test, note: "same digits, moved and noisy"}}
    shapes: {{train: shapes-train, test: shapes-test, note: synthetic}}
  # Not above C = 1: with less regularisation a probe separates digits of 8 x 8 pixels on anybody's features, also on
  # those of a random network (.92 at C = 100), and says nothing about the encoder. Not below .01: there it fits nobody's
  # features, and 200 validation images sometimes prefer that all the same, which moved scores by a point.
  c_values: [0.01, 0.1, 1.0]
  k_values: [10, 20]
"""


def has_our_images(config: Config) -> bool:
    """Whether a demo's configuration reads the images that `data.write_samples` writes: not that of an earlier version,
    which has images of its own."""
    pool = config.samples.datasets.get("pool")
    return pool is not None and isinstance(pool.source, str) and pool.source.startswith(f"{IMAGES}/")


def write_config(folder: Path) -> Path:
    """Write the demo's `unic-pipe.yaml`, and the digit expert's weights, unless they are there (a changed one is the
    user's)."""
    LocalStore(folder).create(EXPERT, WEIGHTS.read_bytes())
    write_configuration(folder, TEXT)
    return folder / CONFIG_NAME
