"""Where data are, in `unic-pipe.yaml`: the datasets' samples, and the storage of large artefacts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from unic_pipe.schemas.base import Model, Name
from unic_pipe.schemas.benchmarks import check_reader
from unic_pipe.schemas.samples import Background, Decoding

PositiveInt = Annotated[int, Field(ge=1, le=1_000_000_000)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
"""Of epochs, trials, images in a batch: more is a slip of the finger, and would be an hour of waiting or no memory."""
LARGEST_SIDE = 16_384
"""Pixels of the images that an encoder may take."""
Pixels = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
Threads = Annotated[int, Field(ge=1, le=1_024)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Dtype = Literal["float32", "bfloat16", "float16"]
"""Autocast types of a forward pass; float32 is none."""
LARGEST_COLOUR = 3.0
"""No mean or std of colours from 0 to 1 comes near it."""


def _of_colours(values: tuple[float, float, float]) -> tuple[float, float, float]:
    if not max(map(abs, values)) <= LARGEST_COLOUR:
        raise ValueError("colours are from 0 to 1 here, not from 0 to 255: divide by 255")
    return values


def _positive(values: tuple[float, float, float]) -> tuple[float, float, float]:
    if not min(values) > 0:
        raise ValueError("a standard deviation is above 0")
    return values


Mean = Annotated[tuple[float, float, float], AfterValidator(_of_colours)]
Std = Annotated[tuple[float, float, float], AfterValidator(_of_colours), AfterValidator(_positive)]


def _differ(seeds: tuple[int, ...]) -> tuple[int, ...]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("the same seed twice says nothing about the spread")
    return seeds


def ascending(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """Different numbers in ascending order, in whichever they were given."""
    if len(set(numbers)) < len(numbers):
        raise ValueError("the same number twice")
    return tuple(sorted(numbers))


Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1), AfterValidator(_differ)]
_SECRET = re.compile(r"(^|_)(key|secret|token|password|passwd)($|_)")
CONSISTENCY = "consistency"
"""Type of the pydantic problems about values that do not go together; their locations are exact."""


class DatasetConfig(Model):
    """Where the samples of one dataset are, and where their labels come from."""

    source: str
    """Tars (`train-*.tar`, `train-{0000..0146}.tar`, a folder of tars, one tar), a folder of class folders, or a flat
    folder of images; relative paths are searched in `samples.roots`. Tars may also be in an object store, as
    `s3://BUCKET/PREFIX/train-*.tar`. Where a folder holds several of these, `FOLDER/*.tar` means its tars and
    `FOLDER/*/` its class folders. A path that is there is taken as it is, braces or not."""
    labels: str | None = None
    """Labels of a flat folder: a file with one class number per line, in the order of the sorted file names, or with lines
    `FILENAME CLASS` (tab, semicolon, comma or space; or more columns, named `filename` and `class` in the first line),
    where a class is a number or a name. `-1`, `null` and nothing are no label. For ImageNet's validation ground truth,
    keep the devkit's `meta.mat` beside it: it puts the devkit's numbers in the order of train's class folders."""
    label_field: str | None = None
    """Field of each sample's `.json` that holds the class number (tars without `.cls`)."""
    image: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_-]+(\.[a-z0-9_-]+)*$")] | None = None
    """The ending of the images that are used (`jpg`, `left.png`), where samples hold others beside them: a mask, a second
    size. By default every ending that is an image's."""
    first_class: Annotated[int, Field(ge=0)] = 0
    """Number of the first class, where classes are numbers: 1 for lists that count from 1. It is subtracted."""
    rows: PositiveInt | None = None
    """The number of rows that this dataset must have; indexing stops when it differs."""
    reader: str | None = None
    """`NAME/train` or `NAME/test` of a benchmark that has a name (`unic-pipe benchmarks`): `source` is its folder, or one
    that holds it, and its own annotation files say which images there are, and their labels."""

    @field_validator("image", mode="before")
    @classmethod
    def _image_as_ending(cls, value: Any) -> Any:
        return value.lower().removeprefix(".") if isinstance(value, str) else value

    _reader_exists = field_validator("reader")(check_reader)


class SamplesConfig(Model):
    """The datasets, and how their rows are cut into blocks."""

    roots: tuple[str, ...] = (".",)
    """Folders, or `s3://BUCKET/PREFIX`, in which sources and shards are searched, in this order. Outside every digest:
    data may move."""
    datasets: dict[Name, DatasetConfig]
    """By the names that everything else knows them by."""
    block_rows: Annotated[int, Field(ge=1, le=4096)] = 256
    """Rows per block: the grain of work, of resume and of Zarr sharding."""
    background: Background = "none"
    """What transparent images lie on: `white`, `grey` or `black`. `none`: their alpha is dropped, as by most data loaders,
    and the colours that are stored under it show."""
    max_pixels: PositiveInt | None = None
    """Images with more pixels cannot be used (a small file may claim any number of them); 178,956,970 by default, which
    take half a gigabyte. This and `background` are part of a feature's definition: another value extracts anew."""
    max_bad_fraction: Fraction = 0.001
    """A stage stops when more than this fraction of rows cannot be used."""

    @property
    def decoding(self) -> Decoding:
        """How images become pixels."""
        return Decoding(background=self.background, max_pixels=self.max_pixels)


class StorageConfig(Model):
    """Where the large artefacts live; everything else stays in the working folder. Outside every digest."""

    url: str | None = None
    """`samples/` and `features/` live below this folder, `s3://BUCKET/PREFIX` or `gs://BUCKET/PREFIX`; by default in the
    working folder."""
    options: dict[str, JsonValue] = {}
    """Options of fsspec's file systems (s3fs, gcsfs) for every such address: endpoint_url, anon, profile, project …
    Credentials come from the environment or the tools' own files, never from here."""

    @model_validator(mode="after")
    def _no_secrets(self) -> StorageConfig:
        found = sorted(_secret_names(self.options))
        if found:
            raise PydanticCustomError(
                CONSISTENCY,
                "{name} does not belong into a file: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or profile:), "
                "or GOOGLE_APPLICATION_CREDENTIALS, in the environment",
                {"name": found[0]},
            )
        return self


def _secret_names(options: Mapping[str, Any]) -> Iterator[str]:
    """Names of options that hold secrets. gcsfs's `token` may name a way to log in (`anon`, `cloud`), which is none."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _secret_names(value)
        elif name == "token" and value in ("anon", "cloud", "cache", "browser", "google_default"):
            continue
        elif _SECRET.search(name.lower()):
            yield name
