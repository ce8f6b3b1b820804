"""Reading `unic-pipe.yaml`: YAML 1.2, with overrides from the command line, checked as a whole."""

import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from unic_pipe.pipeline.benchmarks.expand import with_benchmarks
from unic_pipe.pipeline.samples.dataset import Dataset
from unic_pipe.pipeline.samples.places import Root, as_root
from unic_pipe.pipeline.storage import LocalStore, Store, open_store
from unic_pipe.pipeline.workspace.explaining import Place, explain
from unic_pipe.pipeline.workspace.names import require_told_apart
from unic_pipe.pipeline.workspace.seeds import with_seeds
from unic_pipe.schemas.config import Config
from unic_pipe.schemas.describing import json_schema
from unic_pipe.schemas.errors import UserError
from unic_pipe.schemas.presets import expand_presets

CONFIG_NAME = "unic-pipe.yaml"
SCHEMA_NAME = "unic-pipe.schema.json"
_MOST_BYTES, _MOST_VALUES, _DEEPEST = 1 << 20, 20_000, 50
"""Of a configuration: far more than anybody writes, far less than what keeps a machine busy."""
_TOO_DEEP = f"fields inside fields inside fields, over {_DEEPEST} deep"
_WRITE_NEW = "Write a new one with: unic-pipe init --data PATH"


