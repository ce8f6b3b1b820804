"""The model card: README.md of an exported folder, as the Hugging Face hub shows it. What nobody knows, it says is not known."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from unic_pipe.pipeline.encoders.encoder import Encoder
from unic_pipe.pipeline.encoders.licences import MEANING, hub_licence, licence_named
from unic_pipe.pipeline.encoders.readouts import pooling_of
from unic_pipe.schemas.base import PROGRAM_VERSION
from unic_pipe.schemas.config import StudentConfig
from unic_pipe.schemas.losses import TOKENS
from unic_pipe.schemas.students import StudentManifest
from unic_pipe.stages.export.facts import Facts, Part, Score, public_name
from unic_pipe.stages.export.subject import Subject, resized

NOT_KNOWN = "not known"


def model_card(it: Subject, encoder: Encoder, facts: Facts, address: str) -> str:
    """The text. `address`: what load_encoder loads it by: a folder's name, or `hf-hub:OWNER/NAME`."""
    manifest = it.student.manifest if it.student is not None else None
    sections = (
        _head(facts.licence),
        _what(it.name, encoder, facts.parts),
        _loading(address),
        _licences(facts.licence, facts.parts),
        _data(manifest),
        _recipe(manifest),
        _scores(facts.scores),
        _digests(it, manifest, facts.parts),
    )
    return "\n".join(line for section in sections for line in (*section, ""))


def _head(licence: str) -> Iterator[str]:
    yield "---"
    yield "library_name: timm"
    yield from (f"{field}: {json.dumps(value)}" for field, value in hub_licence(licence).items())
    yield "pipeline_tag: image-feature-extraction"
    yield "tags: [unic-pipe, distillation, feature-extraction, image-feature-extraction, timm]"
    yield "---"


def _what(name: str, encoder: Encoder, parts: Sequence[Part]) -> Iterator[str]:
    teachers = [part.name for part in parts if part.role == "teacher"]
    learned = (
        f"It learned to predict the features of {_listed(teachers)}." if teachers else f"Its teachers are {NOT_KNOWN}."
    )
    definition = encoder.definition
    rows, columns = definition.grid
    count = sum(parameter.numel() for parameter in encoder.model.parameters())
    size, pooling = definition.image_size, pooling_of(encoder.model, definition.readout)
    yield f"# {name}"
    yield ""
    yield (
        f"An image encoder (timm's `{definition.architecture}`, {count / 1e6:.1f} M parameters) for images of {size} × {size}"
        f" pixels. {learned} Exported by unic-pipe {PROGRAM_VERSION}."
    )
    yield ""
    yield (
        f"It gives one vector an image, `cls` ({definition.cls_dim} dimensions: {pooling}), and {rows * columns} patch tokens"
        f" on a grid of {rows} × {columns}, `patch` ({definition.patch_dim} dimensions each). The short side of an image is"
        f" resized (bicubic) to {resized(size)} pixels, the centre cut out, and the colours, from 0 to 1, normalised with mean"
        f" {_numbers(definition.mean)} and std {_numbers(definition.std)}."
    )


def _loading(address: str) -> Iterator[str]:
    timm = address if address.startswith("hf-hub:") else f"local-dir:{address}"
    fetch = f" (after `hf download {address.removeprefix('hf-hub:')}`)" if address.startswith("hf-hub:") else ""
    yield from ("## Use", "", f"With unic-pipe{fetch}, both kinds of tokens, exactly as they were evaluated:", "")
    yield from ("```python", "from PIL import Image", "from unic_pipe import load_encoder", "")
    yield from (f"encoder = load_encoder({json.dumps(address)})",)
    yield 'image = Image.new("RGB", (640, 480))  # yours'
    yield from ("cls, patch = encoder(encoder.transform(image)[None])", "```", "")
    yield from ("With timm alone:", "", "```python", "import timm", "")
    yield f"model = timm.create_model({json.dumps(timm)}, pretrained=True).eval()"
    yield "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model), is_training=False)"
    yield from ("features = model.forward_features(transform(image)[None])", "```")


def _licences(licence: str, parts: Sequence[Part]) -> Iterator[str]:
    yield from ("## Licence", "", f"**{licence}**: {_meaning(licence)}.", "")
    if not parts:
        yield "This is what the folder stated; whose weights had a part in it is not known."
        return
    yield (
        "This is the most restrictive of the licences of the weights that had a part in it. Whether a teacher's licence reaches"
        " a student that learned from its features is for you to judge; unic-pipe is no lawyer."
    )
    yield from ("", "| weights | role | from | licence | what it means |", "|---|---|---|---|---|")
    for part in parts:
        size = f"{part.image_size} px" if part.image_size is not None else ""
        what = ", ".join(filter(None, (part.source, part.architecture, size)))
        means = f"{MEANING['unknown']} ({part.why})" if part.why else MEANING[licence_named(part.licence).terms]
        yield _row(part.name, part.role, what or NOT_KNOWN, part.licence, means)


