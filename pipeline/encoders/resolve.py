"""From the configuration of an encoder to its definition. Quick and without PyTorch when the answer is known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from unic_pipe.pipeline.encoders.licences import UNKNOWN
from unic_pipe.pipeline.encoders.locate import (
    find_path,
    here_or_packaged,
    require_repository,
    require_weights,
    weights_in_folder,
)
from unic_pipe.pipeline.encoders.makers import makers_readout
from unic_pipe.pipeline.encoders.registry import REGISTRY, parse_choice, triple
from unic_pipe.pipeline.storage import LocalStore, sha256_of_file
from unic_pipe.pipeline.storage.regular import require_regular
from unic_pipe.schemas.arguments import require_arguments
from unic_pipe.schemas.base import PROGRAM_VERSION, Model, digest_of, json_digest
from unic_pipe.schemas.config import EncoderConfig, StudentConfig
from unic_pipe.schemas.encoders import EncoderCache, EncoderCard, EncoderReading
from unic_pipe.schemas.errors import NotFinishedError, UnicPipeError, UserError
from unic_pipe.schemas.features import EncoderDefinition, Readout
from unic_pipe.schemas.places import LARGEST_COLOUR, LARGEST_SIDE
from unic_pipe.schemas.students import ExportManifest

_CACHE_FILE = "encoders.json"
_READING = 5
"""Goes up when files or models are read in another way: what was kept before is then worked out again."""
ASSUMED = "timm's default"


@dataclass(frozen=True)
class ResolvedEncoder:
    """An encoder with everything that is needed to load it, on any process that sees the same files."""

    name: str
    definition: EncoderDefinition
    weights_path: Path | None
    """None for random weights."""
    source: str
    licence: str
    reading: EncoderReading
    normalisation: str
    """Where mean and std come from."""

    @property
    def digest(self) -> str:
        """The encoder's identity: the digest of its definition."""
        return digest_of(self.definition)


def resolve_encoder(
    name: str, config: EncoderConfig, weights_dir: Path, workdir: Path | None, like: StudentConfig | None = None
) -> ResolvedEncoder:
    """Find an encoder's weights and work out its definition.

    `name` is also the registry name unless `config.encoder` says otherwise. The first time, the weights are hashed and
    loaded once to check them and to learn the token dimensions; the answer is then kept in `workdir`/runs (None: not
    kept) for as long as the configuration, the files' paths, sizes and times, and the versions stay the same. `like`: the
    student whose architecture a file has that does not say its own.

    Raises:
        UserError: unknown encoder, missing or unfit weights, model arguments that timm refuses.
    """
    return _Resolver(weights_dir, workdir).resolve(name, config, like)


def encoder_card(
    kind: Literal["registry", "timm"], target: str, weights_dir: Path, workdir: Path | None
) -> EncoderCard:
    """What is known about a registry encoder or a timm model without its weights.

    Raises:
        UserError: timm has no such model.
    """
    if kind == "registry":
        return REGISTRY[target]
    return here_or_packaged(_Resolver(weights_dir, workdir).timm_card(target), weights_dir)


def find_file(config: EncoderConfig, name: str, weights_dir: Path, workdir: Path | None) -> Path | None:
    """The weights file of a configured encoder; None for random weights.

    Raises:
        UserError: unknown encoder, or no such file.
    """
    return _Resolver(weights_dir, workdir).locate(name, config).path


@dataclass(frozen=True)
class _Located:
    """An encoder's weights before they are opened."""

    target: str
    card: EncoderCard | None
    """None for `checkpoint:`, whose file or folder must be opened to know."""
    path: Path | None
    folder: Path | None
    """The folder that `path` is in, if the user named a folder."""
    seed: int | None


