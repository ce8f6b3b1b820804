"""Whether threads share one heap, which is decided once, before there are any: by the images that networks are given at once."""

from collections.abc import Iterator

from unic_pipe.pipeline.process.memory import HEAP, share_one_heap
from unic_pipe.schemas.config import Config

BYTES_A_PIXEL = 96
"""Of the largest array that a network makes: EfficientNet-Lite0 has 96 channels of float32 at half the side. A ResNet-50 has 64,
a ViT-S/16 24, a ViT-L/14 84."""


def choose_heaps(config: Config) -> None:
    """Threads have heaps of their own where two of the largest arrays fit one of them."""
    if 2 * BYTES_A_PIXEL * max(_pixels(config), default=HEAP) > HEAP:
        share_one_heap()


def _pixels(config: Config) -> Iterator[int]:
    """Of images that a network is given at once; of unknown size, those of a whole heap."""
    for encoder in [*config.teachers.values(), *config.evaluate.encoders.values()]:
        yield config.compute.batch * encoder.image_size**2 if encoder.image_size is not None else HEAP
    for student in config.students.values():
        yield config.compute.batch * student.image_size**2
        yield student.optimizer.batch * max(student.image_sizes or (student.image_size,)) ** 2
    if config.evaluate.dense:
        yield HEAP
