"""lingbot-generate actions="w-24,jw-24,none-12" prompt="dusk, sand, vivid, dense" seed=3

Drives a world: one realtime step after another under `Trainer.predict`, with callbacks that write
the video and account for every step. `conf/generate.yaml` holds the options.
"""

from __future__ import annotations

from pathlib import Path
from signal import SIGINT
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig

from lingbot.building import build
from lingbot.drive import (
    build_drive,
    build_module,
    build_trainer,
    check_controls,
    check_files,
    check_history,
    first_frame,
    video_frames,
)
from lingbot.launch import (
    FirstStep,
    build_loggers,
    check_loggers,
    check_options,
    check_seed,
    finish_loggers,
    log_configuration,
    rank,
    refusing,
    run_command,
    run_folder,
)
from lingbot.memory import check_fits, driving_need
from lingbot.module import LingBotModule
from lingbot.parallel.rank_watch import watching
from lingbot.parallel.strategy import ShardedSequenceParallelStrategy
from lingbot.termination import Termination, UntilTerminated
from lingbot.trainer_options import count_devices, device_of, weights_dtype


def main() -> None:
    run_command(generate_and_tell, "generate")


def generate_and_tell(cfg: DictConfig) -> None:
    """`generate`, and where its files are, printed by the first rank."""
    made = generate(cfg)
    if rank() == 0:
        print(f"{made['steps']} realtime steps, {made['frames']} frames, in {made['folder']}:")
        for name, path in made["files"].items():
            print(f"  {name:<18} {path}")


def generate(cfg: DictConfig) -> dict[str, Any]:
    """Drive the world that the configuration describes.

    Returns:
        What was made: the run's `folder`, its `files` by name, and the numbers of realtime `steps`
        and video `frames` that were driven.

    Raises:
        UserError: for input that cannot be driven; nothing has been loaded or started.
        SIGTERMException: when the process was told to end; the files hold what was driven.
        KeyboardInterrupt: likewise, by Ctrl-C.
        RankFailure: another rank was lost; the files hold the steps before that.
        FloatingPointError: for a chunk that is not finite; the files hold the steps before it.
    """
    with refusing() as preparation:
        check_options(cfg)
        check_loggers(cfg)
        L.seed_everything(check_seed(cfg.seed), workers=True, verbose=False)
        check_files(cfg)
        drive = build_drive(cfg)
        module = build_module(cfg)
        check_history(module, drive)
        check_memory(cfg, module)
        check_controls(module, drive)
        module.start_world(*first_frame(cfg, drive), cfg.seed)
        folder = run_folder(cfg)
        termination = Termination()
        trainer = build_trainer(cfg, module, [termination, FirstStep(preparation)])
        loggers: list[Logger] = []
        try:
            trainer.loggers = loggers = build_loggers(cfg)
            log_configuration(cfg, loggers)
            with watching(trainer, whole_files, termination):
                controls = UntilTerminated(drive, termination)
                trainer.predict(module, controls, return_predictions=False)
        finally:
            finish_loggers(loggers)
    if termination.told:
        raise KeyboardInterrupt if termination.told == SIGINT and rank() == 0 else SIGTERMException
    return {
        "folder": str(folder),
        "files": written_files(folder),
        "steps": driven_steps(module),
        "frames": video_frames(module.grid.frames, driven_steps(module)),
    }


def check_memory(cfg: DictConfig, module: LingBotModule) -> None:
    """Raises ValueError for a world that the device has no room to be driven on."""
    options, ranks = cfg.trainer, count_devices(cfg.trainer) * cfg.trainer.num_nodes
    sharded = isinstance(build(cfg.strategy, "strategy"), ShardedSequenceParallelStrategy)
    need = driving_need(module, weights_dtype(options), ranks, ranks if sharded else 1)
    check_fits(need, device_of(options), count_devices(options))


def whole_files(step: int) -> str:
    """What is left of a drive whose last whole step is this one, -1 for none; in words."""
    return f"files up to step {step} are whole" if step >= 0 else "the files hold no whole step"


def driven_steps(module: LingBotModule) -> int:
    """Realtime steps that the module's last drive has taken, on any of its ranks."""
    return 0 if module.session is None else module.session.step_index


def written_files(folder: Path) -> dict[str, str]:
    """Videos, pictures and tables of the run's folder, by name."""
    found = sorted(path for path in folder.iterdir() if path.suffix in (".mp4", ".png", ".csv"))
    return {path.name: str(path) for path in found}


if __name__ == "__main__":
    main()
