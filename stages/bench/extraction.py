"""Extraction as it runs, and its pieces alone, over the same first blocks of the user's samples."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from unic_pipe.pipeline.cache.calibration import bound_codec
from unic_pipe.pipeline.cache.commit import encode_unit
from unic_pipe.pipeline.cache.records import FeatureFolder
from unic_pipe.pipeline.extraction.blocks import commit_features, usable_rows
from unic_pipe.pipeline.extraction.forward import EncoderRun, features_of_rows
from unic_pipe.pipeline.extraction.run import ExtractOptions, ExtractPass, extract_features
from unic_pipe.pipeline.extraction.sizes import VIEWS_AT_ONCE
from unic_pipe.pipeline.process.crew import Crew, crew_of_one
from unic_pipe.pipeline.process.progress import Reporter, SilentReporter
from unic_pipe.pipeline.process.stopping import Stop
from unic_pipe.pipeline.process.stopwatch import Stopwatch
from unic_pipe.pipeline.storage import LocalStore
from unic_pipe.schemas.bench import Resource

if TYPE_CHECKING:
    from unic_pipe.pipeline.encoders.encoder import Encoder

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


@dataclass
class ExtractBench:
    """Measures one pass over the first blocks of a dataset, in a folder of its own."""

    dataset_pass: ExtractPass
    """Of the user's working folder; the folder and the number of blocks are replaced."""
    folder: Path
    device: str
    stop: Stop
    encoders: list[Encoder] = field(init=False)
    _runs: int = field(init=False, default=0)
    last: Path = field(init=False)
    """Working folder of the last extraction, with its features."""

    def prepare(self, cores: int, seconds: float, reporter: Reporter) -> None:
        """Calibrate, load what is loaded once, run everything for the first time, and choose as many blocks as take
        about `seconds`: a multiple of `cores`, so that no core idles at the end only because there is little to do."""
        from unic_pipe.pipeline.encoders import load_encoder

        work = self.dataset_pass
        # As many views as are rendered from one decoding.
        jobs = [
            (replace(need, views={t: min(n, VIEWS_AT_ONCE) for t, n in need.views.items()}), encoder)
            for need, encoder in work.jobs
        ]
        self.dataset_pass = work = replace(moved(work, self.folder / "prepared"), jobs=jobs)
        nothing = replace(work, blocks=0)
        extract_features(nothing, ExtractOptions(device=self.device, force=True), reporter, self.stop)
        self.encoders = [load_encoder(encoder, device=self.device) for _, encoder in work.jobs]
        most = min(work.blocks, work.dataset.blocks)
        self.dataset_pass = replace(work, blocks=1)
        self.pieces(watch_for(self.device))
        watch = watch_for(self.device)
        started = time.perf_counter()
        self.pieces(watch)
        a_block = (time.perf_counter() - started) / cores
        wanted = cores * max(1, round(seconds / a_block / cores))
        self.dataset_pass = replace(work, blocks=min(most, wanted))
        self._extract(replace(self.dataset_pass, blocks=min(most, cores)), watch_for(self.device))

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
        self.extraction(watch, "wall")
        if not self.stop.requested:
            self.pieces(watch)

    def extraction(self, watch: Stopwatch, name: str) -> None:
        """The extraction as a whole, timed under a name."""
        self._extract(self.dataset_pass, watch, name)

    def _extract(self, work: ExtractPass, watch: Stopwatch, name: str = "wall") -> None:
        run = self._copy(f"run-{self._runs}")
        if self._runs:
            shutil.rmtree(self.folder / f"run-{self._runs - 1}")
        self._runs += 1
        self.last = run
        options = ExtractOptions(device=self.device, force=True)
        work = moved(work, run)
        with watch.time(name):
            extract_features(work, options, SilentReporter(), self.stop)

    def pieces(self, watch: Stopwatch) -> None:
        """Every piece alone, block by block."""
        scratch, jobs = self._copy("pieces"), self.dataset_pass.jobs
        folders = [FeatureFolder(LocalStore(need.folder(scratch))) for need, _ in jobs]
        runs = [
            EncoderRun.of(e, need.definition, need.planes()) for (need, _), e in zip(jobs, self.encoders, strict=True)
        ]
        try:
            with crew_of_one(jobs[0][0].definition.compute.threads) as crew:
                for block in range(self.dataset_pass.blocks):
                    if not self.stop.requested:
                        self._block(block, runs, folders, crew, watch)
        finally:
            shutil.rmtree(scratch)
        watch.subtract("commit", "encode")

    def _block(
        self,
        block: int,
        runs: Sequence[EncoderRun],
        folders: Sequence[FeatureFolder],
        crew: Crew,
        watch: Stopwatch,
    ) -> None:
        """A block as extraction makes it, one piece after the other; and as many bytes written as its units take."""
        dataset, batch = self.dataset_pass.dataset, runs[0].compute.batch
        first, count = dataset.block_range(block)
        for found in features_of_rows(dataset, range(first, first + count), runs, batch, crew, watch):
            folder = folders[found.run]
            for token in found.features:
                codec = bound_codec(folder, token)
                with watch.time("commit"):
                    rows = usable_rows(dataset, block, found, token)
                with watch.time("encode"):
                    encode_unit(codec, rows.values, rows.valid_N)
                with watch.time("commit"):
                    record = commit_features(folder, dataset, block, found.view, token, rows, batch)
                data = os.urandom(sum(file.size for file in record.files))
                with watch.time("disk"):
                    folder.store.put("disk", data)

    def _copy(self, name: str) -> Path:
        """A working folder with everything but the units."""
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(self.folder / "prepared", target, symlinks=True))


def moved(work: ExtractPass, workdir: Path) -> ExtractPass:
    """The same pass into another working folder on this machine's disk."""
    return replace(work, workdir=workdir, features=LocalStore(workdir / "features"))


def watch_for(device: str) -> Stopwatch:
    """A stopwatch for repetitions: of the whole, and of its pieces."""
    return Stopwatch(("wall", *PIECES), device)
