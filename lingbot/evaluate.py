"""lingbot-evaluate paths.output_dir=outputs/evaluation

Drives a world through scenes that it has never seen and compares it with the truth: PSNR between
the codec's ceiling and the floor of a first frame repeated, and whether the camera is followed.
Writes metrics.json and contact sheets; `conf/evaluate.yaml` holds the options.
"""

from __future__ import annotations

import time
from pathlib import Path

import lightning as L
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from lingbot.data.blockworld_clips import BlockWorldClips
from lingbot.device import choose_device, device_name
from lingbot.drive import check_files, check_history
from lingbot.launch import check_seed, refusing, run_command, run_folder
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
        L.seed_everything(check_seed(cfg.seed), workers=True, verbose=False)
        check_scenes(cfg)
        device = choose_device(cfg.device)
        length = video_length(cfg.num_chunks, cfg.frames_per_chunk)
        size = (cfg.camera.height, cfg.camera.width)
        clips = BlockWorldClips(cfg.split, cfg.num_scenes, length, *size, device=str(device))
        check_files(cfg)
        module: LingBotModule = instantiate(cfg.module, _convert_="all")
        check_history(module, range(cfg.num_chunks))
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
        sheet.save(folder / f"scenes_{first + 1:02d}-{first + len(some):02d}.png")
    chosen = [shown[number - 1] for number in cfg.readme_scenes if number <= len(shown)]
    if chosen:
        draw_scenes(chosen, cfg.readme_columns, cfg.fps).save(folder / README_SHEET)


def check_scenes(cfg: DictConfig) -> None:
    """Raises ValueError for chunks or scenes that are not among those driven."""
    for name, low, high, values in (
        ("num_chunks", 1, None, [cfg.num_chunks]),
        ("chunks", 1, cfg.num_chunks, cfg.chunks),
        ("other_drives", 1, None, [cfg.other_drives]),
        ("readme_scenes", 1, None, cfg.readme_scenes),
    ):
        wrong = [value for value in values if value < low or (high and value > high)]
        if wrong or (name == "chunks" and not values):
            limit = f"from {low} to {high}" if high else f"{low} or more"
            raise ValueError(f"{name}={cfg[name]}: give numbers {limit}")


def command() -> str:
    """The command line of this run, without what Hydra adds."""
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return " ".join(["lingbot-evaluate", *overrides])


if __name__ == "__main__":
    main()
