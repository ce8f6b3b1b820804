"""Reading a cache in a foreign loop, a colleague's features, the live check, `verify --quick`, the coverage matrix."""

from __future__ import annotations

import multiprocessing
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from unic_pipe.pipeline.cache.reader import FeatureCache
from unic_pipe.pipeline.process.progress import SilentReporter
from unic_pipe.pipeline.samples.images import decode_image
from unic_pipe.pipeline.views.render import render_view
from unic_pipe.schemas.errors import StageError, UserError
from unic_pipe.stages.verify import VerifyOptions, verify


def flip(path: Path, at: int = -20) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 4
    path.write_bytes(raw)


@pytest.fixture
def cache(extracted: Any) -> FeatureCache:
    return FeatureCache.open(extracted.folder / "features/train-lite0")


class TestLoader:
    def test_images_and_targets_of_the_same_rows(self, extracted: Any, cache: FeatureCache) -> None:
        dataset = extracted.dataset()
        batches = cache.loader(dataset, batch=8, view=1, seed=3)
        seen: list[int] = []
        for (images, targets), rows in zip(batches, batches.order(), strict=True):
            assert (images.shape, images.dtype) == ((8, 3, 64, 64), torch.uint8)
            assert (targets["cls"].shape, targets["patch"].shape) == ((8, 1280), (8, 4, 1280))
            row = int(rows[5])
            block = cache.read_block(1, "cls", row // 16)
            assert np.array_equal(targets["cls"][5], block.values[row % 16])
            recipe, seed = cache.definition.recipe, cache.definition.view_seed
            alone = render_view(decode_image(dataset.read(row)), recipe, seed, dataset.key(row), 1, 64)
            assert torch.equal(images[5], alone)
            seen += rows.tolist()
        assert len(batches) == 11
        assert len(set(seen)) == len(seen) == 88
        assert set(seen) <= set(range(90))

    def test_orders(self, extracted: Any, cache: FeatureCache) -> None:
        dataset = extracted.dataset()
        rows = np.concatenate(cache.loader(dataset, batch=7, shuffle=False).order())
        assert rows.tolist() == list(range(90))
        first, again, other = (cache.loader(dataset, batch=8, epoch=e).order() for e in (0, 0, 1))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)

    def test_memory_is_bounded_by_the_window(self, extracted: Any, cache: FeatureCache) -> None:
        batches = cache.loader(extracted.dataset(), batch=4, window=2)
        assert {len(batches._kept) for _ in batches} <= {1, 2, 3}

    @pytest.mark.slow
    def test_spawned_workers_share_an_epoch(self, extracted: Any, cache: FeatureCache) -> None:
        batches = cache.loader(extracted.dataset(), batch=8, tokens=("cls",), size=16)
        alone = [targets["cls"] for _, targets in batches]
        loader = DataLoader(
            batches, batch_size=None, num_workers=2, multiprocessing_context=multiprocessing.get_context("spawn")
        )
        shared = [targets["cls"] for _, targets in loader]
        assert len(shared) == len(alone)
        assert all(torch.equal(a, b) for a, b in zip(shared, alone, strict=True))

    def test_what_does_not_fit_is_refused(self, extracted: Any, cache: FeatureCache) -> None:
        with pytest.raises(UserError, match="was not extracted from val: dataset digest differs"):
            cache.loader(extracted.dataset("val"), batch=4)
        with pytest.raises(UserError, match=r"View 2 of .* has no tokens"):
            cache.loader(extracted.dataset(), batch=4, view=2)

    def test_damage_is_never_data(self, extracted: Any, cache: FeatureCache) -> None:
        flip(next(p for p in (Path(cache.location) / "view-000/cls/c").rglob("*") if p.is_file()))
        with pytest.raises(StageError, match=r"Damaged: .*its content has changed"):
            list(cache.loader(extracted.dataset(), batch=4, tokens=("cls",), shuffle=False))


class TestFeatureRoots:
    def test_a_colleague_s_features_are_found_by_digest_and_only_read(
        self, raw: Any, extracted_template: Any, tmp_path: Path
    ) -> None:
        theirs = tmp_path / "theirs"
        shutil.copytree(extracted_template.folder / "features", theirs, symlinks=True)
        renamed = next(theirs.glob("train-lite0-????????"))
        renamed.rename(theirs / renamed.name.replace("train-lite0", "another-name"))
        before = {p: p.lstat().st_mtime_ns for p in theirs.rglob("*")}
        root = f"feature_roots=[{theirs}]"
        raw.index()
        assert raw.artefact("features/train/lite0").state == "missing"
        found = raw.artefact("features/train/lite0", root)
        assert (found.state, found.reason.startswith("read from ")) == ("fresh", True)
        assert raw.extract(root) == {}
        raw.distill(root)
        assert raw.artefact("students/tiny", root).state == "fresh"
        assert {record.status for record in raw.evaluate(root)} == {"done"}
        assert not list((raw.folder / "features").glob("train-lite0-????????"))
        assert {p: p.lstat().st_mtime_ns for p in theirs.rglob("*")} == before

    def test_incomplete_ones_are_not_used(self, raw: Any, extracted_template: Any, tmp_path: Path) -> None:
        theirs = tmp_path / "theirs"
        shutil.copytree(extracted_template.folder / "features", theirs, symlinks=True)
        (theirs / "train-lite0" / "records/view-001/cls.parquet").unlink()
        root = f"feature_roots=[{theirs}]"
        raw.index()
        assert (raw.artefact("features/train/lite0", root).state, raw.artefact("features/train/lite1", root).state) == (
            "missing",
            "fresh",
        )
        (extraction,) = raw.extract(root, "distill.validation=null").values()
        assert (extraction.done, extraction.total) == (24, 24)


