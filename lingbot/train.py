"""lingbot-train experiment=blockworld_world codec.folder=CODEC

Trains a world by flow matching, or with experiment=blockworld_codec the codec it lives in.
`conf/train.yaml` holds the options; `train` returns the last metrics, which sweeps minimise.
"""

from __future__ import annotations

from inspect import signature
from pathlib import Path

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from lingbot.building import build
from lingbot.callbacks import LastCheckpoint, TrainingSpeed
from lingbot.checkpoints.checkpoint_io import write_whole_checkpoints
from lingbot.checkpoints.merging import check_exportable
from lingbot.checkpoints.run_checkpoint import check_state, read_shapes, read_step
from lingbot.checkpoints.world_file import training_record
from lingbot.cli.sweep import searching
from lingbot.cli.trainer import make_trainer
from lingbot.codec.training import CodecModule
from lingbot.data.blockworld_module import BlockWorldDataModule
from lingbot.drive import build_module, check_files
from lingbot.errors import UserError, loading
from lingbot.launch import (
    FirstStep,
    build_all,
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
from lingbot.memory import check_fits, training_need
from lingbot.model import CausalLingBotTransformer
from lingbot.module import LingBotModule
from lingbot.parallel.rank_watch import watching
from lingbot.parallel.sequence_parallel import SequenceParallelMixin
from lingbot.parallel.strategy import ShardedSequenceParallelStrategy
from lingbot.parts import check_codec, weigh_codec
from lingbot.run_export import world_before
from lingbot.training.endless import check_length, check_watched
from lingbot.training.places import check_places
from lingbot.world import check_checkpoint, check_export, save_world


def main() -> None:
    run_command(train_and_tell, "train")


def train_and_tell(cfg: DictConfig) -> float | None:
    """`train`, its metrics printed by the first rank, and the one that a sweep looks at."""
    metrics = train(cfg)
    if rank() == 0:
        print(f"trained in {cfg.paths.output_dir}:")
        for name, value in sorted(metrics.items()):
            print(f"  {name:<20} {value:.6g}")
    if searching() and cfg.optimized_metric not in metrics:
        raise UserError(
            f"optimized_metric={cfg.optimized_metric!r}: the training logged "
            f"{', '.join(sorted(metrics)) or 'nothing'}; choose one of them"
        )
    return metrics.get(cfg.optimized_metric)


def train(cfg: DictConfig) -> dict[str, float]:
    """Train what the configuration describes; returns the last metrics by name.

    Raises:
        UserError: for values that cannot be trained with; nothing has been started.
        RankFailure: another rank was lost; the newest checkpoint is whole.
    """
    with refusing() as preparation:
        check_options(cfg)
        check_loggers(cfg)
        L.seed_everything(check_seed(cfg.seed), workers=True, verbose=False)
        check_files(cfg)
        check_encoder(cfg)
        run_folder(cfg)
        module: L.LightningModule = build_module(cfg, L.LightningModule)
        data: L.LightningDataModule = build(cfg.data, "data", L.LightningDataModule)
        callbacks = build_callbacks(cfg)
        trainer = make_trainer(cfg, callbacks=callbacks, logger=False)
        write_whole_checkpoints(trainer)
        check_training(module)
        check_length(trainer, data)
        check_ranks(trainer, module)
        check_clips(trainer, data, module)
        check_memory(trainer, module, data)
        exported = cfg.export_dir if isinstance(module, LingBotModule) else None
        check_places(trainer, module, data, exported)
        check_callbacks(trainer, module)
        check_precision(trainer, module)
        check_resumed(trainer, module, cfg.ckpt_path, cfg.trust_run_code)
        check_watched(trainer, module, cfg.optimized_metric if searching() else None)
        if exported is not None:
            check_export(exported)
            trainer.callbacks.append(ExportCheck())  # type: ignore[attr-defined]
        trainer.callbacks.append(FirstStep(preparation))  # type: ignore[attr-defined]
        loggers: list[Logger] = []
        try:
            trainer.loggers = loggers = build_loggers(cfg)
            log_configuration(cfg, loggers)
            with watching(trainer, lambda _: kept(trainer)):
                trainer.fit(module, datamodule=data, ckpt_path=cfg.ckpt_path, weights_only=True)
        finally:
            finish_loggers(loggers)
    wanted = cfg.export_dir is not None and not cfg.trainer.get("fast_dev_run")
    sharded = isinstance(trainer.strategy, ShardedSequenceParallelStrategy)
    if wanted and isinstance(module, LingBotModule) and (trainer.is_global_zero or sharded):
        trained = training_record(command(), trainer.global_step, world_before(cfg))
        save_world(module, cfg.export_dir, trained, cfg.fps)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


def build_callbacks(cfg: DictConfig) -> list[L.Callback]:
    """The chosen callbacks; rates of learning are monitored where something is logged."""
    logs = any(node is not None for node in (cfg.logger or {}).values())
    made = build_all(cfg.callbacks)
    return [each for each in made if logs or not isinstance(each, LearningRateMonitor)]


def kept(trainer: L.Trainer) -> str:
    """What is left of a training that has ended in the middle of a step, in words."""
    checkpoints = (c for c in trainer.callbacks if isinstance(c, LastCheckpoint))  # type: ignore[attr-defined]
    return next((checkpoint.kept for checkpoint in checkpoints), "no checkpoint was kept")


def check_ranks(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Raises ValueError for ranks that the model's heads or a chunk's tokens do not split over."""
    known = signature(DistributedDataParallel.__init__).parameters
    for name in getattr(trainer.strategy, "_ddp_kwargs", {}):  # looked at when all is loaded
        if name not in known:
            raise ValueError(f"strategy.{name}: DistributedDataParallel takes no such option")
    if isinstance(trainer.strategy, SequenceParallelMixin):
        if not isinstance(module, LingBotModule):
            raise ValueError(
                f"{type(module).__name__} has no tokens to split: choose strategy=ddp or auto"
            )
        trainer.strategy.check(module.grid.tokens, module.config.num_heads)


def check_encoder(cfg: DictConfig) -> None:
    """Raises ValueError for a codec that cannot be, before clips or weights are made with it."""
    make = build(cfg.codec, "codec")
    check_codec(make)
    check_fits({"weights": weigh_codec(make)}, "cpu")


def check_training(module: L.LightningModule) -> None:
    """Raises ValueError for an optimizer or a schedule that cannot train."""
    if isinstance(module, (LingBotModule, CodecModule)):
        module.check_training()


def check_clips(trainer: L.Trainer, data: L.LightningDataModule, module: L.LightningModule) -> None:
    """Raises ValueError for clips of no whole chunks, or fewer than the ranks take in a step."""
    shape = getattr(data, "latent_shape", None)
    if isinstance(module, LingBotModule) and shape is not None and shape[1] % module.grid.frames:
        raise ValueError(
            f"clips of {shape[1]} latent frames are no whole chunks of {module.grid.frames}: give "
            f"data.latent_frames={max(shape[1] // module.grid.frames, 1) * module.grid.frames}"
        )
    if isinstance(data, BlockWorldDataModule):
        ranks = trainer.world_size // getattr(trainer.strategy, "sequence_size", 1)
        clips, batch = len(data.clips["train"]), data.batch_sizes["train"]
        if clips < ranks * batch:
            raise ValueError(
                f"data.train_clips={clips}: {ranks} data ranks take data.batch_size={batch} clips "
                f"each in a step; give {ranks * batch} or more"
            )


def check_memory(
    trainer: L.Trainer, module: L.LightningModule, data: L.LightningDataModule
) -> None:
    """Raises ValueError for a training that device or host have no room for."""
    ranks = trainer.num_devices
    if isinstance(data, BlockWorldDataModule):
        check_fits({"clips": data.bytes_to_encode}, "cpu")
    shape = getattr(data, "latent_shape", None)
    if not isinstance(module, LingBotModule) or shape is None:
        return
    sharded = isinstance(trainer.strategy, ShardedSequenceParallelStrategy)
    need = training_need(
        module,
        shape,
        kept=module.check_training(),
        sequence_ranks=getattr(trainer.strategy, "sequence_size", 1),
        shards=trainer.world_size if sharded else 1,
    )
    kind = trainer.strategy.root_device.type
    check_fits(need, kind if kind in ("cpu", "cuda") else None, ranks)


def check_callbacks(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Raises ValueError for callbacks that cannot do their work beside this module."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, TrainingSpeed):
            callback.check(trainer, module)


def check_resumed(
    trainer: L.Trainer, module: L.LightningModule, checkpoint: str | None, trusted: bool = False
) -> None:
    """Raises ValueError or FileNotFoundError for what strategy and module cannot go on from."""
    if checkpoint is None:
        return
    sharded = isinstance(trainer.strategy, ShardedSequenceParallelStrategy)
    check_checkpoint(checkpoint, folders=sharded, trusted=trusted)
    own, part = expected_state(module)
    if own:
        held = read_shapes(Path(checkpoint), trusted)
        held = {name: tensor for name, tensor in held.items() if name.startswith(part)}
        check_state(Path(checkpoint), own, held, "this command's configuration")
    step = read_step(Path(checkpoint), trusted)
    if 0 <= trainer.max_steps <= step:
        raise ValueError(
            f"{checkpoint} is from step {step}, and trainer.max_steps={trainer.max_steps}: nothing "
            "would be trained; raise it, or make a world of the checkpoint: python -m "
            f"lingbot.world {checkpoint} FOLDER"
        )


def expected_state(module: L.LightningModule) -> tuple[dict[str, Tensor], str]:
    """Names and shapes of what a checkpoint must hold, and how those names begin.

    Empty for a module of somebody else's, of which only Lightning can tell.
    """
    part = "transformer." if isinstance(module, LingBotModule) else "codec."
    if type(module) is LingBotModule:
        with torch.device("meta"):
            built = CausalLingBotTransformer(module.config).state_dict()
        return {part + name: tensor for name, tensor in built.items()}, part
    return (module.state_dict() if type(module) is CodecModule else {}), part


def command() -> str | None:
    """The command line of this run, without what Hydra adds; None in a notebook."""
    if not HydraConfig.initialized():
        return None
    return " ".join(["lingbot-train", *HydraConfig.get().overrides.task])


class ExportCheck(L.Callback):
    """Refuses a transformer that could not be exported before it is trained rather than after."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(pl_module, LingBotModule) and pl_module.transformer is not None:
            with loading():
                check_exportable(pl_module.transformer, pl_module.config)


def check_precision(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Raises ValueError for a precision that clips do not survive."""
    if trainer.precision in ("bf16-true", "16-true") and isinstance(module, LingBotModule):
        raise ValueError(
            f"trainer.precision={trainer.precision}: Lightning would round the clips' camera poses "
            "as it does the weights; choose bf16-mixed"
        )


if __name__ == "__main__":
    main()
