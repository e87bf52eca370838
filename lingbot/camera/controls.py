"""What steers one chunk, and how it becomes the transformer's control tensor.

`Controls` is what a realtime step is given; `CameraControl` keeps the camera between the steps and
turns each chunk's keys or poses into folded rays. A latent frame j stands for the video frame 4j:
its pose and the keys that led to it. Nothing depends on later frames or on the session's length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor

from lingbot.camera.actions import IDLE, MOVE_KEYS, CameraDriver, check_keys
from lingbot.camera.control_tensor import FOLD, NEEDS_KEYS, Kind, control_tensor
from lingbot.camera.offline import offline_poses
from lingbot.camera.plucker import Intrinsics, check_intrinsics
from lingbot.camera.poses import check_poses, relative_poses, scale_translations
from lingbot.camera.translation import TranslationScale
from lingbot.model.checks import check_count, check_prompt

LARGEST_SIDE = 16_384  # pixels; video encoders take no more
LONGEST_CHUNK = 1024  # latent frames, four minutes at 16 frames a second
VIDEO_FRAMES = 4  # video frames a latent frame


def frames_in_chunk(step: int, frames_per_chunk: int) -> int:
    """Video frames that a chunk adds to the first one: 4 (f - 1) in the first chunk, 4 f later."""
    return VIDEO_FRAMES * (frames_per_chunk - (step == 0))


@dataclass(frozen=True)
class Controls:
    """What steers one chunk of f latent frames.

    Args:
        actions: held keys of each video frame: 4 (f - 1) in the first chunk, later 4 f.
        poses: camera-to-world poses of the video frames instead, [n, 4, 4], with OpenCV axes (x
            right, y down, z forward): 4 (f - 1) + 1 in the first chunk, where the first frame of
            all has one too, later 4 f.
        prompt: what the world becomes from this chunk on; None leaves it as it is.
        history: with a new prompt, keep the caches of the past or recompute them under it.
        held: how many trailing entries were added, holding still, to fill the chunk.
        intrinsics: fx, fy, cx, cy for 832x480 of a recorded drive, read at the first chunk; None
            for the camera's own.
        largest_step: longest translation between latent frames of the whole drive, where it is
            known, that is, recorded; read at the first chunk, see `recorded_scale`.
        pose_keys: with poses, the keys held at each of them, for act control; they move nothing.

    Raises:
        ValueError: both or neither of actions and poses, an unknown key, poses that are not rigid,
            keys without a pose, a prompt without words.
    """

    actions: tuple[str, ...] | None = None
    poses: Tensor | None = None
    prompt: str | None = None
    history: Literal["keep", "recompute"] = "keep"
    held: int = 0
    intrinsics: Intrinsics | None = None
    largest_step: float | None = None
    pose_keys: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if (self.actions is None) == (self.poses is None):
            raise ValueError(
                "a chunk is steered by either actions or poses: give exactly one of the two, not "
                + ("neither." if self.actions is None else "both.")
            )
        if self.actions is not None:
            if isinstance(self.actions, str):
                raise ValueError(
                    f"actions is the string {self.actions!r}: give one string of keys a video "
                    "frame, as parse_actions makes them."
                )
            object.__setattr__(self, "actions", tuple(check_keys(keys) for keys in self.actions))
        if self.poses is not None:
            check_poses(self.poses, "the poses of the controls")
        if self.pose_keys is not None:
            keys = tuple(check_keys(keys) for keys in self.pose_keys)
            if self.poses is None or len(keys) != len(self.poses):
                raise ValueError(
                    f"pose_keys holds the keys of {len(keys)} poses, of which "
                    f"{0 if self.poses is None else len(self.poses)} are there: give one string of "
                    "keys for each."
                )
            object.__setattr__(self, "pose_keys", keys)
        if self.prompt is not None:
            object.__setattr__(self, "prompt", check_prompt(self.prompt, "the new prompt"))
        if self.history not in ("keep", "recompute"):
            raise ValueError(f"history={self.history!r}: choose keep or recompute.")

    def to(self, device: Any, **_: Any) -> "Controls":
        """Stay on the CPU when Lightning moves batches: poses are few and float64."""
        return self


# Lightning rounds the tensors of dataclasses to a run's precision; poses need all their digits.
del Controls.__dataclass_fields__


class CameraControl:
    """The camera of a session: controls of one chunk after another to the transformer's control.

    Args:
        kind: "cam" folds rays, origin and direction; "act" directions and the keys w, a, s, d.
        height: of the video in pixels, a multiple of 8.
        width: likewise.
        frames_per_chunk: latent frames in a chunk.
        intrinsics: fx, fy, cx, cy for 832x480; rescaled to the video's size.
        translation_scale: length that counts as 1 between latent frames, in live drives and in
            clips. The default is what four frames of forward motion make. "offline" refuses live
            drives and takes clips as the published offline path does.
        recorded_scale: the same for drives that bring their longest step; "published" takes that.

    Raises:
        ValueError: an unknown kind, a size that does not fold, a scale or intrinsics not positive.
    """

    def __init__(
        self,
        kind: Kind,
        height: int,
        width: int,
        frames_per_chunk: int,
        intrinsics: Sequence[float] = (520.0, 520.0, 416.0, 240.0),
        translation_scale: float | Literal["offline"] = 0.2,
        recorded_scale: float | Literal["published"] = "published",
    ) -> None:
        if kind not in ("cam", "act"):
            raise ValueError(f"control kind {kind!r} is unknown: choose cam or act.")
        for name, side in (("height", height), ("width", width)):
            check_count(f"camera.{name}", side, FOLD, LARGEST_SIDE)
        if height % FOLD or width % FOLD:
            raise ValueError(
                f"height={height}, width={width}: both must be multiples of {FOLD}, the pixels of "
                "a latent pixel."
            )
        check_count("camera.frames_per_chunk", frames_per_chunk, high=LONGEST_CHUNK)
        self.kind = kind
        self.height, self.width = height, width
        self.frames_per_chunk = frames_per_chunk
        self.intrinsics = check_intrinsics(intrinsics)
        self.scale = TranslationScale(translation_scale, recorded_scale)
        self.reset()

    @property
    def channels(self) -> int:
        """Channels of the control tensor: 384 for cam, 448 for act."""
        return FOLD * FOLD * (6 if self.kind == "cam" else 3 + len(MOVE_KEYS))

    @property
    def pose(self) -> Tensor:
        """Camera-to-world pose of the last video frame so far, [4, 4] float64."""
        return self._driver.pose.clone()

    @property
    def video_poses(self) -> Tensor:
        """Poses of the last chunk's video frames, the very first one included, [n, 4, 4]."""
        return self._video_poses.clone()

    def reset(self, start: Tensor | None = None) -> None:
        """Begin a new session at this camera-to-world pose [4, 4], the identity by default.

        The control does not depend on where a drive starts; `pose` and `video_poses` do.
        """
        self._driver = CameraDriver(start)
        self._video_poses = self._driver.pose[None]
        self._step = 0
        self._latent_pose: Tensor | None = None
        self._session_intrinsics = self.intrinsics
        self._session_scale = 1.0

    @torch.no_grad()
    def chunk(self, controls: Controls, device: torch.device | str = "cpu") -> Tensor:
        """Control tensor of the next chunk, [1, channels, f, H / 8, W / 8] float32 on `device`.

        Raises:
            ValueError: controls that do not fit this chunk; the camera stays where it was.
        """
        self.check(controls)
        if self._step == 0:
            self._session_intrinsics = controls.intrinsics or self.intrinsics
            self._session_scale = self._scale(controls)
        first_latent = 0 if self._step == 0 else VIDEO_FRAMES - 1
        poses = self._advance(controls)
        latent = poses[first_latent::VIDEO_FRAMES]
        keys = None
        if controls.actions is not None:
            reached_by = ("", *controls.actions) if self._step == 0 else controls.actions
            keys = reached_by[first_latent::VIDEO_FRAMES]
        elif controls.pose_keys is not None:
            keys = controls.pose_keys[first_latent::VIDEO_FRAMES]
        relative = relative_poses(latent, self._latent_pose)
        relative = scale_translations(relative, self._session_scale)
        self._latent_pose, self._video_poses = latent[-1], poses
        self._step += 1
        here = relative.float().to(device, non_blocking=True)  # no waiting for the last chunk
        return self._control(here, keys, self._session_intrinsics)

    @torch.no_grad()
    def clip(
        self,
        poses: Tensor,
        num_latent_frames: int,
        actions: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Control tensor of a whole clip, [1, channels, F, H / 8, W / 8] float32: see `clips`."""
        check_poses(poses, "the poses of the clip")
        held = None if actions is None else [actions]
        return self.clips(poses[None], num_latent_frames, held, device)

    @torch.no_grad()
    def clips(
        self,
        poses: Tensor,
        num_latent_frames: int,
        actions: Sequence[Sequence[str]] | None = None,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Control tensors of whole clips, [B, channels, F, H / 8, W / 8] float32.

        With a fixed scale each equals the chunks of the same drive, one behind the other, and the
        session's camera is left alone. With "offline" the latent frames spread over all the poses.

        Args:
            poses: camera-to-world of the video frames, [B, T, 4, 4]; T is 4 (F - 1) + 1 or,
                offline, more.
            num_latent_frames: F.
            actions: of each clip the keys that led to each frame but the first, T - 1 of them; for
                act control.
            device: where the controls are made.
        """
        check_poses(poses.flatten(0, 1), "the poses of the clips")
        for keys in actions or ():
            if len(keys) != poses.shape[1] - 1:
                raise ValueError(
                    f"{len(keys)} actions for {poses.shape[1]} poses: give {poses.shape[1] - 1}, "
                    "one for each frame but the first."
                )
        relative = self._clip_steps(poses, num_latent_frames)  # [B, F, 4, 4]
        held = None
        if actions is not None:
            starts = [("", *keys)[::VIDEO_FRAMES][:num_latent_frames] for keys in actions]
            held = [keys for clip in starts for keys in clip]
        control = self._control(relative.flatten(0, 1).float().to(device), held, self.intrinsics)
        return rearrange(control, "1 c (b f) h w -> b c f h w", b=len(poses)).contiguous()

    def _clip_steps(self, poses: Tensor, num_latent_frames: int) -> Tensor:
        """Scaled steps between the latent frames of clips: [B, T, 4, 4] to [B, F, 4, 4]."""
        if num_latent_frames < 1:
            raise ValueError(f"num_latent_frames={num_latent_frames}: a clip has at least one.")
        if self.scale.live == "offline":
            return torch.stack([offline_poses(clip, num_latent_frames)[1] for clip in poses])
        needed = VIDEO_FRAMES * (num_latent_frames - 1) + 1
        if poses.shape[1] != needed:
            raise ValueError(
                f"{poses.shape[1]} poses for {num_latent_frames} latent frames: give {needed}, "
                'or use translation_scale="offline", which spreads them over more poses.'
            )
        return scale_translations(relative_poses(poses[:, ::VIDEO_FRAMES]), self.scale.live)

    def hold(self, keys: str) -> Controls:
        """Controls of the next chunk with these keys held throughout; "" or "none" for no key.

        Raises:
            ValueError: an unknown or repeated key.
        """
        keys = "" if keys == IDLE else check_keys(keys)
        return Controls((keys,) * frames_in_chunk(self._step, self.frames_per_chunk))

    def check(self, controls: Controls) -> None:
        """Raises ValueError for controls that do not fit the next chunk; nothing moves."""
        frames = frames_in_chunk(self._step, self.frames_per_chunk)
        chunk = f"chunk {self._step} of {self.frames_per_chunk} latent frames"
        if controls.poses is not None:
            if self.kind == "act" and controls.pose_keys is None:
                raise ValueError(NEEDS_KEYS)
            needed = frames + (self._step == 0)
            if len(controls.poses) != needed:
                raise ValueError(f"{len(controls.poses)} poses for {chunk}: give {needed}.")
        elif (count := len(controls.actions or ())) != frames:
            raise ValueError(
                f'{count} actions for {chunk}: give {frames}, one a video frame ("" for no key).'
            )
        if self._step == 0:
            self._scale(controls)
            check_intrinsics(controls.intrinsics or self.intrinsics)

    def _scale(self, controls: Controls) -> float:
        """The translation scale of a session that these controls begin."""
        return self.scale.of(controls.largest_step, has_origins=self.kind == "cam")

    def _advance(self, controls: Controls) -> Tensor:
        """Move the camera; return the chunk's video poses, the very first one included."""
        if controls.poses is not None:
            poses = controls.poses.detach().double().cpu().clone()
            self._driver = CameraDriver(poses[-1])
            return poses
        start = [self._driver.pose] if self._step == 0 else []
        moved = [self._driver.step(keys) for keys in controls.actions or ()]
        return torch.stack(start + moved)

    def _control(
        self, relative: Tensor, keys: Sequence[str] | None, intrinsics: Intrinsics
    ) -> Tensor:
        return control_tensor(self.kind, relative, keys, intrinsics, self.height, self.width)
