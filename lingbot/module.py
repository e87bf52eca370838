"""The LightningModule: the transformer with its codec, text encoder and camera.

`Trainer.fit` trains it by flow matching, `Trainer.predict` drives it, one batch a realtime step.
Nothing is built or loaded before `configure_model`, so every value is checked first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lingbot import kernels
from lingbot.benchmark.flops import ClipFlops
from lingbot.camera.controls import CameraControl, Controls
from lingbot.checkpoints.weights import load_weights
from lingbot.checkpoints.world_file import check_described
from lingbot.codec.split import check_decode, make_decoder
from lingbot.codec.video import VideoCodec, frames_to_uint8
from lingbot.data.clip_batch import clip_rays, first_drive
from lingbot.data.first_frame import FrameSource
from lingbot.diffusion import FewStepSampler
from lingbot.errors import loading
from lingbot.kernels import KernelConfig
from lingbot.model import (
    CachedTransformer,
    CausalLingBotTransformer,
    ConditionerCache,
    Exchange,
    Grid,
    KVCacheConfig,
    LocalExchange,
    TransformerConfig,
)
from lingbot.model.activation_checkpointing import check_activation_checkpointing
from lingbot.model.image_condition import image_condition
from lingbot.parallel.communication_log import CommunicationLog
from lingbot.parallel.sequence_parallel import SequenceParallelMixin
from lingbot.parallel.sharding import shard_weights
from lingbot.parallel.strategy import ShardedSequenceParallelStrategy
from lingbot.realtime.session import RealtimeSession
from lingbot.realtime.start import Start, next_start
from lingbot.training.objective import Objective
from lingbot.training.optimizer_check import check_optimizer
from lingbot.training.resume import align_progress, note_endless, step_generator

log = logging.getLogger(__name__)

FROZEN = "codec."
REFERENCE = KernelConfig()


class CloseSessionOnFailure(L.Callback):
    """Lightning tells callbacks, not modules, that a run has failed."""

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        if isinstance(pl_module, LingBotModule):
            pl_module.close_session()


class LingBotModule(L.LightningModule):
    """Trains and drives a world.

    Args:
        model: sizes of the transformer.
        codec: makes the video codec; called in `configure_model`.
        text_encoder: makes the text encoder, likewise.
        camera: makes the camera of a session, controls to rays; its chunk length is the chunk
            length of everything.
        sampler: few-step sampler for driving.
        kv_cache: window and sink, for driving and for training clips alike.
        conditioner_cache: policy `step`, `denoise` or `off`.
        kernels: how the arithmetic is carried out.
        activation_checkpointing: what the backward pass of a training recomputes: `none`, `full`
            or `selective`, see `lingbot.model.activation_checkpointing`.
        objective: training objective; not needed for driving.
        optimizer: parameters -> optimizer; not needed for driving.
        scheduler: optimizer -> learning-rate scheduler, stepped every training step.
        weights: folder of a world or of a public checkpoint; None starts from random weights.
        initialise: changes random weights in place before training, where there are no `weights`.
        seed: of the noise in training and validation.
        decode: how ranks share the decode of a chunk: `auto`, `split` or `whole`, see
            `lingbot.codec.split.make_decoder`.

    Raises:
        ValueError: when a part is missing, camera, model and cache do not fit each other, or the
            world that `weights` names was trained with others.
    """

    logged = ("train/loss", "train/clean_error", "val/loss", "val/clean_error")

    def __init__(
        self,
        model: TransformerConfig,
        codec: Callable[[], VideoCodec],
        text_encoder: Callable[[], nn.Module],
        camera: Callable[[], CameraControl],
        sampler: FewStepSampler,
        kv_cache: KVCacheConfig,
        conditioner_cache: str = "step",
        kernels: KernelConfig = REFERENCE,
        activation_checkpointing: str = "none",
        objective: Objective | None = None,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
        scheduler: Callable[[Optimizer], Any] | None = None,
        weights: str | Path | None = None,
        initialise: Callable[[CausalLingBotTransformer], None] | None = None,
        seed: int = 0,
        decode: str = "auto",
    ) -> None:
        super().__init__()
        for name, part, kind in (
            ("model", model, TransformerConfig),
            ("sampler", sampler, FewStepSampler),
            ("kv_cache", kv_cache, KVCacheConfig),
            ("kernels", kernels, KernelConfig),
        ):
            if not isinstance(part, kind):
                raise ValueError(f"module.{name}={part!r}: give a {kind.__name__}")
        for name, make in (("codec", codec), ("text_encoder", text_encoder), ("camera", camera)):
            if not callable(make):
                raise ValueError(f"module.{name}={make!r}: give what makes it, see conf/{name}")
        if initialise is not None and not callable(initialise):
            raise ValueError(f"module.initialise={initialise!r}: give what changes a transformer")
        ConditionerCache(conditioner_cache)  # refuses an unknown policy
        if optimizer is not None:
            kernels.check_training()
        self.camera = camera()
        if not isinstance(self.camera, CameraControl):
            raise ValueError(f"module.camera makes a {type(self.camera).__name__}: give a camera")
        kv_cache.check_chunk(self.camera.frames_per_chunk)
        if self.camera.channels != model.control_channels:
            raise ValueError(
                f"camera.kind={self.camera.kind!r} gives {self.camera.channels} control channels, "
                f"model.control={model.control!r} takes {model.control_channels}: make them alike"
            )
        if weights is not None and optimizer is None:
            size = self.camera.height, self.camera.width
            check_described(weights, asdict(model), self.camera.frames_per_chunk, *size)
        self.config, self.sampler, self.objective = model, sampler, objective
        self.kv_cache, self.conditioner_cache = kv_cache, conditioner_cache
        self.kernels = kernels
        self.activation_checkpointing = check_activation_checkpointing(activation_checkpointing)
        self.grid: Grid = model.grid(
            self.camera.frames_per_chunk, self.camera.height // 8, self.camera.width // 8
        )
        self._make_codec, self._make_text_encoder, self._make_camera = codec, text_encoder, camera
        self._make_optimizer, self._make_scheduler = optimizer, scheduler
        self.weights, self.seed, self._initialise = weights, seed, initialise
        self.decode = check_decode(decode)
        self.strict_loading = False  # checkpoints leave the frozen codec out
        self.transformer: CausalLingBotTransformer | None = None
        self.session: RealtimeSession | None = None
        self._world: Start | None = None
        self._last_loss: tuple[int, Tensor | None] = 0, None

    # ---- building -----------------------------------------------------------------------------

    @loading()
    def configure_model(self) -> None:
        """Builds transformer, text encoder and codec, once; loads `weights` where given.

        Raises:
            UserError: for files of weights that cannot be used.
        """
        if self.transformer is not None:
            return
        self.transformer = CausalLingBotTransformer(self.config)
        self.transformer.activation_checkpointing = self.activation_checkpointing
        self.text_encoder = self._make_text_encoder()
        self.codec = self._make_codec().requires_grad_(False).eval()
        self.codec.register_load_state_dict_pre_hook(_keep_frozen)
        if self.weights is not None:
            load_weights(self.transformer, self.text_encoder, self.weights)
        elif self._initialise is not None:
            self._initialise(self.transformer)
        sharded = isinstance(
            self._trainer and self._trainer.strategy, ShardedSequenceParallelStrategy
        )
        if self._make_optimizer is not None:  # which is to be given the parameters that there are
            if sharded and self.kernels.pack_qkv:
                raise ValueError(
                    "kernels.pack_qkv=true: sharded weights are trained apart, set it to false"
                )
            kernels.apply(self.transformer, self.kernels)
        if sharded:
            assert self.device_mesh is not None
            mixed = self.trainer.precision == "bf16-mixed"
            shard_weights(
                self.transformer, self.text_encoder, self.device_mesh,
                torch.bfloat16 if mixed else None,
            )  # fmt: skip

    def exchange(self) -> Exchange:
        """How tokens and heads of one chunk meet: the strategy's, or the identity."""
        strategy = self._trainer and self._trainer.strategy
        if isinstance(strategy, SequenceParallelMixin):
            return strategy.exchange(self.grid.tokens, self.config.num_heads)
        return LocalExchange(self.config.num_heads)

    @property
    def communication(self) -> CommunicationLog | None:
        """The log of the exchange, under a sequence-parallel strategy."""
        strategy = self._trainer and self._trainer.strategy
        if isinstance(strategy, SequenceParallelMixin):
            return strategy.communication_log
        return None

    # ---- driving ------------------------------------------------------------------------------

    def start_world(self, image: FrameSource, prompt: str, seed: int = 0) -> None:
        """Chooses the world that the next `Trainer.predict` drives.

        Args:
            image: first frame, as `RealtimeSession.reset` takes it.
            prompt: what the world is.
            seed: of the session's noise, from 0 to 2^32 - 1.

        Raises:
            FileNotFoundError: no such image file.
            ValueError: for what is no first frame, no prompt or no seed.
        """
        self._world = next_start(None, image, prompt, seed, self._frame_size)

    def new_session(
        self,
        image: FrameSource,
        prompt: str,
        seed: int = 0,
        exchange: Exchange | None = None,
        communication: CommunicationLog | None = None,
    ) -> RealtimeSession:
        """A session of its own over this module's weights, at its first step.

        Args:
            image: first frame, as `RealtimeSession.reset` takes it.
            prompt: what the world is.
            seed: of the session's noise, from 0 to 2^32 - 1.
            exchange: for ranks that no Trainer made; None takes the strategy's.
            communication: the log of that exchange.

        Raises:
            FileNotFoundError: no such image file.
            ValueError: for what is no first frame, no prompt or no seed; nothing has been built.
        """
        start = next_start(None, image, prompt, seed, self._frame_size)
        self.configure_model()
        assert self.transformer is not None
        kernels.apply(self.transformer, self.kernels)
        kernels.apply(self.codec, self.kernels)
        if exchange is None:
            exchange, communication = self.exchange(), self.communication
        model = CachedTransformer(
            self.transformer, self.kv_cache, self.grid, exchange, self.conditioner_cache
        )
        width = self.camera.width // self.codec.spatial_stride
        decoder = make_decoder(self.codec, model.exchange, width, self.decode)
        session = RealtimeSession(
            model, self.codec, self.text_encoder, self._make_camera(), self.sampler, communication,
            kernels.stream_frames(decoder, self.kernels),
        )  # fmt: skip
        session.reset(*start)
        return session

    @property
    def _frame_size(self) -> tuple[int, int]:
        return self.camera.height, self.camera.width

    def on_predict_start(self) -> None:
        if self._world is None:
            raise RuntimeError("nothing to drive: call start_world(image, prompt, seed) first")
        self.session = self.new_session(*self._world)

    def predict_step(self, controls: Controls, batch_idx: int) -> Tensor:
        """One realtime step: frames uint8 [T, H, W, 3] on the CPU."""
        assert self.session is not None
        return self.session.step(controls)

    def on_predict_batch_end(
        self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """The callbacks have had the frames: time for what only the next chunk needs."""
        assert self.session is not None
        self.session.finish_chunk()

    def on_predict_end(self) -> None:
        self.close_session()

    def close_session(self) -> None:
        """Ends the live session, if there is one."""
        if self.session is not None:
            self.session.close()

    def configure_callbacks(self) -> list[L.Callback]:
        return [CloseSessionOnFailure()]

    # ---- training -----------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        log.info("Activation checkpointing: %s.", self.activation_checkpointing)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Batch of clips (see `lingbot.data.blockworld_clips`) -> loss."""
        self._check_finite()
        generator = self._generator(self.global_step, batch_idx)
        losses = self._losses(batch, generator, self.global_step)
        self._last_loss = self.global_step, losses["loss"].detach().isfinite()
        if self.device.type == "cpu":
            self._check_finite()
        for name, value in losses.items():
            self.log(f"train/{name}", value, prog_bar=name == "loss")
        return losses["loss"]

    def on_validation_start(self) -> None:
        self._check_finite()

    def on_train_epoch_end(self) -> None:
        self._check_finite()

    def _check_finite(self) -> None:
        """Ends a training whose last loss is not finite, before anything is saved of it.

        A GPU is asked a step later, when it knows; a CPU at once.

        Raises:
            FloatingPointError: naming the step.
        """
        (step, finite), self._last_loss = self._last_loss, (0, None)
        if finite is not None and not bool(finite):
            raise FloatingPointError(
                f"training step {step + 1}: the loss is not finite; lower optimizer.lr, raise "
                "scheduler.warmup_steps, or go on from an earlier checkpoint with other data"
            )

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        losses = self._losses(batch, self._generator(-1, batch_idx))
        size = len(batch["prompt"])
        for name, value in losses.items():
            shown = name == "loss"
            self.log(f"val/{name}", value, prog_bar=shown, sync_dist=True, batch_size=size)

    def check_training(self) -> float:
        """Refuses what cannot be trained; builds no weight.

        Returns:
            Bytes that the optimizer keeps for every byte of a weight matrix.

        Raises:
            ValueError: no objective or optimizer, or rates and schedules that are none.
        """
        for name, part in (("objective", self.objective), ("optimizer", self._make_optimizer)):
            if part is None:
                raise ValueError(f"module.{name}=null: training needs one, see conf/{name}")
        assert self._make_optimizer is not None
        return check_optimizer(self._make_optimizer, self._make_scheduler)

    def configure_optimizers(self) -> Any:
        self.check_training()
        assert self._make_optimizer is not None
        optimizer = self._make_optimizer(p for p in self.parameters() if p.requires_grad)
        if self._make_scheduler is None:
            return optimizer
        scheduler = self._make_scheduler(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def training_flops(self, batch: dict[str, Any]) -> int:
        """Operations of a training step on this batch, see `lingbot.benchmark.flops`."""
        clips, _, frames, *_ = batch["latents"].shape
        return clips * ClipFlops(self.config, self.grid, self.kv_cache).training(frames)

    def sample_clip(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Drives the batch's first clip: (generated, true) frames, uint8 [T, H, W, 3] each."""
        truth = frames_to_uint8(self.codec.decode(batch["latents"][:1]))[0].cpu()
        with self.new_session(batch["image"][0], batch["prompt"][0], seed=self.seed) as session:
            steps = [session.step(controls) for controls in first_drive(batch, self.camera)]
        return torch.cat(steps), truth

    def _losses(
        self, batch: dict[str, Any], generator: torch.Generator, step: int | None = None
    ) -> Mapping[str, Tensor]:
        assert self.objective is not None
        assert self.transformer is not None
        clean = batch["latents"]
        return self.objective(
            self.transformer,
            clean,
            image_condition(batch["image_latent"], clean.shape[2]),
            clip_rays(batch, self.camera),
            self.text_encoder(list(batch["prompt"])),
            cache=self.kv_cache,
            exchange=self.exchange(),
            generator=generator,
            step=step,
        )

    def _generator(self, step: int, batch_idx: int) -> torch.Generator:
        """Alike on the ranks of a sequence group, different on data ranks and in every step."""
        mesh = self.device_mesh
        data_rank = mesh["data"].get_local_rank() if mesh is not None else self.global_rank
        return step_generator(self.seed, data_rank, step + 1, batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        note_endless(self._trainer, checkpoint)
        if isinstance(self._trainer and self._trainer.strategy, ShardedSequenceParallelStrategy):
            return  # which resumes from nothing less than all that the module holds
        for name in ("state_dict", "current_model_state"):  # the second beside averaged weights
            if name in checkpoint:
                state = checkpoint[name]
                checkpoint[name] = {k: v for k, v in state.items() if not k.startswith(FROZEN)}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        align_progress(self._trainer, checkpoint)


def _keep_frozen(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Weights that a checkpoint leaves out stay as they are, for whoever loads it strictly."""
    for name, value in module.state_dict().items():
        state.setdefault(prefix + name, value)
