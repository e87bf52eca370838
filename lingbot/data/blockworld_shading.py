"""Colours of BlockWorld: patterns filtered to a pixel's footprint, ground, solids and sky.

Every pattern is averaged over the footprint of a pixel in closed form (a box filter), so a frame
needs no supersampling of its surfaces and far ground fades into its mean instead of flickering.
The filtered checks follow Inigo Quilez, "box-filtered procedural patterns" (2017).
Points come flat: N rays, colours [3, N].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache

import torch
from torch import Tensor, nn

from lingbot.data.blockworld_rays import BOX, PILLAR, ROWS, Solids, Vector, local
from lingbot.data.blockworld_scene import MAP_REACH, Scene
from lingbot.data.blockworld_words import Colour

SHADES = 1024  # random shades that cells pick from; cells (i, j) and (i + 1024, j) look the same
STRIDES = (73, 277)  # from a cell to the next one along u and v
Coat = Mapping[str, float] | Solids  # a pattern's values as numbers, or as tensors [N]


@lru_cache(maxsize=8)
def shades(device: torch.device) -> tuple[Tensor, ...]:
    """Random shades in [-1, 1] of a cell, the one right of it, below, and right and below.

    Four tables, each the first one shifted, are looked up by one index: that is the fastest way.
    """
    generator = torch.Generator().manual_seed(20)
    table = 2 * torch.rand(SHADES, generator=generator) - 1
    offsets = (0, STRIDES[0], STRIDES[1], sum(STRIDES))
    return tuple(table.roll(-offset).to(device) for offset in offsets)


def pattern(u: Tensor, v: Tensor, du: Tensor, dv: Tensor, coat: Coat) -> Tensor:
    """Value of a pattern in about [-1, 1] at surface points, [N].

    Args:
        u, v: surface coordinates in world units, [N].
        du, dv: width of a pixel's footprint along them, [N].
        coat: the pattern; its values may be numbers or tensors [N].
    """
    u, v, du, dv = u / coat["width"], v / coat["height"], du / coat["width"], dv / coat["height"]
    value = torch.zeros_like(u)
    if present(coat["checks"]):
        value = value + coat["checks"] * square_wave(u, du) * square_wave(v, dv)
    if present(coat["stripes"]):
        value = value + coat["stripes"] * square_wave(v, dv)
    if present(coat["joints"]):
        shifted = u + 0.5 * torch.floor(v).remainder(2)
        lines = torch.maximum(pulses(shifted, du, 0.12), pulses(v, dv, 0.16))
        value = value + coat["joints"] * (0.5 - 1.8 * lines)
        u = shifted
    if present(coat["cells"]):
        value = value + coat["cells"] * random_cells(u, v, du, dv)
    if present(coat["noise"]):
        value = value + coat["noise"] * blotches(u, v, du, dv)
    return value.clamp_(-1.0, 1.0)


def present(part: float | Tensor) -> bool:
    """Whether a part of a pattern has to be computed at all."""
    return isinstance(part, Tensor) or part != 0.0


def square_wave(x: Tensor, width: Tensor) -> Tensor:
    """A wave that is +1 in even cells and -1 in odd ones, averaged over `width`."""
    half = 0.5 * width.clamp(min=1e-3)
    return (triangle(x + half) - triangle(x - half)) / (2 * half)


def triangle(x: Tensor) -> Tensor:
    """Integral of the square wave: it climbs to 1 through even cells and back through odd ones."""
    x = 0.5 * x
    return 1 - 2 * ((x - torch.floor(x)) - 0.5).abs()


def pulses(x: Tensor, width: Tensor, duty: float) -> Tensor:
    """1 in the first `duty` of every cell and 0 elsewhere, averaged over `width`."""
    half = 0.5 * width.clamp(min=1e-3)
    low, high = torch.floor(x - half), torch.floor(x + half)
    above = (x + half - high).clamp(max=duty) - (x - half - low).clamp(max=duty)
    return (duty * (high - low) + above) / (2 * half)


def blotches(u: Tensor, v: Tensor, du: Tensor, dv: Tensor) -> Tensor:
    """Soft noise at two sizes: cell values averaged over at least a whole cell."""
    coarse = random_cells(0.6 * u + 0.3 * v, 0.6 * v - 0.3 * u, 0.7 * du, 0.7 * dv, smallest=1.0)
    fine = random_cells(1.9 * u - 0.8 * v, 1.9 * v + 0.8 * u, 2.1 * du, 2.1 * dv, smallest=1.0)
    return coarse + 0.6 * fine


def random_cells(u: Tensor, v: Tensor, du: Tensor, dv: Tensor, smallest: float = 1e-3) -> Tensor:
    """A random shade for every cell, averaged over the footprint and fading where it is wide."""
    i, right = across(u, du.clamp(smallest, 1.0))
    j, below = across(v, dv.clamp(smallest, 1.0))
    cell = ((i * STRIDES[0] + j * STRIDES[1]) & (SHADES - 1)).long()
    here, next_i, next_j, diagonal = (table.index_select(0, cell) for table in shades(u.device))
    value = torch.lerp(torch.lerp(here, next_i, right), torch.lerp(next_j, diagonal, right), below)
    return value * (2.0 - torch.maximum(du, dv)).clamp_(0.0, 1.0)


def across(x: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """The cell where an interval starts, and how much of the interval lies in the next one."""
    start = torch.floor(x - 0.5 * width)
    share = ((x + 0.5 * width - start - 1) / width).clamp_(0.0, 1.0)
    return start.int(), share


def sky(scene: Scene, rays: Tensor, pixel: float) -> Tensor:
    """Colour of the sky along rays [3, N]: gradient, clouds, sun and glow, distant hills."""
    light = scene.light
    x, y, z = rays * length(rays).reciprocal()
    up = (-y).clamp_(min=0)
    horizon, zenith = column(light.horizon, x), column(light.zenith, x)
    colour = torch.lerp(zenith, horizon, torch.exp(-4.5 * up))
    flat = (up + 0.10).reciprocal()
    width = pixel * flat.square()
    cloud = blotches(1.1 * x * flat, 1.1 * z * flat, width, width)
    cloud = (cloud - 0.1).clamp_(0, 1) * light.clouds * (6 * up).clamp_(max=1.0)
    white = (0.35 * horizon + 0.65 * column(light.sun, x) + 0.25).clamp_(max=1.0)
    colour = torch.lerp(colour, white, cloud)
    towards = sunwards(scene, (x, y, z))
    disc = ((towards - math.cos(0.07)) * 400).clamp_(0, 1)
    colour = colour + column(light.glow, x) * (glow(towards) + disc)
    height, first, second, third = scene.hills
    angle = torch.atan2(x, z)
    ridge = 1 + 0.5 * torch.sin(3 * angle + first) + 0.35 * torch.sin(7 * angle + second)
    ridge = height * (ridge + 0.12 * torch.sin(17 * angle + third))
    covered = ((ridge - up) / pixel + 0.5).clamp_(0, 1) * (up / 0.03).clamp_(0, 1)
    return torch.lerp(colour, 0.6 * horizon + 0.3 * zenith, 0.85 * covered)


def sunwards(scene: Scene, direction: Vector) -> Tensor:
    """Cosine of the angle between unit directions and the sun's, 0 beyond a right angle."""
    (x, y, z), sun = direction, scene.sun
    return (x * sun[0] + y * sun[1] + z * sun[2]).clamp_(min=0)


