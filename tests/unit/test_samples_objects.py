"""Samples in a bucket of a real S3 server: the same dataset as on disk, whatever the network does."""

import multiprocessing
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from unic_pipe.pipeline.samples import dataset as dataset_module
from unic_pipe.pipeline.samples import dataset_state, index_dataset, open_dataset
from unic_pipe.pipeline.samples.places import as_root
from unic_pipe.pipeline.samples.survey import survey_splits
from unic_pipe.pipeline.storage import open_store
from unic_pipe.pipeline.storage.pointers import pointed
from unic_pipe.pipeline.workspace.configuration import load_workspace
from unic_pipe.schemas.config import DatasetConfig, SamplesConfig
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.students import StudentShape
from unic_pipe.stages.init.fit import Wishes
from unic_pipe.stages.init.stage import fitted, look, write_config

GETS = r"^GET /[^/?]+/[^?]*\.tar"
HEADS = r"^HEAD /[^/?]+/.*\.tar"
LISTINGS = r"^GET /[^/?]+/?\?.*list-type=2"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(dataset_module, "_WAIT_S", 0.001)


@pytest.fixture
def bucket(s3, shards):
    """Three tars of 40 rows in `s3://…/imagenet/`, and the working folder that has them as files."""
    work = shards("t", range(3), rows=40)
    client = s3.client()
    for path in sorted((work / "data").glob("*.tar")):
        client.pipe_file(f"{s3.name}/imagenet/{path.name}", path.read_bytes())
    return work


def index(work, s3, source="t-*.tar", roots=None, name="t", **more):
    roots = (f"{s3.url}/imagenet",) if roots is None else roots
    samples = SamplesConfig(roots=roots, datasets={name: DatasetConfig(source=source)}, block_rows=16)
    return index_dataset(work / "far", name, samples.datasets[name], samples, options=s3.options, **more)


def index_local(work):
    samples = SamplesConfig(roots=("data",), datasets={"t": DatasetConfig(source="t-*.tar")}, block_rows=16)
    return index_dataset(work, "t", samples.datasets["t"], samples)


def state(dataset, source="t-*.tar"):
    return dataset_state(dataset.store, dataset.roots, DatasetConfig(source=source), 16)


def test_a_bucket_gives_the_dataset_that_the_files_give(bucket, s3):
    local, remote = index_local(bucket), index(bucket, s3)
    assert remote.digest == local.digest
    assert remote.store.name == local.store.name
    for near, far in zip(local.manifest.segments, remote.manifest.segments, strict=True):
        assert far.model_copy(update={"shards": near.shards}) == near
        assert [(e.path, e.size, e.mtime_ns) for e in far.shards] == [(e.path, e.size, 0) for e in near.shards]
        assert all(e.etag for e in far.shards)
        assert remote.store.get(far.file) == local.store.get(near.file)
    rows = local.rows().tolist()
    assert [remote.read(row) for row in rows] == [local.read(row) for row in rows]
    # Where the data lie is nobody's identity: each index reads from the other place.
    there = open_dataset(local.store, remote.roots)
    assert [read() for read in there.read_many(rows)] == [local.read(row) for row in rows]
    assert state(there) == state(remote) == ("fresh", "")
    assert state(open_dataset(remote.store, local.roots)) == ("fresh", "")


def test_indexing_reads_every_byte_once_and_status_only_lists(bucket, s3):
    dataset = index(bucket, s3)
    assert s3.proxy.count(GETS) == 3
    assert s3.proxy.count(LISTINGS) == 1
    s3.proxy.log.clear()
    assert state(dataset) == ("fresh", "")
    assert index(bucket, s3).store == dataset.store
    assert (s3.proxy.count(GETS), s3.proxy.count(HEADS), s3.proxy.count(LISTINGS)) == (0, 0, 2)


