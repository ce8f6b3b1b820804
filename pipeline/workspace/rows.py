"""What `--rows` means."""

from __future__ import annotations

import math

from unic_pipe.pipeline.samples import Dataset
from unic_pipe.schemas.errors import UserError


def rows_wanted(rows: str, dataset: Dataset) -> int:
    """The number of rows that `1%` or `5000` means.

    Raises:
        UserError: neither a percentage nor a number.
    """
    number, percentage = parse_rows(rows)
    return math.ceil(number / 100 * dataset.manifest.rows if percentage else number)


def parse_rows(rows: str) -> tuple[float, bool]:
    """The number in `1%` or `5000`, and whether it is a percentage.

    Raises:
        UserError: neither a percentage between 0 and 100 nor a positive number.
    """
    text = rows.strip().replace(",", "")
    percentage = text.endswith("%")
    try:
        number = float(text[:-1]) if percentage else int(text)
    except ValueError:
        number = 0
    if not 0 < number <= (100 if percentage else math.inf):
        raise UserError(f"--rows {rows}: expected a percentage or a number of rows, for instance 1% or 5000.")
    return number, percentage
