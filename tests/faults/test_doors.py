"""Whatever comes in from outside ends as data or as an error in plain words, within seconds and little memory.

A seeded mutator hands 2,500 damaged and foreign inputs to the doors: 420 weights files, 240 files of text embeddings, 240
tables, 500 configurations, 320 tars, 300 lists of labels, 320 images and 160 documents.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import pickle
import resource
import struct
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from unic_pipe.pipeline.cache.tables import (
    DamagedTable,
    read_core,
    read_sealed,
    read_table,
    sealed_parquet,
    sealed_table,
)
from unic_pipe.pipeline.encoders import load_encoder, resolve_encoder
from unic_pipe.pipeline.encoders.texts import read_texts
from unic_pipe.pipeline.samples import open_dataset
from unic_pipe.pipeline.samples.images import UndecodableImage, decode_image
from unic_pipe.pipeline.samples.labels import read_labels
from unic_pipe.pipeline.samples.shards import scan_tar
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.workspace.configuration import load_workspace
from unic_pipe.schemas.base import seal
from unic_pipe.schemas.config import EncoderConfig
from unic_pipe.schemas.errors import UnicPipeError
from unic_pipe.schemas.samples import DatasetManifest

ARCHITECTURE = "vit_tiny_patch16_224"
SMALL: dict[str, Any] = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
SECONDS = 5.0
"""That one input may take: thousands of times what most take, for the sake of busy machines."""
MOST_BYTES = 1 << 30
"""By which all inputs together may raise the memory of the process."""
FOREIGN = (
    b"", b"\0", b"\0" * 4096, b"PK\x03\x04", b"\x80\x02.", b"PAR1", b"PAR1" * 20, b"\x93NUMPY", b"{}", b"[" * 5000,
    b'{"a":' * 5000, b"<!DOCTYPE html><html>404</html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    b"\xff" * 600, b"\xff\xfe\x00\xd8", b"MATLAB 5.0", b"%PDF-1.4", b"\x1f\x8b\x08\x00",
)  # fmt: skip
"""What lies where something else was expected: empty and cut-off downloads, error pages, pointers, other formats."""


def mutated(raw: bytes, random: np.random.Generator) -> bytes:
    """The bytes with one to four changes: bits, cuts, insertions, doubled pieces, extreme numbers, zeros."""
    data = bytearray(raw)
    for _ in range(int(random.integers(1, 5))):
        place, length = int(random.integers(len(data) + 1)), int(2 ** random.uniform(0, 8))
        match int(random.integers(8)):
            case 0 | 1 if data:
                data[place % len(data)] ^= 1 << int(random.integers(8))
            case 2:
                del data[place:]
            case 3:
                del data[place : place + length]
            case 4:
                data[place:place] = random.bytes(length)
            case 5:
                data[place:place] = data[place : place + length]
            case 6:
                data[place : place + 8] = (2 ** int(random.integers(64)) - 1).to_bytes(8, "little")
            case _:
                data[place : place + length] = bytes(min(length, max(0, len(data) - place)))
    return bytes(data)


@dataclass
class Door:
    """What takes one input, and what it may raise beside errors in plain words."""

    take: Callable[[bytes], object]
    refusal: type[Exception] = UnicPipeError

    def fuzz(self, seeds: list[bytes], count: int, change: Callable[..., bytes] = mutated) -> collections.Counter[str]:
        """Seeds as they are, foreign bytes, then mutants of the seeds; how many were taken and refused, in all `count`."""
        random, said = np.random.default_rng(len(seeds) * count), collections.Counter[str]()
        inputs = [*seeds, *FOREIGN]
        inputs += [change(seeds[number % len(seeds)], random) for number in range(count - len(inputs))]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for number, data in enumerate(inputs):
            started = time.monotonic()
            try:
                self.take(data)
                said["taken"] += 1
            except self.refusal as error:
                said["refused"] += 1
                message = error.message if isinstance(error, UnicPipeError) else str(error)
                assert message, number
                assert len(message.splitlines()) <= 210, message
            except Exception as error:
                raise AssertionError(f"input {number}: {data[:200]!r}… raised {error!r}") from error
            assert time.monotonic() - started < SECONDS, f"input {number}: {data[:200]!r}…"
        assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MOST_BYTES
        assert sum(said.values()) == count
        return said


def writing(path: Path, take: Callable[[Path], object]) -> Callable[[bytes], object]:
    """A door that reads a file."""

    def through(data: bytes) -> object:
        path.write_bytes(data)
        return take(path)

    return through


class Elsewhere:
    """Wants to run something when it is unpickled."""

    def __reduce__(self) -> Any:
        return print, ("executed",)


def saved(content: object, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **how)
    return buffer.getvalue()


def hostile_contents(state: dict[str, torch.Tensor]) -> Iterator[object]:
    """What files of weights may hold beside weights."""
    first = next(iter(state))
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"state_dict": deep}
    circle: dict[str, Any] = {}
    circle["model"] = circle
    yield from (None, [], 3, "x", state[first], {}, deep, circle, {1: 2}, {None: state[first]}, {"model": None})
    yield from ({"model": 3}, {"state_dict": {"a": 1}}, {"args": argparse.Namespace(x=1), "model": state})
    yield {"model": {("a", 1): state[first]}}
    for value in (
        torch.zeros(()), torch.zeros(0), torch.full(state[first].shape, float("nan")), state[first].to(torch.complex64),
        state[first].to(torch.bool), state[first].to_sparse(), torch.empty(state[first].shape, device="meta"),
        state[first].double(), torch.nn.Parameter(state[first]), "text", None, [1, 2],
    ):  # fmt: skip
        yield {**state, first: value}
    yield {key: tensor[:1] for key, tensor in state.items()}
    yield {f"module.encoder.{key}": tensor for key, tensor in state.items()}
    yield {"model": {f"encoder.{key}": tensor for key, tensor in state.items()}, "teacher_ft_stats": 3, "args": {}}


def test_weights(tmp_path: Path) -> None:
    model = timm.create_model(ARCHITECTURE, num_classes=0, img_size=32, **SMALL)
    state = model.state_dict()
    config = {"architecture": ARCHITECTURE, "image_size": 32, "model_args": SMALL}

    def door(name: str) -> Door:
        def load(path: Path) -> object:
            settings = EncoderConfig(encoder=f"checkpoint:{path}", **config)
            return load_encoder(resolve_encoder("x", settings, tmp_path, None))

        return Door(writing(tmp_path / name, load))

    pickles = [saved(content) for content in (state, {"state_dict": state}, *hostile_contents(state))]
    pickles += [saved(state, _use_new_zipfile_serialization=False), pickle.dumps(state), pickle.dumps(Elsewhere())]
    said = door("x.pth").fuzz(pickles, 280)
    assert said["taken"] >= 5
    tensors = [{}, state, {"a": torch.zeros(2)}, {**state, "norm.bias": state["norm.bias"].to(torch.float8_e4m3fn)}]
    said = door("x.safetensors").fuzz([safetensors.torch.save(content) for content in tensors], 140)
    assert said["taken"] >= 1


def test_text_embeddings(tmp_path: Path) -> None:
    x_CF, names = np.ones((3, 4), np.float32), np.array(["a", "b", "c"])
    packed = []
    for arrays in (
        {"embeddings": x_CF, "names": names}, {"embeddings": x_CF}, {"embeddings": np.ones(()), "names": names},
        {"embeddings": x_CF.astype(str), "names": names}, {"embeddings": x_CF, "names": np.array("a")},
        {"embeddings": x_CF.astype(object), "names": names}, {"embeddings": x_CF.astype("M8[s]"), "names": names},
    ):  # fmt: skip
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        packed.append(buffer.getvalue())
    bomb, single = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("names.npy", bytes(1 << 20))
    large = bomb.getvalue().replace(struct.pack("<I", 1 << 20), struct.pack("<I", 1 << 31))
    np.save(single, x_CF)
    said = Door(writing(tmp_path / "x.npz", read_texts)).fuzz([*packed, single.getvalue(), large], 140)
    assert said["taken"] >= 1
    listed = {"names": json.dumps(names.tolist())}
    files = [
        safetensors.torch.save({"embeddings": torch.ones(3, 4)}, metadata)
        for metadata in (listed, None, {"names": "["}, {"names": "3"}, {"names": "[" * 5000})
    ]
    said = Door(writing(tmp_path / "x.safetensors", read_texts)).fuzz(files, 100)
    assert said["taken"] >= 1


def test_tables(raw: Any, tmp_path: Path) -> None:
    raw.index()
    index = (raw.folder / "samples" / "train").resolve()
    segment = index / "segment-000.parquet"

    def rows(path: Path) -> object:
        dataset = open_dataset(index, [raw.folder])
        return dataset.check(), dataset.labels(), path

    said = Door(writing(segment, rows)).fuzz([segment.read_bytes()], 120)
    assert said["taken"] >= 1
    table = pa.table({"name": ["a", "b", "a"], "value": [0.5, None, 0.25]})
    payload = pa.table({"block": [0, 1], "statistics": [b"a" * 99, b"b" * 99]})
    whole = Door(lambda data: read_table(data, "results.parquet", "unic-pipe evaluate", sealed=True))
    assert whole.fuzz([sealed_table(table)], 60)["refused"] > 50
    store = LocalStore(tmp_path)

    def core(data: bytes) -> object:
        store.put("x.parquet", data)
        return read_core(store, "x.parquet", ["block"]), read_sealed(data)

    assert Door(core, DamagedTable).fuzz([sealed_parquet(payload, "statistics")], 60)["refused"] > 50


YAML_PIECES = (
    "&a ", "*a ", "&b [*b, *b]\n", "!!python/object/apply:os.system [true]", "? [a, b] : c\n", "<<: *a\n", "{", "}", "[", "]",
    ": ", "- ", "|\n", ">\n", "# ", '"', "'", "\t", "\n", "\0", "\x85", "\ufeff", "\ud800".encode("utf-8", "replace").decode(),
    "null", "~", ".inf", "-.nan", "1e999", "9" * 40, "9" * 5000, "0x" + "f" * 99, "-1", "2001-99-99", "2001-01-01T99:99:99Z",
    '"\\ud800"', '"\\xff"', "!!binary =", "!!set {a, b}", "!!omap [a: 1]", "!!timestamp x", "!!int x", "%YAML 9.9\n", "---\n",
    "...\n", "[" * 400, "{a: " * 400, "image_size: 1000000000\n", "batch: 0\n", "views: {count: 99999999}\n",
)  # fmt: skip


def yaml_mutated(raw: bytes, random: np.random.Generator) -> bytes:
    """Bytes changed as anywhere, or pieces of YAML put in and lines moved."""
    if random.random() < 0.3:
        return mutated(raw, random)
    text = raw.decode()
    for _ in range(int(random.integers(1, 4))):
        place = int(random.integers(len(text) + 1))
        if random.random() < 0.25:
            lines = text.split("\n")
            lines.insert(int(random.integers(len(lines) + 1)), lines[int(random.integers(len(lines)))])
            text = "\n".join(lines)
        else:
            text = text[:place] + YAML_PIECES[int(random.integers(len(YAML_PIECES)))] + text[place:]
    return text.encode()


def test_configurations(raw: Any) -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
        for before, name in zip("abcdefgh", "bcdefghi", strict=True)
    )
    deep = ["samples: " + "[" * 5000, "samples: " + "{a: " * 5000, "".join(f"{' ' * i}a:\n" for i in range(900))]
    text = (raw.folder / "unic-pipe.yaml").read_text()
    unknown = text + "".join(f"x{i}: 1\n" for i in range(3000))
    seeds = [text, bomb, "a: &a\n  b: *a\n", "a: &a {b: *a}\n", *deep, "x" * (2 << 20), unknown]
    said = Door(writing(raw.folder / "unic-pipe.yaml", load_workspace)).fuzz(
        [seed.encode() for seed in seeds], 60, lambda seed, random: yaml_mutated(text.encode(), random)
    )
    assert said["taken"] >= 1
    Door(writing(raw.folder / "unic-pipe.yaml", load_workspace)).fuzz([text.encode()], 440, yaml_mutated)


@pytest.mark.parametrize(
    "setting",
    [
        "students.tiny.image_size=1000000000", "students.tiny.optimizer.batch=8000000000", "views.count=1000000000",
        "compute.batch=10000000000000000000000", "compute.threads=1000000", "teachers.lite0.image_size=99999999",
        "students.tiny.ladder.hidden=1000000000", "students.tiny.seed=" + "9" * 5000, "views.seed=1e999",
        "evaluate.trials=10000000000", "samples.block_rows=100000000", "students.tiny.optimizer.epochs=99999999999",
    ],
)  # fmt: skip
def test_absurd_numbers_are_refused_where_they_are_written(raw: Any, setting: str) -> None:
    with pytest.raises(
        UnicPipeError, match=setting.partition("=")[0].rpartition(".")[2] + "|too large|not valid"
    ) as caught:
        load_workspace(raw.folder, [setting])
    assert len(caught.value.message.splitlines()) <= 3


def test_tars(raw: Any, tmp_path: Path) -> None:
    seed = next((raw.folder / "data").glob("val-*.tar")).read_bytes()
    said = Door(writing(tmp_path / "x.tar", lambda path: scan_tar(path, "x.tar", None))).fuzz([seed], 160)
    assert said["taken"] >= 1
    # The checksum of the header mended, so that what stands in it is believed.

    def header(raw_tar: bytes, random: np.random.Generator) -> bytes:
        data = bytearray(raw_tar)
        start = 512 * int(random.integers(4))
        data[start + int(random.integers(512))] = int(random.integers(256))
        if random.random() < 0.5:
            data[start + 124 : start + 136] = random.choice(
                [b"77777777777\0", b"\x80" + b"\xff" * 11, b"00000000000\0"]
            )
        total = sum(data[start : start + 148]) + sum(data[start + 156 : start + 512]) + 256
        data[start + 148 : start + 156] = b"%06o\0 " % total
        return bytes(data)

    Door(writing(tmp_path / "x.tar", lambda path: scan_tar(path, "x.tar", "a.b"))).fuzz([seed], 160, header)


def test_lists_of_labels(tmp_path: Path) -> None:
    names = [f"{number}.png" for number in range(4)]
    texts = [
        "0\n1\n2\n1\n", "0.png a\n1.png b\n2.png a\n3.png b\n", "filename,class\n" + "".join(f"{n},x\n" for n in names),
        "0.png\t" + "9" * 400 + "\n1.png\t1\n2.png\t-1\n3.png\tnull\n", "\n" * 5000, '"' * 5000, "a b\n" * 5000,
    ]  # fmt: skip
    seeds = [text.encode() for text in texts] + [texts[2].encode("utf-16")]
    said = Door(writing(tmp_path / "labels.csv", lambda path: read_labels(path, tmp_path, names))).fuzz(seeds, 300)
    assert said["taken"] >= 3


def test_images() -> None:
    random, seeds = np.random.default_rng(0), []
    pixels = random.integers(0, 256, (16, 16, 3), np.uint8)
    for kind in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF"):
        for mode in ("RGB", "L"):
            buffer = io.BytesIO()
            Image.fromarray(pixels).convert(mode).save(buffer, kind)
            seeds.append(buffer.getvalue())
    said = Door(decode_image, UndecodableImage).fuzz(seeds, 320)
    assert said["taken"] >= len(seeds)


def test_documents(raw: Any, tmp_path: Path) -> None:
    raw.index()
    manifest = (raw.folder / "samples" / "train").resolve() / "manifest.json"
    resealed = seal(b'{\n "schema": "dataset/2",\n "name": 3\n}\n')
    door = Door(lambda data: DatasetManifest.from_bytes(data, "manifest.json"))
    assert door.fuzz([manifest.read_bytes(), resealed], 80)["refused"] > 60
    model = timm.create_model(ARCHITECTURE, num_classes=0, img_size=32, **SMALL)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    known = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
    body = json.dumps({"architecture": ARCHITECTURE, "model_args": SMALL, "pretrained_cfg": known}).encode()
    assert (
        Door(writing(tmp_path / "config.json", lambda path: load_encoder(str(path.parent)))).fuzz([body], 80)["taken"]
        >= 1
    )
