"""lingbot-evaluate paths.output_dir=outputs/evaluation

Drives a world through scenes that it has never seen and compares it with the truth: PSNR between
the codec's ceiling and the floor of a first frame repeated, and whether the camera is followed.
Writes metrics.json and contact sheets; `conf/evaluate.yaml` holds the options.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from lingbot.benchmark.inputs import random_controls
from lingbot.checkpoints.atomic import atomic_file
from lingbot.data.blockworld_clips import BlockWorldClips
from lingbot.data.control_stream import MOST_STEPS
from lingbot.data.video_file import FASTEST
from lingbot.device import choose_device, device_name
from lingbot.drive import build_module, check_files, check_history
from lingbot.launch import check_options, check_seed, refusing, run_command, run_folder
from lingbot.memory import check_fits, driving_need
from lingbot.model.checks import check_count
from lingbot.module import LingBotModule
from lingbot.score_report import (
    METRICS,
    README_SHEET,
    draw_scenes,
    scores_table,
    versions,
    write_metrics,
)
from lingbot.scores import (
    DrivenScene,
    SceneScore,
    Summary,
    driven_by,
    score_scenes,
    summarize,
    through,
    video_length,
)

SCENES_A_SHEET = 4
MOST_COLUMNS = 1000
MOST_SCENES, MOST_DRIVES = 100_000, 1000  # days of rendering


def main() -> None:
    run_command(evaluate_and_tell, "evaluate")


def evaluate_and_tell(cfg: DictConfig) -> None:
    """`evaluate`, its table, and where its files are."""
    summaries = evaluate(cfg)
    folder = Path(cfg.paths.output_dir)
    console = Console()
    console.print(scores_table(summaries, f"{cfg.num_scenes} held-out scenes"))
    for path in (folder / METRICS, *sorted(folder.glob("*.png"))):
        console.print(f"  {path}", soft_wrap=True, highlight=False)


def evaluate(cfg: DictConfig) -> list[Summary]:
    """Score the world that the configuration describes; one summary a scored chunk.

    Raises:
        UserError: for values that cannot be evaluated; nothing has been driven.
    """
    with refusing():
        check_options(cfg)
        L.seed_everything(check_seed(cfg.seed), workers=True, verbose=False)
        check_scenes(cfg)
        device = choose_device(cfg.device)
        length = video_length(cfg.num_chunks, cfg.frames_per_chunk)
        size = (cfg.camera.height, cfg.camera.width)
        clips = BlockWorldClips(cfg.split, cfg.num_scenes, length, *size, device=str(device))
        check_files(cfg)
        module = build_module(cfg)
        check_history(module, range(cfg.num_chunks))
        check_fits(driving_need(module, torch.float32), device.type)
        check_fits({"frames": (2 + cfg.other_drives) * length * size[0] * size[1] * 3}, "cpu")
        module.camera.chunk(next(random_controls(module.grid.frames, cfg.seed)))
        folder = run_folder(cfg)
        module.configure_model()
    module.to(device).eval()
    started = time.monotonic()
    scores, shown = score_world(cfg, module, clips)
    summaries = summarize(scores)
    circumstances = {
        "command": command(),
        "world": cfg.weights,
        "split": cfg.split,
        "num_scenes": cfg.num_scenes,
        "num_frames": length,
        "seed": cfg.seed,
        "device": device_name(device),
        "codec_dtype": str(module.codec.dtype).removeprefix("torch."),
        "wall_s": round(time.monotonic() - started, 1),
        "versions": versions(),
    }
    write_metrics(folder / METRICS, circumstances, summaries, scores)
    draw_sheets(cfg, shown, folder)
    return summaries


def score_world(
    cfg: DictConfig, module: LingBotModule, clips: BlockWorldClips
) -> tuple[list[SceneScore], list[DrivenScene]]:
    """Scores of all scenes, and the first few with their frames."""
    scenes = score_scenes(
        clips,
        driven_by(module, cfg.seed),
        through(module.codec, cfg.frames_per_chunk),
        cfg.frames_per_chunk,
        cfg.chunks,
        cfg.other_drives,
    )
    scores: list[SceneScore] = []
    shown: list[DrivenScene] = []
    for scene in track(scenes, "driving", len(clips), transient=True):
        scores.append(scene.score)
        if len(shown) < cfg.sheet_scenes:
            shown.append(scene)
    return scores, shown


def draw_sheets(cfg: DictConfig, shown: list[DrivenScene], folder: Path) -> None:
    """Contact sheets of four scenes each, and the one of chosen scenes for a README."""
    for first in range(0, len(shown), SCENES_A_SHEET):
        some = shown[first : first + SCENES_A_SHEET]
        sheet = draw_scenes(some, cfg.sheet_columns, cfg.fps)
        name = f"scenes_{first + 1:02d}-{first + len(some):02d}.png"
        with atomic_file(folder / name) as partial:
            sheet.save(partial)
    chosen = [shown[number - 1] for number in cfg.readme_scenes if number <= len(shown)]
    if chosen:
        with atomic_file(folder / README_SHEET) as partial:
            draw_scenes(chosen, cfg.readme_columns, cfg.fps).save(partial)


def check_scenes(cfg: DictConfig) -> None:
    """Raises ValueError for numbers of chunks, scenes or drives that cannot be scored or shown."""
    for name, low, high in (
        ("num_scenes", 1, MOST_SCENES),
        ("num_chunks", 1, MOST_STEPS),
        ("other_drives", 1, MOST_DRIVES),
        ("sheet_scenes", 0, math.inf),
        ("sheet_columns", 1, MOST_COLUMNS),
        ("readme_columns", 1, MOST_COLUMNS),
        ("fps", 1, FASTEST),
    ):
        check_count(name, cfg[name], low, high)
    for name, high in (("chunks", cfg.num_chunks), ("readme_scenes", math.inf)):
        for value in cfg[name]:
            check_count(name, value, 1, high)
        if len(set(cfg[name])) < len(cfg[name]):
            raise ValueError(f"{name}={list(cfg[name])}: give different numbers")
    if not cfg.chunks:
        raise ValueError(f"chunks=[]: give numbers from 1 to {cfg.num_chunks}")


def command() -> str:
    """The command line of this run, without what Hydra adds."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return " ".join(["lingbot-evaluate", *overrides])


if __name__ == "__main__":
    main()
