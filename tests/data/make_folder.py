"""Make `folder-0.1.tar.xz`: working folders of an earlier version, which the version of today has to understand.

    git worktree add --detach ../released COMMIT && make -C ../released .venv/.test
    .venv/bin/python tests/data/make_folder.py ../released/.venv/bin/unic-pipe COMMIT tests/data/folder-0.1.tar.xz

Everything but the images and the teachers' weights is made by the commands of that version. What it said about the
folders, and with which kernels it computed, is kept beside them in `expected.json`.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from workspace import digit_members, kernels, put_tar

SHARDS = {"train": (0, 24), "val": (24, 8), "test": (32, 16)}
"""First digit and rows of each tar."""
TIME = 1_700_000_000
"""Modification time of the tars: whole seconds survive any archive."""
TEACHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "eva": ("eva02_tiny_patch14_224", {"patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2}),
    "siglip": ("vit_base_patch16_siglip_224", {"patch_size": 8, "depth": 1, "embed_dim": 24, "num_heads": 2, "mlp_ratio": 1.0}),
}  # fmt: skip

HEAD = """\
samples:
  block_rows: 12
  datasets:
    train: {{source: "data/train.tar"}}
    val: {{source: "data/val.tar"}}
    test: {{source: "data/test.tar"}}
views: {{recipe: gentle, count: {views}}}
cache: {{codec: {codec}}}
compute: {{batch: 8, device: cpu}}
distill: {{validation: val, log_every: 3, keep_checkpoints: 1}}
evaluate:
  benchmarks: {{digits: {{train: train, test: test}}}}
  c_values: [0.1, 1.0]
  k_values: [3]
  baseline: {baseline}