class TestVerify:
    def test_quick_reads_no_shards_but_finds_other_sizes(self, extracted: Any, cache: FeatureCache) -> None:
        shards = sorted(p for p in (Path(cache.location) / "view-000/cls/c").rglob("*") if p.is_file())
        flip(shards[0])
        quick = VerifyOptions(read_only=True, quick=True)
        assert verify(extracted.inventory(), quick, SilentReporter())[0].ok
        shards[1].write_bytes(shards[1].read_bytes()[:-1])
        shards[2].unlink()
        report, _ = verify(extracted.inventory(), quick, SilentReporter())
        assert sorted(p.kind for p in report.problems) == ["missing", "size"]
        full, _ = verify(extracted.inventory(), VerifyOptions(read_only=True), SilentReporter())
        assert sorted(p.kind for p in full.problems) == ["content", "missing", "size"]

    @pytest.mark.parametrize("codec", ["float16", "int8"])
    def test_live_teachers_agree_with_their_caches(self, raw: Any, codec: str) -> None:
        settings = f"cache.codec={codec}"
        raw.extract(settings)
        report, _ = verify(raw.inventory(settings), VerifyOptions(live=6, device="cpu"), SilentReporter())
        assert report.ok
        assert {(f.dataset, f.teacher, f.token) for f in report.live} == {
            (d, t, k) for d in ("train", "val") for t in ("lite0", "lite1") for k in ("cls", "patch")
        }
        assert all(0 < f.mean_error <= f.max_error < 0.2 for f in report.live)

    def test_a_cache_of_another_teacher_is_found(self, extracted: Any) -> None:
        """Features of lite1 under the definition of another encoder with equal shapes: every hash is in order."""
        pretend_to_be_random(extracted)
        settings = "teachers.lite1.weights=random:5"
        report, following = verify(extracted.inventory(settings), VerifyOptions(live=4, device="cpu"), SilentReporter())
        assert not report.ok
        assert {(p.kind, p.teacher) for p in report.problems} == {("live", "lite1")}
        assert following is not None
        assert following.startswith("unic-pipe teachers")
        with pytest.raises(
            StageError, match=r"lite1 no longer gives the .* of its cache: cached features differ by \d{3} %"
        ):
            extracted.distill(settings, live_check=True)

    def test_distill_says_that_it_looked(self, extracted: Any) -> None:
        extracted.distill(live_check=True)
        found = [line for line in extracted.said if line.startswith("live check of lite")]
        assert len(found) == 2
        assert all(
            re.search(r"by 0\.0\d+ % of their spread .* over \d views; rounding and codec float16 may", f)
            for f in found
        )

    def test_incomplete_teachers_are_skipped_with_a_reason(self, raw: Any) -> None:
        raw.extract(teachers=["lite0"])
        report, _ = verify(raw.inventory(), VerifyOptions(live=2, device="cpu"), SilentReporter())
        assert report.ok
        assert {f.teacher for f in report.live} == {"lite0"}
        assert report.skipped == (
            "lite1: its features of train are not complete", "lite1: its features of val are not complete"
        )  # fmt: skip


def pretend_to_be_random(work: Any) -> None:
    """Commit lite1's features as if randomly initialised weights had given them."""
    from unic_pipe.pipeline.cache.commit import commit_unit, prepare_view
    from unic_pipe.pipeline.cache.records import FeatureFolder
    from unic_pipe.pipeline.storage import LocalStore
    from unic_pipe.pipeline.views.probes import write_probes
    from unic_pipe.pipeline.workspace.status import extraction_needs
    from unic_pipe.schemas.features import FeatureManifest

    for need in extraction_needs(work.inventory("teachers.lite1.weights=random:5"), ("lite1",)):
        dataset = work.dataset(need.dataset)
        real = FeatureCache.open(work.folder / "features" / need.pointer)
        folder = FeatureFolder(LocalStore(need.folder(work.folder)))
        folder.create(
            FeatureManifest(dataset=need.dataset, encoder="lite1", definition=need.definition, digest=need.digest)
        )
        images = [(dataset.key(r), decode_image(dataset.read(r))) for r in range(2)]
        for view in range(max(need.views.values())):
            d = need.definition
            write_probes(folder.store, d.recipe, d.view_seed, view, d.encoder.image_size, images)
        for view, token in need.planes():
            prepare_view(folder, view, token, dataset.manifest.end_row)
            for block in range(dataset.blocks):
                found = real.read_block(view, token, block)
                digest = dataset.block_digest(block)
                commit_unit(folder, view, token, block, found.values, found.valid, rows_digest=digest, batch=8)


def test_status_shows_the_coverage_of_every_view(raw: Any) -> None:
    from unic_pipe.cli.show.status import coverage_table

    settings = ("views.count=3", "views.patch=1", "distill.validation=null")
    raw.extract(*settings, teachers=["lite0"])
    raw.extract(*settings, teachers=["lite1"], rows="40")
    status = raw.status(*settings)
    coverage = {a.name: a.coverage for a in status.artefacts if a.stage == "extract"}
    assert coverage == {
        "features/train/lite0": {"cls": (6, 6, 6), "patch": (6,)},
        "features/train/lite1": {"cls": (3, 3, 3), "patch": (3,)},
    }
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(coverage_table(status))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[-4:] for line in lines[1:]] == [
        ["███", "18", "of", "18"], ["█", "6", "of", "6"], ["▒▒▒", "9", "of", "18"], ["▒", "3", "of", "6"]
    ]  # fmt: skip
    assert coverage_table(raw.status("distill.validation=null", "views.count=1")) is None
