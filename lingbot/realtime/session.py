"""A world being driven: controls in, frames out, one chunk a realtime step.

The same session serves `Trainer.predict`, a notebook cell and a live player. A step is: controls to
rays, 4 denoise passes, streaming decode, frames to the caller; then the context update, which only
the next chunk needs. Noise is drawn for the whole chunk from the session's generator on every rank:
a seed makes the same video on any number of ranks.

Frames leave first. On CUDA `step` enqueues decode and copy on a stream of their own and the context
update at once behind the passes, and waits for the frames alone; the next step's work queues up
behind. A CPU does one thing at a time, so there `step` returns before the context update, and
`finish_chunk` makes it: call it when the frames are shown, before the next controls are read
(`Trainer.predict` does). Whatever needs it calls it itself: the next step, a new prompt, `report`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lingbot.camera.controls import CameraControl, Controls
from lingbot.codec.streaming import PictureStream
from lingbot.codec.video import VideoCodec, uint8_to_frames
from lingbot.data.control_stream import ControlStream
from lingbot.data.first_frame import FrameSource
from lingbot.diffusion.sampler import FewStepSampler
from lingbot.model import CachedTransformer
from lingbot.model.checks import check_prompt
from lingbot.model.image_condition import image_condition
from lingbot.model.kv_cache import visible_frames
from lingbot.parallel.communication_log import CommunicationLog
from lingbot.realtime.account import StepAccount, StepAccounts
from lingbot.realtime.clock import StepClock
from lingbot.realtime.events import StepReport
from lingbot.realtime.outlet import FrameOutlet
from lingbot.realtime.start import Start, next_start


class PastChunk(NamedTuple):
    """What is needed to update the context with a chunk again."""

    first_frame: int
    controls: Tensor
    condition: Tensor
    clean: Tensor


class RealtimeSession:
    """Drives one world.

    Args:
        model: the transformer with its caches; the session resets and owns them.
        codec: encodes the first frame, decodes the chunks.
        text_encoder: list of prompts -> [B, tokens, text_dim].
        camera: turns controls into rays; keeps the camera's pose between steps.
        sampler: the few-step sampler.
        communication: log of the exchange, where there is one.
        decoder: streams the video; None decodes whole pictures (see `lingbot.codec.split`).

    The session begins with `reset`; it is a context manager that closes itself.
    """

    def __init__(
        self,
        model: CachedTransformer,
        codec: VideoCodec,
        text_encoder: nn.Module,
        camera: CameraControl,
        sampler: FewStepSampler,
        communication: CommunicationLog | None = None,
        decoder: PictureStream | None = None,
    ) -> None:
        self.model, self.codec, self.text_encoder = model, codec, text_encoder
        self.camera, self.sampler, self.communication = camera, sampler, communication
        self.device = model.transformer.device
        self._outlet = FrameOutlet(decoder or codec.stream(), self.device)
        self._accounts = StepAccounts()
        self._clock = StepClock(self.device)
        self._generator = torch.Generator(self.device)
        self._past: list[PastChunk] = []
        self._unfinished: tuple[PastChunk, StepAccount] | None = None
        self._open = False
        self._broken: str | None = None  # what interrupted the session between two states
        self._start: Start | None = None
        self.last_chunk: PastChunk | None = None  # of the last step, to make its update elsewhere

    @torch.inference_mode(False)
    @torch.no_grad()
    def reset(
        self, image: FrameSource | None = None, prompt: str | None = None, seed: int | None = None
    ) -> None:
        """Starts a world over; memory is kept, its contents are not.

        What is not given is as it was at the last reset.

        Args:
            image: first frame: a tensor uint8 [H, W, 3] of the camera's size; or, fitted to it, a
                NumPy array uint8 [H, W, 3], a PIL image or the path of an image file.
            prompt: what the world is.
            seed: of all noise in the session, from 0 to 2^32 - 1; 0 at first.

        Raises:
            FileNotFoundError: no such image file.
            ValueError: for what is no first frame, no prompt or no seed.
            RuntimeError: without an image or a prompt where there has been none.
        """
        size = self.camera.height, self.camera.width
        self._start = start = next_start(self._start, image, prompt, seed, size)
        self._open = False  # until the world stands
        self._drop_chunk()
        self.model.reset()
        self.camera.reset()
        self._outlet.reset()
        self._past.clear()
        self.last_chunk = None
        self._accounts.clear()
        self.step_index = 0
        self._generator.manual_seed(start.seed)
        self._first_condition, self._later_condition = self._conditions(start.image)
        self._open, self._broken = True, None
        self.change_prompt(start.prompt)

    @torch.inference_mode(False)
    @torch.no_grad()
    def step(self, controls: Controls | str) -> Tensor:
        """One realtime step, up to its frames.

        Args:
            controls: of the chunk, or the keys that are held throughout it, as "w" or "jw".

        Returns:
            frames: uint8 [T, H, W, 3] on the CPU; T is 4 (f - 1) + 1 in the first step, then 4 f.
                On CUDA they lie in pinned memory: copy what is kept for long.

        Raises:
            RuntimeError: before `reset`, after `close`, after a step that was interrupted, or for a
                full K/V cache.
            ValueError: for controls that do not fill the chunk; the session goes on as it was.
            FloatingPointError: for a chunk that is not finite.
        """
        self._check_open()
        if isinstance(controls, str):
            controls = self.camera.hold(controls)
        self.camera.check(controls)
        self.model.kv_cache.check_place(self.first_latent_frame)
        account = StepAccount(self.step_index, self.device)
        self.finish_chunk()
        text = None if controls.prompt is None else self._encode(controls.prompt)
        if self.communication is not None:
            self.communication.clear()
        self._clock = account.clock
        with self._unbroken(), self._clock.running():
            with self._clock.span("camera"):
                rays = self.camera.chunk(controls, self.device)
            if text is not None:
                self._set_text(text, controls.history == "recompute")
            chunk = self._make_chunk(rays)
            delivery = self._outlet.send(chunk.clean, self._clock)
            self._book(account)
            self._unfinished = chunk, account
            if self.device.type == "cuda":
                self._update_context(chunk, account)
            self._accounts.finished()  # reads the events of earlier steps, this one is at work
            frames = delivery.wait()
            if not delivery.finite:
                raise FloatingPointError(
                    f"realtime step {self.step_index}: the clean latents are not finite; weights, "
                    "image or precision are broken, try trainer.precision=32-true"
                )
            account.handed_out(len(frames))
            self._accounts.append(account)
            self.step_index += 1
        return frames

    def drive(self, actions: str | Sequence[str]) -> Iterator[Tensor]:
        """Drives on: the frames of one realtime step after another, uint8 [T, H, W, 3].

        A drive that does not fill its last chunk is held still to the chunk's end.

        Args:
            actions: "w-24,jw-24", or one string of held keys a video frame.

        Raises:
            ValueError: bad actions; and as `step` does.
        """
        self._check_open()
        frames_per_chunk = self.model.grid.frames
        stream = ControlStream.from_actions(actions, frames_per_chunk, first_step=self.step_index)
        return self._driven(stream)

    def _driven(self, stream: ControlStream) -> Iterator[Tensor]:
        for controls in stream:
            yield self.step(controls)
            self.finish_chunk()

    @torch.inference_mode(False)
    @torch.no_grad()
    def finish_chunk(self) -> None:
        """Makes the context update of the last chunk, where it is still to be made.

        One that is interrupted can be made again, except with ranks that would wait in it.
        """
        if self._unfinished is not None:
            self._check_open()
            _, account = self._unfinished
            alone = self.model.exchange.size == 1
            with nullcontext() if alone else self._unbroken(), account.clock.running():
                self._update_context(*self._unfinished)

    @torch.inference_mode(False)
    @torch.no_grad()
    def change_prompt(self, prompt: str, recompute_history: bool = False) -> None:
        """Makes `prompt` hold from the next chunk on; the last one is finished under the old one.

        The history keeps the keys and values made under the old prompt, unless it is recomputed:
        then every visible chunk passes through the context update again.

        Raises:
            ValueError: for what is no prompt; the old one still holds.
        """
        self._check_open()
        prompt = check_prompt(prompt)
        self.finish_chunk()
        text = self._encode(prompt)
        with self._unbroken():
            self._set_text(text, recompute_history)

    @torch.inference_mode(False)
    @torch.no_grad()
    def pretend_history(self, step: int) -> None:
        """Goes to realtime step `step` over a history of random keys and values; for measuring.

        A long drive's step can so be timed without the drive. What is seen from there on is noise.

        Raises:
            ValueError: before the first step, which camera and decoder need, or for going back.
        """
        self._check_open()
        if not 0 < self.step_index <= step:
            raise ValueError(
                f"cannot go from realtime step {self.step_index} to {step}: take the first step, "
                "then go forward"
            )
        self.finish_chunk()
        self.model.kv_cache.fill_random(step * self.model.grid.frames, self._generator)
        self._past.clear()
        self.last_chunk = None
        self.step_index = step

    def close(self) -> None:
        """Ends the session; a new one begins with `reset`.

        A context update still to be made is dropped: no chunk would see it, and after a failure
        the ranks to make it with may be gone.
        """
        self._open = False
        self._drop_chunk()
        self._past.clear()
        self.last_chunk = None
        self.model.reset()
        if self.communication is not None:
            self.communication.stop()

    def __enter__(self) -> RealtimeSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def report(self) -> StepReport | None:
        """Account of the last step, None before; finishes its chunk and waits for the device."""
        self._finish_if_whole()
        last = self._accounts.last
        return last.report() if last is not None else None

    def finished_reports(self, since: int = 0) -> list[StepReport]:
        """Accounts of the finished steps from step `since` on, in order; never waits.

        The last step is finished when its context update is done: its report comes a step later.
        Only the latest 256 are kept.
        """
        return self._accounts.finished(since)

    def all_reports(self, since: int = 0) -> list[StepReport]:
        """Like `finished_reports`, of all steps: finishes the last chunk, waits for the device."""
        self._finish_if_whole()
        return self._accounts.all(since)

    def _finish_if_whole(self) -> None:
        """An interrupted session still has its accounts; nothing is left to be finished."""
        if self._broken is None:
            self.finish_chunk()

    @property
    def first_latent_frame(self) -> int:
        """Latent frame at which the next chunk starts."""
        return self.step_index * self.model.grid.frames

    def _encode(self, prompt: str) -> Tensor:
        return self.text_encoder([prompt]).to(self.device)

    def _set_text(self, text: Tensor, recompute_history: bool) -> None:
        """Takes an encoded prompt; every visible chunk passes through the context update again."""
        self.model.set_text(text)
        if recompute_history:
            self.model.kv_cache.reset()
            for past in self._past:
                self.model.begin_chunk(past.controls, past.condition, past.first_frame)
                self.model.update_context(past.clean)

    @contextmanager
    def _unbroken(self) -> Iterator[None]:
        """Notes an exception, Ctrl-C too, that leaves the session between two states."""
        try:
            yield
        except BaseException as error:
            about = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            self._broken = f"realtime step {self.step_index} was interrupted ({about})"
            raise

    def _make_chunk(self, rays: Tensor) -> PastChunk:
        """The next chunk, clean; the memory does not hold it yet."""
        condition = self._first_condition if self.step_index == 0 else self._later_condition
        with self._clock.span("camera"):
            self.model.begin_chunk(rays, condition, self.first_latent_frame)
        clean = self.sampler(self._noise(), self._timed_pass, self._noise)
        chunk = PastChunk(self.first_latent_frame, rays, condition, clean)
        self._remember(chunk)
        self.last_chunk = chunk
        return chunk

    def _update_context(self, chunk: PastChunk, account: StepAccount) -> None:
        """Leaves the chunk's keys and values in the memory and closes the account of its step."""
        with account.clock.span("context_update"):
            self.model.update_context(chunk.clean)
        self._unfinished = None
        self._book(account)
        account.close()

    def _drop_chunk(self) -> None:
        """Does without the last chunk's context update, where it is still to be made."""
        if self._unfinished is not None:
            self._unfinished[1].close()
            self._unfinished = None

    def _book(self, account: StepAccount) -> None:
        """What conditioner cache and exchange did so far goes on the account of their step."""
        calls = self.communication.take() if self.communication is not None else []
        account.add(self.model.conditioner.take_counts(), calls)

    def _timed_pass(self, noisy: Tensor, timestep: float) -> Tensor:
        with self._clock.span("pass"):
            return self.model.predict(noisy, timestep)

    def _noise(self) -> Tensor:
        shape = self._first_condition[:, :1].expand(-1, self.codec.latent_channels, -1, -1, -1)
        return torch.randn(shape.shape, generator=self._generator, device=self.device)

    def _remember(self, chunk: PastChunk) -> None:
        """Keeps the chunks of which the next one will see a frame."""
        frames = self.model.grid.frames
        seen = set(visible_frames(chunk.first_frame + frames, frames, self.model.kv_cache.config))
        self._past = [
            past
            for past in [*self._past, chunk]
            if not seen.isdisjoint(range(past.first_frame, past.first_frame + frames))
        ]

    def _conditions(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Mask and image latents [1, 20, f, h, w] of the first chunk and of all later ones."""
        latent = self.codec.encode(uint8_to_frames(image[None, None].to(self.device)))
        first = image_condition(latent, self.model.grid.frames)
        return first, torch.zeros_like(first)

    def _check_open(self) -> None:
        if not self._open:
            raise RuntimeError(
                "the session has no world: call reset(image, prompt, seed) before the first step"
            )
        if self._broken is not None:
            raise RuntimeError(
                f"{self._broken} and cannot be gone on from: call reset() to start the world over"
            )
