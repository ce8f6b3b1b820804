"""The proof's tables that take a night: views, bits per value, number of teachers, and what the cache costs and saves.

Each is made from finished folders where those are there, so that a run that was stopped goes on.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from settings import BENCHMARKS, TEACHERS, students, text
from tables import Line, line, mean_score, read_scores, table
from work import prepare, unic_pipe, work

from unic_pipe import FeatureCache
from unic_pipe.pipeline.cache.reader import valid_rows

VIEWS, VIEWS_EPOCHS, NOISE = (1, 2, 4, 8), 8, 0.4
"""A table of views needs as many epochs as views: each epoch has one of them."""
BITS = {"float16": ("float16", 15.0), **{f"{db:g} dB": ("klt", db) for db in (25.0, 15.0, 9.0, 5.0, 3.0)}}
"""Codec and asked signal-to-noise ratio."""
Settings = dict[str, int]


def views(root: Path, seeds: tuple[int, ...], settings: Settings) -> str:
    """Cached views, noise on the student's side, and a fresh view in every epoch with the teachers in the loop."""
    settings = {"epochs": VIEWS_EPOCHS} | settings
    lines, plain = [], {"student": students()["student"]}
    for count in VIEWS:
        noisy = {"noisy": f"    noise: {NOISE}\n{plain['student']}"} if count in (1, 2) else {}
        folder = root / f"views-{count}"
        work(folder, text(plain | noisy, views=count, seeds=seeds, **settings))
        if count == VIEWS[0]:
            live = [word for seed in seeds for word in ("--student", f"student-{seed}")]
            unic_pipe(folder, "distill", "--live-teachers", *live)
            unic_pipe(folder, "evaluate")
        found, title = read_scores(folder), f"{count} cached view{'s' if count > 1 else ''}"
        lines.append(line(title, found, "student", seeds))
        if noisy:
            lines.append(line(f"{title}, noise {NOISE}", found, "noisy", seeds))
    found = read_scores(root / f"views-{VIEWS[0]}")
    scores = [found[f"student-{seed}-live"] for seed in seeds]
    return table([*lines, Line("a fresh view in every epoch, no cache", scores)], BENCHMARKS)


def bits(root: Path, seeds: tuple[int, ...], settings: Settings) -> str:
    """From 16 bits per value down: what the cache takes, and what its students score."""
    lines, plain = [], {"student": students()["student"]}
    for title, (codec, snr_db) in BITS.items():
        folder = root / f"bits-{title.replace(' ', '')}"
        work(folder, text(plain, codec=codec, snr_db=snr_db, seeds=seeds, **settings))
        stored = [size_of(folder, teacher) for teacher in TEACHERS]
        per_value = 8 * sum(one.size for one in stored) / sum(one.values for one in stored)
        lines.append(line(f"{title}: {per_value:.2f} bits", read_scores(folder), "student", seeds))
    return table(lines, BENCHMARKS)


def number(root: Path, seeds: tuple[int, ...], settings: Settings) -> str:
    """Teachers added one by one, each time the one whose gain on the mean is largest for its bytes in the cache."""
    folder, chosen, lines = root / "teachers", [], []
    made: dict[str, str] = {}
    score = 0.0
    while rest := [teacher for teacher in TEACHERS if teacher not in chosen]:
        sets = {"-".join(["of", *chosen, one]): [*chosen, one] for one in rest}
        made |= {key: f"    teachers: [{', '.join(sets[key])}]\n{students()['student']}" for key in sets}
        work(folder, text(made, seeds=seeds, **settings))
        found = read_scores(folder)
        bytes_of = {key: size_of(folder, sets[key][-1]).size for key in sets}
        means = {key: mean_score(line(key, found, key, seeds), BENCHMARKS) for key in sets}
        best = max(sets, key=lambda key: (means[key] - score) / bytes_of[key])
        for key in sorted(sets, key=means.__getitem__, reverse=True):
            gain = f"{(means[key] - score) / bytes_of[key] * 1e6:+.2f} points a MB" if score else "the first"
            title = f"{' + '.join(sets[key])} ({bytes_of[key] / 1e6:.1f} MB more, {gain})"
            lines.append(line(f"**{title}**" if key == best else title, found, key, seeds))
        chosen, score = sets[best], means[best]
    return table(lines, BENCHMARKS)


def cost(root: Path, seeds: tuple[int, ...], settings: Settings) -> str:
    """An ablation of eight students from the cache, and with the teachers in the loop."""
    folder, given = root / "cost", students()
    made = prepare(folder, text(given, seeds=seeds[:1], **settings))["extract"]
    names = [f"{name}-{seeds[0]}" for name in given]
    words = [word for name in names for word in ("--student", name)]
    took = {
        "extraction": made,
        "one student from the cache": unic_pipe(folder, "distill", *words[:2]),
        "seven more, in one pass": unic_pipe(folder, "distill", *words[2:]),
        "one student with live teachers": unic_pipe(folder, "distill", "--live-teachers", *words[:2]),
        "seven more with live teachers, in one pass": unic_pipe(folder, "distill", "--live-teachers", *words[2:]),
    }
    saved = took["one student with live teachers"].wall - took["one student from the cache"].wall
    verdict = "the cache never pays in time"
    if saved > 0:
        count = math.ceil(made.wall / saved)
        first = "with the first student already" if count == 1 else f"from {count} students on"
        verdict = f"the cache pays in time {first}, where students are trained one by one"
    rows = [f"| {title} | {one.wall:.0f} s | {one.processor:.0f} s |" for title, one in took.items()]
    return "\n".join(["| | wall | processor |", "|---|---:|---:|", *rows, "", f"Here {verdict}."])


@dataclass(frozen=True)
class Stored:
    """Bytes of a cache's units, and the feature values in them."""

    size: int
    values: int


def size_of(folder: Path, teacher: str) -> Stored:
    """What a teacher's features of the pool take, without calibration and documents: these do not grow with the images."""
    cache = FeatureCache(folder / f"features/pool-{teacher}")
    size = values = 0
    for view, token in cache.folder.planes():
        for record in cache.records(view, token).values():
            size += sum(file.size for file in record.files)
            values += int(valid_rows(record).sum()) * math.prod(cache.shapes[token])
    return Stored(size, values)


MORE: dict[str, Callable[[Path, tuple[int, ...], Settings], str]] = {
    "bits": bits,
    "views": views,
    "number": number,
    "cost": cost,
}
"""What makes each table, by its name in docs/proof.md."""
