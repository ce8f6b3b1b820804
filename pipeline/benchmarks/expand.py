"""Benchmarks that have a name, written out as what they stand for: datasets, and a pair of them."""

from unic_pipe.schemas.benchmarks import SOURCE, BenchmarkCard, BenchmarkConfig, Split, cards
from unic_pipe.schemas.config import Config, DatasetConfig
from unic_pipe.schemas.errors import UserError


def with_benchmarks(config: Config) -> Config:
    """The configuration with datasets `NAME-train` and `NAME-test` for every benchmark that has a name, unless it names
    datasets of the user's. What is tested with ImageNet's probe shares ImageNet's training set.
    Raises UserError: the user has another dataset of that name."""
    datasets = dict(config.samples.datasets)
    benchmarks: dict[str, BenchmarkConfig] = {}
    for name, given in config.evaluate.benchmarks.items():
        card = cards().get(name)
        if card is None:
            benchmarks[name] = given
            continue
        train = given.train or _train(config, datasets, name, card)
        test = given.test or _dataset(config, datasets, name, "test")
        benchmarks[name] = given.model_copy(update={"train": train, "test": test})
    samples = config.samples.model_copy(update={"datasets": datasets})
    evaluate = config.evaluate.model_copy(update={"benchmarks": benchmarks})
    return config.model_copy(update={"samples": samples, "evaluate": evaluate})


def _train(config: Config, datasets: dict[str, DatasetConfig], name: str, card: BenchmarkCard) -> str:
    if card.kind != "transfer":
        return _dataset(config, datasets, name, "train")
    source = config.evaluate.benchmarks.get(SOURCE)
    return (source.train if source is not None else "") or _dataset(config, datasets, SOURCE, "train")


def _dataset(config: Config, datasets: dict[str, DatasetConfig], benchmark: str, split: Split) -> str:
    """Add one split of a benchmark to `datasets`; its name."""
    name = f"{benchmark}-{split}"
    given = config.evaluate.benchmarks.get(benchmark)
    root = given.root if given is not None and given.root is not None else config.evaluate.root
    wanted = DatasetConfig(source=root, reader=f"{benchmark}/{split}")
    if name in config.samples.datasets and config.samples.datasets[name] != wanted:
        raise UserError(
            f"samples.datasets.{name} has the name that benchmark {benchmark} needs for its own {split} set.",
            f"Give the dataset another name, or the benchmark your datasets: evaluate.benchmarks.{benchmark}: "
            "{train: DATASET, test: DATASET}",
        )
    datasets[name] = wanted
    return name
