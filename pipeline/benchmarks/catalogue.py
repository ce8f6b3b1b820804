"""Every benchmark of the registry as `unic-pipe benchmarks` shows it: what it is, what of it is here, and downloading it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unic_pipe.pipeline.benchmarks.locate import Place, locate
from unic_pipe.schemas.benchmarks import BenchmarkCard, Split, cards
from unic_pipe.schemas.config import EvaluateConfig
from unic_pipe.schemas.errors import StageError, UserError, did_you_mean


@dataclass(frozen=True)
class BenchmarkRow:
    """One benchmark, and where its splits were looked for."""

    name: str
    card: BenchmarkCard
    configured: bool
    given: tuple[str, ...]
    """Datasets of the user that are read instead of the benchmark's own folder."""
    places: tuple[Place, ...]
    base: Path
    """The folder in which it is searched."""

    @property
    def here(self) -> bool:
        """Whether nothing of it is missing."""
        return not any(place.missing for place in self.places)

    @property
    def folder(self) -> Path | None:
        """Where it is, if it is here."""
        return self.places[0].folder if self.here and self.places else None

    @property
    def missing(self) -> dict[Split, tuple[str, ...]]:
        """What is missing, by split."""
        return {place.split: place.missing for place in self.places if place.missing}


def catalogue(config: EvaluateConfig, folder: Path, names: Sequence[str] = ()) -> list[BenchmarkRow]:
    """The named benchmarks (none named: all), looked for as the configuration says; `folder` is the working folder.
    Raises UserError: no such benchmark."""
    for name in names:
        if name not in cards():
            raise UserError(
                f"No benchmark is named {name!r}{did_you_mean(name, list(cards()))}",
                "All of them: unic-pipe benchmarks",
            )
    return [_row(config, folder, name, card) for name, card in cards().items() if not names or name in names]


def _row(config: EvaluateConfig, folder: Path, name: str, card: BenchmarkCard) -> BenchmarkRow:
    given = config.benchmarks.get(name)
    base = folder / Path(given.root if given is not None and given.root is not None else config.root).expanduser()
    own = {"train": given.train if given else "", "test": given.test if given else ""}
    own = {split: "" if dataset == f"{name}-{split}" else dataset for split, dataset in own.items()}
    splits: tuple[Split, ...] = ("train", "test") if card.needs_train else ("test",)
    places = tuple(locate(name, split, base) for split in splits if not own[split])
    shown = tuple(own[split] for split in splits if own[split])
    return BenchmarkRow(name, card, given is not None, shown, places, base)


def download(row: BenchmarkRow, say: Callable[[str], None] = print) -> None:
    """Download what is missing of a benchmark into the folder in which it is searched.

    Raises:
        UserError: torchvision has no download of it; the hint says where to get it.
        StageError: the download failed.
    """
    card = row.card
    if row.here:
        say(f"{row.name}: nothing is missing.")
        return
    if card.torchvision is None:
        raise UserError(
            f"{row.name} has no download that a program may use.",
            f"Get {card.get} ({card.source}), and put it into {row.base}",
        )
    from torchvision import datasets

    say(f"{row.name}: downloading into {row.base} (licence: {card.licence})")
    row.base.mkdir(parents=True, exist_ok=True)
    try:
        getattr(datasets, card.torchvision)(root=row.base, download=True)
    except (OSError, RuntimeError) as error:
        raise StageError(
            f"{row.name}: the download failed ({error}).",
            f"Try again, or get {card.get} by hand ({card.source}), and put it into {row.base}",
        ) from error
