"""Named benchmarks from data folders to the report, with a real ImageNet encoder: miniatures of the real layouts."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unic_pipe.cli.errors import guarded
from unic_pipe.cli.main import app
from unic_pipe.pipeline.benchmarks.imagenet import wnids
from unic_pipe.schemas.benchmarks import cards

CONFIG = """\
samples: {block_rows: 16, datasets: {}}
teachers:
  lite0: {encoder: efficientnet-lite0, image_size: 32}
compute: {batch: 8}
evaluate:
  benchmarks: [in1k, dtd, in-v2, in-r, flowers]
  root: data
  c_values: [0.1, 1.0]
  k_values: [5]
"""
DIGITS = (0, 1, 4, 7)
WNIDS = [wnids()[n] for n in (3, 150, 409, 962)]
TRAIN, TEST, SHIFTED = 12, 8, 6


def commands(folder: Path, *arguments: str) -> int:
    """The exit code of a command in a folder."""
    return guarded(
        lambda: app(args=[*arguments, "--config", str(folder)], prog_name="unic-pipe", standalone_mode=False), False
    )


def jpeg(number: int) -> bytes:
    from sklearn.datasets import load_digits

    grey = Image.fromarray((load_digits().images[number] * (255 / 16)).round().astype(np.uint8))
    data = io.BytesIO()
    grey.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB").save(data, "JPEG", quality=95)
    return data.getvalue()


def digits(digit: int) -> Iterator[bytes]:
    from sklearn.datasets import load_digits

    return (jpeg(int(number)) for number in np.flatnonzero(load_digits().target == digit))


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def miniatures(data: Path) -> None:
    """Four digits as four classes of ImageNet, and two of them as textures; ImageNet-V2 is ImageNet's test set again, and
    ImageNet-R its first images of two classes."""
    for digit, wnid in zip(DIGITS, WNIDS, strict=True):
        images = digits(digit)
        for n in range(TRAIN):
            write(data / f"imagenet/train/{wnid}/{wnid}_{n}.JPEG", next(images))
        for n in range(TEST):
            image = next(images)
            write(data / f"imagenet/val/{wnid}/ILSVRC2012_val_{digit}{n:07d}.JPEG", image)
            write(data / f"imagenetv2-matched-frequency-format-val/{wnids().index(wnid)}/{n}.jpeg", image)
            if digit in DIGITS[:2] and n < SHIFTED:
                write(data / f"imagenet-r/{wnid}/art_{n}.jpg", image)
    for name, digit in (("dotted", 4), ("woven", 7)):
        images = digits(digit)
        for n in range(9):
            write(data / f"dtd/images/{name}/{name}_{n:04d}.jpg", next(images))
    for split, numbers in (("train", range(3)), ("val", range(3, 5)), ("test", range(5, 9))):
        lines = [f"{name}/{name}_{n:04d}.jpg\n" for name in ("dotted", "woven") for n in numbers]
        write(data / f"dtd/labels/{split}1.txt", "".join(lines).encode())


@pytest.fixture(scope="module")
def registry() -> Iterator[pytest.MonkeyPatch]:
    """The registry with the miniatures' numbers of images, and L-BFGS for ImageNet, which is large otherwise."""
    numbers = {"in1k": (4 * TRAIN, 4 * TEST), "dtd": (10, 8), "in-v2": (None, 4 * TEST), "in-r": (None, 2 * SHIFTED)}
    with pytest.MonkeyPatch.context() as patch:
        for name, (train, test) in numbers.items():
            small = {"train": train, "test": test, "classifier": "logistic"}
            patch.setitem(cards(), name, cards()[name].model_copy(update=small))
        yield patch


@pytest.fixture(scope="module")
def evaluated(registry: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, list[str]]:
    """A folder in which `unic-pipe evaluate` ran; its exit code, and the probes that were fitted. Not to be changed."""
    from unic_pipe.stages.evaluate import linear

    folder = tmp_path_factory.mktemp("benchmarks") / "work"
    folder.mkdir()
    (folder / "unic-pipe.yaml").write_text(CONFIG)
    miniatures(folder / "data")
    fitted: list[str] = []
    fit = linear.fit_logistic
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "fit_logistic", lambda x, y, *a: fitted.append(str(y.max() + 1)) or fit(x, y, *a))
        code = commands(folder, "evaluate", "--device", "cpu")
    return folder, code, fitted


def scores(folder: Path) -> dict[tuple[str, str, str], float]:
    rows = pq.read_table(folder / "evaluations/main/results.parquet").to_pylist()
    assert all(row["encoder_digest"] and row["dataset_digest"] and row["protocol"] for row in rows)
    return {(row["benchmark"], row["probe"], row["metric"]): row["value"] for row in rows}


def test_what_can_be_run_is_and_the_rest_is_named(evaluated: tuple[Path, int, list[str]], capsys: Any) -> None:
    folder, code, _ = evaluated
    assert code == 1
    found = scores(folder)
    assert {(benchmark, probe) for benchmark, probe, _ in found} == {
        ("in1k", "logistic"), ("in1k", "knn"), ("dtd", "logistic"), ("dtd", "knn"), ("in-v2", "logistic"), ("in-r", "logistic"),
    }  # fmt: skip
    assert found["in1k", "logistic", "top1"] > 0.8
    report = (folder / "evaluations/main/report.html").read_text()
    assert "<h3>Skipped</h3>" in report
    assert "setid.mat" in report
    capsys.readouterr()
    assert commands(folder, "evaluate", "--device", "cpu") == 1
    said = capsys.readouterr().err
    assert "6 of 6 probes are fresh" in " ".join(said.split())
    assert "1 of 5 benchmarks were skipped; the first, flowers" in " ".join(said.split())


