"""Splits by the names of folders and tars: `train`, `imagenet1k-validation-000.tar`, `test-google` beside `test-twitter`."""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

Split = Literal["train", "val", "test"]

_WORDS: dict[str, Split] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
SPLITS = frozenset(_WORDS)
"""Words that name a split."""
_SHARD_WORDS = {"of", "part", "shard", "split", "chunk", "fold"}
"""Words that number the tars of one split."""


def split_of(name: str) -> Split | None:
    """Which split a name means: that of the first word in it that names one."""
    return next((_WORDS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in SPLITS), None)


def stem_of(name: str) -> str:
    """A name without its split word: what `digits-train` and `digits-test` have in common."""
    words = re.split(r"[-_. ]+", name.lower())
    at = next((i for i, word in enumerate(words) if word in SPLITS), len(words))
    return "-".join(words[:at] + words[at + 1 :])


def folder_splits(folders: Sequence[str]) -> list[str]:
    """The folders that are splits: all with a word for one, if one is nothing but that word or all have one."""
    found = [name for name in folders if split_of(name) is not None]
    exact = any(name.lower() in SPLITS for name in found)
    return found if exact or (len(found) > 1 and len(found) == len(folders)) else []


def tar_splits(tars: Sequence[str]) -> dict[str, str]:
    """Split name and pattern of tars whose names differ by split words; empty if any tar has none, or all the same."""
    patterns: dict[str, str] = {}
    for name in tars:
        stem = _tar_stem(name.removesuffix(".tar"))
        if stem is None:
            return {}
        patterns[stem] = f"{stem}*.tar"
    if len(patterns) < 2:
        return {}
    for stem in patterns:
        if any(other != stem and other.startswith(stem) for other in patterns):
            # `test*.tar` would take in `test-google-000.tar`.
            patterns[stem] = f"{stem}[!A-Za-z][0-9]*.tar"
    words = {stem: next(w for w in re.split(r"[^a-z]+", stem.lower()) if w in SPLITS) for stem in patterns}
    unique = len(set(words.values())) == len(words)
    return {words[stem] if unique else stem: pattern for stem, pattern in patterns.items()}


def _tar_stem(name: str) -> str | None:
    """What the tars of one split have in common: up to the split word, and the words after it that are not of shards."""
    parts = re.split(r"([^A-Za-z]+)", name)
    at = next((i for i, word in enumerate(parts) if word.lower() in SPLITS), None)
    if at is None:
        return None
    end = at + 1
    while end + 1 < len(parts) and re.fullmatch(r"[-_. ]", parts[end]) and _is_word(parts, end + 1):
        end += 2
    return "".join(parts[:end])


def _is_word(parts: Sequence[str], at: int) -> bool:
    """Whether a part is a whole word of its own, as `google` in `test-google-00`, and not of a shard's number."""
    after = parts[at + 1] if at + 1 < len(parts) else ""
    word = parts[at]
    return len(word) > 2 and word.lower() not in _SHARD_WORDS and not after[:1].isdigit()


def usable_names(names: Iterable[str]) -> dict[str, str]:
    """For each name one that a dataset, a teacher or a folder may have; different ones stay different."""
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-._+")[:90] or "data"
        taken = set(found.values())
        choices = (plain, *(f"{plain}-{i}" for i in range(2, len(taken) + 3)))
        found[name] = next(choice for choice in choices if choice not in taken)
    return found
