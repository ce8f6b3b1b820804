"""Extraction as it runs, and its pieces alone, over the same first blocks of the user's samples.

Shapes: B images of a batch, N rows of a block, S image side in pixels.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.cache.calibration import bound_codec
from pipeline.cache.commit import commit_unit, encode_unit
from pipeline.cache.records import FeatureFolder
from pipeline.extraction import ExtractOptions, ExtractPass, extract_features
from pipeline.features import FeatureNeed
from pipeline.progress import Reporter, SilentReporter
from pipeline.samples.images import UndecodableImage, decode_image
from pipeline.stopping import Stop
from pipeline.stopwatch import Stopwatch
from pipeline.storage import LocalStore
from schemas.bench import Resource
from schemas.config import TokenType

if TYPE_CHECKING:
    import torch

    from pipeline.encoders.encoder import Encoder, Tokens

PIECES: Mapping[str, Resource] = {
    "read": "host",
    "decode": "host",
    "render": "host",
    "forward": "device",
    "encode": "host",
    "commit": "host",
    "disk": "disk",
}
"""`encode` is the codec with its self-check and statistics, `commit` the rest of a unit's commit, and `disk` writes as
many bytes durably."""
VIEWS = 4
"""At most so many views are measured: this many are rendered from one decoding."""


@dataclass
class ExtractBench:
    """Measures one pass over the first blocks of a dataset, in a folder of its own."""

    dataset_pass: ExtractPass
    """Of the user's working folder; the folder and the number of blocks are replaced."""
    folder: Path
    device: str
    stop: Stop
    _encoders: list[Encoder] = field(init=False)
    _runs: int = field(init=False, default=0)
    last: Path = field(init=False)
    """Working folder of the last extraction, with its features."""

    def prepare(self, cores: int, seconds: float, reporter: Reporter) -> None:
        """Calibrate, load what is loaded once, run everything for the first time, and choose as many blocks as take
        about `seconds`: a multiple of `cores`, so that no core idles at the end only because there is little to do."""
        from pipeline.encoders import load_encoder

        work = self.dataset_pass
        jobs = [(_limited(need), encoder) for need, encoder in work.jobs]
        self.dataset_pass = work = replace(moved(work, self.folder / "prepared"), jobs=jobs)
        nothing = replace(work, blocks=0)
        extract_features(nothing, ExtractOptions(device=self.device, force=True), reporter, self.stop)
        self._encoders = [load_encoder(encoder, device=self.device) for _, encoder in work.jobs]
        most = min(work.blocks, work.dataset.blocks)
        self.dataset_pass = replace(work, blocks=1)
        self.pieces(_fresh(self.device))
        watch = _fresh(self.device)
        started = time.perf_counter()
        self.pieces(watch)
        a_block = (time.perf_counter() - started) / cores
        wanted = cores * max(1, round(seconds / a_block / cores))
        self.dataset_pass = replace(work, blocks=min(most, wanted))
        self._extract(replace(self.dataset_pass, blocks=min(most, cores)), _fresh(self.device))

    @property
    def images(self) -> int:
        """Rows of the measured blocks."""
        return self.dataset_pass.rows

    @property
    def forwards(self) -> int:
        """Forward passes of single images."""
        return self.images * sum(max(need.views.values()) for need, _ in self.dataset_pass.jobs)

    def lap(self, watch: Stopwatch) -> None:
        """One repetition: the extraction, then every piece alone."""
        self._extract(self.dataset_pass, watch)
        if not self.stop.requested:
            self.pieces(watch)

    def _extract(self, work: ExtractPass, watch: Stopwatch) -> None:
        run = self._copy(f"run-{self._runs}")
        if self._runs:
            shutil.rmtree(self.folder / f"run-{self._runs - 1}")
        self._runs += 1
        self.last = run
        options = ExtractOptions(device=self.device, force=True)
        work = moved(work, run)
        watch.time("wall", lambda: extract_features(work, options, SilentReporter(), self.stop))

    def pieces(self, watch: Stopwatch) -> None:
        """Every piece alone, block by block."""
        import torch

        scratch = self._copy("pieces")
        before = torch.get_num_threads()
        torch.set_num_threads(self.dataset_pass.jobs[0][0].definition.compute.threads)
        try:
            for block in range(self.dataset_pass.blocks):
                if not self.stop.requested:
                    self._block(block, scratch, watch)
        finally:
            torch.set_num_threads(before)
            shutil.rmtree(scratch)
        watch.subtract("commit", "encode")

    def _block(self, block: int, scratch: Path, watch: Stopwatch) -> None:
        dataset, jobs = self.dataset_pass.dataset, self.dataset_pass.jobs
        first, count = dataset.block_range(block)
        raw = watch.time("read", lambda: [dataset.read(first + offset) for offset in range(count)])
        images = watch.time("decode", lambda: [_decoded(data) for data in raw])
        keys = dataset.block_keys(block)
        there = [(key, image) for key, image in zip(keys, images, strict=True) if image is not None]
        valid_N = np.array([image is not None for image in images])
        for view in range(max(max(need.views.values()) for need, _ in jobs)):
            mine = [i for i, (need, _) in enumerate(jobs) if view < max(need.views.values())]
            pixels = watch.time("render", lambda v=view, m=mine: self._render(there, v, m))  # type: ignore[misc]
            for i in mine:
                x_NS = pixels[_pixels(jobs[i][0])].to(self.device)
                tokens = watch.time("forward", lambda i=i, x=x_NS: self._forward(i, x))  # type: ignore[misc]
                self._store(i, view, block, tokens, valid_N, scratch, watch)

    def _render(
        self, images: Sequence[tuple[str, NDArray[np.uint8]]], view: int, jobs: Sequence[int]
    ) -> dict[object, torch.Tensor]:
        """One view at every size that the encoders of these jobs take, uint8 (N, 3, S, S); equal ones once."""
        import torch

        from pipeline.views.render import render_view

        found: dict[object, torch.Tensor] = {}
        for need in (self.dataset_pass.jobs[i][0] for i in jobs):
            d = need.definition
            if _pixels(need) not in found:
                size = d.encoder.image_size
                rendered = [render_view(image, d.recipe, d.view_seed, key, view, size) for key, image in images]
                none = torch.empty((0, 3, size, size), dtype=torch.uint8)
                found[_pixels(need)] = torch.stack(rendered) if rendered else none
        return found

    def _forward(self, job: int, x_N3SS: torch.Tensor) -> list[Tokens]:
        """The bare frozen encoder in the configured batches; tokens stay on the device."""
        compute, encoder = self.dataset_pass.jobs[job][0].definition.compute, self._encoders[job]
        starts = range(0, len(x_N3SS), compute.batch)
        return [encoder.encode_on_device(x_N3SS[s : s + compute.batch], compute) for s in starts]

    def _store(
        self,
        job: int,
        view: int,
        block: int,
        batches: Sequence[Tokens],
        valid_N: NDArray[np.bool_],
        scratch: Path,
        watch: Stopwatch,
    ) -> None:
        """Encode and commit the units of one view, and write as many bytes as they take."""
        need = self.dataset_pass.jobs[job][0]
        folder = FeatureFolder(LocalStore(need.folder(scratch)))
        digest, batch = self.dataset_pass.dataset.block_digest(block), need.definition.compute.batch
        tokens: list[TokenType] = [token for token, views in need.views.items() if view < views]
        for token in tokens:
            values = _values([b.cls if token == "cls" else b.patch for b in batches], valid_N)
            if values is None:
                continue
            codec = bound_codec(folder, token)
            watch.time("encode", lambda c=codec, v=values: encode_unit(c, v, valid_N))  # type: ignore[misc]
            record = watch.time(
                "commit",
                lambda t=token, v=values: commit_unit(  # type: ignore[misc]
                    folder, view, t, block, v, valid_N, rows_digest=digest, batch=batch
                ),
            )
            data = os.urandom(sum(file.size for file in record.files))
            watch.time("disk", lambda d=data: folder.store.put("disk", d))  # type: ignore[misc]

    def _copy(self, name: str) -> Path:
        """A working folder with everything but the units."""
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(self.folder / "prepared", target, symlinks=True))