def glow(towards: Tensor) -> Tensor:
    """How much the air glows in a direction."""
    return 0.45 * (towards * towards * towards).square()


def haze(scene: Scene, colour: Tensor, rays: Tensor, depth: Tensor) -> Tensor:
    """Let the air between the camera and a point at `depth` along the rays take its colour."""
    far = length(rays)
    towards = sunwards(scene, (rays / far).unbind())
    air = column(scene.light.horizon, far) + column(scene.light.glow, far) * glow(towards)
    path = far * depth / scene.light.sight
    return torch.lerp(air, colour, torch.exp(-path * path.sqrt()))


def ground_colour(scene: Scene, origin: Tensor, rays: Tensor, pixel: float) -> Tensor:
    """Colour of the ground where rays [3, N] from origins [3, N] meet it, seen through the air."""
    depth = (scene.eye - origin[1]) / rays[1]
    x, z = origin[0] + depth * rays[0], origin[2] + depth * rays[2]
    # a pixel's footprint: `wide` across the line of sight, `deep` along it
    wide = pixel * depth
    run = torch.hypot(rays[0], rays[2])
    deep = wide * length(rays) / rays[1]
    cos, sin = math.cos(scene.ground_turn), math.sin(scene.ground_turn)
    along_u, along_v = (cos * rays[0] + sin * rays[2]) / run, (cos * rays[2] - sin * rays[0]) / run
    du = torch.hypot(wide * along_v, deep * along_u)
    dv = torch.hypot(wide * along_u, deep * along_v)
    look = scene.ground
    value = pattern(cos * x + sin * z, cos * z - sin * x, du, dv, asdict(look.pattern))
    place = torch.stack([x, z], dim=-1)[None, None] / MAP_REACH
    lit = nn.functional.grid_sample(
        scene.light_map, place, padding_mode="border", align_corners=False
    )[0, 0]
    ambient, sun = column(scene.light.ambient, x), column(scene.light.sun, x)
    bright = torch.lerp(0.75 * ambient, ambient + sun * (0.35 - 0.65 * scene.sun[1]), lit)
    colour = torch.lerp(column(look.first, x), column(look.second, x), 0.5 + 0.5 * value)
    return haze(scene, colour * bright, rays, depth)


