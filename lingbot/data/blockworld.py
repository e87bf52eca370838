"""BlockWorld: a procedural world whose every frame is known exactly, rendered by ray casting.

`render` makes the frames of any camera path through a scene, on any device. Frames are cut into
tiles; a tile is tested only against the solids whose outline on the screen overlaps it. Then the
pixels at the edges of solids, about one in ten, are cast again with four rays each.

Letters: F frames, P packets of R rays (a tile of pixels, or one pixel), N rays, K solids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from lingbot.data.blockworld_precision import float32_arithmetic
from lingbot.data.blockworld_rays import PLACE, Solids, Vector, enter
from lingbot.data.blockworld_scene import Scene, make_scene
from lingbot.data.blockworld_shading import ground_colour, sky, solid_colour
from lingbot.data.blockworld_words import BlockWorldPrompt, random_prompt

__all__ = ["INTRINSICS", "BlockWorldPrompt", "Scene", "make_scene", "random_prompt", "render"]

INTRINSICS = (520.0, 520.0, 416.0, 240.0)  # fx, fy, cx, cy for 832x480
TILE = 8
FAR = 60.0  # the ground ends here, in the haze


@dataclass(frozen=True)
class Cameras:
    """Cameras of F frames and the pinhole they share."""

    rotation: Tensor  # [F, 3, 3] camera to world
    position: Tensor  # [3, F]
    focal: tuple[float, float]
    centre: tuple[float, float]
    height: int
    width: int


@float32_arithmetic()
def render(
    scene: Scene,
    poses: Tensor,
    intrinsics: Sequence[float] = INTRINSICS,
    height: int = 96,
    width: int = 160,
    frames_at_once: int | None = None,
) -> Tensor:
    """Render a camera path: poses [N, 4, 4] camera to world to frames [N, height, width, 3] uint8.

    Args:
        scene: where the camera moves; the frames are made on its device.
        poses: OpenCV axes (x right, y down, z forward); the identity stands at the scene's start.
        intrinsics: fx, fy, cx, cy for 832x480 pixels; they are rescaled to the frames' size.
        height, width: multiples of 8.
        frames_at_once: how many frames are in work together; by default what suits the device.

    Raises:
        ValueError: poses of another shape, or a size that tiles do not fill.
    """
    if poses.ndim != 3 or poses.shape[1:] != (4, 4):
        raise ValueError(f"poses have shape {tuple(poses.shape)}: give [frames, 4, 4].")
    if height % TILE or width % TILE or min(height, width) < TILE:
        raise ValueError(f"a frame of {height}x{width} pixels: both must be multiples of {TILE}.")
    device = scene.light_map.device
    if frames_at_once is None:
        frames_at_once = 16 if device.type == "cpu" else 64
    fx, fy, cx, cy = (float(value) for value in intrinsics)
    across, down = width / 832, height / 480
    poses = poses.to(device, torch.float32)
    batches = []
    for some in poses.split(frames_at_once):
        cameras = Cameras(
            some[:, :3, :3].contiguous(), some[:, :3, 3].T.contiguous(),
            (fx * across, fy * down), (cx * across, cy * down), height, width,
        )  # fmt: skip
        batches.append(render_batch(scene, cameras))
    return torch.cat(batches)


def render_batch(scene: Scene, cameras: Cameras) -> Tensor:
    """Render F frames together: [F, height, width, 3] uint8."""
    frames, rows, columns = cameras.position.shape[1], cameras.height // TILE, cameras.width // TILE
    candidates = outlines(scene.solids, cameras)  # [F, rows, columns, K]
    candidates = candidates.flatten(0, 2)  # [P, K]
    frame = torch.arange(frames, device=candidates.device).repeat_interleave(rows * columns)
    rays = tile_rays(cameras)  # 3 x [P, R]
    colour, seen = cast(scene, cameras, rays, frame, candidates)

    layout = {"f": frames, "y": rows, "x": columns, "i": TILE}
    image = rearrange(seen, "(f y x) (i j) -> f (y i) (x j)", **layout)
    edge = rearrange(edges(image), "f (y i) (x j) -> (f y x) (i j)", i=TILE, j=TILE)
    packet, pixel = edge.nonzero().unbind(1)
    rays = pixel_rays(cameras, frame[packet], packet % (rows * columns), pixel)
    smooth, _ = cast(scene, cameras, rays, frame[packet], candidates[packet])
    colour[:, edge] = smooth.mean(dim=2)
    colour = (colour.clamp_(0.0, 1.0) * 255).round_().to(torch.uint8)
    return rearrange(colour, "c (f y x) (i j) -> f (y i) (x j) c", **layout)


def outlines(solids: Solids, cameras: Cameras) -> Tensor:
    """Which solids may be seen in which tile: [F, rows, columns, K] bool.

    The corners of each solid's box are projected to the screen; where one lies behind the camera
    but not all do, the solid may be anywhere.
    """
    x, y, z, half_x, half_y, half_z, cos, sin = solids.rows[:PLACE]
    signs = torch.cartesian_prod(*[x.new_tensor([-1.0, 1.0])] * 3)[:, :, None]  # [8, 3, 1]
    right, down, ahead = signs[:, 0] * half_x, signs[:, 1] * half_y, signs[:, 2] * half_z
    corners = torch.stack([x + cos * right + sin * ahead, y + down, z + cos * ahead - sin * right])
    seen = corners[:, None] - cameras.position[:, :, None, None]  # [3, F, 8, K]
    seen = torch.einsum("fji,jfck->ifck", cameras.rotation, seen)
    before = seen[2] > 0.05
    depth = seen[2].clamp(min=0.05)
    spans = []
    for axis, size in ((1, cameras.height), (0, cameras.width)):
        place = seen[axis] / depth * cameras.focal[axis] + cameras.centre[axis]  # [F, 8, K] pixels
        sure = before.all(dim=1)
        low = torch.where(sure, place.amin(dim=1), 0.0)[:, None]
        high = torch.where(sure, place.amax(dim=1), float(size))[:, None]
        start = torch.arange(0, size, TILE, device=place.device)[:, None]
        spans.append((low < start + TILE + 1) & (high > start - 1))  # [F, tiles, K]
    rows, columns = spans
    return rows[:, :, None] & columns[:, None] & before.any(dim=1)[:, None, None]


def tile_rays(cameras: Cameras) -> Vector:
    """Rays through the centres of all pixels, a tile a packet: three tensors [P, R]."""
    device = cameras.position.device
    y = torch.arange(cameras.height, device=device) + 0.5
    x = torch.arange(cameras.width, device=device) + 0.5
    y, x = torch.meshgrid(y, x, indexing="ij")
    x, y = (rearrange(w, "(y i) (x j) -> (y x i j)", i=TILE, j=TILE) for w in (x, y))
    rays = cameras.rotation @ through(cameras, x, y)
    return rearrange(rays, "f c (t r) -> c (f t) r", r=TILE * TILE).unbind()


def pixel_rays(cameras: Cameras, frame: Tensor, tile: Tensor, pixel: Tensor) -> Vector:
    """Four rays through each of P pixels, given by frame, tile and place in it: tensors [P, 4]."""
    columns = cameras.width // TILE
    offset = cameras.position.new_tensor(
        [[0.125, 0.375], [0.375, 0.875], [0.625, 0.125], [0.875, 0.625]]
    )
    x = ((tile % columns) * TILE + pixel % TILE)[:, None] + offset[:, 0]
    y = ((tile // columns) * TILE + pixel // TILE)[:, None] + offset[:, 1]
    shape = x.shape
    rays = through(cameras, x.flatten(), y.flatten()).view(3, *shape)
    rotation = cameras.rotation.index_select(0, frame)
    return torch.einsum("pij,jpr->ipr", rotation, rays).unbind()


def through(cameras: Cameras, x: Tensor, y: Tensor) -> Tensor:
    """Directions in the camera's axes through places on the screen, of depth 1: [3, N]."""
    (fx, fy), (cx, cy) = cameras.focal, cameras.centre
    return torch.stack([(x - cx) / fx, (y - cy) / fy, torch.ones_like(x)])


