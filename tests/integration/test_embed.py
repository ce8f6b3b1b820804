"""`unic-pipe embed`: any encoder, any images, one file; and what a killed or mistaken run leaves."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from commands import Type
from PIL import Image
from safetensors.numpy import load_file

from unic_pipe import FeatureCache, load_encoder, load_student

SMALL = ("--image-size", "32")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 images in folders of two depths, more than a block of patch tokens; one of them is none."""
    folder = tmp_path_factory.mktemp("embed") / "photos"
    (folder / "a/b").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (69, 40, 48, 3), np.uint8)
    for number, image in enumerate(noise):
        Image.fromarray(image).save(folder / ("a/b" if number % 2 else "") / f"photo {number:02d}.png")
    (folder / "a/broken.jpg").write_bytes(b"no image")
    return folder


def read(path: Path) -> tuple[list[str], dict[str, np.ndarray], dict[str, Any]]:
    """Keys, features by token type, and what the file says of itself."""
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        about = json.loads(table.schema.metadata[b"unic_pipe"])
        tokens = {n: np.stack(table[n].to_numpy()) for n in table.column_names if n != "key"}
        return table["key"].to_pylist(), tokens, about
    if path.suffix == ".npz":
        found = dict(np.load(path))
        return found.pop("key").tolist(), found, json.loads(str(found.pop("unic_pipe")))
    found = load_file(path)
    length = int.from_bytes(path.read_bytes()[:8], "little")
    about = json.loads(json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]["unic_pipe"])
    return json.loads(found.pop("key").tobytes()), found, about


def test_every_format_holds_what_the_encoder_says(typed: Type, photos: Path, tmp_path: Path) -> None:
    for name in ("f.parquet", "f.npz", "f.safetensors"):
        said = typed(tmp_path, "embed", "lite0", str(photos), "-o", name, "--tokens", "both", *SMALL)
        assert said.code == 0, said.err
        assert "left out: a/broken.jpg: undecodable" in said.err
        assert "69 rows of cls 1280, patch 1 × 1280" in said.err
        assert "1 of 70 images are left out" in said.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.npz", "f.parquet", "f.safetensors"]
    files = [read(tmp_path / f"f.{kind}") for kind in ("parquet", "npz", "safetensors")]
    keys, tokens, about = files[0]
    assert keys == sorted(p.relative_to(photos).as_posix() for p in photos.rglob("*.png"))
    assert about["left_out"].keys() == {"a/broken.jpg"}
    encoder = load_encoder("lite0", image_size=32)
    x = torch.stack([encoder.transform(Image.open(photos / key)) for key in keys])
    cls, patch = encoder(x)
    for same, found, _ in files:
        assert same == keys
        np.testing.assert_allclose(found["cls"], cls.numpy(), rtol=1e-3, atol=2e-3)
        np.testing.assert_allclose(found["patch"].reshape(patch.shape), patch.numpy(), rtol=1e-3, atol=2e-3)
        assert np.array_equal(found["cls"], tokens["cls"])


def test_lists_tars_and_single_images(typed: Type, photos: Path, tmp_path: Path) -> None:
    """In the order of the list, and with the keys of the samples."""
    names = ["photo 04.png", "a/b/photo 01.png", str(photos / "photo 00.png")]
    (photos.parent / "list.txt").write_text("\n".join(names) + "\n")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in names[:2]:
            tar.add(photos / name, arcname=name)
    expected = {"list.txt": names, "x.tar": ["photo 04", "a/b/photo 01"], "photo 04.png": names[:1]}
    shutil.move(photos.parent / "list.txt", photos / "list.txt")
    found = {}
    for images, keys in expected.items():
        place = tmp_path if images == "x.tar" else photos
        assert typed(tmp_path, "embed", "lite0", str(place / images), "-o", f"{images}.npz", *SMALL).code == 0
        same, tokens, _ = read(tmp_path / f"{images}.npz")
        assert same == keys
        found[images] = tokens["cls"]
    assert np.array_equal(found["list.txt"][:2], found["x.tar"])
    assert np.array_equal(found["list.txt"][:1], found["photo 04.png"])
    (photos / "list.txt").unlink()