class _Resolver:
    def __init__(self, weights_dir: Path, workdir: Path | None) -> None:
        self.weights_dir = weights_dir
        self.places = [weights_dir, *([workdir] if workdir else [])]
        self.store = LocalStore(workdir / "runs") if workdir else None
        self.cache = self._read_cache()

    def locate(self, name: str, config: EncoderConfig) -> _Located:
        kind, target = parse_choice(config.encoder or name)
        if kind == "student":
            kind, target = "checkpoint", self._export_of(target)
        seed = _random_seed(config)
        repository = require_repository(target, self.weights_dir) if kind == "hub" else None
        if repository is not None:
            kind, target = "checkpoint", str(repository)
        card = None if kind == "checkpoint" else REGISTRY[target] if kind == "registry" else self.timm_card(target)
        if card is None and config.weights is not None and seed is None:
            raise UserError(f"{name}: checkpoint:{target} already names the weights.", "Remove `weights`.")
        if seed is not None and config.prefix is not None:
            raise UserError(f"{name}: random weights have no prefix.", "Remove `prefix`.")
        named = target if card is None else config.weights if seed is None else None
        path = folder = None
        if named is not None:
            path = find_path(named, self.places)
            folder = path if path.is_dir() else None
            path = weights_in_folder(folder) if folder else path
        elif card is not None and seed is None:
            card = here_or_packaged(card, self.weights_dir)
            path = require_weights(card, self.weights_dir)
        if repository is not None:
            card = _folder_card(repository)
        return _Located(target, card, path if seed is None else None, folder, seed)

    def resolve(self, name: str, config: EncoderConfig, like: StudentConfig | None = None) -> ResolvedEncoder:
        found = self.locate(name, config)
        card, path = found.card, found.path
        files = [p for p in (path, found.folder / "config.json" if found.folder else None) if p is not None]
        key = _key(config.encoder or name, config, files, like)
        definition, reading = self.cache.definitions.get(key), self.cache.readings.get(key)
        if definition is None or reading is None:
            definition, reading = _define(
                name, card or self._checkpoint_card(found, config, like), config, path, found.seed
            )
            self._remember(definitions={key: definition}, readings={key: reading})
        return ResolvedEncoder(
            name=name,
            definition=definition,
            weights_path=path.absolute() if path else None,
            source=card.source if card and config.weights is None else config.weights or found.target,
            licence=_licence(found, config),
            reading=reading,
            normalisation=_normalisation(found, config, definition),
        )

    def _export_of(self, student: str) -> str:
        folder = Path("students") / student / "export"
        if not any((place / folder / "config.json").is_file() for place in (*self.places, Path())):
            raise NotFinishedError(
                f"Student {student} is not finished.", f"unic-pipe distill --student {student}", f"students/{student}"
            )
        return str(folder)

    def timm_card(self, target: str) -> EncoderCard:
        """What timm knows about one of its models; kept, because asking means importing timm."""
        key = f"{target} {_READING} {_versions()}"
        card = self.cache.cards.get(key)
        if card is None:
            from unic_pipe.pipeline.encoders.models import timm_card

            card = timm_card(target)
            self._remember(cards={key: card})
        return card

    def _checkpoint_card(self, found: _Located, config: EncoderConfig, like: StudentConfig | None) -> EncoderCard:
        if found.folder is not None:
            return _folder_card(found.folder)
        architecture = config.architecture
        if found.path is not None:
            from unic_pipe.pipeline.encoders.checkpoints import named_architecture
            from unic_pipe.pipeline.encoders.official import official_card

            official = official_card(found.path, config)
            if official is not None:
                return official
            architecture = architecture or named_architecture(found.path)
        if architecture is None and like is not None:
            return self.timm_card(like.architecture).model_copy(update={"model_args": like.model_args})
        if architecture is None:
            raise UserError(
                f"checkpoint:{found.target}: the file does not say which architecture it belongs to.",
                "Add a line such as `architecture: vit_base_patch16_224` (a timm name), and `model_args` if it has any.",
            )
        return self.timm_card(architecture)

    def _read_cache(self) -> EncoderCache:
        if self.store is None:
            return EncoderCache()
        try:
            raw = self.store.get(_CACHE_FILE)
            # Without a seal nothing says that it was not edited, and everything in it can be measured again.
            return EncoderCache() if EncoderCache.unsealed(raw) else EncoderCache.from_bytes(raw, _CACHE_FILE)
        except (OSError, UnicPipeError):  # absent, damaged, or written by another version
            return EncoderCache()

    def _remember(self, **more: Mapping[str, Model]) -> None:
        """Add entries to the fields of the cache that `more` names."""
        latest = self._read_cache()
        fields = EncoderCache.model_fields
        self.cache = EncoderCache(
            **{f: {**getattr(latest, f), **getattr(self.cache, f), **more.get(f, {})} for f in fields}
        )
        if self.store is not None:
            try:
                self.store.put(_CACHE_FILE, self.cache.to_bytes())
            except (OSError, UnicPipeError):
                # A working folder that may only be read still has encoders; they are resolved again next time.
                return


def _define(
    name: str, card: EncoderCard, config: EncoderConfig, path: Path | None, seed: int | None
) -> tuple[EncoderDefinition, EncoderReading]:
    """The definition, with token dimensions learned from one forward pass of the loaded encoder."""
    from unic_pipe.pipeline.encoders.measure import measured

    size = config.model_args.get("img_size")
    model_args = {**card.model_args, **{k: v for k, v in config.model_args.items() if k != "img_size"}}
    if size is not None and not isinstance(size, int):
        raise UserError(f"{card.name}: model_args.img_size must be a number of pixels, not {size!r}.")
    if config.image_size is not None and size is not None and size != config.image_size:
        raise UserError(
            f"{card.name}: image_size is {config.image_size} but model_args.img_size is {size}.",
            "Keep image_size only.",
        )
    mean, std = config.mean or card.mean, config.std or card.std
    if not (max(map(abs, (*mean, *std))) <= LARGEST_COLOUR and min(std) > 0):
        raise UserError(
            f"{card.name}: mean {mean} and std {std} are not of colours from 0 to 1.",
            "Give mean and std; those of colours from 0 to 255 divided by 255.",
        )
    draft = EncoderDefinition(
        architecture=config.architecture or card.architecture,
        model_args=model_args,
        weights=f"random:{seed}" if path is None else sha256_of_file(path),
        conversion="timm" if path is None else card.conversion,
        readout="vit",
        image_size=config.image_size or size or card.image_size,
        mean=mean,
        std=std,
        cls_dim=0,
        patch_dim=0,
        grid=(0, 0),
    )
    return measured(name, draft, path, config.prefix, card.readout)


