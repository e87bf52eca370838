"""Run folders are claimed: one for each run, whenever it starts, and one for all its ranks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lingbot.cli import folders
from lingbot.cli.folders import claim_folder, srun_task
from tests.commands import composed


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders.time, "strftime", lambda _: "2026-01-02_03-04-05")


def test_runs_of_the_same_second_have_folders_of_their_own(tmp_path: Path, frozen: None) -> None:
    claimed: list[str] = []
    threads = [
        threading.Thread(target=lambda: claimed.append(claim_folder(str(tmp_path / "new"))))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(claimed)) == 8
    assert {Path(folder).name for folder in claimed} >= {
        "2026-01-02_03-04-05", "2026-01-02_03-04-05_8",
    }  # fmt: skip


def test_a_configuration_has_one_folder_however_often_it_is_asked(
    tmp_path: Path, frozen: None
) -> None:
    one, other = (composed("generate", [], tmp_path) for _ in range(2))
    assert one.paths.output_dir == one.paths.output_dir
    assert one.callbacks.video_writer.path.startswith(one.paths.output_dir + "/")
    assert one.paths.output_dir != other.paths.output_dir


def test_a_place_without_room_for_a_folder_is_named_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"no run folder can be made in .*file.*paths\.root_dir="):
        claim_folder(str(tmp_path / "file" / "runs"))


@pytest.mark.processes
@pytest.mark.parametrize("launcher", ["srun", "torchrun"])
def test_all_ranks_of_a_launcher_share_a_folder(tmp_path: Path, launcher: str) -> None:
    code = f"from lingbot.cli.folders import claim_folder as f; print(f({str(tmp_path)!r}))"
    if launcher == "torchrun":
        script = tmp_path / "claim.py"
        script.write_text(code)
        run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        done = subprocess.run([*run, str(script)], capture_output=True, text=True, timeout=120)
        printed = done.stdout.split()
    else:
        common = {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2"}
        tasks = [
            subprocess.Popen(
                [sys.executable, "-c", code],
                env={**os.environ, **common, "SLURM_PROCID": str(rank)},
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in (1, 0)
        ]
        printed = [task.communicate(timeout=120)[0].strip() for task in tasks]
    assert len(printed) == 2
    assert len(set(printed)) == 1
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1


def test_a_task_that_waits_in_vain_says_for_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("PROCID", "1"), ("STEP_ID", "0"), ("NTASKS", "2")):
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr(folders, "WAIT_S", 0.0)
    with pytest.raises(TimeoutError, match="the first task has claimed no folder"):
        claim_folder(str(tmp_path))


def test_the_shell_of_an_allocation_is_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "8")
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.delenv("SLURM_STEP_ID", raising=False)
    assert not srun_task()
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert srun_task()
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert not srun_task()
