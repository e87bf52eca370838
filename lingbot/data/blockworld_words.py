"""The words of BlockWorld: times of day, grounds, palettes and densities, and what each one means.

A prompt such as "noon, grass, warm, sparse" chooses among them; a word that is not given is drawn
from the scene's seed. Colours are sRGB in [0, 1], lengths world units.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import torch
from torch import Generator

log = logging.getLogger(__name__)

Choice = TypeVar("Choice")
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Light:
    """A time of day: colours of the sky, where the sun (or moon) stands, how far one can see."""

    zenith: Colour
    horizon: Colour
    glow: Colour
    sun: Colour
    ambient: Colour
    elevation: float  # degrees
    clouds: float
    sight: float  # world units until the haze has taken two thirds of a colour


@dataclass(frozen=True)
class Pattern:
    """A surface pattern: cell size in world units and how much of each part it shows."""

    width: float
    height: float
    checks: float = 0.0
    stripes: float = 0.0
    joints: float = 0.0  # dark lines between bricks, every other row shifted by half
    cells: float = 0.0  # every cell a shade of its own
    noise: float = 0.0  # soft blotches at two sizes


@dataclass(frozen=True)
class Ground:
    """A kind of ground: two colours and the pattern that mixes them."""

    first: Colour
    second: Colour
    pattern: Pattern


TIMES: dict[str, Light] = {
    "dawn": Light(
        (0.42, 0.55, 0.82), (0.99, 0.80, 0.68), (1.0, 0.72, 0.45), (0.72, 0.50, 0.34),
        (0.50, 0.47, 0.52), 20.0, 0.5, 15.0,
    ),
    "noon": Light(
        (0.20, 0.47, 0.88), (0.74, 0.87, 0.97), (0.35, 0.33, 0.25), (0.62, 0.60, 0.54),
        (0.46, 0.49, 0.54), 52.0, 0.7, 20.0,
    ),
    "dusk": Light(
        (0.20, 0.16, 0.42), (0.95, 0.48, 0.30), (1.0, 0.60, 0.25), (0.66, 0.38, 0.22),
        (0.45, 0.39, 0.48), 16.0, 0.45, 15.0,
    ),
    "night": Light(
        (0.03, 0.05, 0.16), (0.16, 0.22, 0.42), (0.34, 0.40, 0.52), (0.36, 0.44, 0.62),
        (0.30, 0.34, 0.50), 32.0, 0.3, 14.0,
    ),
    "overcast": Light(
        (0.55, 0.60, 0.67), (0.80, 0.82, 0.84), (0.05, 0.05, 0.05), (0.22, 0.22, 0.21),
        (0.66, 0.67, 0.69), 60.0, 0.8, 13.0,
    ),
}  # fmt: skip

GROUNDS: dict[str, Ground] = {
    "grass": Ground(
        (0.20, 0.40, 0.14), (0.56, 0.72, 0.28), Pattern(0.55, 0.55, cells=0.45, noise=0.75)
    ),
    "sand": Ground(
        (0.62, 0.44, 0.24), (0.98, 0.85, 0.60), Pattern(1.1, 0.5, stripes=0.4, noise=0.9)
    ),
    "stone": Ground(
        (0.34, 0.34, 0.36), (0.68, 0.67, 0.65), Pattern(0.9, 0.6, joints=0.9, cells=0.6, noise=0.2)
    ),
    "snow": Ground(
        (0.46, 0.58, 0.78), (0.97, 0.97, 0.98), Pattern(0.7, 0.7, cells=0.35, noise=0.9)
    ),
    "tiles": Ground(
        (0.42, 0.30, 0.26), (0.90, 0.82, 0.70), Pattern(0.8, 0.8, checks=0.75, cells=0.25)
    ),
}  # fmt: skip

PALETTES: dict[str, tuple[Colour, ...]] = {
    "warm": ((0.84, 0.32, 0.20), (0.95, 0.62, 0.22), (0.98, 0.84, 0.50), (0.60, 0.22, 0.24)),
    "cool": ((0.18, 0.42, 0.72), (0.25, 0.66, 0.70), (0.72, 0.86, 0.94), (0.38, 0.32, 0.66)),
    "pastel": ((0.96, 0.74, 0.76), (0.74, 0.88, 0.76), (0.78, 0.78, 0.95), (0.98, 0.92, 0.74)),
    "vivid": ((0.92, 0.16, 0.26), (0.12, 0.66, 0.36), (0.16, 0.34, 0.90), (0.98, 0.80, 0.12)),
}

DENSITIES = {"sparse": (5, 4, 3), "scattered": (8, 5, 4), "dense": (12, 7, 5)}

COATS = (
    Pattern(0.30, 0.14, joints=0.9, cells=0.45),  # bricks
    Pattern(0.25, 0.25, checks=0.9),
    Pattern(1.0, 0.22, stripes=0.9),
    Pattern(0.32, 0.32, cells=0.9),
    Pattern(0.45, 0.30, noise=0.9, cells=0.3),
)

WORDS: dict[str, tuple[str, ...]] = {
    "time_of_day": tuple(TIMES),
    "ground": tuple(GROUNDS),
    "palette": tuple(PALETTES),
    "density": tuple(DENSITIES),
}


@dataclass(frozen=True)
class BlockWorldPrompt:
    """What the words of a prompt can choose; "" leaves the choice to the scene's seed."""

    time_of_day: str = ""
    ground: str = ""
    palette: str = ""
    density: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            word = getattr(self, field.name)
            if word and word not in WORDS[field.name]:
                raise ValueError(
                    f"{field.name}={word!r} is not a word of BlockWorld: "
                    f"use one of {', '.join(WORDS[field.name])}, or "
                    "."
                )

    @classmethod
    def parse(cls, text: str) -> BlockWorldPrompt:
        """Find the words of BlockWorld in a prompt; other words mean nothing to it."""
        spoken = spoken_words(text)
        found = {
            name: next((word for word in spoken if word in words), "")
            for name, words in WORDS.items()
        }
        return cls(**found)

    def complete(self, generator: Generator) -> BlockWorldPrompt:
        """Draw the words that are not given. Given words do not change what else is drawn."""
        drawn = {name: choose(words, generator) for name, words in WORDS.items()}
        kept = {name: getattr(self, name) or word for name, word in drawn.items()}
        return BlockWorldPrompt(**kept)

    def __str__(self) -> str:
        return ", ".join(filter(None, (getattr(self, field.name) for field in fields(self))))


