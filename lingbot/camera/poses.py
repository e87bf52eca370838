"""Camera-to-world poses: checked, interpolated, made relative, scaled.

A pose is a rigid 4x4 matrix with OpenCV axes. All arithmetic is in float64: a trajectory may be far
from its origin while its steps are small. Rotations are interpolated on the shortest great arc
(Shoemake, Animating Rotation with Quaternion Curves, 1985).
"""

import torch
from einops import rearrange
from torch import Tensor

from lingbot.model.checks import check_number

LEAST_SCALE, LARGEST_SCALE = 1e-6, 1e10  # of what counts as 1; beyond, float32 rays are nonsense
RIGID_TOLERANCE = 1e-3  # of an entry of R^T R and of the last row; float32 files are good to 1e-6


def check_poses(poses: Tensor, name: str) -> None:
    """Raise ValueError, naming what it came from, where poses are not rigid matrices [N, 4, 4]."""
    if poses.ndim != 3 or poses.shape[0] == 0 or tuple(poses.shape[1:]) != (4, 4):
        raise ValueError(
            f"{name} has shape {list(poses.shape)}: camera-to-world matrices [N, 4, 4] with OpenCV "
            "axes (x right, y down, z forward) and at least one pose are needed."
        )
    poses = poses.double()
    finite = torch.isfinite(poses).flatten(1).all(dim=1)
    if not bool(finite.all()):
        raise ValueError(
            f"{name} holds values that are not finite in pose {first_false(finite)} of "
            f"{len(poses)}: every entry must be a number."
        )
    rotation, last_row = poses[:, :3, :3], poses[:, 3]
    identity = torch.eye(4, dtype=poses.dtype, device=poses.device)
    error = (rotation.mT @ rotation - identity[:3, :3]).abs().amax(dim=(1, 2))
    proper = (error < RIGID_TOLERANCE) & (torch.linalg.det(rotation) > 0)
    if not bool(proper.all()):
        at = first_false(proper)
        determinant = float(torch.linalg.det(rotation[at]))
        raise ValueError(
            f"{name} holds no rotation in pose {at} of {len(poses)} (R^T R differs from the "
            f"identity by {float(error[at]):.2g}, the determinant is {determinant:.2g}): the upper "
            "left 3x3 of camera-to-world matrices must be orthonormal with determinant 1, without "
            "a scale."
        )
    framed = ((last_row - identity[3]).abs() < RIGID_TOLERANCE).all(dim=1)
    if not bool(framed.all()):
        at = first_false(framed)
        raise ValueError(
            f"the last row of pose {at} of {name} is {last_row[at].tolist()}: it must be "
            "[0, 0, 0, 1]; the translation belongs in the last column."
        )


def first_false(mask: Tensor) -> int:
    """Index of the first False of a mask [N]."""
    return int((~mask).nonzero()[0])


def even_positions(num_poses: int, num_latent_frames: int) -> Tensor:
    """Positions [F] float64 of latent frames spread evenly from the first pose to the last."""
    return torch.linspace(0, num_poses - 1, num_latent_frames, dtype=torch.float64)


def interpolate_poses(poses: Tensor, positions: Tensor) -> Tensor:
    """Poses between given ones: linear in translation, slerp in rotation.

    Args:
        poses: camera-to-world [N, 4, 4].
        positions: [M] in units of frames, within 0 .. N - 1.

    Returns:
        [M, 4, 4] float64.

    Raises:
        ValueError: a position outside the poses.
    """
    poses, positions = poses.double(), positions.double().to(poses.device)
    last = len(poses) - 1
    if bool((positions < 0).any()) or bool((positions > last).any()):
        raise ValueError(
            f"positions span {float(positions.min())} .. {float(positions.max())} but the poses "
            f"only 0 .. {last}: ask for positions within them."
        )
    before = positions.floor().long().clamp(max=max(last - 1, 0))
    after = (before + 1).clamp(max=last)
    weight = (positions - before)[:, None]
    quaternions = to_quaternions(poses[:, :3, :3])
    result = torch.eye(4, dtype=torch.float64, device=poses.device).repeat(len(positions), 1, 1)
    result[:, :3, :3] = from_quaternions(slerp(quaternions[before], quaternions[after], weight))
    result[:, :3, 3] = torch.lerp(poses[before, :3, 3], poses[after, :3, 3], weight)
    return result


