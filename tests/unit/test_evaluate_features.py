import io
import tarfile

import numpy as np
import pytest
from builders import encoder_definition, feature_definition, feature_manifest

from unic_pipe.pipeline.cache.commit import commit_unit, prepare_view
from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.samples import index_dataset
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.schemas.config import DatasetConfig, SamplesConfig
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.features import BadRow
from unic_pipe.stages.evaluate.features import read_features

DIMS = 3


def write_tar(path, first, count, labelled=True):
    """Samples whose class is their number modulo 5; indexing does not look into the images."""
    with tarfile.open(path, "w") as tar:
        for number in range(first, first + count):
            members = {f"{number:04}.png": f"image {number}".encode()}
            if labelled:
                members[f"{number:04}.cls"] = str(number % 5).encode()
            for name, data in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def index(folder):
    config = DatasetConfig(source=str(folder / "*.tar"))
    samples = SamplesConfig(roots=(str(folder),), datasets={"set": config}, block_rows=4)
    return index_dataset(folder, "set", config, samples)


def extract(folder, dataset, invalid=(), rows_digest=None):
    """Features of sample n are (n, n + .5, n + 1), where n is the number in its key."""
    encoder = encoder_definition(DIMS, DIMS, (1, 1))
    definition = feature_definition(encoder, 4, "float16", dataset=dataset.manifest.digest)
    features = FeatureFolder(LocalStore(folder / "features"))
    features.create(feature_manifest(definition, "set", "enc"))
    prepare_view(features, 0, "cls", dataset.manifest.end_row)
    for block in range(dataset.blocks):
        numbers = np.array([int(key) for key in dataset.block_keys(block)])
        values = (numbers[:, None] + np.arange(DIMS) / 2).astype(np.float32)
        valid = ~np.isin(numbers, invalid)
        bad = tuple(
            BadRow(offset=int(i), key=f"{numbers[i]:04}", reason="not an image") for i in np.flatnonzero(~valid)
        )
        rows = rows_digest or dataset.block_digest(block)
        commit_unit(features, 0, "cls", block, values, valid, bad, rows_digest=rows, batch=4)
    return FeatureCache.open(folder / "features")


def test_every_feature_meets_its_own_label_across_segments(tmp_path):
    write_tar(tmp_path / "a.tar", 0, 6)  # ends inside a block
    index(tmp_path)
    write_tar(tmp_path / "b.tar", 100, 9)
    dataset = index(tmp_path)
    assert len(dataset.manifest.segments) == 2
    found = read_features(extract(tmp_path, dataset), dataset)
    assert found.x_ND.shape == (15, DIMS)
    assert sorted(found.x_ND[:, 0].astype(int)) == [*range(6), *range(100, 109)]
    assert (found.labels_N == found.x_ND[:, 0].astype(int) % 5).all()
    assert (found.name, found.left_out) == ("set", 0)


def test_rows_that_cannot_be_used_are_left_out_with_their_labels(tmp_path):
    write_tar(tmp_path / "a.tar", 0, 10)
    dataset = index(tmp_path)
    found = read_features(extract(tmp_path, dataset, invalid=(1, 9)), dataset)
    assert found.left_out == 2
    assert sorted(found.x_ND[:, 0].astype(int)) == [0, 2, 3, 4, 5, 6, 7, 8]
    assert (found.labels_N == found.x_ND[:, 0].astype(int) % 5).all()


def test_no_labels(tmp_path):
    write_tar(tmp_path / "a.tar", 0, 5, labelled=False)
    dataset = index(tmp_path)
    with pytest.raises(UserError, match="Dataset set has no labels to evaluate with"):
        read_features(extract(tmp_path, dataset), dataset)


def test_features_of_other_rows_are_refused(tmp_path):
    write_tar(tmp_path / "a.tar", 0, 5)
    dataset = index(tmp_path)
    with pytest.raises(StageError, match="other rows"):
        read_features(extract(tmp_path, dataset, rows_digest="0" * 64), dataset)


def test_a_damaged_shard_is_never_data(tmp_path):
    write_tar(tmp_path / "a.tar", 0, 5)
    dataset = index(tmp_path)
    cache = extract(tmp_path, dataset)
    shard = next(tmp_path.glob("features/view-000/cls/c/1/*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StageError, match="block 1"):
        read_features(cache, dataset)