@pytest.mark.parametrize(
    ("source", "roots", "recorded"),
    [
        ("imagenet/t-{0000..0002}.tar", ("",), "imagenet/t-{0000..0002}.tar"),
        ("*/t-000?.tar", ("",), "*/t-000?.tar"),
        ("imagenet", ("",), "imagenet"),
        (".", ("/imagenet/",), "."),
        ("URL/imagenet/t-*.tar", (), "t-*.tar"),
        ("URL/imagenet/t-*.tar", ("",), "imagenet/t-*.tar"),
        ("URL/*/t-*.tar", (".",), "*/t-*.tar"),
    ],
)
def test_ways_to_name_tars_in_a_bucket(bucket, s3, source, roots, recorded):
    local = index_local(bucket)
    roots = tuple(root if root == "." else s3.url + root for root in roots)
    dataset = index(bucket, s3, source.replace("URL", s3.url), roots)
    assert dataset.digest == local.digest
    assert dataset.manifest.source == recorded
    assert state(dataset, source.replace("URL", s3.url)) == ("fresh", "")
    assert dataset.read(7) == local.read(7)


def test_a_folder_needs_no_right_to_list_what_is_around_it(bucket, s3):
    around = s3.proxy.fail(r"list-type=2&prefix=&", 403, 100)
    assert index(bucket, s3, "imagenet", (s3.url,)).digest == index_local(bucket).digest
    assert look(f"{s3.url}/imagenet")["train"].rows == 120
    assert around.met == 0


def test_a_block_takes_few_requests(bucket, s3):
    dataset = index(bucket, s3)
    s3.proxy.log.clear()
    rows = dataset.rows().tolist()
    images = [read() for read in dataset.read_many(rows)]
    assert images == [dataset.read(row) for row in rows]
    assert s3.proxy.count(GETS) - len(rows) <= 3
    # Any order, some rows, each function from a thread of its own.
    some = rows[::-7]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda read: read(), dataset.read_many(some))) == [images[row] for row in some]


@pytest.mark.parametrize("fault", [503, 500, 429, "lost response", "drop the connection unread"])
def test_faults_while_indexing_and_reading_change_nothing(bucket, s3, fault):
    fault = "reset" if fault == "drop the connection unread" else fault
    local = index_local(bucket)
    faults = [s3.proxy.fail(pattern, fault, 2) for pattern in (GETS, HEADS, LISTINGS)]
    dataset = index(bucket, s3)
    assert dataset.digest == local.digest
    assert all(found.met == 2 for found in faults)
    again = s3.proxy.fail(GETS, fault, 4)
    rows = dataset.rows().tolist()
    assert [read() for read in dataset.read_many(rows)] == [local.read(row) for row in rows]
    assert dataset.read(0) == local.read(0)
    assert again.met >= 3


def test_a_timeout_is_tried_again(bucket, s3):
    fault = s3.proxy.fail(GETS, "slow")
    assert index(bucket, s3).digest == index_local(bucket).digest
    assert fault.met == 1


def test_a_store_that_stays_away_stops_and_finished_tars_are_kept(bucket, s3, monkeypatch):
    from unic_pipe.pipeline.samples import scan
    from unic_pipe.pipeline.storage import objects as object_store

    monkeypatch.setattr(object_store, "LONGEST_WAIT_S", 0.01)
    monkeypatch.setattr(scan, "_KEEP_FROM_BYTES", 0)
    s3.proxy.fail(r"^GET .*t-0001\.tar", 503, 1000)
    with pytest.raises(StageError, match=r"t-0001\.tar: 10 requests failed"):
        index(bucket, s3)
    s3.proxy.faults.clear()
    s3.proxy.log.clear()
    assert index(bucket, s3).digest == index_local(bucket).digest
    assert s3.proxy.count(r"^GET .*t-0001\.tar") == 1
    assert s3.proxy.count(GETS) <= 2