def cast(
    scene: Scene, cameras: Cameras, rays: Vector, frame: Tensor, candidates: Tensor
) -> tuple[Tensor, Tensor]:
    """Follow packets of rays to what they meet.

    Args:
        rays: directions, three tensors [P, R].
        frame: the frame that each packet belongs to, [P].
        candidates: the solids that each packet may meet, [P, K].

    Returns:
        Colours [3, P, R], and a number [P, R] that tells the faces of the solids apart (0: none).
    """
    packets, size = rays[0].shape
    origin = cameras.position.index_select(1, frame)[:, :, None].unbind()  # 3 x [P, 1]
    depth = torch.full((packets * size,), torch.inf, device=frame.device)
    meetings = [meet(scene, k, origin, rays, candidates, depth) for k in range(3)]
    flat = torch.stack([ray.flatten() for ray in rays])
    flat_frame = frame.repeat_interleave(size)
    seen = torch.zeros_like(depth, dtype=torch.int16)
    colour = torch.empty_like(flat)
    pixel = 1.3 / cameras.focal[0]  # width of a pixel at depth 1, and a bit for softness
    start = cameras.position

    def of(ray: Tensor) -> tuple[Tensor, Tensor]:
        """Origins and directions of some rays, [3, n] each."""
        frames = flat_frame.index_select(0, ray)
        return start.index_select(1, frames), flat.index_select(1, ray)

    for kind, (ray, solid, entry) in enumerate(meetings):
        first = (entry == depth.index_select(0, ray)).nonzero()[:, 0]
        ray, solid, entry = (values.index_select(0, first) for values in (ray, solid, entry))
        solids, (eyes, some) = scene.solids.take(solid), of(ray)
        colour[:, ray], face = solid_colour(scene, kind, solids, eyes, some, entry, pixel)
        seen[ray] = (1 + 4 * solid + face).to(torch.int16)

    free = depth == torch.inf
    falls = flat[1] * FAR > (scene.eye - start[1]).index_select(0, flat_frame)
    ray = (free & falls).nonzero()[:, 0]
    colour[:, ray] = ground_colour(scene, *of(ray), pixel)
    ray = (free & ~falls).nonzero()[:, 0]
    colour[:, ray] = sky(scene, flat.index_select(1, ray), pixel)
    return colour.view(3, packets, size), seen.view(packets, size)


