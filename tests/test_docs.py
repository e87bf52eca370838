"""The documentation builds without a warning, and what it quotes runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = "docs"


@pytest.mark.processes
def test_the_documentation_builds_strictly(repository, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=repository, capture_output=True, text=True, timeout=240,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    page = (tmp_path / "site" / "configuration" / "index.html").read_text()
    assert "few_step_fraction" in page
    assert "lingbot-train" in page


def test_every_page_is_reached_from_the_navigation(repository):
    navigation = (repository / "mkdocs.yml").read_text()
    pages = [
        path.relative_to(repository / DOCS).as_posix() for path in (repository / DOCS).rglob("*.md")
    ]
    assert [page for page in pages if page not in navigation] == []


def test_options_that_pages_name_are_there(repository):
    """Every `group=choice` of a known group in the guides is a file in conf/."""
    groups = {path.name for path in Path(repository, "conf").iterdir() if path.is_dir()}
    pages = [*Path(repository, DOCS).rglob("*.md"), Path(repository, "README.md")]
    wrong = []
    for page in pages:
        for group, choice in re.findall(r"\b([a-z_]+)=([a-z]\w+)\b", page.read_text()):
            file = Path(repository, "conf", group, f"{choice}.yaml")
            if group in groups and not file.is_file() and choice not in ("null", "with_penalty"):
                wrong.append(f"{page.name}: {group}={choice}")
    assert wrong == []
