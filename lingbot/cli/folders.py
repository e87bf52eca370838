"""Run folders are claimed, not computed: whoever makes one has it, and all ranks of a run share it.

Two runs that begin in the same second get two folders. Ranks of torchrun learn theirs from the
first rank through the launcher's store, tasks of srun from a file beside it.
"""

from __future__ import annotations

import itertools
import os
import time
from functools import cache
from pathlib import Path
from typing import Any

from lingbot.checkpoints.atomic import atomic_file

WAIT_S = 300.0  # for the first rank to claim
_claims = itertools.count()


def claim_folder(parent: str) -> str:
    """A new dated folder in `parent`, the same one on every rank of a run.

    Raises:
        OSError: where no folder can be made.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return _by_store(parent)
    if srun_task() and int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        return _by_file(parent)
    return _claim(parent)


def srun_task() -> bool:
    """Whether srun has started this process, rather than a shell inside an allocation."""
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    return {"SLURM_PROCID", "SLURM_STEP_ID"} <= set(os.environ) and not interactive


def _claim(parent: str) -> str:
    started = time.strftime("%Y-%m-%d_%H-%M-%S")
    try:
        Path(parent).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"no run folder can be made in {Path(parent).absolute()} ({error.strerror}): choose "
            "another place, as in paths.root_dir=~/runs"
        ) from error
    for number in itertools.count(1):
        folder = Path(parent, started if number == 1 else f"{started}_{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return str(folder)
    raise AssertionError("numbers do not end")


def _by_store(parent: str) -> str:
    key = f"lingbot/folder/{next(_claims)}"
    store = _store()
    if int(os.environ["RANK"]) == 0:
        store.set(key, _claim(parent))
    return store.get(key).decode()


@cache
def _store() -> Any:
    import torch.distributed as dist

    store, _, _ = next(dist.rendezvous("env://"))
    return store


def _by_file(parent: str) -> str:
    names = ("SLURM_JOB_ID", "SLURM_STEP_ID")
    step = "_".join(os.environ.get(name, "0") for name in names)
    note = Path(parent, f".{step}_{next(_claims)}")
    if int(os.environ["SLURM_PROCID"]) == 0:
        folder = _claim(parent)
        with atomic_file(note) as partial:
            partial.write_text(folder)
        return folder
    until = time.monotonic() + WAIT_S
    while not note.is_file():
        if time.monotonic() > until:
            raise TimeoutError(f"the first task has claimed no folder in {parent}: is it running?")
        time.sleep(0.1)
    return note.read_text()
