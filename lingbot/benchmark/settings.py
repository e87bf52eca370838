"""From `compare=KEY:[a,b,...]` to the settings that take turns, each composed by Hydra anew.

KEY is any option or group of the command's YAML file, so knobs that do not exist yet can be
compared too. A setting is plain data: it travels to the ranks, which build it there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from lingbot.launch import compose_command

COMPARE = re.compile(r"\s*([A-Za-z_][\w./@-]*)\s*:\s*\[(.*)\]\s*", re.DOTALL)
AS_CONFIGURED = "as configured"
# the measurement itself: it must be the same for everything that is compared
OF_THE_RUN = (
    "command", "compare", "device", "experiment", "image", "layers", "logger", "num_chunks",
    "paths", "prompt", "ranks", "scene", "seed", "sessions", "steps", "threads", "timeout_s",
    "warmup_steps",
)  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """One way to run a step.

    Args:
        label: `KEY=VALUE` as it was asked for.
        module: the node that makes the `LingBotModule`.
        dtype: of the transformer: float32, bfloat16, or auto.
        strategy: the node that makes the strategy, of which the exchange is asked; empty where one
            rank does everything.
        decode: whether frames are made.
    """

    label: str
    module: dict[str, Any]
    dtype: str
    strategy: dict[str, Any] = field(default_factory=dict)
    decode: bool = True


def setting_of(cfg: DictConfig, label: str = AS_CONFIGURED) -> Setting:
    """The setting that a composed configuration of lingbot-bench describes."""
    return Setting(label, plain(cfg.module), cfg.dtype, plain(cfg.strategy), cfg.decode)


def configurations(cfg: DictConfig, overrides: Sequence[str]) -> list[tuple[str, DictConfig]]:
    """Labels and configurations to compare; without `compare`, the one there is.

    Args:
        cfg: composed from `overrides`.
        overrides: as on the command line; the compared key replaces its own.

    Raises:
        ValueError: for a comparison that cannot be read, made or composed.
    """
    if cfg.compare is None:
        return [(AS_CONFIGURED, cfg)]
    key, values = parse_compare(cfg.compare)
    kept = [text for text in overrides if _key(text) not in ("compare", key)]
    made = []
    for value in values:
        try:
            made.append((f"{key}={value}", compose_command(cfg.command, [*kept, f"{key}={value}"])))
        except HydraException as error:
            said = " ".join(str(error).split())
            raise ValueError(
                f"compare={cfg.compare!r}: {key}={value} does not compose ({said}); KEY is an "
                f"option or a group of lingbot-{cfg.command}, see lingbot-{cfg.command} --help"
            ) from error
    return made


def parse_compare(text: str) -> tuple[str, list[str]]:
    """`KEY:[a,b]` to the key and its values, as texts.

    Raises:
        ValueError: for another form, fewer than two values, or a key that is not a setting's.
    """
    match = COMPARE.fullmatch(text)
    if match is None:
        raise ValueError(
            f"compare={text!r}: write KEY:[a,b,...], as in conditioner_cache:[step,denoise,off]"
        )
    key, values = match[1], split_values(match[2])
    if key.split(".")[0] in OF_THE_RUN:
        instead = "; ranks=[1,2] puts several into one report" if key == "ranks" else ""
        raise ValueError(f"compare={text!r}: {key} must be the same for all settings{instead}")
    if len(values) < 2 or len(set(values)) < len(values) or "" in values:
        raise ValueError(f"compare={text!r}: give two or more different values of {key}")
    return key, values


def split_values(text: str) -> list[str]:
    """Split at commas outside brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote or letter in "'\"":
            quote = "" if letter == quote else quote or letter
        depth += (letter in "[{(") - (letter in "]})") if not quote else 0
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def plain(node: DictConfig) -> dict[str, Any]:
    """A node as plain values, resolved."""
    values = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _key(override: str) -> str:
    return override.split("=", 1)[0].lstrip("+~")