def test_a_tar_that_is_replaced_is_noticed_by_its_etag_and_its_bytes_never_read_as_data(bucket, s3):
    dataset = index(bucket, s3)
    path = bucket / "data/t-0001.tar"
    data = bytearray(path.read_bytes())
    row = 45
    place = int(dataset.segments[0].offsets[row])
    data[place + 20] ^= 1
    s3.client().pipe_file(f"{s3.name}/imagenet/t-0001.tar", bytes(data))
    assert state(dataset) == ("stale", "written again since indexing (unic-pipe index compares): t-0001.tar")
    with pytest.raises(StageError, match="is not the data that was indexed"):
        dataset.read(row)
    readers = dataset.read_many(range(40, 50))
    assert readers[0]() == dataset.read(40)
    with pytest.raises(StageError, match="is not the data that was indexed"):
        readers[5]()
    with pytest.raises(UserError, match=r"dataset t: t-0001\.tar changed since it was indexed"):
        index(bucket, s3)
    s3.client().pipe_file(f"{s3.name}/imagenet/t-0001.tar", path.read_bytes() + bytes(10240))
    assert state(dataset)[0] == "stale"
    with pytest.raises(UserError, match=r"changed size since they were indexed \(first: t-0001\.tar"):
        index(bucket, s3)
    s3.client().rm_file(f"{s3.name}/imagenet/t-0001.tar")
    with pytest.raises(UserError, match=r"t-0001\.tar is not there \(looked in s3://.*/imagenet\)"):
        open_dataset(dataset.store, dataset.roots).read(row)


def test_the_same_tar_uploaded_in_parts_is_the_same_data(bucket, s3):
    dataset = index(bucket, s3)
    key = {"Bucket": s3.name, "Key": "imagenet/t-0002.tar"}
    client = s3.client()
    upload = client.call_s3("create_multipart_upload", **key)["UploadId"]
    part = client.call_s3(
        "upload_part", **key, UploadId=upload, PartNumber=1, Body=(bucket / "data/t-0002.tar").read_bytes()
    )
    client.call_s3(
        "complete_multipart_upload",
        **key,
        UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
    )
    assert state(dataset)[0] == "stale"
    s3.proxy.log.clear()
    again = index(bucket, s3)
    assert again.digest == dataset.digest
    assert state(again) == ("fresh", "")
    assert s3.proxy.count(r"^GET .*t-0002\.tar") == s3.proxy.count(GETS) == 1


def test_a_tar_that_changes_under_the_indexing_is_refused(bucket, s3):
    s3.proxy.on_request = lambda line: (
        s3.client().pipe_file(f"{s3.name}/imagenet/t-0000.tar", (bucket / "data/t-0001.tar").read_bytes())
        if "HEAD" in line and "t-0000.tar" in line
        else None
    )
    with pytest.raises(UserError, match=r"t-0000\.tar: changed while it was indexed"):
        index(bucket, s3)


def test_added_tars_become_a_segment(bucket, s3, shards):
    old = index(bucket, s3)
    shards("t", [3], rows=40)
    s3.client().pipe_file(f"{s3.name}/imagenet/t-0003.tar", (bucket / "data/t-0003.tar").read_bytes())
    assert state(old) == ("partial", "1 new tar since indexing")
    new = index(bucket, s3)
    assert new.digest == old.digest
    assert len(new.manifest.segments) == 2
    assert new.read(128 + 39)


def test_an_index_may_live_in_the_bucket_too(bucket, s3):
    place = open_store(f"{s3.url}/work/samples", s3.options)
    dataset = index(bucket, s3, place=place)
    assert dataset.store == place.child(f"t-{dataset.digest[:8]}") == pointed(place, "t")
    assert not (bucket / "far" / "samples").exists()
    again = open_dataset(dataset.store, dataset.roots)
    assert again.read(100) == index_local(bucket).read(100)
    assert again.damaged() == ()
    assert index(bucket, s3, place=place).store == dataset.store
    named = open_dataset(f"{s3.url}/work/samples/t", [f"{s3.url}/imagenet"], s3.options)
    assert named.store == dataset.store
    assert named.read(7) == dataset.read(7)
    name = dataset.manifest.segments[0].file
    place.child(dataset.store.name).put(name, b"x")
    assert again.damaged() == (name,)
    with pytest.raises(StageError, match=rf"s3://.*{name}: the sample index is damaged"):
        open_dataset(dataset.store, dataset.roots).read(0)