def _data(manifest: StudentManifest | None) -> Iterator[str]:
    yield from ("## Data", "")
    if manifest is None:
        yield f"The images that it learned from are {NOT_KNOWN}."
        return
    definition, shares = manifest.definition, manifest.definition.config.datasets
    names = [f"`{name}`" + (f" (share {share:g})" if len(shares) > 1 else "") for name, share in shares.items()]
    patches = definition.token_views("patch")
    views = f"{definition.views} augmented view{'s' * (definition.views > 1)} of each image"
    fewer = f", {patches} of them with patch tokens" if patches < definition.views else ""
    live = "a fresh view of each image in every epoch" if definition.live else views + fewer
    yield f"{manifest.rows:,} images of {_listed(names)} (so the dataset is called where it was trained); {live}."
    yield "Labels were used by the loss." if definition.labels is not None else "No labels were used."


def _recipe(manifest: StudentManifest | None) -> Iterator[str]:
    yield from ("## Recipe", "")
    if manifest is None:
        yield f"How it was trained is {NOT_KNOWN}."
        return
    config = manifest.definition.config
    optimizer = config.optimizer
    sizes = config.image_sizes or (config.image_size,)
    facts = {
        "network": f"`{config.architecture}`" + (f" with {json.dumps(config.model_args)}" if config.model_args else ""),
        "starts from": "random weights" if config.start is None else public_name(config.start.encoder),
        "image size": f"{' and '.join(map(str, sizes))} px",
        "steps": f"{manifest.steps:,} ({optimizer.epochs:,} epochs)",
        "batch": f"{optimizer.batch:,}",
        "optimizer": f"AdamW, peak rate {optimizer.lr * optimizer.batch / 256:.3g} ({optimizer.warmup_epochs} epochs of"
        f" warm-up, cosine decay), weight decay {optimizer.weight_decay:g}",
        "precision": config.dtype,
        "drop path": f"{config.drop_path:g}",
        "weights": "those of the last step" if config.ema is None else f"moving average, decay {config.ema:g}",
        "heads": config.ladder.kind,
        "loss": _loss(manifest),
        "seed": f"{config.seed}",
    }
    yield from ("| | |", "|---|---|", *(_row(key, value) for key, value in facts.items()))


def _loss(manifest: StudentManifest) -> str:
    """The terms by token type, teacher by teacher where they differ, and how targets are normalised."""
    config: StudentConfig = manifest.definition.config
    texts: dict[str, list[str]] = {}
    for teacher in manifest.definition.teachers:
        terms = config.loss.terms_of(teacher.name)
        sums = {
            token: " + ".join(f"{w:g} {kind}" for kind, w in terms[token].items() if w)
            for token in TOKENS
            if token in terms
        }
        texts.setdefault("; ".join(f"{token}: {text}" for token, text in sums.items()), []).append(teacher.name)
    several = len(texts) > 1
    found = [f"{text} (of {', '.join(names)})" if several else text for text, names in texts.items()]
    normalised = "; ".join(f"{token} {config.loss.normaliser(token)}" for token in config.loss.trained)
    dropping = f", teachers dropped with probability {config.loss.drop_probability:g}"
    balance = config.loss.balance + (dropping if config.loss.balance == "dropping" else "")
    return f"{'; '.join(found)}; targets standardized ({normalised}); over teachers: {balance}"


def _scores(scores: Sequence[Score]) -> Iterator[str]:
    yield from ("## Scores", "")
    if not scores:
        yield f"How good it is is {NOT_KNOWN}: no evaluation has a result of it."
        return
    several = any(score.deviation is not None for score in scores)
    yield "Of frozen features, as stored (fractions from 0 to 1; `rmse` in metres)." + (
        " The last column is mean ± standard deviation over students that differ in the training seed alone."
        if several
        else " Of one training seed: how much others would differ is not known."
    )
    yield from ("", "| benchmark | probe | metric | score |" + (" seeds |" if several else ""))
    yield "|---|---|---|---|" + ("---|" if several else "")
    for score in scores:
        cells = [score.benchmark, score.probe, score.metric, f"{score.value:.4f}"]
        if several:
            n, deviation = len(score.over_seeds), score.deviation
            mean = sum(score.over_seeds) / n
            cells.append("" if deviation is None else f"{mean:.4f} ± {deviation:.4f} (n = {n})")
        yield _row(*cells)


def _digests(it: Subject, manifest: StudentManifest | None, parts: Sequence[Part]) -> Iterator[str]:
    yield from ("## Digests", "", "SHA-256 of what it is and what it was made from:", "")
    found = {"`model.safetensors`": it.encoder.definition.weights}
    if manifest is not None:
        found["definition of the training"] = manifest.digest
        digests = (digest for digest, _ in manifest.definition.datasets)
        found |= {f"dataset `{n}`": d for n, d in zip(manifest.definition.config.datasets, digests, strict=True)}
    found |= {f"weights of {part.role} `{part.name}`": part.weights or NOT_KNOWN for part in parts}
    yield from ("| | |", "|---|---|", *(_row(name, digest) for name, digest in found.items()))


def _meaning(licence: str) -> str:
    return " and ".join(dict.fromkeys(MEANING[licence_named(part).terms] for part in licence.split(" AND ")))


def _row(*cells: str) -> str:
    """A row of a table. Names are the user's: what is Markdown's own in them is taken as it is."""
    return f"| {' | '.join(' '.join(cell.split()).replace('|', chr(92) + '|') for cell in cells)} |"


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
