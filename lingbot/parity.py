"""lingbot-parity FILE...: holds this package against golden tensors of the published model.

A causal file brings its own weights, inputs and expected flows, clean chunks and cache rows; its
metadata decides sizes, control type, chunk, window, sink and shift. A camera file brings poses,
rays and schedules. The published code makes such files, see `lingbot.golden`; they do not come with
the package. Exit code 1 beyond tolerance, 2 for a file that cannot be used.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lingbot.cli.noise import silence
from lingbot.cli.terminal import make_tolerant
from lingbot.golden.camera import compare_camera
from lingbot.golden.causal import compare_causal
from lingbot.golden.compare import Comparison, GoldenFile, UnusableFile
from lingbot.golden.ranks import on_ranks

EXCEEDED, UNUSABLE = 1, 2


def compare_file(path: Path, ranks: int = 1, uniform: bool | None = None) -> list[Comparison]:
    """All comparisons of one golden file.

    Args:
        path: a causal or a camera file.
        ranks: processes to run the transformer on, sequence-parallel.
        uniform: False forces the variable-length exchange.

    Raises:
        UnusableFile: when the file is not golden, or not for that many ranks.
    """
    golden = GoldenFile(path)
    try:
        if not golden.is_causal:
            return compare_camera(golden)
        return compare_causal(golden) if ranks == 1 else on_ranks(path, ranks, uniform)
    except (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError) as error:
        said = str(error).partition("\n")[0]
        raise UnusableFile(f"its tensors and metadata do not belong together: {said}") from error


def main(arguments: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser("lingbot-parity", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--ranks", type=_ranks, default=1, help="processes, sequence-parallel")
    parser.add_argument(
        "--variable", action="store_true", help="force the variable-length exchange"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    make_tolerant()
    silence()
    options = parser.parse_args(arguments)
    logging.getLogger("lingbot").setLevel(logging.WARNING)

    compared: dict[str, list[Comparison]] = {}
    unusable: dict[str, str] = {}
    for path in options.files:
        try:
            uniform = False if options.variable else None
            compared[str(path)] = compare_file(path, options.ranks, uniform)
        except UnusableFile as error:
            unusable[str(path)] = str(error)

    if options.json:
        report = {name: [row.as_dict() for row in rows] for name, rows in compared.items()}
        print(json.dumps({"files": report, "unusable": unusable}, indent=2))
    else:
        for table in _tables(compared):
            Console().print(table)
    for name, reason in unusable.items():
        print(f"lingbot-parity: {name}: {reason}", file=sys.stderr)
    if unusable:
        return UNUSABLE
    return EXCEEDED if any(not row.ok for rows in compared.values() for row in rows) else 0


def _ranks(text: str) -> int:
    """A positive number."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes: give 1 or more")
    return int(text)


def _tables(compared: dict[str, list[Comparison]]) -> Iterator[Table]:
    for name, rows in compared.items():
        table = Table("tensor", "max error", "relative", "tolerance", "", title=name)
        for row in rows:
            verdict = "[green]ok[/]" if row.ok else "[red]BEYOND[/]"
            table.add_row(
                row.tensor, f"{row.max_error:.2e}", f"{row.relative_error:.2e}",
                f"{row.tolerance:.0e}", verdict,
            )  # fmt: skip
        yield table


if __name__ == "__main__":
    sys.exit(main())
