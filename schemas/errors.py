"""The two ways a command can end badly, and the words that go with them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any


class UnicPipeError(Exception):
    """A failure with a message for people: what is wrong, with what, and what to type next.

    `message` is one or two lines; `hint` is the next step (often a command), shown on its own line.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n{self.hint}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.hint)


class UserError(UnicPipeError, ValueError):
    """What the user gave cannot be used (exit code 2): configuration, arguments, data."""

    exit_code = 2


class DamagedError(UserError):
    """A file of this program's own is not what it wrote: edited, damaged, or without the seal that it should have."""


class ForeignError(UserError):
    """A file of another kind stands where one of this program's own was looked for."""


class StageError(UnicPipeError, RuntimeError):
    """The work could not be done (exit code 1): disk full, damaged artefact, device failure."""

    exit_code = 1


class NotFinishedError(UserError):
    """Something waits for an artefact that can be made: a teacher or a second phase for its student."""

    def __init__(self, message: str, hint: str | None = None, waits_for: str = "") -> None:
        super().__init__(message, hint)
        self.waits_for = waits_for
        """For instance `students/large`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.hint, self.waits_for)


def did_you_mean(word: str, choices: Sequence[str]) -> str:
    """The end of a message about an unknown word: the choice that is near it, or all of them."""
    near = difflib.get_close_matches(word, choices, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f" (there are: {', '.join(choices) or 'none'})"