def relative_poses(poses: Tensor, previous: Tensor | None = None) -> Tensor:
    """Express each pose in the camera before it, [..., N, 4, 4] to [..., N, 4, 4] float64.

    The first is expressed in `previous` [4, 4] where there is one, and is the identity otherwise.
    """
    poses = poses.double()
    first = poses[..., :1, :, :] if previous is None else previous.to(poses).expand_as(poses[:1])
    before = torch.cat([first, poses[..., :-1, :, :]], dim=-3)
    to_before = before[..., :3, :3].mT
    relative = torch.eye(4, dtype=poses.dtype, device=poses.device).expand_as(poses).clone()
    relative[..., :3, :3] = to_before @ poses[..., :3, :3]
    # the difference first: far from the origin the two translations are large and nearly equal
    step = (poses[..., :3, 3] - before[..., :3, 3])[..., None]
    relative[..., :3, 3] = (to_before @ step)[..., 0]
    if previous is None:
        relative[..., 0, :, :] = torch.eye(4, dtype=poses.dtype, device=poses.device)
    return relative


def largest_step(relative: Tensor) -> float:
    """Length of the longest translation of relative poses [N, 4, 4]; 1 where none moves."""
    return float(relative[:, :3, 3].norm(dim=1).max()) or 1.0


def check_scale(
    scale: object, name: str = "translation scale", otherwise: str = "offline"
) -> float:
    """Return a length that counts as 1, or raise ValueError where it is not a positive number.

    Args:
        scale: what was given.
        name: of the option, for messages.
        otherwise: the word that may be given instead.
    """
    try:
        return check_number(name, scale, LEAST_SCALE, LARGEST_SCALE)
    except ValueError as error:
        raise ValueError(
            f"{name} {scale!r}: give a positive length from {LEAST_SCALE:g} to {LARGEST_SCALE:g} "
            f'(0.2 is what four frames of forward motion make) or "{otherwise}".'
        ) from error


def scale_translations(relative: Tensor, scale: float | None) -> Tensor:
    """Divide the translations of relative poses [..., N, 4, 4] by `scale`.

    None divides by the largest of them, as the published offline path does: that needs the whole
    trajectory [N, 4, 4], so a live session fixes a number instead.
    """
    result = relative.clone()
    result[..., :3, 3] /= largest_step(relative) if scale is None else scale
    return result


def to_quaternions(rotations: Tensor) -> Tensor:
    """Unit quaternions [N, 4] (x, y, z, w) of the rotations nearest to matrices [N, 3, 3].

    The quaternion is the leading eigenvector of a symmetric 4x4 matrix (Bar-Itzhack, New Method for
    Extracting the Quaternion from a Rotation Matrix, 2000), which is stable at every angle.
    """
    xx, xy, xz, yx, yy, yz, zx, zy, zz = rearrange(rotations, "n r c -> (r c) n")
    rows = [
        [xx - yy - zz, yx + xy, zx + xz, zy - yz],
        [yx + xy, yy - xx - zz, zy + yz, xz - zx],
        [zx + xz, zy + yz, zz - xx - yy, yx - xy],
        [zy - yz, xz - zx, yx - xy, xx + yy + zz],
    ]
    matrices = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    return torch.linalg.eigh(matrices).eigenvectors[..., -1]


def from_quaternions(quaternions: Tensor) -> Tensor:
    """Rotation matrices [N, 3, 3] of unit quaternions [N, 4] (x, y, z, w)."""
    x, y, z, w = quaternions.unbind(-1)
    entries = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        *(2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        *(2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    ]
    return rearrange(torch.stack(entries), "(r c) n -> n r c", r=3)


def slerp(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """Unit quaternions [N, 4] at `weight` [N, 1] of the way along the shortest arc."""
    end = torch.where((start * end).sum(-1, keepdim=True) < 0, -end, end)
    chord, diagonal = (end - start).norm(dim=-1), (end + start).norm(dim=-1)
    angle = 2 * torch.atan2(chord, diagonal)[:, None]  # accurate where acos of the dot is not
    straight = angle < 1e-8
    safe = torch.where(straight, 1.0, angle)
    from_start = torch.where(straight, 1 - weight, torch.sin((1 - weight) * safe) / safe.sin())
    from_end = torch.where(straight, weight, torch.sin(weight * safe) / safe.sin())
    return torch.nn.functional.normalize(from_start * start + from_end * end, dim=-1)