def _read(raw, queue):
    dataset = pickle.loads(raw)
    queue.put([read() for read in dataset.read_many([0, 1, 50, 119])])


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_other_processes_open_their_own_connections(bucket, s3, method):
    dataset = index(bucket, s3, place=open_store(f"{s3.url}/work/samples", s3.options))
    expected = [read() for read in dataset.read_many([0, 1, 50, 119])]
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_read, args=(pickle.dumps(dataset), queue))
    process.start()
    assert queue.get(timeout=60) == expected
    process.join()
    assert dataset.read(0) == expected[0]


def test_refusals_name_the_address_and_the_way_out(bucket, s3):
    def refused(said, hint, source="t-*.tar", root=f"{s3.url}/imagenet"):
        with pytest.raises(UserError, match=said) as caught:
            index(bucket, s3, source, (root,))
        assert hint in caught.value.hint

    refused(r"There is no bucket s3://no-such-bucket", "Check its name", root="s3://no-such-bucket/x")
    refused(
        rf"nothing found for source 'u-\*\.tar' \(looked for {s3.url}/imagenet/u-\*\.tar\)", "samples.roots", "u-*.tar"
    )
    refused(r"1 of 4 tars .* are not there \(first: t-0003\.tar\)", "Shorten the range", "t-{0000..0003}.tar")
    client = s3.client()
    client.pipe_file(f"{s3.name}/folder/n01/x.jpg", b"x")
    client.pipe_file(f"{s3.name}/flat/x.jpg", b"x")
    client.pipe_file(f"{s3.name}/packed/x.tar.gz", b"x")
    for folder in ("folder", "flat"):
        refused(r"holds no tars, and single images are not read from object stores", "unic-pipe pack t", folder, s3.url)
    refused(r"x\.tar\.gz is compressed", "gunzip", "packed", s3.url)
    refused(r"is not a \.tar file", "folder", "flat/*.jpg", s3.url)
    s3.proxy.fail(LISTINGS, 403)
    refused(rf"Access to {s3.url} was refused", "aws sts")


def test_init_looks_into_a_bucket(s3, shards, tmp_path):
    work = shards("in1k-train", range(2), rows=20)
    shards("in1k-val", range(1), rows=12)
    for path in (work / "data").glob("*.tar"):
        s3.client().pipe_file(f"{s3.name}/imagenet/{path.name}", path.read_bytes())
    found = look(f"{s3.url}/imagenet/")
    assert {name: (f.rows, f.classes, f.files, f.exact) for name, f in found.items()} == {
        "train": (40, 3, 2, True),
        "val": (12, 3, 1, True),
    }
    folder = tmp_path / "new"
    folder.mkdir()
    shape = StudentShape(architecture="vit_tiny_patch16_224", image_size=224, patch=16, width=192)
    config = fitted(folder, found, ["timm:vit_tiny_patch16_224"], shape, Wishes(), gpu=False)
    read = load_workspace(write_config(folder, config, found)).config
    assert read == config
    assert read.samples.roots == (f"{s3.url}/imagenet",)
    assert read.samples.datasets["train"].source == "in1k-train*.tar"
    assert survey_splits(f"{s3.url}/imagenet/in1k-train-*.tar")["train"].rows == 40
    with pytest.raises(UserError, match="nothing found"):
        look(f"{s3.url}/nowhere")


def test_local_samples_need_no_library_for_object_stores(shards):
    work = shards("t", [0])
    code = (
        "import sys; from pathlib import Path; from unic_pipe.pipeline.samples import *;"
        "from unic_pipe.schemas.config import DatasetConfig, SamplesConfig;"
        "c = DatasetConfig(source='data/t-*.tar'); s = SamplesConfig(datasets={'t': c});"
        "d = index_dataset(Path(sys.argv[1]), 't', c, s); d.read(0);"
        "assert dataset_state(d.store, d.roots, c)[0] == 'fresh';"
        "print(sorted({'torch', 'fsspec', 's3fs', 'botocore', 'tenacity'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, work], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_roots_are_paths_or_stores(tmp_path):
    assert as_root("~/x").is_absolute()
    assert as_root("data", tmp_path) == tmp_path / "data"
    assert as_root("s3://bucket/x/").location == "s3://bucket/x"
    assert as_root(open_store(tmp_path)) == tmp_path
