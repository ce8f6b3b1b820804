"""Some images of a source, from all over it, before it is indexed."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from unic_pipe.pipeline.samples.files import IMAGE_EXTENSIONS, class_folders, is_image
from unic_pipe.pipeline.samples.places import Shard, open_shard
from unic_pipe.pipeline.samples.shards import split_name
from unic_pipe.pipeline.samples.sources import Source
from unic_pipe.pipeline.samples.tars import walk
from unic_pipe.schemas.errors import UserError

TARS = 8
"""Tars that are opened, at most."""


def some_images(source: Source, count: int) -> list[bytes]:
    """Up to `count` images as they are stored, from tars or class folders that are spread over all."""
    places: list[Iterator[bytes]]
    if source.layout == "tars":
        tars = list(source.tars.items())
        places = [_of_tar(*tar) for tar in tars[:: max(1, len(tars) // TARS)][:TARS]]
    else:
        assert source.folder is not None
        names = class_folders(source.folder) if source.layout == "class-folders" else ("",)
        places = [_of_folder(source.folder / name) for name in names[:: max(1, len(names) // count)]]
    each = -(-count // max(1, len(places)))
    return [data for place in places for data in islice(place, each)][:count]


def _of_folder(folder: Path) -> Iterator[bytes]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_image(entry.name) and os.path.isfile(entry):
                yield Path(entry.path).read_bytes()


def _of_tar(shard: str, file: Shard) -> Iterator[bytes]:
    """Up to where the tar is damaged: indexing will name that."""
    tar = open_shard(file, shard)
    try:
        for member in walk(tar, shard):
            parts = split_name(member.name)
            if parts is not None and parts[1] in IMAGE_EXTENSIONS:
                yield tar.read(member.size, member.offset)
    except UserError:
        return
    finally:
        tar.close()