def _limited(need: FeatureNeed) -> FeatureNeed:
    """The same features with at most `VIEWS` views."""
    return replace(need, views={token: min(views, VIEWS) for token, views in need.views.items()})


def _pixels(need: FeatureNeed) -> object:
    """Needs that agree in this share the rendered pixels."""
    return need.definition.encoder.image_size


def _decoded(data: bytes) -> NDArray[np.uint8] | None:
    try:
        return decode_image(data)
    except UndecodableImage:
        return None


def _values(parts: Sequence[torch.Tensor], valid_N: NDArray[np.bool_]) -> NDArray[np.float32] | None:
    """Float32 features of a block, zeros in rows without an image; None when no row has any."""
    if not parts:
        return None
    given = np.concatenate([part.float().cpu().numpy() for part in parts])
    values = np.zeros((len(valid_N), *given.shape[1:]), np.float32)
    values[valid_N] = np.where(np.isfinite(given), given, 0.0)
    return values


def moved(work: ExtractPass, workdir: Path) -> ExtractPass:
    """The same pass into another working folder on this machine's disk."""
    return replace(work, workdir=workdir, features=LocalStore(workdir / "features"))


def _fresh(device: str) -> Stopwatch:
    watch = Stopwatch(device)
    watch.begin()
    return watch
