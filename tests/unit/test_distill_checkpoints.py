"""Checkpoints: equal states give equal bytes, and nothing damaged, replaced or foreign is ever loaded."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
import torch

from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.schemas.errors import StageError
from unic_pipe.schemas.students import CheckpointEntry
from unic_pipe.stages.distill.checkpoints import Checkpoints

STUDENT, ROWS = "a" * 64, "b" * 64


def state(value: float) -> dict[str, object]:
    return {"weights": torch.full((100,), value), "nested": {"list": [torch.ones(2), 3]}}


class Shelf:
    """Checkpoints of steps 10, 20 and 30, and the warnings that loading gives."""

    def __init__(self, root: Path, keep: int = 3) -> None:
        self.root, self.warnings = root, list[str]()
        self.checkpoints = Checkpoints(LocalStore(root), STUDENT, ROWS, keep, self.warnings.append)
        for step in (10, 20, 30):
            self.save(step)

    def save(self, step: int) -> None:
        self.checkpoints.save(step, state(step))
        self.checkpoints.settle()

    def file(self, step: int) -> Path:
        return self.root / f"checkpoints/step-{step:08d}.pt"

    def loaded(self) -> int | None:
        """The step loaded; its content must belong to it."""
        found = self.checkpoints.load()
        if found is None:
            return None
        step, content = found
        assert torch.equal(content["weights"], torch.full((100,), float(step)))
        return step


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def test_newest_is_loaded(shelf: Shelf) -> None:
    assert shelf.loaded() == 30
    assert shelf.warnings == []
    latest = CheckpointEntry.from_bytes((shelf.root / "latest.json").read_bytes(), "latest")
    assert (latest.step, latest.size, latest.student) == (30, shelf.file(30).stat().st_size, STUDENT)


def test_equal_states_give_equal_bytes(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = Shelf(tmp_path_factory.mktemp("other"))
    assert shelf.file(30).read_bytes() == other.file(30).read_bytes()


def test_only_the_last_are_kept(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path, keep=2)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == [
        f"step-{step:08d}.{kind}" for step in (20, 30) for kind in ("json", "pt")
    ]
    assert shelf.loaded() == 30


@pytest.mark.parametrize("position", [0, 70, -1])
def test_a_flipped_byte_goes_back_one(shelf: Shelf, position: int) -> None:
    raw = bytearray(shelf.file(30).read_bytes())
    raw[position] ^= 1
    shelf.file(30).write_bytes(raw)
    assert shelf.loaded() == 20
    assert "step-00000030.pt is damaged" in shelf.warnings[0]


@pytest.mark.parametrize("damage", ["cut", "empty", "replaced", "gone"])
def test_a_wrong_file_goes_back_one(shelf: Shelf, damage: str) -> None:
    file = shelf.file(30)
    content = {"cut": file.read_bytes()[:-100], "empty": b"", "replaced": shelf.file(10).read_bytes(), "gone": None}
    if content[damage] is None:
        file.unlink()
    else:
        file.write_bytes(content[damage])
    assert shelf.loaded() == 20
    assert "step-00000030.pt" in shelf.warnings[0]


def test_entries_may_be_damaged_too(shelf: Shelf) -> None:
    (shelf.root / "latest.json").write_bytes(b"{")
    assert shelf.loaded() == 30
    shelf.file(30).with_suffix(".json").unlink()
    assert shelf.loaded() == 20


def test_nothing_left_starts_over_and_says_so(shelf: Shelf) -> None:
    for step in (10, 20, 30):
        shelf.file(step).write_bytes(b"x")
    assert shelf.loaded() is None
    assert "starts from the beginning" in shelf.warnings[-1]


def test_saving_after_going_back_forgets_the_damaged_future(shelf: Shelf) -> None:
    shelf.file(30).write_bytes(b"x")
    assert shelf.loaded() == 20
    shelf.save(25)
    assert shelf.loaded() == 25
    assert not shelf.file(30).exists()


@pytest.mark.parametrize(("student", "rows", "word"), [("c" * 64, ROWS, "student"), (STUDENT, "d" * 64, "rows")])
def test_checkpoints_of_others_are_refused(shelf: Shelf, student: str, rows: str, word: str) -> None:
    stranger = Checkpoints(LocalStore(shelf.root), student, rows, 3, shelf.warnings.append)
    with pytest.raises(StageError, match=word):
        stranger.load()


def test_a_foreign_file_under_an_edited_entry_is_refused(
    shelf: Shelf, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The file itself says whose it is, whatever the entry claims."""
    folder = tmp_path_factory.mktemp("other")
    stranger = Checkpoints(LocalStore(folder), "c" * 64, ROWS, 3, print)
    stranger.save(40, state(40))
    stranger.settle()
    entry = CheckpointEntry.from_bytes((folder / "latest.json").read_bytes(), "latest")
    shelf.file(40).write_bytes((folder / entry.file).read_bytes())
    (shelf.root / "latest.json").write_bytes(entry.model_copy(update={"student": STUDENT}).to_bytes())
    with pytest.raises(StageError, match="other student"):
        shelf.loaded()


def test_training_goes_on_while_it_is_written(shelf: Shelf) -> None:
    """What is saved is the state at that moment, however late it is written."""
    begun, go = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert go.wait(30)

    changing = state(40.0)
    shelf.checkpoints.save(40, changing, slow)
    assert begun.wait(30)
    assert shelf.loaded() == 30, "the pointer moves after the checkpoint is durable"
    weights = changing["weights"]
    assert isinstance(weights, torch.Tensor)
    weights.zero_()
    go.set()
    shelf.checkpoints.settle()
    assert shelf.loaded() == 40


def test_an_error_of_the_writer_surfaces(shelf: Shelf) -> None:
    shutil.rmtree(shelf.root / "checkpoints")
    (shelf.root / "checkpoints").write_text("in the way")
    shelf.checkpoints.save(40, state(40))
    with pytest.raises(OSError, match="checkpoints"):
        shelf.save(50)
    shelf.checkpoints.settle()