def test_imagenets_probe_is_fitted_once_and_asked_about_the_classes_of_each_test(
    evaluated: tuple[Path, int, list[str]],
) -> None:
    folder, _, fitted = evaluated
    assert sorted(fitted) == ["2", "4"]  # textures, and ImageNet for its own and two other test sets
    found = scores(folder)
    # The same images, numbered as ImageNet-V2 does it, have the same score.
    for metric in ("top1", "per_class"):
        assert found["in-v2", "logistic", metric] == found["in1k", "logistic", metric]
    assert found["in-r", "logistic", "top1"] > 0.8


def test_status_names_what_is_missing_and_asks_for_nothing_that_can_be_done(
    evaluated: tuple[Path, int, list[str]], capsys: Any
) -> None:
    folder, _, _ = evaluated
    assert commands(folder, "status", "--json") == 0
    artefacts = {a["name"]: a for a in json.loads(capsys.readouterr().out)["artefacts"]}
    assert artefacts["samples/in1k-train"]["state"] == "fresh"
    flowers = artefacts["samples/flowers-train"]
    assert (flowers["state"], flowers["next"]) == ("missing", None)
    assert "setid.mat" in flowers["reason"]
    evaluation = artefacts["evaluations/main"]
    assert (evaluation["state"], evaluation["done"], evaluation["total"]) == ("partial", 6, 8)
    assert "flowers is skipped" in evaluation["reason"]


def test_plan_knows_named_benchmarks(evaluated: tuple[Path, int, list[str]], capsys: Any) -> None:
    folder, _, _ = evaluated
    assert commands(folder, "plan", "--json", "--throughput", "100", "--device", "cpu") == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    names = {row["name"] for row in rows}
    assert {"features/in1k-train/lite0-center", "features/in-r-test/lite0-center", "samples/flowers-test"} <= names


def test_run_goes_past_what_is_missing(evaluated: tuple[Path, int, list[str]], tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(evaluated[0], tmp_path / "work", symlinks=True)
    assert commands(tmp_path / "work", "run", "--device", "cpu") == 1
    assert "flowers" in capsys.readouterr().err


def test_a_part_of_a_benchmark_does_not_pass_for_it(
    evaluated: tuple[Path, int, list[str]], tmp_path: Path, capsys: Any
) -> None:
    """The user's own datasets, named as ImageNet's: their size is checked, and under their own name they need four lines."""
    data = evaluated[0] / "data/imagenet"
    own = f"""\
samples: {{block_rows: 16, datasets: {{train: {{source: {data}/train}}, val: {{source: {data}/val}}}}}}
teachers:
  lite0: {{encoder: efficientnet-lite0, image_size: 32}}
evaluate:
  c_values: [1.0]
  k_values: [5]
  baseline: false
  benchmarks:
    NAME:
      train: train
      test: val
"""
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "unic-pipe.yaml").write_text(own.replace("NAME", "in1k"))
    assert commands(folder, "evaluate", "--device", "cpu") == 0
    assert {benchmark for benchmark, _, _ in scores(folder)} == {"in1k"}
    (folder / "unic-pipe.yaml").write_text(own.replace("NAME", "in1k").replace("test: val", "test: train"))
    capsys.readouterr()
    assert commands(folder, "evaluate", "--device", "cpu") == 2
    assert "has 32 images where dataset train has 48" in " ".join(capsys.readouterr().err.split())
    (folder / "unic-pipe.yaml").write_text(own.replace("NAME", "mine").replace("test: val", "test: train"))
    assert commands(folder, "evaluate", "--device", "cpu") == 0
    assert {benchmark for benchmark, _, _ in scores(folder)} == {"mine"}


def test_a_changed_encoder_in_the_same_folder_never_shows_old_scores(
    tmp_path: Path, registry: pytest.MonkeyPatch
) -> None:
    import timm
    import torch
    from safetensors.torch import save_file

    def weights(seed: int) -> None:
        torch.manual_seed(seed)
        model = timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32)
        save_file(model.state_dict(), tmp_path / "encoder.safetensors")

    def results() -> tuple[set[str], float]:
        rows = pq.read_table(tmp_path / "evaluations/main/results.parquet").to_pylist()
        value = next(row["value"] for row in rows if (row["probe"], row["metric"]) == ("knn", "top1_k5"))
        return {row["encoder_digest"] for row in rows}, value

    miniatures(tmp_path / "data")
    (tmp_path / "unic-pipe.yaml").write_text("""\
samples: {datasets: {}}
teachers:
  mine: {encoder: "checkpoint:encoder.safetensors", architecture: vit_tiny_patch16_224, model_args: {depth: 1}, image_size: 32}
evaluate: {benchmarks: [dtd], root: data, c_values: [1.0], k_values: [5]}
""")
    from unic_pipe.pipeline.workspace.configuration import load_workspace
    from unic_pipe.pipeline.workspace.inventory import Inventory
    from unic_pipe.stages.report.stage import records_in_force

    weights(0)
    assert commands(tmp_path, "evaluate", "--device", "cpu") == 0
    first, _ = results()
    assert len(records_in_force(Inventory(load_workspace(tmp_path)))) == 2
    weights(1)
    assert records_in_force(Inventory(load_workspace(tmp_path))) == []
    assert commands(tmp_path, "evaluate", "--device", "cpu") == 0
    second, _ = results()
    assert len(first) == len(second) == 1
    assert first != second