teachers:
"""
TEACHER_LINES = {
    "lite0": "  lite0: {encoder: efficientnet-lite0, image_size: 32}\n",
    "lite1": "  lite1: {encoder: efficientnet-lite1, image_size: 32}\n",
} | {
    name: f"  {name}: {{encoder: 'checkpoint:weights/{name}.safetensors', architecture: {architecture}, image_size: 32,"
    f" mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], model_args: {json.dumps(arguments)}}}\n"
    for name, (architecture, arguments) in TEACHERS.items()
}
STUDENT = """\
  {name}:
    architecture: {architecture}
    model_args: {{patch_size: 8, depth: 2, embed_dim: 12, num_heads: 3, mlp_ratio: 1.0}}
    image_size: 32
    mean: [0.5, 0.5, 0.5]
    std: [0.5, 0.5, 0.5]
    threads: 1
    streams: 4
    window_blocks: 2
    optimizer: {{epochs: {epochs}, warmup_epochs: 1, batch: 8, lr: 0.03}}
{more}"""
LADDER = "    ladder: {hidden: 4, last_hidden: 4}\n"
BASIC = "    ladder: {blocks: last, last_hidden: 4}\n    loss: {standardize: none, drop_probability: 0.0}\n"
VIT, EVA = "vit_tiny_patch16_224", "eva02_tiny_patch14_224"


def student(name: str, teachers: str, more: str = LADDER, architecture: str = VIT, epochs: int = 3) -> str:
    """The lines of one student."""
    more = f"    teachers: [{teachers}]\n{more}"
    return STUDENT.format(name=name, architecture=architecture, more=more, epochs=epochs)


FOLDERS = {
    "int8": (
        "lite0 eva",
        student("averaged", "lite0, eva", LADDER + "    ema: 0.9\n")
        + student("basic", "lite0, eva", BASIC)
        + student("rotary", "eva", architecture=EVA),
    ),
    "klt": ("eva siglip", student("small", "eva, siglip")),
    "auto": ("lite1 siglip", student("small", "lite1, siglip", LADDER + "    loss: {tokens: cls}\n")),
    "float16": ("siglip", student("small", "siglip", epochs=12)),
}
"""By codec, which also names the folder: its teachers, and the lines of its students."""
VIEWS = {"int8": "2, patch: 1", "auto": "1"}
"""Where there are fewer: the features of the two real teachers are most of the archive."""


def write_weights(folder: Path) -> None:
    """Random weights of the tiny teachers: uniform, of a legacy generator whose numbers never change."""
    folder.mkdir()
    for name, (architecture, arguments) in TEACHERS.items():
        model = timm.create_model(architecture, num_classes=0, img_size=32, **arguments)
        random = np.random.RandomState(len(name))
        state = {
            key: torch.from_numpy(random.uniform(-0.3, 0.3, tuple(value.shape)).astype("float32"))
            for key, value in model.state_dict().items()
        }
        save_file(state, folder / f"{name}.safetensors")


def write_folder(folder: Path, codec: str) -> None:
    """Samples, weights and configuration of one working folder."""
    names, students = FOLDERS[codec]
    write_weights(folder / "weights")
    for name, (first, rows) in SHARDS.items():
        members = [
            (key, str(int(data) % 2).encode()) if key.endswith(".cls") else (key, data)
            for key, data in digit_members(first, rows)
        ]
        os.utime(put_tar(folder / "data" / f"{name}.tar", members), (TIME, TIME))
    head = HEAD.format(codec=codec, views=VIEWS.get(codec, "2"), baseline=str(codec == "int8").lower())
    lines = [head, *(TEACHER_LINES[name] for name in names.split())]
    (folder / "unic-pipe.yaml").write_text("".join([*lines, "students:\n", students]))


def main(program: str, commit: str, target: str) -> None:
    """Run every stage of `program` in the four folders, and pack them."""

    def run(*arguments: str, folder: Path) -> str:
        done = subprocess.run([program, *arguments, "-c", str(folder)], check=True, capture_output=True, text=True)
        return done.stdout

    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        expected: dict[str, Any] = {"commit": commit, "kernels": kernels(), "status": {}, "garbage": {}}
        for codec in FOLDERS:
            folder = base / codec
            folder.mkdir()
            write_folder(folder, codec)
            if codec == "int8":  # what `gc` may remove: features that the configuration asks for no longer
                run("index", folder=folder)
                run("extract", "--teacher", "eva", "--set", "views.seed=7", folder=folder)
            if codec == "float16":
                run("extract", folder=folder)
                stop_in_the_middle(program, folder)
                shutil.copytree(folder / "students", base / "begun" / "students", symlinks=True)
            run("run", folder=folder)
            expected["status"][codec] = json.loads(run("status", "--json", folder=folder))
            expected["garbage"][codec] = json.loads(run("gc", "--json", folder=folder))
            problems = json.loads(run("verify", "--json", folder=folder))["problems"]
            assert not problems, problems
        (base / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True))
        pack(base, Path(target))


def stop_in_the_middle(program: str, folder: Path) -> None:
    """Begin the training, and end it as SLURM does once a checkpoint is there."""
    process = subprocess.Popen([program, "distill", "-c", str(folder)])
    while not list(folder.glob("students/*/checkpoints/*.pt")):
        assert process.poll() is None, "ended before its first checkpoint"
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    assert not list(folder.glob("students/*/export")), "finished before the signal came: try again"


def pack(base: Path, target: Path) -> None:
    """One archive without run logs (which name the machine), TensorBoard files, pages, and large checkpoints.

    Only the two trainings of the folder `float16` keep their checkpoints: those of the others are the same in kind, and
    most of the bytes.
    """

    def wanted(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        parts = Path(info.name).parts
        large = {"checkpoints", "latest.json"} & set(parts) and not {"float16", "begun"} & set(parts)
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        return None if {"runs", "tensorboard", ".tmp"} & set(parts) or large or info.name.endswith(".html") else info

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz", preset=9) as tar:
        for entry in sorted(base.iterdir()):
            tar.add(entry, entry.name, filter=wanted)
    target.write_bytes(buffer.getvalue())


if __name__ == "__main__":
    main(*sys.argv[1:])
