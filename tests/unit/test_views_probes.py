"""Probes (R7): silent when equal, one line for rounding, a stop for anything else."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unic_pipe.pipeline.views.probes as probes_module
from unic_pipe.pipeline.storage import LocalStore, sha256
from unic_pipe.pipeline.views.probes import check_probes, read_probes, write_probes
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.schemas.recipes import GENTLE, UNIC
from unic_pipe.schemas.views import ProbesDocument

SIZE = 48


@pytest.fixture(scope="module")
def images() -> list[tuple[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return [(f"n01/img {i}é", rng.integers(0, 256, (40 + i, 50, 3), np.uint8)) for i in range(4)]


@pytest.fixture
def store(tmp_path: Path, images) -> LocalStore:
    store = LocalStore(tmp_path / "features")
    write_probes(store, UNIC, 3, 0, SIZE, images)
    return store


def contents(store: LocalStore) -> dict[str, bytes]:
    return {key: store.get(key) for key in sorted(store.keys())}


def redraw(store: LocalStore, index: int, change) -> str:
    """Make the features' past different: change a kept picture, and the document with it. Returns the probe's key."""
    document = read_probes(store, 0)
    assert document is not None
    probe = document.probes[index]
    with Image.open(io.BytesIO(store.get(probe.file))) as picture:
        pixels = np.array(picture).astype(np.int16)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(change(pixels), 0, 255).astype(np.uint8)).save(buffer, "PNG")
    store.put(probe.file, buffer.getvalue())
    changed = probe.model_copy(update={"png": sha256(buffer.getvalue())})
    probes = tuple(changed if p is probe else p for p in document.probes)
    store.put("probes/view-000.json", document.model_copy(update={"probes": probes}).to_bytes())
    return probe.key


def one_value(by: int):
    """Change one value of a picture by so many 255ths, away from the nearer end."""

    def change(pixels: np.ndarray) -> np.ndarray:
        pixels[5, 6, 1] += by if pixels[5, 6, 1] < 128 else -by
        return pixels

    return change


def inward(pixels: np.ndarray) -> np.ndarray:
    """Change a tenth of all values by one."""
    values = pixels.reshape(-1)
    values[::10] += np.where(values[::10] < 128, 1, -1).astype(np.int16)
    return pixels


def test_equal_is_silent(store, images):
    assert check_probes(store, UNIC, 3, 0, SIZE, images) is None
    # Further samples and another order do not matter.
    assert check_probes(store, UNIC, 3, 0, SIZE, [("more", images[0][1]), *reversed(images)]) is None


def test_what_is_written(store, images, tmp_path):
    names = sorted(store.keys())
    assert len(names) == 5
    assert names[-1] == "probes/view-000.json"
    assert all(name.startswith("probes/view-000-") and name.endswith(".png") for name in names[:-1])
    document = read_probes(store, 0)
    assert document == ProbesDocument.from_bytes(store.get("probes/view-000.json"), "x")
    assert [p.key for p in document.probes] == [key for key, _ in images]
    again = LocalStore(tmp_path / "again")
    write_probes(again, UNIC, 3, 0, SIZE, images)
    assert contents(again) == contents(store)


def test_written_once(store, images):
    before = contents(store)
    write_probes(store, UNIC, 3, 0, SIZE, [(key, image[::-1].copy()) for key, image in images])
    assert contents(store) == before


def test_a_killed_write_is_finished_with_the_same_bytes(store, images):
    before = contents(store)
    store.delete("probes/view-000.json")
    first = next(iter(before))
    store.put(first, before[first][:100])
    write_probes(store, UNIC, 3, 0, SIZE, images)
    assert contents(store) == before


def test_a_twin_whose_rounding_differs_wins_with_its_picture(store, images):
    """Two hosts write at once: the one that comes second adopts the first one's pictures."""
    redraw(store, 0, one_value(by=1))
    before = contents(store)
    store.delete("probes/view-000.json")
    write_probes(store, UNIC, 3, 0, SIZE, images)
    assert contents(store) == before


@pytest.mark.parametrize("by", [1, 2])
def test_rounding_is_one_line(store, images, by):
    key = redraw(store, 1, one_value(by))
    remark = check_probes(store, UNIC, 3, 0, SIZE, images)
    assert remark is not None
    assert "\n" not in remark
    assert f"up to {by}/255" in remark
    assert repr(key) in remark
    assert "1 of 4" in remark


