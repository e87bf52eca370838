"""How long a training is, when it validates, and what it is watched by, held to what can be.

Our data come as one endless epoch (see `lingbot.data.endless_sampler`), which ends by steps alone:
whatever Lightning counts in epochs would wait for ever, and a metric that nobody logs is noticed
at the first validation, or by a sweeper when all is over.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning import Callback, LightningDataModule, LightningModule, Trainer

OWN = ("lingbot.", "lightning.")
COUNTED = ("epoch", "step")  # which Lightning adds to the metrics


def check_length(trainer: Trainer, data: LightningDataModule) -> None:
    """Refuses epochs where there is one without an end.

    Raises:
        ValueError: naming the option and what to give instead.
    """
    if not getattr(data, "endless", False) or _bounded(trainer):
        return
    said = "the training data are one epoch without an end"
    if trainer.limit_train_batches != 1.0:
        raise ValueError(
            f"trainer.limit_train_batches={trainer.limit_train_batches}: {said}, of which there is "
            "no share; give a number of batches"
        )
    for name in ("max_epochs", "min_epochs"):
        epochs = getattr(trainer, name)
        if epochs is not None and epochs > 0:
            raise ValueError(
                f"trainer.{name}={epochs}: {said}; say by trainer.max_steps how long to train, and "
                f"leave {name} out"
            )
    every = trainer.check_val_every_n_epoch
    if every is not None and trainer.limit_val_batches != 0:
        raise ValueError(
            f"trainer.check_val_every_n_epoch={every}: {said}, and validation would never come; "
            "give trainer.val_check_interval in batches, and null here"
        )


def _bounded(trainer: Trainer) -> bool:
    """Whether an epoch ends after a number of batches all the same."""
    limit: Any = trainer.limit_train_batches
    few = getattr(trainer, "overfit_batches", 0) or getattr(trainer, "fast_dev_run", False)
    return bool(few) or isinstance(limit, int)


def check_watched(trainer: Trainer, module: LightningModule, swept: str | None) -> None:
    """Refuses metrics that this training does not log.

    Where modules or callbacks of somebody else's may log what they like, nothing is refused.

    Args:
        swept: the metric that a sweeper looks for its objective in; None where there is none.

    Raises:
        ValueError: naming the metric and those that there are.
    """
    logged = _logged(module, trainer.callbacks)  # type: ignore[attr-defined]
    if logged is None:
        return
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        name = getattr(callback, "monitor", None)
        if name is not None and name not in (*logged, *COUNTED):
            raise ValueError(
                f"{type(callback).__name__} monitors {name!r}, which {type(module).__name__} does "
                f"not log: choose {', '.join(logged)}"
            )
    if swept is None:
        return
    if swept not in logged:
        raise ValueError(
            f"optimized_metric={swept!r}: the sweep needs a metric that {type(module).__name__} "
            f"logs: choose {', '.join(logged)}"
        )
    if swept.startswith("val/") and not validates(trainer):
        raise ValueError(
            f"optimized_metric={swept!r}: this training never validates: give a "
            f"trainer.val_check_interval of at most its {_batches(trainer)} batches, and no "
            "trainer.limit_val_batches=0"
        )


def validates(trainer: Trainer) -> bool:
    """Whether a training comes to a validation, where that can be told beforehand."""
    if trainer.limit_val_batches == 0:
        return False
    every, batches = trainer.val_check_interval, _batches(trainer)
    if getattr(trainer, "fast_dev_run", False) or not isinstance(every, int) or batches is None:
        return True
    return trainer.check_val_every_n_epoch is not None or every <= batches


def _batches(trainer: Trainer) -> int | None:
    steps = trainer.max_steps
    return None if steps < 0 else steps * trainer.accumulate_grad_batches


def _logged(module: LightningModule, callbacks: Iterable[Callback]) -> tuple[str, ...] | None:
    """Names of the metrics, or None where others may add to them."""
    objective = getattr(module, "objective", None)
    parts = [part for part in (module, objective, *callbacks) if part is not None]
    if not all(type(part).__module__.startswith(OWN) for part in parts):
        return None
    return tuple(name for part in parts for name in getattr(part, "logged", ()))
