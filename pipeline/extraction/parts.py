"""Parts of a job array: part i of n takes every n-th block, so that no scheduler is needed to share the work."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from unic_pipe.schemas.errors import UserError


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `of` parts."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def has(self, block: int) -> bool:
        """Whether a block belongs to this part."""
        return part_of(block, self.of) == self.number


def part_of(block: int, parts: int) -> int:
    """The number, from 1, of the part that a block belongs to."""
    return block % parts + 1


def parse_part(text: str) -> Part:
    """`2/8` as a part. Raises UserError: not two whole numbers, or the first is not between 1 and the second."""
    match = re.fullmatch(r"\s*([0-9]{1,9})\s*/\s*([0-9]{1,9})\s*", text)
    if match is None:
        raise UserError(
            f"--part {text}: expected two whole numbers, PART/PARTS.", "For instance --part 1/8, up to --part 8/8."
        )
    number, of = int(match[1]), int(match[2])
    if not 1 <= number <= of:
        raise UserError(
            f"--part {text}: parts are counted from 1" + (f" to {of}." if of else "; there cannot be 0 of them."),
            f"For instance --part 1/{max(of, 8)}, up to --part {max(of, 8)}/{max(of, 8)}.",
        )
    return Part(number, of)


def parts_missing(blocks: Sequence[int], parts: int) -> str:
    """The parts that these blocks belong to, as people write numbers: `2, 5-8`."""
    numbers = sorted({part_of(block, parts) for block in blocks})
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