def _normalisation(found: _Located, config: EncoderConfig, definition: EncoderDefinition) -> str:
    """Where an encoder's mean and std come from; an assumption says so, and what to do."""
    if config.mean and config.std:
        return "as given"
    if definition.conversion == "unic":
        return "of the official UNIC file"
    if found.folder is not None:
        return "of config.json"
    if found.card is not None and (found.path is None or config.weights is None or found.card.conversion != "timm"):
        return f"of {found.card.name}"
    return f"{ASSUMED} for {definition.architecture}; give mean and std if your weights were trained otherwise"


def _licence(found: _Located, config: EncoderConfig) -> str:
    """What the encoder's card says, or the `config.json` of its folder; of other weights nobody knows."""
    if found.card is not None and config.weights is None:
        return found.card.licence
    if found.folder is None or config.weights is not None:
        return UNKNOWN
    try:  # without the folder's card, which imports timm
        body = json.loads((found.folder / "config.json").read_bytes())
        return str(body.get("pretrained_cfg", body).get("license") or UNKNOWN)
    except (OSError, ValueError, AttributeError):
        return UNKNOWN


def _random_seed(config: EncoderConfig) -> int | None:
    if config.weights is None or not config.weights.startswith("random:"):
        return None
    digits = config.weights.removeprefix("random:")
    if not digits.isdecimal():
        raise UserError(f"weights: {config.weights} has no seed.", "Write for instance `weights: random:0`.")
    return int(digits)


def _folder_card(folder: Path) -> EncoderCard:
    """Read `config.json` of timm's local-dir layout; in its older form the `pretrained_cfg` is the file itself."""
    try:
        body: dict[str, Any] = json.loads(require_regular(folder / "config.json").read_bytes())
        known: dict[str, Any] = body.get("pretrained_cfg", body)
        if "architecture" not in body:
            kind = f" of transformers (model_type: {body['model_type']})" if "model_type" in body else ""
            raise UserError(
                f"{folder / 'config.json'}: a configuration{kind} that names no architecture of timm.",
                "Give timm's export of this model, or its weights file with `architecture:` (a timm name).",
            )
        arguments = body.get("model_args") or {}
        channels = arguments.get("in_chans", 3)
        if channels != 3:
            raise UserError(
                f"{folder} has {channels} input channel{'s' * (channels != 1)}; images have 3.",
                "Use weights that were trained on colour images.",
            )
        size = arguments.get("img_size") or known["input_size"][-1]
        if not 1 <= size <= LARGEST_SIDE:
            raise UserError(
                f"{folder / 'config.json'}: images of {size:,} pixels; an encoder's have 1 to {LARGEST_SIDE:,}.",
                "Give the encoder's own configuration.",
            )
        require_arguments(body["architecture"], arguments, f"{folder / 'config.json'}: model_args")
        return EncoderCard(
            name=str(folder),
            architecture=body["architecture"],
            model_args=_without_size(body["architecture"], arguments),
            licence=known.get("license") or "unknown",
            image_size=size,
            mean=triple(known["mean"]),
            std=triple(known["std"]),
            readout=body.get("readout")
            or makers_readout(body["architecture"], known.get("tag"))
            or _readout_of_students(folder),
            source=str(folder),
        )
    except UserError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{folder / 'config.json'}: not a timm model configuration ({error!r}).",
            "Export the student again, or name the weights file and its architecture.",
        ) from None


def _without_size(architecture: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a model, without the image size where `create` gives it anyway."""
    from unic_pipe.pipeline.encoders.models import fixed_size

    given = fixed_size(architecture, arguments)
    return {key: value for key, value in arguments.items() if key != "img_size" or not given}


def _readout_of_students(folder: Path) -> Readout | None:
    """The readout of students whose exports do not record it: all of them learned with their class tokens."""
    path = folder / "manifest.json"
    try:
        ExportManifest.from_bytes(path.read_bytes(), path.name)
    except (OSError, UnicPipeError):
        return None
    return "vit"


def _key(choice: str, config: EncoderConfig, files: list[Path], like: StudentConfig | None) -> str:
    stats = [(str(p.absolute()), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    body = [
        _READING,
        choice,
        config.model_dump(mode="json", exclude_defaults=True, exclude={"dtype"}),
        stats,
        _versions(),
    ]
    return json_digest(body if like is None else [*body, like.architecture, like.model_args])


def _versions() -> str:
    return f"unic-pipe {PROGRAM_VERSION} timm {version('timm')}"
