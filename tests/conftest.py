"""A tiny real workspace: scanned digits in WebDataset tars, two real ImageNet teachers at small sizes, a small student.

The tests of `tests/faults` and `tests/integration` work on copies of it, so that nothing is extracted or trained twice.
"""

from __future__ import annotations

import json
import os
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# The module beside this file; tests/ is no package, and its folder is on no path.
sys.path.insert(0, str(Path(__file__).parent))
import object_server
import training_ranks
from workspace import Member, Quiet, Work, copy_of, digit_members, kernels, make_workspace, put_tar

# OpenMP's threads sleep when they wait instead of spinning: on a busy machine the whole suite is twice as fast.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@dataclass(frozen=True)
class Tools:
    """What the tests of several files need beside a working folder."""

    digit_members: Callable[..., list[Member]] = digit_members
    put_tar: Callable[[Path, Iterable[Member]], Path] = put_tar
    work: type[Work] = Work
    kernels: Callable[[], dict[str, str]] = kernels
    quiet: type[Quiet] = Quiet


@pytest.fixture(scope="session")
def tools() -> Tools:
    return Tools()


@pytest.fixture(scope="session")
def raw_template(tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Configuration and samples, nothing else."""
    return make_workspace(tmp_path_factory.mktemp("raw") / "work")


@pytest.fixture(scope="session")
def extracted_template(raw_template: Work, tmp_path_factory: pytest.TempPathFactory) -> Work:
    """Features of both teachers, extracted by threads of one process without interruption."""
    work = copy_of(raw_template, tmp_path_factory.mktemp("extracted"))
    outcome = work.extract()
    assert all(extraction.complete for extraction in outcome.values())
    return work


@pytest.fixture(scope="session")
def trained_template(extracted_template: Work, tmp_path_factory: pytest.TempPathFactory) -> Work:
    """A student, trained without interruption."""
    work = copy_of(extracted_template, tmp_path_factory.mktemp("trained"))
    work.distill()
    return work


@pytest.fixture(scope="session")
def released_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Working folders that an earlier version made (see data/README.md), and `expected.json`: what it said of them."""
    folder = tmp_path_factory.mktemp("released")
    with tarfile.open(Path(__file__).parent / "data" / "folder-0.1.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return folder


@pytest.fixture
def raw(raw_template: Work, tmp_path: Path) -> Work:
    """A working folder with samples that are not indexed yet."""
    return copy_of(raw_template, tmp_path)


@pytest.fixture
def extracted(extracted_template: Work, tmp_path: Path) -> Work:
    """A working folder whose features are complete."""
    return copy_of(extracted_template, tmp_path)


@pytest.fixture
def trained(trained_template: Work, tmp_path: Path) -> Work:
    """A working folder with a finished student."""
    return copy_of(trained_template, tmp_path)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """Address of a real S3 server, a process of its own."""
    yield from object_server.serve()


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[object_server.Bucket]:
    """An empty bucket behind a proxy that can misbehave; the environment's credentials and endpoint are its."""
    bucket = object_server.fresh_bucket(s3_server)
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    yield bucket
    bucket.proxy.stop()


@pytest.fixture(scope="session")
def gs_server() -> Iterator[str]:
    """Address of an emulator of Google Cloud Storage, a process of its own."""
    yield from object_server.serve(object_server.GS_SERVER)


@pytest.fixture
def gs(gs_server: str) -> Iterator[object_server.Proxy]:
    """A proxy in front of it, with conditional writes, and the bucket `bucket`."""
    proxy = object_server.Proxy(gs_server)
    proxy.start()
    host = {"Host": gs_server.removeprefix("http://"), "Content-Type": "application/json", "Content-Length": "18"}
    proxy.forward("POST", "/storage/v1/b?project=test", host, b'{"name": "bucket"}')
    yield proxy
    proxy.stop()


@pytest.fixture
def remote(raw: Work, s3: object_server.Bucket) -> Work:
    """A working folder whose configuration puts sample indexes and features into the bucket."""
    path = raw.folder / "unic-pipe.yaml"
    path.write_text(f"storage: {{url: '{s3.url}/unic', options: {json.dumps(s3.options)}}}\n{path.read_text()}")
    return raw


@pytest.fixture(scope="session")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[training_ranks.Ranks]:
    """Runs `unic-pipe distill` in several processes that train together."""
    with training_ranks.started(tmp_path_factory.mktemp("ranks") / "out") as found:
        yield found
