"""Steps as CSV: a file that grows by a row a step, and is whole whenever it is read.

Columns may appear late (a collective that only some steps use): the file is then written anew with
the wider header, so that every column of every row means what its header says.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from lingbot.checkpoints.atomic import atomic_file

Row = Mapping[str, float]


class StepCsv:
    """A CSV file with one row a step; figures that a row lacks are left empty.

    Args:
        path: where to write; missing folders are made, the first row replaces an existing file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._rows: list[Row] = []
        self._columns: list[str] = []

    def append(self, row: Row) -> None:
        """Add a row and hand it to the operating system before returning."""
        new = [name for name in row if name not in self._columns]
        self._rows.append(dict(row))
        self._columns += new
        if new:
            write_rows(self.path, self._rows)
            return
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(_rounded(row))


def write_rows(path: str | Path, rows: Sequence[Row]) -> None:
    """Write rows under the union of their columns, in order of first appearance."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with atomic_file(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(_rounded(row) for row in rows)


def _rounded(row: Row) -> dict[str, float]:
    return {k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}
