"""lingbot-bench "compare=conditioner_cache:[step,denoise,off]" ranks=[1,2]

Measures realtime steps with random weights at any size: where the time goes, how far that is from
the floor, and what a setting is worth. `conf/bench.yaml` holds the options.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from lingbot.benchmark.environment import environment
from lingbot.benchmark.figure import PICTURE, draw_results
from lingbot.benchmark.plan import Plan, build_plan, check_setting
from lingbot.benchmark.ranks import measure_on
from lingbot.benchmark.report import JSON, differences_table, name_of, results_table, write_results
from lingbot.benchmark.results import Result, alone, results
from lingbot.benchmark.settings import Setting, configurations, setting_of
from lingbot.checkpoints.atomic import atomic_file
from lingbot.drive import check_files
from lingbot.launch import (
    build_loggers,
    check_loggers,
    check_options,
    check_seed,
    finish_loggers,
    log_configuration,
    refusing,
    run_command,
    run_folder,
)

log = logging.getLogger(__name__)


def main() -> None:
    run_command(bench_and_tell, "bench")


def bench_and_tell(cfg: DictConfig) -> None:
    """`bench`, its tables, and where its files are."""
    among = bench(cfg)
    console = Console()
    if not console.is_terminal:  # a file has room
        console = Console(width=max(150, 40 + 30 * len(among)))
    for table in (results_table(among), differences_table(among)):
        if table is not None:
            console.print(table)
    for name in (JSON, PICTURE):
        console.print(f"  {Path(cfg.paths.output_dir) / name}", soft_wrap=True, highlight=False)


def bench(cfg: DictConfig, overrides: Sequence[str] | None = None) -> list[Result]:
    """Measure what the configuration describes: every setting on every number of ranks.

    Args:
        cfg: of `conf/bench.yaml`.
        overrides: what it was composed from, for `compare`; None asks Hydra.

    Raises:
        UserError: for what cannot be measured; nothing has been built or started.
        RankFailure: a rank was lost.
        RuntimeError: ranks that say nothing.
    """
    if overrides is None:
        overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    with refusing():
        check_options(cfg)
        check_loggers(cfg)
        check_seed(cfg.seed)
        check_launch()
        settings, plan = prepare(cfg, overrides)
        folder = run_folder(cfg)
    loggers: Sequence[Logger] = []
    try:
        loggers = build_loggers(cfg)
        log_configuration(cfg, loggers)
        measured = [
            measure_on(ranks, settings, plan, partial(log.info, "ranks=%d: %s", ranks))
            for ranks in plan.ranks
        ]
        among = results([setting.label for setting in settings], measured)
        command = " ".join(["lingbot-bench", *overrides])
        circumstances = {
            "command": command,
            "environment": environment(),
            "configuration": OmegaConf.to_container(cfg, resolve=True),
            "compared": [asdict(setting) for setting in settings],
        }
        write_results(folder / JSON, circumstances, among)
        with atomic_file(folder / PICTURE) as picture:
            draw_results(among, command).savefig(picture)
        log_results(loggers, among, folder / PICTURE)
    finally:
        finish_loggers(loggers)
    return among


def prepare(cfg: DictConfig, overrides: Sequence[str]) -> tuple[list[Setting], Plan]:
    """Settings and plan, with everything checked that can be before a weight exists."""
    composed = configurations(cfg, overrides)
    plan = build_plan(cfg, len(composed))
    for _, one in composed:
        check_files(one)
    return [check_setting(setting_of(one, label), plan) for label, one in composed], plan


def check_launch() -> None:
    """Raises ValueError where a launcher has started several processes already."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"{os.environ['WORLD_SIZE']} processes were started, but lingbot-bench starts its "
            "ranks itself: run it once, with ranks=[1,2,4]"
        )


def log_results(loggers: Sequence[Logger], among: Sequence[Result], picture: Path) -> None:
    """Measured steps as series, summaries as numbers, and the picture where a logger shows it."""
    names = {result: re.sub(r"[^\w.-]+", "_", name_of(result)) for result in among}
    rows = {result: result.rows() for result in among}
    summaries = {
        f"bench_summary/{names[result]}/{key}": value
        for result in among
        for key, value in result.summary(alone(result, among)).items()
        if isinstance(value, (int, float))
    }
    for logger in loggers:
        for step in range(max(len(series) for series in rows.values())):
            logger.log_metrics({
                f"bench/{names[result]}/{name}": sum(r[name] for r in row["ranks"]) / result.ranks
                for result, series in rows.items()
                for row in series[step : step + 1]
                for name in row["ranks"][0]
            }, step=step)  # fmt: skip
        logger.log_metrics(summaries, step=step)
        if isinstance(logger, WandbLogger):
            logger.log_image("bench", [str(picture)])
        logger.finalize("success")


if __name__ == "__main__":
    main()