def solid_colour(
    scene: Scene,
    kind: int,
    solids: Solids,
    origin: Tensor,
    rays: Tensor,
    depth: Tensor,
    pixel: float,
) -> tuple[Tensor, Tensor]:
    """Colour [3, N] of N solids of one kind at `depth` along rays, and the face that is met."""
    point = (origin + rays * depth).unbind()
    normal, u, v, face = surface(kind, point, solids)
    facing = -(normal[0] * rays[0] + normal[1] * rays[1] + normal[2] * rays[2]) / length(rays)
    width = pixel * depth / facing.clamp(min=0.2)
    value = pattern(u, v, width, width, solids)
    body = solids.rows[ROWS.index("red") : ROWS.index("red") + 6]
    colour = torch.lerp(body[:3], body[3:], 0.5 + 0.5 * value)
    sun = scene.sun
    lambert = (normal[0] * sun[0] + normal[1] * sun[1] + normal[2] * sun[2]).clamp_(min=0)
    ambient = column(scene.light.ambient, u) * (0.85 - 0.15 * normal[1])  # the sky is above
    foot = 0.55 + 0.45 * ((scene.eye - point[1]) / 0.35).clamp_(0, 1)
    bright = (ambient + column(scene.light.sun, u) * lambert) * foot
    return haze(scene, colour * bright, rays, depth), face


def surface(kind: int, point: Vector, solids: Solids) -> tuple[Vector, Tensor, Tensor, Tensor]:
    """What a ray meets on N solids of one kind: normal (world), u, v, and which face (a number).

    Args:
        kind: BOX, PILLAR or SPHERE.
        point: where the rays meet the solids in the world, each [N].
        solids: the solid that each ray meets.
    """
    hx, hy, hz = solids["half_x"], solids["half_y"], solids["half_z"]
    cos, sin = solids["cos"], solids["sin"]
    offset = (point[0] - solids["x"], point[1] - solids["y"], point[2] - solids["z"])
    x, y, z = local(offset, cos, sin)
    if kind == BOX:
        ax, ay, az = (x / hx).abs(), (y / hy).abs(), (z / hz).abs()
        on_x, on_y = (ax >= ay) & (ax >= az), (ay > ax) & (ay >= az)
        on_z = ~(on_x | on_y)
        n = (x.sign() * on_x, y.sign() * on_y, z.sign() * on_z)
        u, v, face = torch.where(on_x, z, x), torch.where(on_y, z, y), on_x + 2 * on_y
        u = u + 3.7 * face
    elif kind == PILLAR:
        on_y = y.abs() >= hy * (1 - 1e-4)
        side = ~on_y / hx
        n = (x * side, y.sign() * on_y, z * side)
        u, v = torch.where(on_y, x, torch.atan2(x, z) * hx), torch.where(on_y, z, y)
        face = on_y
    else:
        n = (x / hx, y / hx, z / hx)
        u, v, face = torch.atan2(x, z) * hx, torch.asin(n[1].clamp(-1, 1)) * hx, torch.zeros_like(x)
    normal = (cos * n[0] + sin * n[2], n[1], cos * n[2] - sin * n[0])
    return normal, u, v + hy, face


def length(vectors: Tensor) -> Tensor:
    """Lengths of vectors [3, N]."""
    return (vectors[0].square() + vectors[1].square() + vectors[2].square()).sqrt()


def column(colour: Colour, like: Tensor) -> Tensor:
    """A colour as [3, 1], on the device of `like`."""
    return like.new_tensor(colour)[:, None]