def test_names_of_the_working_folder_and_the_features_of_its_cache(typed: Type, trained: Any) -> None:
    for encoder, more in (("student:tiny", ()), ("lite0", ("--image-size", "64"))):
        said = typed(trained.folder, "embed", encoder, "data/val-*.tar", "-o", f"{encoder}.npz", *more)
        assert said.code == 0, said.err
    keys, tokens, _ = read(trained.folder / "lite0.npz")
    cache, data = FeatureCache.open(trained.folder / "features/val-lite0-center"), trained.dataset("val")
    cached = dict(zip(data.block_keys(0), cache.read_block(0, "cls", 0).values, strict=True))
    np.testing.assert_allclose(tokens["cls"], np.stack([cached[key] for key in keys]), rtol=1e-3, atol=1e-3)
    student = load_student(trained.folder / "students/tiny")
    images = [Image.open(io.BytesIO(data.read(row))) for row in range(12)]
    own = dict(zip(data.block_keys(0), student(torch.stack([student.transform(i) for i in images])).cls, strict=True))
    keys, tokens, about = read(trained.folder / "student:tiny.npz")
    assert about["licence"] == "Apache-2.0", "what follows from its teachers"
    np.testing.assert_allclose(tokens["cls"], np.stack([own[key] for key in keys]), rtol=2e-3, atol=2e-3)
    typed(trained.folder, "embed", "student:tinny", "data", "-o", "t.npz").refuses("'tinny'", "tiny")


def test_a_stopped_run_goes_on(typed: Type, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is there before all of it is; finished blocks are not made again."""
    from unic_pipe.pipeline.extraction import blocks, executors

    made, run_block = [], blocks.run_block

    def stopping(job: Any, task: Any, *more: Any) -> Any:
        made.append(task.block)
        found = run_block(job, task, *more)
        os.kill(os.getpid(), signal.SIGTERM)
        return found

    monkeypatch.setattr(executors, "run_block", stopping)
    monkeypatch.setattr(executors, "blocks_in_flight", lambda *_: 1)
    command = ("embed", "lite0", str(photos), "-o", "p.npz", "--tokens", "patch", *SMALL)
    said = typed(tmp_path, *command)
    assert (said.code, made) == (0, [0])
    assert "the same command goes on" in said.err
    assert not (tmp_path / "p.npz").exists()
    monkeypatch.setattr(executors, "run_block", lambda *a: (made.append(a[1].block), run_block(*a))[1])
    assert typed(tmp_path, *command).code == 0
    assert made == [0, 1]
    assert read(tmp_path / "p.npz")[1]["patch"].shape == (69, 1, 1280)
    assert [path.name for path in tmp_path.iterdir()] == ["p.npz"]


def test_mistakes(typed: Type, photos: Path, tmp_path: Path) -> None:
    def refused(
        *words: str, encoder: str = "lite0", images: str = str(photos), out: str = "f.npz", more: Any = ()
    ) -> None:
        typed(tmp_path, "embed", encoder, images, "-o", out, *more).refuses(*words)

    refused("f.csv", ".parquet, .npz, .safetensors", out="f.csv")
    refused("gone is no folder", "mkdir -p gone", out="gone/f.npz")
    refused("no such file or folder", images="gone")
    refused("nothing found for source 'gone-*.tar'", "a folder of images, tars", images="gone-*.tar")
    (tmp_path / "x.tar.gz").write_bytes(b"")
    refused("x.tar.gz is compressed", "gunzip -k x.tar.gz", images="x.tar*")
    refused("--tokens map", "cls, patch or both", more=("--tokens", "map"))
    refused("student:tiny", "unic-pipe.yaml", encoder="student:tiny")
    refused("Add --fetch", encoder="dino")
    (tmp_path / "f.npz").write_text("mine")
    refused("f.npz exists", "--overwrite")
    (tmp_path / "empty").mkdir()
    refused("holds no image", "a folder of images, tars", images="empty", out="g.npz")
    (tmp_path / "list.txt").write_text("one.png\n\none.png\n")
    refused("2 of its 2 lines name no file (first: line 1, 'one.png')", images="list.txt", more=("--overwrite",))
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    refused("named twice, in lines 1 and 3", images="list.txt", more=("--overwrite",))
    (tmp_path / "one.png").write_text("none")
    (tmp_path / "list.txt").write_text("one.png\n")
    refused("None of the 1 images has features", "one.png", images="list.txt", more=("--overwrite", *SMALL))
    assert (tmp_path / "f.npz").read_text() == "mine"