def test_more_than_rounding_stops(store, images):
    key = redraw(store, 2, one_value(by=3))
    with pytest.raises(StageError) as caught:
        check_probes(store, UNIC, 3, 0, SIZE, images)
    assert "View 0" in caught.value.message
    assert repr(key) in caught.value.message
    assert "up to 3/255" in caught.value.message
    assert "torchvision" in (caught.value.hint or "")
    assert "unic-pipe extract" in (caught.value.hint or "")


def test_small_differences_everywhere_stop(store, images):
    redraw(store, 0, inward)
    with pytest.raises(StageError, match=r"up to 1/255, 0\.1/255 on average"):
        check_probes(store, UNIC, 3, 0, SIZE, images)


def test_the_difference_that_stops_is_the_one_named(store, images):
    """Differences everywhere in one picture are not hidden behind a larger but harmless one in another."""
    key = redraw(store, 0, inward)
    redraw(store, 1, one_value(by=2))
    with pytest.raises(StageError) as caught:
        check_probes(store, UNIC, 3, 0, SIZE, images)
    assert "2 of 4" in caught.value.message
    assert repr(key) in caught.value.message


def test_other_parameters_stop_even_where_pixels_are_equal(store):
    """A flat picture looks the same in every box; its parameters still must be equal exactly."""
    flat = [("flat", np.full((40, 50, 3), 9, np.uint8))]
    write_probes(store, GENTLE, 0, 1, SIZE, flat)
    assert check_probes(store, GENTLE, 0, 1, SIZE, flat) is None
    with pytest.raises(StageError, match=r"View 1 of sample 'flat' has other parameters.*height was"):
        check_probes(store, GENTLE, 0, 1, SIZE, [("flat", np.full((60, 50, 3), 9, np.uint8))])


def test_another_recipe_seed_or_size_stops(store, images):
    for recipe, seed, size in [(GENTLE, 3, SIZE), (UNIC, 4, SIZE), (UNIC, 3, 32)]:
        with pytest.raises(StageError, match="another recipe, seed, view or size"):
            check_probes(store, recipe, seed, 0, size, images)


def test_an_unreadable_sample_stops(store, images):
    with pytest.raises(StageError, match="cannot be read any more"):
        check_probes(store, UNIC, 3, 0, SIZE, images[1:])


def test_a_flipped_byte_stops_and_is_repaired(store, images):
    before = contents(store)
    file = read_probes(store, 0).probes[2].file
    for position in (3, 60, len(before[file]) - 1):
        data = bytearray(before[file])
        data[position] ^= 1
        store.put(file, bytes(data))
        with pytest.raises(StageError, match=f"{file}.*is damaged"):
            check_probes(store, UNIC, 3, 0, SIZE, images)
        store.delete(file)
        with pytest.raises(StageError, match="is missing"):
            check_probes(store, UNIC, 3, 0, SIZE, images)
        write_probes(store, UNIC, 3, 0, SIZE, images)
        assert contents(store) == before


def test_a_picture_that_renders_differently_is_not_put_back(store, images):
    file = read_probes(store, 0).probes[0].file
    redraw(store, 0, one_value(by=9))
    store.delete(file)
    with pytest.raises(StageError, match="cannot be drawn again"):
        write_probes(store, UNIC, 3, 0, SIZE, images)
    assert store.size(file) is None


def test_missing_and_damaged_documents(store, images):
    raw = store.get("probes/view-000.json")
    for position in range(7, len(raw), len(raw) // 9):
        store.put("probes/view-000.json", raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :])
        with pytest.raises(UserError, match="view-000"):
            check_probes(store, UNIC, 3, 0, SIZE, images)
    store.delete("probes/view-000.json")
    write_probes(store, UNIC, 3, 0, SIZE, images)
    assert store.get("probes/view-000.json") == raw
    with pytest.raises(StageError, match="missing") as caught:
        check_probes(store, UNIC, 3, 1, SIZE, images)
    assert "unic-pipe verify" in (caught.value.hint or "")


def test_a_changed_renderer_is_noticed(store, images, monkeypatch):
    """The whole way: another library version that shifts hues is a stop, whichever picture it touches."""
    real = probes_module._render
    monkeypatch.setattr(probes_module, "_render", lambda *a: np.roll(real(*a), 1, axis=1))
    with pytest.raises(StageError, match="4 of 4 probe pictures differ"):
        check_probes(store, UNIC, 3, 0, SIZE, images)