@dataclass(frozen=True)
class Workspace:
    """A loaded configuration and the working folder it governs (the folder of the file)."""

    config: Config
    """With the datasets of the benchmarks that have a name, and a student for each of its `seeds`."""
    folder: Path
    file: Path
    seeded: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The students that were made from `seeds`, by the name under which their settings stand in the file."""

    @property
    def roots(self) -> tuple[Root, ...]:
        """Places in which samples are searched; relative folders start at the working folder."""
        return tuple(as_root(root, self.folder, self.config.storage.options) for root in self.config.samples.roots)

    @property
    def feature_roots(self) -> tuple[Store, ...]:
        """Folders in which finished features of others are searched."""
        return tuple(self._place(root) for root in self.config.feature_roots)

    @property
    def features(self) -> Store:
        """Where feature folders, and the pointers to them, live."""
        return self._place(self.config.storage.url or ".").child("features")

    @property
    def samples(self) -> Store:
        """Where sample indexes, and the pointers to them, live."""
        return self._place(self.config.storage.url or ".").child("samples")

    def _place(self, text: str) -> Store:
        """A folder, relative ones from the working folder on, or an address in an object store."""
        if "://" in text:
            return open_store(text, self.config.storage.options)
        return LocalStore(self.folder / Path(text).expanduser())

    @property
    def weights_dir(self) -> Path:
        """Folder that is searched first for weights."""
        return self.folder / Path(self.config.weights_dir).expanduser()


def load_workspace(file: Path | None = None, overrides: Sequence[str] = ()) -> Workspace:
    """Read the configuration file (by default `unic-pipe.yaml` in the current folder).

    `overrides` are `a.b=value` texts that replace single values; the value is read as YAML.
    Raises UserError: no such file, not YAML, or fields that do not validate (all of them, with lines); a dataset has
    the name that a benchmark needs, or a student that of another one's seed; names that would be one on disk.
    """
    path = Path(CONFIG_NAME) if file is None else Path(file)
    if path.is_dir():
        path = path / CONFIG_NAME
    if not path.is_file():
        raise UserError(
            f"No {path} here." if file is None else f"{path}: no such file.",
            "Write one with: unic-pipe init --data PATH   (or name one with --config FILE)",
        )
    tree = _read(path)
    set_by_hand = [_override(tree, text) for text in overrides]
    return workspace_of(_validated(tree, str(path), set_by_hand), path.parent, path.absolute())


def _validated(tree: CommentedMap, name: str, set_by_hand: Sequence[Place], other: str = "--set") -> Config:
    """The configuration of a tree, presets written out. `other`: said in the place of lines that no file has."""
    expand_presets(tree)
    try:
        return Config.model_validate_json(json.dumps(tree, default=str))
    except ValidationError as error:
        lines = explain(error, tree, set_by_hand, other)
        count = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
        raise UserError("\n  ".join([f"{name} has {count}:", *lines])) from None


def config_of(values: Mapping[str, Any]) -> Config:
    """The configuration of plain values, as they would stand in `unic-pipe.yaml`; tuples are lists, paths are texts.

    Raises UserError: fields that do not validate, all of them.
    """
    text = json.dumps(values, default=str)
    return _validated(_parse(text, "The configuration") or CommentedMap(), "The configuration", [()], "in")


def workspace_of(config: Config, folder: Path, file: Path | None = None) -> Workspace:
    """A configuration and the working folder that it governs; `file`: that it is from, if any.

    Raises UserError: a dataset has the name that a benchmark needs, or a student that of another one's seed; names that
    would be one on disk.
    """
    config, seeded = with_seeds(config)
    found = Workspace(with_benchmarks(config), folder.absolute(), file or folder.absolute() / CONFIG_NAME, seeded)
    require_told_apart(found.config, found.file, lambda: found.features)
    return found


def write_configuration(folder: Path, text: str) -> bool:
    """Create `unic-pipe.yaml` with this text, and beside it the schema that its first line names for editors; False:
    there is one already, which stays as it is."""
    store = LocalStore(folder)
    made = store.create(CONFIG_NAME, f"# yaml-language-server: $schema={SCHEMA_NAME}\n{text}".encode())
    if made:
        store.put(SCHEMA_NAME, (json.dumps(json_schema(), indent=1) + "\n").encode())
    return made


def write_dtypes(workspace: Workspace, dtypes: Mapping[str, str]) -> bool:
    """Set `teachers.NAME.dtype` in the configuration file, which else stays as it is, comments included. False: nothing is
    written, because other lines would change with it (aliases, or another layout than ours)."""
    file = workspace.file.resolve()
    text, yaml = file.read_bytes().decode(), YAML()
    yaml.width, yaml.preserve_quotes = 1000, True
    tree = yaml.load(text)
    if _dumped(yaml, tree) != text:
        return False
    for name, dtype in dtypes.items():
        if not tree["teachers"][name]:
            tree["teachers"][name] = CommentedMap()
            tree["teachers"][name].fa.set_flow_style()
        # Behind the last field stand the comments of what follows.
        tree["teachers"][name].insert(0, "dtype", dtype)
    changed = _dumped(yaml, tree)
    before, after = (_validated(_parse(each, str(file)), str(file), []) for each in (text, changed))
    teachers = {name: t.model_copy(update={"dtype": dtypes.get(name, t.dtype)}) for name, t in before.teachers.items()}
    if after != before.model_copy(update={"teachers": teachers}):
        return False
    LocalStore(file.parent).put(file.name, changed.encode())
    return True


def _dumped(yaml: YAML, tree: CommentedMap) -> str:
    buffer = io.StringIO()
    yaml.dump(tree, buffer)
    return buffer.getvalue()


def to_yaml(config: Config, comments: Mapping[tuple[str, ...], str]) -> str:
    """The fields of a configuration that were set, as commented YAML.

    `comments` go by place, as `("students", "*", "loss")`, where `*` is any name.
    """
    body = config.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    yaml = YAML()
    yaml.version = (1, 2)
    yaml.width = 1000
    buffer = io.StringIO()
    yaml.dump(_commented(body, (), comments), buffer)
    return re.sub(r"\n(?=\w)", "\n\n", buffer.getvalue().removeprefix("%YAML 1.2\n---\n"))


def _commented(value: Any, place: tuple[str, ...], comments: Mapping[tuple[str, ...], str]) -> Any:
    if isinstance(value, list):
        items = CommentedSeq(value)
        items.fa.set_flow_style()
        return items
    if not isinstance(value, dict):
        return value
    node = CommentedMap()
    for key, inner in value.items():
        here = (*place, key)
        node[key] = _commented(inner, here, comments)
        comment = comments.get(here) or comments.get((*here[:1], "*", *here[2:]))
        if comment is not None:
            node.yaml_add_eol_comment(comment, key, column=0)
    return node


def _read(path: Path) -> CommentedMap:
    if path.stat().st_size > _MOST_BYTES:
        raise UserError(f"{path}: {path.stat().st_size:,} bytes are not a configuration.", _WRITE_NEW)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}).", "Save it as UTF-8.") from None
    tree = _parse(text, str(path))
    if not isinstance(tree, CommentedMap):
        raise UserError(f"{path}: expected `key: value` lines.", _WRITE_NEW)
    return tree


def _parse(text: str, source: str) -> Any:
    if _open_brackets(text) > 2 * _DEEPEST:
        raise UserError(f"{source}: {_TOO_DEEP}.")
    yaml = YAML()
    yaml.version = (1, 2)
    try:
        tree = yaml.load(text)
        _require_plain(tree, source, [_MOST_VALUES])
        return tree
    except UserError:
        raise
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}, line {mark.line + 1}" if mark else source
        raise UserError(f"{where}: {(error.problem or 'not valid YAML').splitlines()[0]}.") from None
    except YAMLError as error:
        raise UserError(f"{source}: not valid YAML ({str(error).splitlines()[0]}).") from None
    except RecursionError:
        raise UserError(f"{source}: {_TOO_DEEP}.") from None
    except Exception as error:  # impossible dates, numbers and tags: the parser lets through what Python says
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise UserError(f"{source}: not valid YAML ({reason}).") from None


def _open_brackets(text: str) -> int:
    """About how deep brackets stand in brackets: the parser takes half a minute for thousands."""
    steps = np.array([0, *((char in "[{") - (char in "]}") for char in text if char in "[]{}")])
    return int((steps.cumsum() - np.minimum.accumulate(steps.cumsum())).max())


def _require_plain(value: Any, source: str, left: list[int], depth: int = 0) -> None:
    """Few values, none of them deep or huge: an alias stands for all that it repeats, and may stand in itself.
    Raises UserError: something else."""
    left[0] -= 1
    if left[0] < 0:
        raise UserError(f"{source}: over {_MOST_VALUES:,} values, aliases written out.", "Write it without aliases.")
    if depth > _DEEPEST:
        raise UserError(f"{source}: {_TOO_DEEP}.")
    if isinstance(value, int) and abs(value) >= 1 << 63:
        raise UserError(f"{source}: a number of {len(hex(value)) - 2} hexadecimal digits is too large.")
    if isinstance(value, Mapping):
        odd = next((key for key in value if not isinstance(key, str | int | float | None)), None)
        if odd is not None:
            raise UserError(f"{source}: a {type(odd).__name__} cannot be the name of a field.")
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple | set) else ()
    for each in inner:
        _require_plain(each, source, left, depth + 1)


def _override(tree: CommentedMap, text: str) -> Place:
    """Set one value of the tree; the place that was set."""
    path, found, value = text.partition("=")
    keys = tuple(path.strip().split("."))
    if not found or not all(keys):
        raise UserError(f"--set {text}: expected a.b=value, for instance --set students.main.seed=1")
    node: Any = tree
    for depth, key in enumerate(keys[:-1], 1):
        if node.get(key) is None:
            node[key] = CommentedMap()
        node = node[key]
        if not isinstance(node, CommentedMap):
            raise UserError(f"--set {text}: {'.'.join(keys[:depth])} has no fields to set.")
    node[keys[-1]] = _parse(value, f"--set {text}")
    return keys


def rows_wanted(rows: str, dataset: Dataset) -> int:
    """The number of rows that `1%` or `5000` means. Raises UserError: neither a percentage nor a number."""
    number, percentage = parse_rows(rows)
    return math.ceil(number / 100 * dataset.manifest.rows if percentage else number)


def parse_rows(rows: str) -> tuple[float, bool]:
    """The number in `1%` or `5000`, and whether it is a percentage.
    Raises UserError: neither a percentage between 0 and 100 nor a positive number."""
    text = rows.strip().replace(",", "")
    percentage = text.endswith("%")
    try:
        number = float(text[:-1]) if percentage else int(text)
    except ValueError:
        number = 0
    if not 0 < number <= (100 if percentage else math.inf):
        raise UserError(f"--rows {rows}: expected a percentage or a number of rows, for instance 1% or 5000.")
    return number, percentage
