"""W&B runs that we begin, and that are the only ones we end.

A notebook may have a run open: our logger would take it for its own, and end it.
"""

from __future__ import annotations

import logging
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig

log = logging.getLogger(__name__)

OF_THE_LOGGER = ("_target_", "save_dir", "log_model", "prefix", "checkpoint_name", "version")


def is_wandb(node: DictConfig | None) -> bool:
    """Whether a logger's node makes a W&B logger."""
    return node is not None and str(node._target_).endswith("WandbLogger")


def begin_run(node: DictConfig) -> Logger:
    """A W&B logger over a run of its own; kept offline where its server cannot be reached."""
    import wandb

    options = {k: v for k, v in instantiate(node, _convert_="all", _target_="builtins.dict").items()
               if k not in OF_THE_LOGGER}  # fmt: skip
    options |= {"dir": node.get("save_dir"), "id": node.get("version"), "reinit": "create_new"}
    try:
        run = wandb.init(**options)
    except (wandb.errors.CommError, wandb.errors.UsageError) as error:
        reason = " ".join(str(error).split())
        log.warning("W&B takes no run online (%s): this one is kept offline", reason)
        run = wandb.init(**{**options, "mode": "offline"})
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    return instantiate(node, _convert_="all", experiment=run)


def end_runs(loggers: list[Logger]) -> None:
    """Ends the runs of these loggers, so that the next job of a sweep begins one of its own."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            experiment: Any = logger.experiment
            experiment.finish()
