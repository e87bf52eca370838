"""Runs go on when nobody reads their output, or nobody could."""

from __future__ import annotations

import subprocess
import sys

import pytest

PRINTS = """
import logging, sys
from lingbot.cli.terminal import make_tolerant
make_tolerant()
logging.basicConfig(stream=sys.stdout, level=logging.INFO)
from rich.console import Console
from rich.table import Table
table = Table(title="µs ± ·")
table.add_column("a")
table.add_row("é")
for _ in range(3000):
    print("line")
    logging.info("a line of the log")
Console().print(table)
open(sys.argv[1], "w").write("the end")
"""


@pytest.mark.processes
@pytest.mark.parametrize("reader", ["| head -1", ">&-", "| cat > /dev/null"])
def test_a_closed_pipe_or_an_ascii_terminal_ends_no_run(tmp_path, reader: str) -> None:
    script = tmp_path / "prints.py"
    script.write_text(PRINTS)
    line = f"set -o pipefail; PYTHONIOENCODING=ascii {sys.executable} {script} {tmp_path}/end"
    done = subprocess.run(
        ["bash", "-c", f"{line} {reader}"], stderr=subprocess.PIPE, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "end").read_text() == "the end"
