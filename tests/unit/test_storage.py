"""Files that survive: atomic, durable, created once, with words for what the system refuses."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from unic_pipe.pipeline.storage import LocalStore, fast_hash, sha256, sha256_of_file, sync_folder
from unic_pipe.pipeline.storage.locks import exclusive
from unic_pipe.schemas.errors import StageError, UserError


@pytest.fixture
def store(tmp_path):
    return LocalStore(tmp_path / "root")


def python(code, *arguments, **options):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, **options)


def temporaries(store):
    folder = store.root / ".tmp"
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


def dead_process():
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_put_replaces_and_create_does_not(store):
    store.put("a/b/c", b"one")
    store.put("a/b/c", b"two")
    assert store.get("a/b/c") == b"two"
    assert not store.create("a/b/c", b"three")
    assert store.create("a/d", b"four")
    assert (store.get("a/b/c"), store.get("a/d")) == (b"two", b"four")
    assert temporaries(store) == []


def test_keys_are_sorted_and_leave_temporary_files_out(store):
    for key in ("b/2", "b/1", "a", "c/x/y"):
        store.put(key, b"-")
    (store.root / ".tmp" / "left").write_bytes(b"-")
    assert list(store.keys()) == ["a", "b/1", "b/2", "c/x/y"]
    assert list(store.keys("b")) == ["b/1", "b/2"]
    assert list(store.keys("nothing")) == []


def test_what_is_not_there(store):
    assert store.size("a") is None
    store.put("a", b"123")
    assert store.size("a") == 3
    assert store.size("a/b") is None
    store.delete("a")
    store.delete("a")
    with pytest.raises(FileNotFoundError):
        store.get("a")


def test_exactly_one_of_many_creators_wins(store):
    barrier, won = threading.Barrier(8), []

    def create(number):
        barrier.wait()
        if store.create("x/record", bytes([number]) * 1000):
            won.append(number)

    threads = [threading.Thread(target=create, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.get("x/record") == bytes(won) * 1000
    assert temporaries(store) == []


def test_bytes_and_folders_are_flushed_before_the_file_appears(store, monkeypatch):
    store.put("x/old", b"-")
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, name=name: (calls.append(name), real(*a))[1])
    store.put("x/new", b"-")
    assert calls == ["fsync", "replace", "fsync"]


KILLED = """
import os, signal, sys
from unic_pipe.pipeline.storage import LocalStore
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
name, action, root = sys.argv[1:]
setattr(os, name, die)
getattr(LocalStore(root), action)("a/b", b"new" * 1000)
"""


@pytest.mark.parametrize(
    ("name", "action"), [("fsync", "put"), ("replace", "put"), ("fsync", "create"), ("link", "create")]
)
def test_a_kill_in_the_middle_leaves_the_old_file_and_a_sweepable_rest(store, name, action):
    if action == "put":
        store.put("a/b", b"old")
    (store.root / "a").mkdir(parents=True, exist_ok=True)
    (store.root / ".tmp").mkdir(exist_ok=True)
    assert python(KILLED, name, action, store.root).returncode == -signal.SIGKILL
    assert list(store.keys()) == (["a/b"] if action == "put" else [])
    if action == "put":
        assert store.get("a/b") == b"old"
    assert len(temporaries(store)) == 1
    store.sweep()
    assert temporaries(store) == []


def test_a_reader_never_sees_half_a_file(store):
    """Written over and over by a process that is killed at some moment."""
    code = (
        "import sys; from unic_pipe.pipeline.storage import LocalStore; s = LocalStore(sys.argv[1]); n = 0\n"
        "while True: s.put('x', bytes([n % 256]) * 200_000); n += 1"
    )
    store.put("x", b"a" * 200_000)
    with subprocess.Popen([sys.executable, "-c", code, str(store.root)]) as writer:
        try:
            until = time.monotonic() + 10
            while time.monotonic() < until and store.get("x")[0] in b"a":
                pass
            for _ in range(100):
                raw = store.get("x")
                assert len(raw) == 200_000
                assert len(set(raw)) == 1
        finally:
            writer.kill()
    raw = store.get("x")
    assert (len(raw), len(set(raw))) == (200_000, 1)


def test_sweep_removes_what_dead_processes_left_and_nothing_else(store):
    store.put("a", b"-")
    folder, host = store.root / ".tmp", socket.gethostname()
    names = {
        "dead": f"{host}@{dead_process()}-0",
        "live": f"{host}@{os.getpid()}-0",
        "elsewhere": "another.host@1-0",
        "old": "another.host@2-0",
        "lock": "records.lock",
    }
    for name in names.values():
        (folder / name).write_bytes(b"-")
    os.utime(folder / names["old"], (time.time() - 90_000,) * 2)
    store.sweep()
    assert temporaries(store) == sorted(names[n] for n in ("live", "elsewhere", "lock"))
    LocalStore(store.root / "nothing").sweep()


TOO_LARGE = """
import resource, signal, sys
from unic_pipe.pipeline.storage import LocalStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try: LocalStore(sys.argv[1]).put("x", b"-" * 5000)
except Exception as error: print(type(error).__name__, error)
"""


def test_a_write_that_the_system_cuts_off_is_a_stage_error_and_leaves_nothing(store):
    store.put("x", b"old")
    said = python(TOO_LARGE, store.root).stdout
    assert said.startswith(f"StageError File size limit reached: could not write 5,000 bytes to {store.root}/x.")
    assert "Finished work is kept." in said
    assert store.get("x") == b"old"
    assert temporaries(store) == []


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "Disk full"), (errno.EDQUOT, "Disk quota used up")])
@pytest.mark.parametrize("action", ["put", "create"])
def test_a_full_disk_is_a_stage_error_with_the_next_step(store, monkeypatch, number, words, action):
    store.put("a/x", b"old")

    def full(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StageError, match=f"{words}: could not write 1,234 bytes to {store.root}/a/y") as caught:
        getattr(store, action)("a/y", b"-" * 1234)
    assert caught.value.hint == "Finished work is kept. Free some space and run the same command again."
    assert list(store.keys()) == ["a/x"]
    assert temporaries(store) == []


@pytest.mark.parametrize("action", ["put", "create"])
def test_a_read_only_folder_is_the_user_s_error(store, action):
    store.put("a/x", b"old")
    (store.root / "a").chmod(0o500)
    if os.access(store.root / "a", os.W_OK):
        pytest.skip("this user (root) may write everywhere")
    try:
        with pytest.raises(UserError, match=r"(?s)Cannot write .*a/y: Permission denied.*--config FOLDER"):
            getattr(store, action)("a/y", b"-")
    finally:
        (store.root / "a").chmod(0o700)
    assert temporaries(store) == []


def test_a_refused_write_is_the_user_s_error(store, monkeypatch):
    """As above, also where tests run as root: the refusal comes from a read-only file system."""

    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=r"(?s)Cannot write .*/x: Read-only file system.*Choose a working folder"):
        store.put("x", b"-")
    assert temporaries(store) == []


def test_a_file_where_a_folder_is_needed_stays_a_plain_error(store):
    store.put("a", b"-")
    with pytest.raises(OSError, match="a"):
        store.put("a/b", b"-")
    assert temporaries(store) == []


def test_a_file_system_that_cannot_sync_folders_is_good_enough(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    sync_folder(tmp_path)


def test_hashes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert sha256_of_file(tmp_path / "x") == sha256(b"abc" * 100_000)
    assert sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert fast_hash(b"") == "99aa06d3014798d86001c324468d497f"


HOLDER = """
import sys, time
from pathlib import Path
from unic_pipe.pipeline.storage.locks import exclusive
with exclusive(Path(sys.argv[1]), "Distillation"): print("held", flush=True); time.sleep(60)
"""


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path):
    lock = tmp_path / "runs" / "x.lock"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            expected = f"Distillation of main is running already \\(process {holder.pid} on {socket.gethostname()}\\)"
            with pytest.raises(StageError, match=expected), exclusive(lock, "Distillation of main"):
                pass
        finally:
            holder.kill()
    with exclusive(lock, "Distillation of main"):
        assert lock.read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    with exclusive(lock, "Distillation of main"):
        pass