def spoken_words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return "".join(c if c.isalpha() else " " for c in text.lower()).split()


def unheard_words(text: str) -> list[str]:
    """The words of a prompt that choose nothing: unknown ones, and a second one of a kind."""
    heard = set(spoken_words(str(BlockWorldPrompt.parse(text))))
    return [word for word in dict.fromkeys(spoken_words(text)) if word not in heard]


def log_unheard(text: str) -> None:
    """Warns of a prompt's words that choose nothing in a scene, with those that would."""
    if unheard := unheard_words(text):
        kinds = "; ".join(
            f"{name.replace('_', ' ')}: {', '.join(words)}" for name, words in WORDS.items()
        )
        log.warning(
            "The scene makes nothing of %s in the prompt %r: it knows one word of each kind (%s).",
            *(", ".join(map(repr, unheard)), text, kinds),
        )


def random_prompt(generator: Generator) -> str:
    """Draw a whole prompt, such as "noon, grass, warm, sparse"."""
    return str(BlockWorldPrompt().complete(generator))


def uniform(low: float, high: float, generator: Generator) -> float:
    """A number between low and high."""
    return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))


def choose(options: Sequence[Choice], generator: Generator) -> Choice:
    """One of several options."""
    return options[int(torch.randint(len(options), (), generator=generator))]
