"""Indexing in one line, for tests of indexes."""

import pytest

from unic_pipe.pipeline.process.progress import SilentReporter
from unic_pipe.pipeline.samples import dataset_state, index_dataset
from unic_pipe.schemas.config import DatasetConfig, SamplesConfig
from unic_pipe.schemas.errors import UserError


class Told(SilentReporter):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def index(work, source="data/t-*.tar", name="t", roots=(".",), block_rows=4, progress=None, stop=None, **fields):
    config = DatasetConfig(source=source, **fields)
    samples = SamplesConfig(datasets={name: config}, roots=tuple(map(str, roots)), block_rows=block_rows)
    return index_dataset(work, name, config, samples, progress, stop)


def state(dataset, source="data/t-*.tar", block_rows=4, **fields):
    return dataset_state(dataset.store, dataset.roots, DatasetConfig(source=source, **fields), block_rows)


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(*args, **fields):
    with pytest.raises(UserError) as caught:
        index(*args, **fields)
    assert caught.value.hint
    return caught.value.message
