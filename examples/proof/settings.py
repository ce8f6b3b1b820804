"""The proof's configuration: teachers of different strengths, one cache, and the students that every table compares."""

SEEDS = (0, 1, 2)
TEACHERS = ("lite1", "lite2", "digit-expert", "photo-expert")
EXPERTS = {"digit-expert": "digits", "photo-expert": "photos"}
"""What each specialist was taught, by its name."""
BENCHMARKS = ("digits", "mnist", "photos")
STEPS = {
    "basic": "one projector, raw targets",
    "std": "+ standardization",
    "ladder": "+ ladder",
    "student": "+ dropping",
}
"""The paper's variants, each with one ingredient more."""
_RECIPE = """\
    architecture: tf_efficientnet_lite0
    seeds: {seeds}
    init: pretrained
    image_size: {size}
    drop_path: 0.0
    dataset: pool
    batch_norm: frozen
    optimizer: {{epochs: {epochs}, warmup_epochs: 0, frozen_steps: 20, batch: 32, lr: {lr}}}
"""
_HEAD = """\
# Written by examples/proof/run.py.
samples:
  datasets:
    pool: {source: "../images/*-train-*.tar"}   # no label of it is used by a student
    val: {source: "../images/*-val-*.tar"}
"""
_MIDDLE = """\
views: {{recipe: gentle, count: {views}}}
cache: {{codec: {codec}, snr_db: {snr_db}}}
teachers:
  lite1: {{encoder: efficientnet-lite1, image_size: {size}}}
  lite2: {{encoder: efficientnet-lite2, image_size: {size}}}
"""
_EXPERT = """\
  {name}:
    encoder: checkpoint:../weights/{kind}.safetensors
    architecture: test_efficientnet
    image_size: {size}
    mean: [0.5, 0.5, 0.5]
    std: [0.5, 0.5, 0.5]
"""
_TAIL = """\
distill: {{validation: val}}
evaluate:
  baseline: false
  encoders:
    start: {{encoder: efficientnet-lite0, image_size: {size}}}
  benchmarks:
{benchmarks}
  probes: [logistic, knn, fewshot]
  c_values: [1e-4, 1e-3, 1e-2, 0.1, 1.0]
  k_values: [20]
  shots: [5]
"""


def students() -> dict[str, str]:
    """What each student adds to the recipe, by name: the paper's variants, and one student of each teacher alone."""
    ladder, last = "ladder: {hidden: 64, last_hidden: 512}", "ladder: {hidden: 64, last_hidden: 512, blocks: last}"
    found = {
        "student": f"    {ladder}\n    loss: {{drop_probability: 0.25}}\n",
        "basic": f"    {last}\n    loss: {{drop_probability: 0.0, standardize: none}}\n",
        "std": f"    {last}\n    loss: {{drop_probability: 0.0}}\n",
        "ladder": f"    {ladder}\n    loss: {{drop_probability: 0.0}}\n",
    }
    alone = f"    {ladder}\n    loss: {{drop_probability: 0.0}}\n"
    return found | {f"only-{teacher}": f"    teachers: [{teacher}]\n{alone}" for teacher in TEACHERS}


def text(
    chosen: dict[str, str],
    *,
    size: int = 48,
    epochs: int = 3,
    lr: float = 0.0028,
    views: int = 2,
    codec: str = "klt",
    snr_db: float = 15.0,
    seeds: tuple[int, ...] = SEEDS,
) -> str:
    """The configuration file of a working folder beside `images/` and `weights/`, with these students."""
    sets = [f"{kind}-{part}" for kind in BENCHMARKS for part in ("train", "test")]
    datasets = "".join(f'    {name}: {{source: "../images/{name}-*.tar"}}\n' for name in sets)
    recipe = _RECIPE.format(seeds=list(seeds), size=size, epochs=epochs, lr=lr)
    benchmarks = "\n".join(f"    {kind}: {{train: {kind}-train, test: {kind}-test}}" for kind in BENCHMARKS)
    return (
        _HEAD
        + datasets
        + _MIDDLE.format(views=views, codec=codec, snr_db=snr_db, size=size)
        + "".join(_EXPERT.format(name=name, kind=kind, size=size) for name, kind in EXPERTS.items())
        + "students:\n"
        + "".join(f"  {name}:\n{recipe}{extra}" for name, extra in chosen.items())
        + _TAIL.format(size=size, benchmarks=benchmarks)
    )
