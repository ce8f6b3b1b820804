"""Views must still render as they did when the features were extracted (R7)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.progress import Reporter
from pipeline.samples.dataset import Dataset
from pipeline.samples.images import decode_image
from pipeline.views.probes import check_probes, read_probes
from stages.distill.data.feed import Source


def check_views(sources: Sequence[tuple[Source, int]], reporter: Reporter) -> None:
    """Render the probe samples of every cache and of its first views again, each once.

    Raises:
        StageError: a view renders differently now.
    """
    caches = {}
    for source, views in sources:
        for teacher, cache in source.caches.items():
            for view in range(views):
                caches[cache.location, view] = (teacher, cache, source.dataset)
    for (_, view), (teacher, cache, dataset) in caches.items():
        feature, store = cache.definition, cache.folder.store
        probes = read_probes(store, view)
        keys = {probe.key for probe in probes.probes} if probes is not None else set()
        images = _images_named(dataset, keys)
        size = feature.encoder.image_size
        remark = check_probes(store, feature.recipe, feature.view_seed, view, size, images)
        if remark is not None:
            reporter.say(f"{teacher}: {remark}")


def _images_named(dataset: Dataset, keys: set[str]) -> list[tuple[str, NDArray[np.uint8]]]:
    """Probe samples are the first readable ones of the dataset."""
    first, _ = dataset.block_range(0)
    rows = [first + offset for offset, key in enumerate(dataset.block_keys(0)) if key in keys]
    return [(dataset.key(row), decode_image(dataset.read(row))) for row in rows]
