"""lingbot-drift "compare=kernels:[reference,fp8]"

Drives the same long way in several settings and says how far each one's world drifts from the
first one's: PSNR of frames, errors of latents, keys and values, chunk by chunk. Writes drift.json
and drift.png; `conf/drift.yaml` holds the options.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from lingbot.benchmark.environment import environment
from lingbot.checkpoints.atomic import atomic_file
from lingbot.device import device_name
from lingbot.fidelity.errors import SettingDrift, measure
from lingbot.fidelity.figure import PICTURE, draw_drifts
from lingbot.fidelity.plan import build_plan
from lingbot.fidelity.report import JSON, drift_table, write_drift
from lingbot.launch import check_options, check_seed, refusing, run_command, run_folder

log = logging.getLogger(__name__)


def main() -> None:
    run_command(drift_and_tell, "drift")


def drift_and_tell(cfg: DictConfig) -> None:
    """`drift`, its table, and where its files are."""
    drifts = drift(cfg)
    folder = Path(cfg.paths.output_dir)
    console = Console()
    if not console.is_terminal:  # a file has room
        console = Console(width=120)
    console.print(drift_table(drifts, f"{cfg.num_chunks} chunks, {cfg.compare}"))
    for name in (JSON, PICTURE):
        console.print(f"  {folder / name}", soft_wrap=True, highlight=False)


def drift(cfg: DictConfig, overrides: Sequence[str] | None = None) -> list[SettingDrift]:
    """Measure every setting of `compare` but the first one against the first one.

    Args:
        cfg: of `conf/drift.yaml`.
        overrides: what it was composed from, for `compare`; None asks Hydra.

    Raises:
        UserError: for what cannot be compared; nothing has been built.
    """
    if overrides is None:
        overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    with refusing():
        check_options(cfg)
        check_seed(cfg.seed)
        plan = build_plan(cfg, overrides)
        folder = run_folder(cfg)
    started = time.monotonic()
    drifts = measure(plan.settings, plan.drive, plan.layers, plan.device, cfg.seed, log.info)
    circumstances = {
        "command": " ".join(["lingbot-drift", *overrides]),
        "environment": environment(),
        "device": device_name(plan.device),
        "wall_s": round(time.monotonic() - started, 1),
        "configuration": OmegaConf.to_container(cfg, resolve=True),
        "reference": plan.settings[0].label,
        "compared": [asdict(setting) for setting in plan.settings],
        "layers": plan.layers,
        "drive": {
            "prompt": plan.drive.prompt,
            "actions": [controls.actions for controls in plan.drive.controls],
        },
    }
    write_drift(folder / JSON, circumstances, drifts)
    title = f"{cfg.num_chunks} chunks, {cfg.compare} · {device_name(plan.device)}"
    with atomic_file(folder / PICTURE) as partial:
        draw_drifts(drifts, title).savefig(partial)
    return drifts


if __name__ == "__main__":
    main()
