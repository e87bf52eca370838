"""Lines of other libraries that a user of our commands can do nothing about are left out."""

from __future__ import annotations

import logging
import re
import warnings

LINES = re.compile(
    "litlogger|LitLogger|litmodels|LitModels|Lightning AI|💡"
    "|`weights_only` was not set|(GPU|TPU|HPU) available|You are using a CUDA device"
    "|Restor(ed|ing) (all )?states|You're using the WeightAveraging callback with a model that"
)
WARNINGS = (
    ".*LeafSpec.*",  # Lightning 2.6 on torch 2.13
    ".*does not have many workers.*",
    ".*GPU available but not used.*",
    "Checkpoint directory .* exists and is not empty.*",
    ".*your dataloader is not resumable.*",  # ours goes by the step, see lingbot.data
    "FSDP2-wrapped module .* returned a view",  # nothing is written to in place
    ".*litlogger.*|.*LitLogger.*",
    "Found .* in eval mode at the start of training.*",  # the codec, which is not trained
    "Precision .* is not supported by the model summary.*",
    "The dirpath has changed from .*",  # a run that goes on has a folder of its own
    "You requested to overfit but enabled train dataloader shuffling.*",
    "You defined a `validation_step` but have no `val_dataloader`.*",
)
TALKATIVE = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero")


def _worth_reading(record: logging.LogRecord) -> bool:
    return LINES.search(record.getMessage()) is None


def silence() -> None:
    """Leaves those lines out from here on; ours, and all others, stay."""
    for pattern in WARNINGS:
        warnings.filterwarnings("ignore", message=pattern)
    for name in TALKATIVE:
        talker = logging.getLogger(name)
        if _worth_reading not in talker.filters:
            talker.addFilter(_worth_reading)
