"""Dense protocols on scenes whose answers are known: label maps, the linear heads, retrieval, and the scores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from unic_pipe.pipeline.benchmarks.label_maps import (
    centre_square,
    class_map,
    depth_map,
    maps_digest,
    patch_histograms,
    read_map,
    require_maps,
)
from unic_pipe.pipeline.benchmarks.nyud import unpack_nyud
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.pipeline.views.render import render_view
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.protocols import DenseConfig
from unic_pipe.schemas.recipes import CENTER
from unic_pipe.stages.evaluate.dense import Confusion, DepthErrors
from unic_pipe.stages.evaluate.dense_data import Scenes
from unic_pipe.stages.evaluate.in_context import Memory, in_context_logits
from unic_pipe.stages.evaluate.linear_head import DepthHead, SegmentationHead, fit

GRID, SIDE, CLASSES, DIM = (8, 8), 32, 4, 16


def config(kind: str = "segmentation", **more: object) -> DenseConfig:
    body = {"kind": kind, "train": "a", "test": "b", "train_labels": "x", "test_labels": "y", **more}
    return DenseConfig.model_validate(body)


def scenes(count: int, seed: int) -> Scenes:
    """Rectangles of 3 classes on a background (class 0), some pixels ignored; a token shows the mixture in its patch."""
    random = np.random.default_rng(seed)
    labels_NSS = np.zeros((count, SIDE, SIDE), np.int16)
    for labels_SS in labels_NSS:
        for c in random.permutation(np.arange(1, CLASSES)):
            top, left, height, width = *random.integers(0, SIDE - 8, 2), *random.integers(8, 20, 2)
            labels_SS[top : top + height, left : left + width] = c
        labels_SS[:2] = -1
    appearance_CD = np.random.default_rng(7).standard_normal((CLASSES, DIM))
    shares_NPC = np.stack([patch_histograms(np.maximum(labels, 0), GRID, CLASSES) for labels in labels_NSS])
    patch_NPD = shares_NPC @ appearance_CD + 0.05 * random.standard_normal((count, 64, DIM))
    return Scenes(np.zeros((count, 3), np.float32), patch_NPD.astype(np.float32), labels_NSS)


def endless(all_scenes: Scenes, batch: int = 8) -> Iterator[Scenes]:
    random = np.random.default_rng(0)
    while True:
        yield all_scenes.rows(random.permutation(len(all_scenes.cls_ND))[:batch])


def miou(predicted: torch.Tensor, test: Scenes) -> float:
    confusion = Confusion(CLASSES)
    confusion.add(torch.from_numpy(test.labels_NSS), predicted)
    return confusion.scores()["miou"]


def test_a_linear_head_finds_coloured_rectangles() -> None:
    train, test = scenes(48, 1), scenes(16, 2)
    head = SegmentationHead(DIM, CLASSES, GRID)
    before = miou(head.to("cpu").eval().logits(test, "cpu").argmax(1), test)
    fit(head, endless(train), 200, 0.03, "cpu")
    with torch.inference_mode():
        found = miou(head.logits(test, "cpu").argmax(1), test)
    assert before < 0.3
    assert found > 0.85  # patches of 4 pixels: edges cannot be exact


def test_retrieval_finds_them_without_training() -> None:
    train, test = scenes(48, 1), scenes(16, 2)
    shares = np.concatenate([patch_histograms(labels, GRID, CLASSES) for labels in train.labels_NSS])
    tokens = torch.nn.functional.normalize(torch.from_numpy(train.patch_NPD).flatten(0, 1), dim=-1)
    memory = Memory(tokens.half(), torch.from_numpy(shares).half())
    logits = in_context_logits(memory, test, GRID, 30, 0.02, "cpu")
    assert miou(logits.argmax(1), test) > 0.8
    nothing = Memory(memory.tokens_MD, memory.shares_MC[torch.randperm(len(shares))])
    assert miou(in_context_logits(nothing, test, GRID, 30, 0.02, "cpu").argmax(1), test) < 0.4


def test_retrieval_in_tiles_is_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """softmax over the k best cosines, whatever the tiles."""
    random = torch.Generator().manual_seed(0)
    keys = torch.nn.functional.normalize(torch.randn(100, DIM, generator=random), dim=-1).half()
    shares = torch.rand(100, CLASSES, generator=random).half()
    test = scenes(2, 3)
    monkeypatch.setattr("unic_pipe.stages.evaluate.in_context._TILE", 13)
    monkeypatch.setattr("unic_pipe.stages.evaluate.in_context._QUERIES", 50)
    found = in_context_logits(Memory(keys, shares), test, GRID, 5, 0.1, "cpu")
    queries = torch.nn.functional.normalize(torch.from_numpy(test.patch_NPD), dim=-1).double()
    best = (queries @ keys.double().T).topk(5)
    expected = ((best.values / 0.1).softmax(-1)[..., None] * shares.double()[best.indices]).sum(-2)
    expected = expected.transpose(1, 2).reshape(2, CLASSES, *GRID)
    expected = torch.nn.functional.interpolate(expected, size=(SIDE, SIDE), mode="bilinear")
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_depth_head_learns_a_ramp() -> None:
    """Tokens know the depth of their patch up to a linear map; depth rises along each image from its own start."""
    random = np.random.default_rng(0)

    def ramps(count: int) -> Scenes:
        start_N = random.uniform(1, 3, count)
        depth_NSS = start_N[:, None, None] + np.linspace(0, 4, SIDE)[None, :, None] + np.zeros((1, 1, SIDE))
        depth_NGG = depth_NSS.reshape(count, 8, 4, 8, 4).mean((2, 4)).reshape(count, 64, 1)
        patch_NPD = np.concatenate([depth_NGG, np.log(depth_NGG), random.standard_normal((count, 64, 6))], -1)
        known = depth_NSS.astype(np.float32)
        known[:, :, :3] = 0  # a border without depth
        return Scenes(start_N[:, None].astype(np.float32), patch_NPD.astype(np.float32), known)

    train, test = ramps(64), ramps(16)
    head = DepthHead(9, GRID, 10.0)
    fit(head, endless(train, 2), 200, 0.03, "cpu")
    errors, guess = DepthErrors(), DepthErrors()
    with torch.inference_mode():
        errors.add(torch.from_numpy(test.labels_NSS), head.depth(test, "cpu"))
    guess.add(torch.from_numpy(test.labels_NSS), torch.full((16, SIDE, SIDE), 4.0))
    assert errors.scores()["rmse"] < 0.3 < 1 < guess.scores()["rmse"]


def test_scores_are_those_of_the_definitions() -> None:
    confusion = Confusion(3)
    true = torch.tensor([[[0, 0, 1], [1, -1, 0]]])
    confusion.add(true, torch.tensor([[[0, 1, 1], [1, 2, 0]]]))
    # Class 0: 2 of 3; class 1: 2 of 3; class 2 is neither there nor predicted where it counts.
    assert confusion.scores() == {"miou": pytest.approx(2 / 3), "pixel_accuracy": pytest.approx(4 / 5)}
    errors = DepthErrors()
    errors.add(
        torch.tensor([[[1.0, 0.0]], [[2.0, 4.0]], [[0.0, 0.0]]]),
        torch.tensor([[[2.0, 9.0]], [[2.0, 2.0]], [[1.0, 1.0]]]),
    )
    assert errors.scores()["rmse"] == pytest.approx((1 + 2**0.5) / 2)
    with pytest.raises(UserError, match="No pixel of the test set has a class"):
        Confusion(3).scores()
    with pytest.raises(UserError, match="known depth"):
        DepthErrors().scores()


@pytest.mark.parametrize("shape", [(90, 120), (121, 75), (64, 64)])
@pytest.mark.parametrize("side", [32, 56])
def test_a_map_takes_the_same_way_as_its_image(shape: tuple[int, int], side: int) -> None:
    """Wide stripes, seen through the image's resampling and through the map's: they differ only at the edges."""
    height, width = shape
    values = ((np.arange(height)[:, None] // 15 + np.arange(width)[None, :] // 15) % 2).astype(np.int32)
    image = np.repeat((values * 255).astype(np.uint8)[..., None], 3, axis=2)
    seen = render_view(image, CENTER, 0, "key", 0, side)[0].numpy() > 127
    square = centre_square(values, side)
    assert square.shape == (side, side)
    assert (seen == (square == 1)).mean() > 0.95


def test_classes_and_depths_of_maps(tmp_path: Path) -> None:
    ade = config(classes=150, first_class=1)
    values = np.array([[0, 1, 150, 151, 255]])
    assert class_map(values, ade).tolist() == [[-1, 0, 149, -1, -1]]
    depth = depth_map(np.array([[0, 1500, 10_000, 10_001]]), config("depth"))
    assert depth.tolist() == [[0, 1.5, 10, 0]]
    Image.fromarray(np.array([[0, 65_535]], np.uint16)).save(tmp_path / "a.png")
    assert read_map(tmp_path / "a.png").tolist() == [[0, 65_535]]
    Image.new("RGB", (2, 2)).save(tmp_path / "b.png")
    with pytest.raises(UserError, match="one channel"):
        read_map(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"no label map .*c.png"):
        read_map(tmp_path / "c.png")
    memory = LocalStore(tmp_path / "runs")
    before = maps_digest(tmp_path, "ab", memory)
    assert maps_digest(tmp_path, "ab") == maps_digest(tmp_path, "ab", memory) == before
    Image.new("RGB", (2, 2), "red").save(tmp_path / "b.png")
    assert maps_digest(tmp_path, "ab", memory) != before
    with pytest.raises(UserError, match=r"1 of 3 label maps are not there \(first: x/c.png\)"):
        maps_digest(tmp_path, ["a", "b", "x/c"])
    (tmp_path / "x").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "x/c.png")
    below = maps_digest(tmp_path, ["b", "x/c"])
    assert below != maps_digest(tmp_path, ["b"])
    with pytest.raises(UserError, match="no folder of label maps"):
        require_maps(tmp_path / "none")
    with pytest.raises(UserError, match="no label maps in it"):
        require_maps(tmp_path / "runs")


def test_histograms_of_patches() -> None:
    labels = np.array([[0, 0, 1, -1], [0, 1, -1, -1], [2, 2, 2, 2], [2, 2, -1, -1]], np.int16)
    shares = patch_histograms(labels, (2, 2), 3)
    np.testing.assert_allclose(shares, [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]])
    assert patch_histograms(np.full((4, 4), -1, np.int16), (2, 2), 3).sum() == 0
    assert patch_histograms(np.zeros((5, 5), np.int16), (2, 2), 1).tolist() == [[1]] * 4


def test_what_cannot_be_configured() -> None:
    with pytest.raises(ValidationError, match="needs the number of its classes"):
        config()
    with pytest.raises(ValidationError, match=r"none of these probes \(in-context\) is for depth"):
        config("depth", probes=("in-context",))
    assert config("depth").protocols == ("depth",)
    assert config(classes=2).protocols == ("segmentation", "in-context")


def test_nyud_is_unpacked_into_folders(tmp_path: Path) -> None:
    """A miniature of the real files: HDF5 stored column by column, splits counted from 1."""
    h5py = pytest.importorskip("h5py")
    from scipy.io import savemat

    random = np.random.default_rng(0)
    images = random.integers(0, 256, (3, 3, 8, 6), dtype=np.uint8)  # pairs, channels, width, height
    depths = random.uniform(0.7, 10, (3, 8, 6)).astype(np.float32)
    with h5py.File(tmp_path / "l.mat", "w") as file:
        file["images"], file["depths"] = images, depths
    savemat(tmp_path / "splits.mat", {"trainNdxs": np.array([[1], [3]]), "testNdxs": np.array([[2]])})
    unpack_nyud(tmp_path / "l.mat", tmp_path / "splits.mat", tmp_path / "out")
    assert [len(list((tmp_path / "out" / split / "depth").iterdir())) for split in ("train", "test")] == [2, 1]
    image = np.asarray(Image.open(tmp_path / "out/train/images/0003.png"))
    assert image.shape == (6, 8, 3)
    np.testing.assert_array_equal(image[2, 5], images[2, :, 5, 2])
    depth = depth_map(read_map(tmp_path / "out/test/depth/0002.png"), config("depth"))
    np.testing.assert_allclose(depth, depths[1].T, atol=5.1e-4)
    with pytest.raises(UserError, match="not the splits of NYU"):
        unpack_nyud(tmp_path / "l.mat", tmp_path / "l.mat", tmp_path / "out")
    with pytest.raises(UserError, match="not the labelled pairs"):
        unpack_nyud(tmp_path / "splits.mat", tmp_path / "splits.mat", tmp_path / "out")
