"""One contract for local folders and object stores, and what becomes of requests that fail."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from object_server import LOST, RESET, SLOW, Bucket, Proxy

from unic_pipe.pipeline.storage import LocalStore, Store, is_remote, open_store
from unic_pipe.pipeline.storage.objects import ObjectStore
from unic_pipe.pipeline.storage.pointers import point, pointed, pointers
from unic_pipe.pipeline.storage.writers import check_writers
from unic_pipe.schemas.config import StorageConfig
from unic_pipe.schemas.errors import DamagedError, StageError, UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["local", "s3", "gs"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return LocalStore(tmp_path / "root")
    if request.param == "gs":
        options = {"endpoint_url": request.getfixturevalue("gs").url, "token": "anon"}
        return open_store(f"gs://bucket/{tmp_path.name}", options)
    bucket: Bucket = request.getfixturevalue("s3")
    return open_store(f"{bucket.url}/some/root", bucket.options)


@pytest.fixture
def remote(s3: Bucket) -> Store:
    return open_store(f"{s3.url}/root", s3.options)


def test_writing_and_reading(store: Store) -> None:
    store.put("a/b", b"one")
    store.put("a/b", b"three")
    assert (store.get("a/b"), store.size("a/b")) == (b"three", 5)
    assert (store.get_range("a/b", 1, 3), store.get_range("a/b", 3, 9), store.get_range("a/b", 9, 2)) == (
        b"hre",
        b"ee",
        b"",
    )
    assert store.get_many(["x", "a/b", "y"]) == {"a/b": b"three"}
    assert (store.size("a"), store.size("x"), store.version("x")) == (store.size("a"), None, None)
    with pytest.raises(FileNotFoundError):
        store.get("x")
    with pytest.raises(FileNotFoundError):
        store.get_range("x", 0, 1)
    store.put("empty", b"")
    assert store.get("empty") == store.get_range("empty", 0, 5) == b""
    store.delete("a/b")
    store.delete("a/b")
    store.delete_many(["empty", "nothing"])
    assert list(store.keys()) == []


def test_listings(store: Store) -> None:
    for key in ("b/2", "b/1", "a", "c/x/y", "c/.hidden", "b1"):
        store.put(key, key.encode())
    assert set(store.keys()) == {"a", "b/1", "b/2", "b1", "c/.hidden", "c/x/y"}
    assert list(store.keys("b")) == ["b/1", "b/2"]
    assert store.sizes("c") == {"c/.hidden": 9, "c/x/y": 5}
    assert (store.names(), store.folders()) == (["a", "b", "b1", "c"], ["b", "c"])
    assert (store.names("c"), store.folders("c"), store.names("nothing")) == (["x"], ["x"], [])
    deep, shallow = store.listing(), store.listing("c", deep=False)
    assert deep["b/1"] == (3, store.version("b/1"))
    assert shallow == {"c/.hidden": (9, store.version("c/.hidden")), "c/x": None}
    child = store.child("c")
    assert (child.name, child.get("x/y"), child.location) == ("c", b"c/x/y", f"{store.location}/c")
    assert store.describe("c/x") == f"{store.location}/c/x"


def test_one_of_many_writers_wins(store: Store) -> None:
    won: list[int] = []

    def write(number: int) -> None:
        if store.create("once", f"{number}".encode()):
            won.append(number)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get("once") == f"{won[0]}".encode()
    assert len(won) == 1


def test_counting_by_replacement_loses_nothing(store: Store) -> None:
    """Four threads add one to a number five times each, and say who they are: equal bytes would count as written."""
    store.put("n", b"0 nobody")

    def add(who: int) -> None:
        for _ in range(5):
            while True:
                version, old = store.version("n"), int(store.get("n").split()[0])
                if store.replace("n", f"{old + 1} {who}".encode(), version):
                    break

    threads = [threading.Thread(target=add, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.get("n").split()[0] == b"20"


def test_pointers(store: Store) -> None:
    store.put("a-00000001/x", b"1")
    store.put("a-00000002/x", b"2")
    assert pointed(store, "a") is None
    point(store, "a", "a-00000001")
    point(store, "a", "a-00000002")
    assert pointed(store, "a") == store.child("a-00000002")
    assert (pointers(store), store.folders()) == (["a"], ["a-00000001", "a-00000002"])
    store.delete("a-00000002/x")
    if isinstance(store, LocalStore):
        store.path("a-00000002").rmdir()
    assert pointed(store, "a") is None
    if not isinstance(store, LocalStore):
        for wrong in (b"b-00000001", b"a-00000001/..", b"../a-00000001", b"a-0000000\xff", b""):
            store.put("a.pointer", wrong)
            with pytest.raises(DamagedError, match=r"a\.pointer points to"):
                pointed(store, "a")


def test_a_store_travels_as_its_location(store: Store) -> None:
    store.put("k", b"v")
    again = pickle.loads(pickle.dumps(store))
    assert again == store
    assert hash(again) == hash(store)
    assert again.get("k") == b"v"
    code = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read()).get('k').decode())"
    ended = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(store), capture_output=True, cwd=ROOT)
    assert ended.stdout == b"v\n", ended.stderr
    if hasattr(os, "fork"):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if store.get("k") == b"v" else 1)
        assert os.waitpid(pid, 0)[1] == 0
    assert store.get("k") == b"v"


ACTIONS: dict[str, tuple[str, Callable[[Store], Any], Any]] = {
    "get": ("GET .*old", lambda s: s.get("old"), b"old"),
    "range": ("GET .*old", lambda s: s.get_range("old", 1, 2), b"ld"),
    "size": ("HEAD", lambda s: s.size("old"), 3),
    "listing": ("GET .*list-type", lambda s: s.names(), ["old", "other"]),
    "put": ("PUT", lambda s: (s.put("old", b"new"), s.get("old")), (None, b"new")),
    "create": ("PUT", lambda s: (s.create("new", b"1"), s.get("new")), (True, b"1")),
    "create what is there": ("PUT", lambda s: (s.create("old", b"1"), s.get("old")), (False, b"old")),
    "replace": ("PUT", lambda s: (s.replace("old", b"2", s.version("old")), s.get("old")), (True, b"2")),
    "replace another": ("PUT", lambda s: (s.replace("old", b"2", s.version("other")), s.get("old")), (False, b"old")),
    "delete": ("DELETE", lambda s: (s.delete("old"), s.size("old")), (None, None)),
    "remove": ("DELETE", lambda s: (s.replace("old", None, s.version("old")), s.size("old")), (True, None)),
}  # fmt: skip


@pytest.mark.parametrize("what", [409, 429, 500, 503, LOST, RESET, SLOW])
def test_a_passing_failure_changes_no_result(s3: Bucket, remote: Store, what: int | str) -> None:
    """Each kind of failure once in each kind of request."""
    slow = ("get", "listing", "create", "replace")
    for number, name in enumerate(slow if what == SLOW else ACTIONS):
        store, (pattern, do, expected) = remote.child(str(number)), ACTIONS[name]
        store.put("old", b"old")
        store.put("other", b"other")
        fault = s3.proxy.fail(pattern, what)
        assert (name, do(store)) == (name, expected)
        assert fault.met == 1


@pytest.mark.parametrize("what", [503, LOST])
def test_google_storage_repeats_too(gs: Proxy, what: int | str) -> None:
    options = {"endpoint_url": gs.url, "token": "anon"}
    store = ObjectStore(f"gs://bucket/{what}", json.dumps(options))
    steps: list[tuple[str, Callable[[], Any], Any]] = [
        ("POST", lambda: store.create("k", b"1"), True),
        ("POST", lambda: store.replace("k", b"2", store.version("k")), True),
        ("GET .*alt=media", lambda: store.get("k"), b"2"),
        ("DELETE", lambda: store.delete("k"), None),
        ("GET .*prefix", store.names, []),
    ]
    for pattern, do, expected in steps:
        fault = gs.fail(pattern, what)
        assert do() == expected
        assert fault.met == 1
    assert store.honours_conditions()
    gs.ignore_conditions = True
    assert not store.honours_conditions()
    with pytest.raises(UserError, match="There is no bucket gs://nothing"):
        open_store("gs://nothing/x", options).put("k", b"1")


def test_a_store_that_stays_busy_is_given_up(s3: Bucket, remote: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unic_pipe.pipeline.storage.objects.FIRST_WAIT_S", 0.001)
    monkeypatch.setattr("unic_pipe.pipeline.storage.objects.LONGEST_WAIT_S", 0.002)
    s3.proxy.fail("GET", 503, times=100)
    with pytest.raises(
        StageError, match=r"s3://bucket-.*/root/k: 10 requests failed, the last: 503 SlowDown"
    ) as caught:
        remote.get("k")
    assert "same command again" in (caught.value.hint or "")
    assert s3.proxy.count("GET") == 10, "one level repeats requests"


def test_what_only_the_user_can_mend(s3: Bucket, remote: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.proxy.fail("GET", 403)
    with pytest.raises(UserError, match=f"Access to {s3.url} was refused .403 AccessDenied.") as caught:
        remote.get("k")
    assert "aws sts get-caller-identity" in (caught.value.hint or "")
    for action in (lambda s: s.get("k"), lambda s: s.names(), lambda s: s.put("k", b"")):
        with pytest.raises(UserError, match="There is no bucket s3://not-there-1") as caught:
            action(open_store("s3://not-there-1/x", s3.options))
    assert "aws s3 mb s3://not-there-1" in (caught.value.hint or "")
    with pytest.raises(UserError, match="s3fs does not take these options"):
        open_store(s3.url, {"no_such_option": 1}).get("k")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(UserError, match="No usable credentials") as caught:
        open_store(f"{s3.url}/other", s3.options | {"default_block_size": 5 << 20}).get("k")
    assert "AWS_SECRET_ACCESS_KEY" in (caught.value.hint or "")


def test_addresses() -> None:
    assert is_remote("s3://b/x")
    assert is_remote("gs://b")
    assert not is_remote("/a/s3")
    assert isinstance(open_store("s3://b/x"), ObjectStore)
    for text, words in (
        ("ftp://b/x", "no store of kind ftp"),
        ("s3://", "names no bucket"),
        ("gs:///x", "names no bucket"),
    ):
        with pytest.raises(UserError, match=words):
            open_store(text)


def test_the_endpoint_comes_from_the_environment(s3: Bucket) -> None:
    store = open_store(f"{s3.url}/env")
    store.put("k", b"v")
    assert s3.client().cat_file(f"{s3.name}/env/k") == b"v"


@pytest.mark.parametrize(
    "options", [{"key": "A"}, {"secret": "B"}, {"client_kwargs": {"aws_secret_access_key": "C"}}, {"token": "D"}]
)
def test_secrets_do_not_belong_into_the_configuration(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="does not belong into a file: set AWS_ACCESS_KEY_ID"):
        StorageConfig(url="s3://b/x", options=options)
    StorageConfig(url="gs://b/x", options={"token": "anon", "profile": "me", "endpoint_url": "http://127.0.0.1:9"})


class Said:
    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def test_a_store_that_ignores_conditions_is_noticed(s3: Bucket, tmp_path: Path) -> None:
    good, bad, said = open_store(f"{s3.url}/good", s3.options), open_store(f"{s3.url}/bad", s3.options), Said()
    for _ in range(2):
        check_writers(good, several=True, reporter=said)  # type: ignore[arg-type]
    check_writers(LocalStore(tmp_path), several=True, reporter=said)  # type: ignore[arg-type]
    s3.proxy.ignore_conditions = True
    with pytest.raises(
        UserError, match=r"ignores conditional writes .* two writers could overwrite each other"
    ) as caught:
        check_writers(bad, several=True, reporter=said)  # type: ignore[arg-type]
    assert "one process" in (caught.value.hint or "")
    for _ in range(2):
        check_writers(bad, several=False, reporter=said)  # type: ignore[arg-type]
    assert said.said == [f"{bad.location} ignores conditional writes: only this process may write there now"]
    assert good.names() == bad.names() == []
