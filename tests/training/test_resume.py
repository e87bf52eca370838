"""A training that stops and goes on in another process is the training that never stopped."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lingbot.train import train
from tests.commands import TINY_TRAINING, composed

STEPS = 12
COMMON = [
    *TINY_TRAINING, f"trainer.max_steps={STEPS}", "trainer.val_check_interval=4",
    "trainer.log_every_n_steps=1", "export_dir=null", "data.train_clips=5",
    "callbacks.contact_sheet=null", "+trainer.enable_progress_bar=false",
]  # fmt: skip
CODEC = ["experiment=blockworld_codec", "module.crops=[[1,5,16,24]]", "module.export_to=null"]
EMA = "{_target_: lightning.pytorch.callbacks.EMAWeightAveraging, decay: 0.5}"
# steps after which checkpoints are taken: within a pass over five clips, at its end, elsewhere
VARIANTS: dict[str, tuple[list[str], list[int]]] = {
    "adamw": ([], [2, 4, 5, 7, 8, STEPS]),
    "muon": (
        ["optimizer=muon", "objective.resampled_history=0.5", "trainer.precision=bf16-mixed",
         "+trainer.accumulate_grad_batches=2", "trainer.val_check_interval=6",
         "data.num_workers=1"],
        [3, 6],
    ),
    "averaged": ([f"+callbacks.average={EMA}"], [5, STEPS]),
    "codec": ([*CODEC, "data.num_frames=5"], [3]),
}  # fmt: skip


class Keep(Callback):
    """Keeps every loss, the checkpoints after some steps, and ends the fit as a signal would."""

    def __init__(self, folder: str, steps: list[int], end: int | None = None) -> None:
        self.folder, self.steps, self.end = Path(folder), steps, end
        self.losses: dict[int, float] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        self.losses[step] = float(trainer.callback_metrics["train/loss"])
        if step in self.steps and not (self.folder / f"{step}.ckpt").exists():
            trainer.save_checkpoint(self.folder / f"{step}.ckpt")
        if step == self.end:
            raise SIGTERMException

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        torch.save(self.losses, self.folder / f"losses_{min(self.losses)}.pt")


def run(folder: Path, name: str, *options: str, end: int | None = None) -> None:
    """Trains a variant in FOLDER/NAME, keeping what `Keep` keeps."""
    overrides, steps = VARIANTS[name]
    own = folder / name
    own.mkdir(parents=True, exist_ok=True)
    keep = f"{{_target_: tests.training.test_resume.Keep, folder: '{own}', steps: {steps}"
    keep += "}" if end is None else f", end: {end}}}"
    cfg = composed(
        "train", [*COMMON, *overrides, f"+callbacks.keep={keep}", *options], folder / "runs"
    )
    train(cfg)


def begin(folder: Path) -> None:
    """Every variant without a stop, and one that a signal ends."""
    for name in VARIANTS:
        run(folder, name, f"paths.output_dir='{folder}/{name}/whole'")
    try:
        run(folder / "told", "adamw", f"paths.output_dir='{folder}/told/run'", end=7)
    except SystemExit:
        return
    raise AssertionError("a signal ends a training")


def go_on(folder: Path) -> None:
    """Every variant from each of its checkpoints."""
    for name, (_, steps) in VARIANTS.items():
        for step in steps:
            if step < STEPS:
                place = f"paths.output_dir='{folder}/{name}/from_{step}'"
                run(folder, name, f"ckpt_path='{folder}/{name}/{step}.ckpt'", place)
    longer = f"trainer.max_steps={STEPS + 3}"
    for name in ("adamw", "averaged"):  # and past the end of a run that ended by itself
        last = f"ckpt_path='{folder}/{name}/whole/checkpoints/last.ckpt'"
        run(folder, name, last, longer, f"paths.output_dir='{folder}/{name}/past'")
    last = f"ckpt_path='{folder}/told/run/checkpoints/last.ckpt'"
    run(folder / "told", "adamw", last, f"paths.output_dir='{folder}/told/on'")


def losses(folder: Path) -> dict[int, dict[int, float]]:
    files = sorted(folder.glob("losses_*.pt"))
    return {int(f.stem.split("_")[1]): torch.load(f, weights_only=True) for f in files}


def weights(run_folder: Path) -> dict[str, Any]:
    last = torch.load(run_folder / "checkpoints" / "last.ckpt", weights_only=True)
    return {
        f"{kind}.{name}": value
        for kind in ("state_dict", "current_model_state", "averaging_state")
        for name, value in last.get(kind, {}).items()
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Path:
    """What `begin` leaves, and `go_on` in a process that knows nothing of it."""
    folder = tmp_path_factory.mktemp("trainings")
    for part in ("begin", "go_on"):
        code = f"from tests.training.test_resume import {part}; from pathlib import Path; "
        subprocess.run(
            [sys.executable, "-c", f"{code}{part}(Path({str(folder)!r}))"],
            cwd=repository, check=True, timeout=280, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    return folder


@pytest.mark.processes
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", VARIANTS)
def test_from_any_step_losses_and_weights_are_those_of_the_run_that_never_stopped(
    trained: Path, name: str
) -> None:
    whole, *resumed = losses(trained / name).values()
    assert list(whole) == list(range(1, STEPS + 1))
    assert len(set(whole.values())) > STEPS // 2  # other clips, other noise
    expected = weights(trained / name / "whole")
    stops = [step for step in VARIANTS[name][1] if step < STEPS]
    assert len(resumed) >= len(stops)
    for step in stops:
        assert losses(trained / name)[step + 1] == {k: v for k, v in whole.items() if k > step}
        made = weights(trained / name / f"from_{step}")
        assert made.keys() == expected.keys()
        different = [n for n, value in made.items() if not torch.equal(value, expected[n])]
        assert not different, (step, different[:3])


@pytest.mark.processes
@pytest.mark.timeout(600)
def test_where_a_signal_ended_it_a_run_goes_on_exactly(trained: Path) -> None:
    told, whole = losses(trained / "told" / "adamw"), losses(trained / "adamw")[1]
    assert told[8] == {step: loss for step, loss in whole.items() if step > 7}


@pytest.mark.processes
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["adamw", "averaged"])
def test_a_finished_run_goes_on_past_its_end(trained: Path, name: str) -> None:
    past = losses(trained / name)[STEPS + 1]
    assert list(past) == [STEPS + 1, STEPS + 2, STEPS + 3]
    assert all(math.isfinite(loss) for loss in past.values())
    by_checkpoint = torch.load(trained / name / f"{STEPS}.ckpt", weights_only=True)
    last = torch.load(trained / name / "whole" / "checkpoints" / "last.ckpt", weights_only=True)
    kind = "current_model_state" if name == "averaged" else "state_dict"
    assert all(torch.equal(v, last[kind][n]) for n, v in by_checkpoint[kind].items())