def meet(
    scene: Scene, kind: int, origin: Vector, rays: Vector, candidates: Tensor, depth: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Where rays meet the solids of one kind: ray, solid and depth of each meeting.

    `depth` [P * R], the nearest meeting of each ray so far, is brought up to date in place.
    """
    span = scene.solids.span(kind)
    packet, solid = candidates[:, span].nonzero().unbind(1)
    solid = solid + span.start
    size = rays[0].shape[1]
    some = tuple(axis.index_select(0, packet) for axis in rays)
    start = tuple(axis.index_select(0, packet) for axis in origin)
    place = scene.solids.rows[:PLACE].index_select(1, solid)
    entry = enter(kind, start, some, place)  # [pairs, R]
    met = (entry < torch.inf).flatten().nonzero()[:, 0]
    pair = met // size
    ray = packet.index_select(0, pair) * size + met % size
    entry, solid = entry.flatten().index_select(0, met), solid.index_select(0, pair)
    depth.scatter_reduce_(0, ray, entry, "amin")
    return ray, solid, entry


def edges(seen: Tensor) -> Tensor:
    """Pixels whose right or lower neighbour, or the other way about, shows something else: bool."""
    edge = torch.zeros_like(seen, dtype=torch.bool)
    across, down = seen[..., 1:] != seen[..., :-1], seen[..., 1:, :] != seen[..., :-1, :]
    edge[..., 1:] |= across
    edge[..., :-1] |= across
    edge[..., 1:, :] |= down
    edge[..., :-1, :] |= down
    return edge
