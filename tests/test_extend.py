"""A project of one's own, as docs/extend.md shows it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.commands import TINY_TRAINING


@pytest.mark.processes
def test_an_objective_of_ones_own_is_trained_with_and_all_its_terms_are_logged(
    repository, tmp_path
):
    project = shutil.copytree(repository / "docs" / "examples" / "my_project", tmp_path / "project")
    command = os.path.join(os.path.dirname(sys.executable), "lingbot-train")
    options = [
        f"hydra.searchpath=[file://{project / 'conf'}]", "objective=with_penalty",
        "objective.penalty=0.5", *TINY_TRAINING, f"paths.output_dir={tmp_path / 'run'}",
        "trainer.log_every_n_steps=1", "callbacks.contact_sheet=null", "export_dir=null",
        f"paths.data_dir={tmp_path / 'data'}",
    ]  # fmt: skip
    done = subprocess.run(
        [command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=200,
        env={**os.environ, "PYTHONPATH": str(project)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "val/penalty" in done.stdout
    header = (tmp_path / "run" / "metrics" / "metrics.csv").read_text().splitlines()[0]
    assert {"train/penalty", "train/clean_error", "train/loss"} <= set(header.split(","))
