"""Parts of a job array, the pieces of a block, and what is said about waiting."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unic_pipe.cli.running import Where
from unic_pipe.pipeline.extraction.bottleneck import Waits
from unic_pipe.pipeline.extraction.executors import Threads
from unic_pipe.pipeline.extraction.forward import STAGES
from unic_pipe.pipeline.extraction.parts import Part, parse_part, part_of, parts_missing
from unic_pipe.pipeline.process.crew import blocks_in_flight, crew_of, crew_of_one, results
from unic_pipe.pipeline.process.memory import _libc, freed_memory_kept, give_freed_memory_back
from unic_pipe.pipeline.process.stopwatch import Stopwatch
from unic_pipe.pipeline.process.threads import torch_threads
from unic_pipe.schemas.errors import StageError, UserError


@pytest.mark.parametrize(("text", "part"), [("1/1", Part(1, 1)), ("3/8", Part(3, 8)), (" 8 / 8 ", Part(8, 8))])
def test_parts_are_counted_from_one(text, part):
    assert parse_part(text) == part


@pytest.mark.parametrize("text", ["0/4", "5/4", "x", "", "1", "1/0", "0/0", "-1/4", "1/4/2", "1.5/4", "1/x"])
def test_other_parts_are_refused_with_an_example(text):
    with pytest.raises(UserError, match="--part") as caught:
        parse_part(text)
    assert "--part 1/" in str(caught.value.hint)


@given(blocks=st.integers(0, 200), parts=st.integers(1, 20))
def test_every_block_belongs_to_one_part(blocks, parts):
    owners = [[n for n in range(1, parts + 1) if Part(n, parts).has(block)] for block in range(blocks)]
    assert owners == [[part_of(block, parts)] for block in range(blocks)]


def test_missing_parts_are_written_as_people_write_them():
    assert parts_missing([0, 8, 1, 2, 5, 7], 8) == "1-3, 6, 8"
    assert parts_missing([0, 1, 3], 4) == "1, 2, 4"


def test_workers_and_a_scheduler_exclude_each_other():
    with pytest.raises(UserError, match="--scheduler"):
        Where(workers=2, scheduler="tcp://localhost:8786")
    with pytest.raises(UserError, match="--part"):
        Where(part="5/4")


@pytest.mark.parametrize(
    ("cores", "rows", "batch", "blocks"), [(1, 256, 64, 3), (2, 256, 64, 3), (64, 256, 64, 18), (2, 16, 64, 4)]
)
def test_few_blocks_are_in_flight_and_yet_every_core_has_a_batch(cores, rows, batch, blocks):
    assert blocks_in_flight("cpu", cores, rows, batch) == blocks
    assert blocks * -(-rows // batch) >= cores + -(-rows // batch)
    assert blocks_in_flight("cuda", cores, rows, batch) == 3


def test_after_a_failure_no_piece_is_running():
    def fail():
        raise StageError("no")

    hold, running = threading.Event(), []

    def slow():
        running.append(1)
        hold.wait(5)
        running.pop()

    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(fail), pool.submit(slow), *(pool.submit(slow) for _ in range(5))]
        threading.Timer(0.1, hold.set).start()
        with pytest.raises(StageError):
            results(futures)
        assert not running


def test_threads_of_torch_inside_a_piece_leave_fewer_pieces_at_once():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    crew = crew_of(4, 2, False)
    assert crew.width == 2
    assert {crew.start(torch.get_num_threads).result() for _ in range(4)} == {2}
    assert torch.get_num_threads() == before
    assert crew_of(4, 2, False) is crew


def test_a_crew_of_one_works_in_the_callers_thread_and_leaves_torch_as_it_was():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    with crew_of_one(before + 1) as crew:
        places = results([crew.start(threading.get_ident), crew.start_writing(threading.get_ident)])
        assert places == [threading.get_ident()] * 2
        assert crew.start(torch.get_num_threads).result() == before + 1
    assert torch.get_num_threads() == before
    with torch_threads(before + 1, "cuda"):
        assert torch.get_num_threads() == before, "another device does the work"


@pytest.mark.skipif(_libc() is None, reason="glibc's malloc")
def test_a_step_finds_the_memory_of_the_one_before_and_gives_it_back_at_the_end():
    torch = pytest.importorskip("torch")
    resource = pytest.importorskip("resource")
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if huge.exists() and "[always]" in huge.read_text():
        pytest.skip("a fault is of many pages")

    def new_pages():
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
        kept = [torch.ones(20 << 18) for _ in range(6)]
        assert len(kept) == 6
        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before

    give_freed_memory_back()
    few = (120 << 20) // resource.getpagesize() / 10
    with freed_memory_kept():
        with freed_memory_kept():
            new_pages()
        # Where a heap is in pieces, a few rounds pass until there is room for all of them.
        assert min(new_pages() for _ in range(8)) < few
    assert new_pages() > few, "they were given back"


THREADS = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from unic_pipe.pipeline.process.memory import keep_freed_memory, share_one_heap
if sys.argv[1] == "one":
    share_one_heap()
keep_freed_memory()
import numpy as np
together = Barrier(3)
def work(_):
    together.wait()
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    for _ in range(20):
        kept = [np.ones(3 << 20) for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before
with ThreadPoolExecutor(3) as pool:
    list(pool.map(work, range(3)))
    print(sum(pool.map(work, range(3))))
"""


@pytest.mark.skipif(_libc() is None, reason="glibc's malloc")
def test_threads_with_one_heap_find_what_others_have_freed():
    pytest.importorskip("resource")
    huge = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if huge.exists() and "[always]" in huge.read_text():
        pytest.skip("a fault is of many pages")
    faults = {
        heaps: int(subprocess.run([sys.executable, "-c", THREADS, heaps], check=True, stdout=subprocess.PIPE).stdout)
        for heaps in ("one", "own")
    }
    assert faults["one"] < faults["own"] / 4


def test_a_stopwatch_times_what_it_is_asked_to():
    watch = Stopwatch(names=("render",))
    for name in ("render", "decode", "render"):
        with watch.time(name):
            pass
    assert (watch.pieces(), watch.times("decode"), watch.seconds.keys()) == (("render",), False, {"render"})
    watch.begin()
    watch.begin()
    assert len(watch.laps) == 2, "an empty repetition is not counted"


class TestWaits:
    def seconds(self, **given):
        return dict.fromkeys(STAGES, 0.0) | given

    def test_a_cpu_waits_for_nothing(self):
        waits = Waits("cpu", Threads())
        assert waits.note() == ""
        waits.add(self.seconds(views=1.0, device=2.0, write=1.0))
        assert waits.note() == "views 25%, forward 50%, write 25%"
        assert waits.remark() is None

    @pytest.mark.parametrize(
        ("seconds", "word"),
        [
            ({"views": 9e9, "device": 1e-9}, "rendering"),
            ({"write": 9e9}, "writing"),
            ({"views": 1e-9}, "--nthreads 3"),
        ],
    )
    def test_a_waiting_device_is_reported_with_the_bottleneck(self, seconds, word):
        waits = Waits("cuda", Threads())
        waits.add(self.seconds(**seconds))
        assert "device waits 100%" in waits.note()
        assert word in waits.remark()

    def test_a_busy_device_is_not(self):
        waits = Waits("cuda", Threads())
        waits.add(self.seconds(device=9e9, queue=9e9))
        assert waits.remark() is None
