"""Where rays enter boxes, pillars and spheres: every solid is convex, so a ray enters it once.

Rays come as tuples of three tensors (x, y, z) that broadcast against the solids' values [N, 1]; a
miss, or an origin inside the solid, is infinity. y points down, as in the camera's axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

Vector = tuple[Tensor, ...]  # x, y, z

ROWS = (
    "x", "y", "z", "half_x", "half_y", "half_z", "cos", "sin",
    "red", "green", "blue", "red_2", "green_2", "blue_2",
    "width", "height", "checks", "stripes", "joints", "cells", "noise",
)  # fmt: skip
PLACE = ROWS.index("red")  # the rows before it say where a solid is, the others how it looks
BOX, PILLAR, SPHERE = range(3)
NEAR = 1e-3  # rays enter solids beyond this distance


@dataclass(frozen=True)
class Solids:
    """N solids: boxes first, then pillars, then spheres.

    `rows` [R, N] holds the values named in `ROWS`: one tensor, so that a scene moves between
    devices, and the solids that a batch of rays hit are looked up, in one operation.
    """

    rows: Tensor
    counts: tuple[int, int, int]

    def __getitem__(self, name: str) -> Tensor:
        return self.rows[ROWS.index(name)]

    def __len__(self) -> int:
        return sum(self.counts)

    def span(self, kind: int) -> slice:
        """Which of the solids are boxes, pillars or spheres."""
        first = sum(self.counts[:kind])
        return slice(first, first + self.counts[kind])

    def take(self, index: Tensor) -> Solids:
        """The solids at these indices [N], in their order; all may be of one kind."""
        return replace(self, rows=self.rows.index_select(1, index))

    def to(self, device: torch.device | str) -> Solids:
        """The same solids on a device."""
        return replace(self, rows=self.rows.to(device))


def local(vector: Vector, cos: Tensor, sin: Tensor) -> Vector:
    """Turn a vector from the world's axes to a solid's own."""
    x, y, z = vector
    return torch.addcmul(cos * x, sin, z, value=-1.0), y, torch.addcmul(cos * z, sin, x)


def enter(kind: int, origin: Vector, direction: Vector, place: Tensor) -> Tensor:
    """Distance, in lengths of `direction`, at which rays enter solids of one kind.

    Args:
        kind: BOX, PILLAR or SPHERE.
        origin: start of the rays in the world, each [N, 1] or [N, R].
        direction: directions of the rays, of any length, each [N, R].
        place: the first `PLACE` rows of N solids, [PLACE, N].
    """
    x, y, z, half_x, half_y, half_z, cos, sin = place[:, :, None].unbind()
    from_centre = (origin[0] - x, origin[1] - y, origin[2] - z)
    if kind == SPHERE:
        return first_of_two(*quadratic(from_centre, direction, half_x))
    o, d = local(from_centre, cos, sin), local(direction, cos, sin)
    into, out = slab(o[1], d[1], half_y)
    if kind == BOX:
        spans = [slab(o[0], d[0], half_x), slab(o[2], d[2], half_z)]
    else:
        spans = [quadratic(o[::2], d[::2], half_x)]
    for enters, leaves in spans:
        into, out = torch.maximum(into, enters), torch.minimum(out, leaves)
    return first_of_two(into, out)


def slab(origin: Tensor, direction: Tensor, half: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave the space between two planes at +-half."""
    inverse = direction.reciprocal()
    middle, reach = -origin * inverse, half * inverse.abs()
    return middle - reach, middle + reach


def quadratic(origin: Vector, direction: Vector, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Where rays enter and leave a sphere (or a column, given x and z alone); NaN for a miss."""
    a, b, c = direction[0].square(), origin[0] * direction[0], origin[0].square()
    for o, d in zip(origin[1:], direction[1:], strict=True):
        a, b, c = torch.addcmul(a, d, d), torch.addcmul(b, o, d), torch.addcmul(c, o, o)
    root = torch.addcmul(b.square(), a, c - radius.square(), value=-1.0).sqrt()
    inverse = a.reciprocal()
    return (-b - root) * inverse, (root - b) * inverse


def first_of_two(into: Tensor, out: Tensor) -> Tensor:
    """The way in where it lies ahead and before the way out; infinity elsewhere, NaN included."""
    return torch.where((into > NEAR) & (into < out), into, math.inf)


def distance_on_ground(kind: int, x: Tensor, z: Tensor, place: Tensor) -> Tensor:
    """Distance from points [N, R] to the outlines of solids seen from above; negative inside."""
    cx, _, cz, half_x, _, half_z, cos, sin = place[:, :, None].unbind()
    if kind != BOX:
        return torch.hypot(x - cx, z - cz) - half_x
    u, _, v = local((x - cx, cx, z - cz), cos, sin)
    du, dv = u.abs() - half_x, v.abs() - half_z
    outside = torch.hypot(du.clamp(min=0), dv.clamp(min=0))
    return outside + torch.maximum(du, dv).clamp(max=0)
