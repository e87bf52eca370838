"""BlockWorld scenes: a seed and a few words make a ground, a sky and the solids that stand there.

World axes are the camera's: x right, y down, z forward. The origin is the eye at the start of a
drive, so the start pose is the identity and the ground is the plane y = `eye`. Everything is drawn
on the CPU from one generator: a seed makes the same scene on every device.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from lingbot.data.blockworld_precision import float32_arithmetic
from lingbot.data.blockworld_rays import (
    BOX,
    PILLAR,
    PLACE,
    SPHERE,
    Solids,
    distance_on_ground,
    enter,
)
from lingbot.data.blockworld_words import (
    COATS,
    DENSITIES,
    GROUNDS,
    PALETTES,
    TIMES,
    BlockWorldPrompt,
    Colour,
    Ground,
    Light,
    choose,
    uniform,
)

REACH = 10.0  # solids stand within this distance of the start
PATIENCE = 100  # tries at a place before it may lie further out
CLEARING = 1.8  # nothing stands closer to the start than this
LIGHT_MAP = 192  # texels along each side of the ground's light map, which covers +-MAP_REACH
MAP_REACH = REACH + 2

# smallest and largest half extents of boxes, pillars and spheres
SIZES = {
    BOX: ((0.3, 0.25, 0.3), (0.9, 1.0, 0.9)),
    PILLAR: ((0.18, 0.7, 0.18), (0.38, 1.3, 0.38)),
    SPHERE: ((0.35,) * 3, (0.85,) * 3),
}
HILLS = ((0.04, 0.09), (0, 2 * math.pi), (0, 2 * math.pi), (0, 2 * math.pi))


class Hills(NamedTuple):
    """A skyline: its height above the horizon (sine of the angle) and phases of three waves."""

    height: float
    first: float
    second: float
    third: float


@dataclass(frozen=True)
class Scene:
    """One BlockWorld. `light_map` [1, 1, M, M] is 1 where all light reaches the ground."""

    prompt: BlockWorldPrompt
    eye: float
    light: Light
    sun: Colour  # unit vector towards the sun
    ground: Ground
    ground_turn: float  # radians by which the ground's pattern is turned
    hills: Hills
    solids: Solids
    light_map: Tensor

    def to(self, device: torch.device | str) -> Scene:
        """The same scene with its tensors on a device."""
        return replace(self, solids=self.solids.to(device), light_map=self.light_map.to(device))

    def clearance(self, poses: Tensor) -> float:
        """Distance from the cameras [T, 4, 4] to the nearest solid, seen from above."""
        place = poses.to(self.solids.rows)
        x, z = place[None, :, 0, 3], place[None, :, 2, 3]
        return min(
            float(distance_on_ground(kind, x, z, self.solids.rows[:PLACE, span]).min())
            for kind in (BOX, PILLAR, SPHERE)
            if (span := self.solids.span(kind)).start < span.stop
        )


@float32_arithmetic()
def make_scene(seed: int, prompt: str | BlockWorldPrompt = "") -> Scene:
    """Make the scene of a seed; words that the prompt leaves open are drawn from the seed too."""
    given = BlockWorldPrompt.parse(prompt) if isinstance(prompt, str) else prompt
    generator = Generator().manual_seed(seed ^ zlib.crc32(b"BlockWorld"))
    words = given.complete(generator)
    eye = uniform(0.65, 0.95, generator)
    light = TIMES[words.time_of_day]
    azimuth = uniform(-math.pi, math.pi, generator)
    elevation = math.radians(light.elevation + uniform(-4.0, 4.0, generator))
    sun = (
        math.cos(elevation) * math.sin(azimuth),
        -math.sin(elevation),
        math.cos(elevation) * math.cos(azimuth),
    )
    turn = uniform(-0.5, 0.5, generator)
    hills = Hills(*(uniform(low, high, generator) for low, high in HILLS))
    solids = draw_solids(words.density, words.palette, eye, generator)
    shade = light_map(solids, sun, eye)
    return Scene(words, eye, light, sun, GROUNDS[words.ground], turn, hills, solids, shade)


def draw_solids(density: str, palette: str, eye: float, generator: Generator) -> Solids:
    """Place solids around the clearing, none inside another, one of each kind where one looks."""
    counts = DENSITIES[density]
    spots: list[tuple[float, float, float]] = []
    columns = []
    for kind, number in enumerate(counts):
        for i in range(number):
            half = draw_size(kind, generator)
            reach = math.hypot(half[0], half[2]) if kind == BOX else half[0]
            x, z = draw_spot(reach, spots, ahead=i == 0, generator=generator)
            spots.append((x, z, reach))
            yaw = uniform(0.0, math.pi, generator)
            place = (x, eye - half[1], z, *half, math.cos(yaw), math.sin(yaw))
            body = choose(PALETTES[palette], generator)
            mark = contrast(body, choose(PALETTES[palette], generator))
            coat = asdict(choose(COATS, generator))
            scale = uniform(0.9, 1.4, generator)
            coat["width"] *= scale
            coat["height"] *= scale
            columns.append((*place, *body, *mark, *coat.values()))
    return Solids(torch.tensor(columns, dtype=torch.float32).T.contiguous(), counts)


def contrast(body: Colour, other: Colour) -> Colour:
    """A second colour that stands out: the other, or a darker or lighter shade of the first."""
    if abs(sum(body) - sum(other)) > 0.6:
        return other
    shade = 0.1 if sum(body) > 1.5 else 0.95
    red, green, blue = (0.45 * c + 0.55 * shade for c in body)
    return red, green, blue


def draw_size(kind: int, generator: Generator) -> tuple[float, float, float]:
    """Half extents of a solid."""
    low, high = SIZES[kind]
    first, second, third = (uniform(a, b, generator) for a, b in zip(low, high, strict=True))
    if kind == BOX:
        return first, second, third
    return first, second if kind == PILLAR else first, first


def draw_spot(
    reach: float, spots: list[tuple[float, float, float]], ahead: bool, generator: Generator
) -> tuple[float, float]:
    """A place on the ground outside the clearing with a gap of 0.5 to every other solid.

    Where a crowd leaves no room, the place moves outwards until there is some.
    """
    nearest = CLEARING + reach
    for tries in count():
        further = 0.02 * max(0, tries - PATIENCE)
        farthest = nearest + 4.0 if ahead else REACH
        distance = uniform(nearest, farthest + further, generator)
        angle = uniform(-0.55, 0.55, generator) if ahead else uniform(-math.pi, math.pi, generator)
        x, z = distance * math.sin(angle), distance * math.cos(angle)
        if all(math.hypot(x - a, z - b) > reach + r + 0.5 for a, b, r in spots):
            return x, z
    raise AssertionError("the ground has no end")


def light_map(solids: Solids, sun: Colour, eye: float) -> Tensor:
    """How much light reaches the ground, [1, 1, M, M] over +-MAP_REACH: rows are z, columns x.

    Every texel casts a ray to the sun at every solid; a slight blur makes the shadows soft. Near a
    solid's foot the light fades too, which is what makes it stand on the ground.
    """
    axis = (torch.arange(LIGHT_MAP) + 0.5) * (2 * MAP_REACH / LIGHT_MAP) - MAP_REACH
    z, x = (w.reshape(1, -1) for w in torch.meshgrid(axis, axis, indexing="ij"))
    origin = (x, torch.full_like(x, eye - 1e-3), z)
    towards_sun = torch.tensor(sun)[:, None, None].unbind()
    blocked = torch.zeros_like(x, dtype=torch.bool)
    near = torch.full_like(x, math.inf)
    for kind in (BOX, PILLAR, SPHERE):
        for place in solids.rows[:PLACE, solids.span(kind)].split(1, dim=1):
            blocked |= enter(kind, origin, towards_sun, place) < math.inf
            # a sphere touches the ground in one point, its shade is about a third of its width
            lift = 0.65 * place[3] if kind == SPHERE else 0.0
            near = torch.minimum(near, distance_on_ground(kind, x, z, place) + lift)
    lit = nn.functional.avg_pool2d(
        nn.functional.pad((~blocked).float().view(1, 1, LIGHT_MAP, LIGHT_MAP), (1,) * 4, value=1.0),
        kernel_size=3,
        stride=1,
    )
    contact = 1 - 0.5 * torch.exp(-near.clamp(min=0) / 0.25).view_as(lit)
    return lit * contact
