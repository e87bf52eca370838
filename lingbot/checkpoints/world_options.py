"""Gives a command the options that a world was trained with, where the user gave none.

One step between composition and work, the same for every command and for notebooks: `weights=` is
found, its `world.json` read, its values taken as defaults. What was typed, or chosen by an
experiment, and cannot be true of that world is refused by name; what may be chosen anew for a drive
stays, and a log line says that training had something else.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.default_element import GroupDefault
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lingbot.checkpoints.world_file import BYTES, UMT5, WORLD_FILE, WorldFile, read_world_file
from lingbot.checkpoints.world_folder import CODEC, find_world, same_codec
from lingbot.conf.schemas import ByteText, RandomText, TrainedCodec, UMT5Text

log = logging.getLogger(__name__)

# a drive may choose these: the log says where they differ from training
FREE = ("sampler", "schedule", "kv_cache", "camera.intrinsics", "camera.translation_scale", "fps")
# and so may a training that starts from a world: it is what teaches them
FREE_IN_TRAINING = (*FREE, "frames_per_chunk", "camera")
# commands that need a history of a steady length, whatever the world was trained with
OWN_HISTORY = ("bench", "drift")
# options that say the same as another one
ALSO = {
    "frames_per_chunk": "camera.frames_per_chunk",
    "model.control": "camera.kind",
    "schedule": "sampler.schedule.kind",
}
TEXTS = {BYTES: ByteText, UMT5: UMT5Text}
SHOWN = (
    "model.dim", "model.num_layers", "model.control", "frames_per_chunk", "sampler.indices",
    "sampler.schedule.shift", "schedule", "kv_cache.window", "kv_cache.sink", "camera.height",
    "camera.width", "camera.translation_scale",
)  # fmt: skip


def apply_world(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration, changed in place into one of the world that `weights` names.

    Call it while the Hydra that composed `cfg` is at work, which knows its experiments.

    Args:
        cfg: of any command.
        overrides: what was typed.

    Raises:
        FileNotFoundError: no such world.
        ValueError: an option that contradicts the world, by name; a `world.json` that cannot be
            read; an option that an experiment requires.
    """
    chosen = Chosen(overrides)
    chosen.check_required()
    if cfg.weights is None:
        return cfg
    folder = find_world(cfg.weights)
    cfg.weights = str(folder)
    world = read_world_file(folder)
    if world is None:
        assumed = [f"{name}={_shown(OmegaConf.select(cfg, name))}" for name in SHOWN]
        log.warning(
            "%s has no %s and does not say how it was trained; assumed: %s",
            folder, WORLD_FILE, ", ".join(assumed),
        )  # fmt: skip
        return cfg
    _Fitting(cfg, world, chosen).fit()
    return cfg


class Chosen:
    """Which options somebody has chosen: typed ones, and those that a typed experiment sets."""

    def __init__(self, overrides: Sequence[str]) -> None:
        self.typed: dict[str, str] = {}
        self.by_experiment: dict[str, str] = {}
        self.required: dict[str, str] = {}
        for text in overrides:
            key, _, value = text.partition("=")
            key = key.lstrip("+").partition("@")[0]
            if not key.startswith("~"):
                self.typed[key] = text.lstrip("+")
                if key in ("experiment", "debug"):
                    self._read(key, value.strip("'\""))

    def _read(self, group: str, name: str) -> None:
        """Notes what an experiment's file sets, which composition does not tell apart."""
        hydra = GlobalHydra.instance().hydra
        found = hydra and hydra.config_loader.repository.load_config(f"{group}/{name}")
        if not found:
            return
        text = f"{group}={name}"
        for default in found.defaults_list or []:
            if isinstance(default, GroupDefault) and default.override:
                self.by_experiment[str(default.group).lstrip("/")] = text
        for key, value in _leaves(OmegaConf.to_container(found.config, resolve=False)):
            into = self.required if value == "???" else self.by_experiment
            into[key] = text

    def check_required(self) -> None:
        """Raises ValueError for what an experiment leaves to the user and the user left out.

        Hydra merges `???` as if it were not there, and a command's own default would stand.
        """
        for key, experiment in self.required.items():
            if self.option(key) is None:
                raise ValueError(f"{experiment} needs {key}: give {key}=...")

    def option(self, name: str) -> str | None:
        """The option that chose the value of `name`, as it was typed; None where nobody did."""
        for options in (self.typed, self.by_experiment):
            for key, text in options.items():
                if name == key or name.startswith(f"{key}.") or key.startswith(f"{name}."):
                    return text
        return None

    def among(self, group: str, *but: str) -> str | None:
        """The option that chose a group or one of its values, other than those named."""
        for options in (self.typed, self.by_experiment):
            for key, text in options.items():
                if key.split(".")[0] == group and key not in but:
                    return text
        return None


class _Fitting:
    """One configuration, one world, and what was chosen against it."""

    def __init__(self, cfg: DictConfig, world: WorldFile, chosen: Chosen) -> None:
        self.cfg, self.world, self.chosen = cfg, world, chosen
        self.free = FREE_IN_TRAINING if cfg.command == "train" else FREE
        self.taken: list[str] = []
        self.kept: list[str] = []
        self.contradictions: dict[str, list[str]] = {}

    def fit(self) -> None:
        """Takes the world's values, or refuses.

        Raises:
            ValueError: naming every option that contradicts the world.
        """
        for name, value in self.world.options.items():
            if value is not None:
                self.take(name, value)
        self.fit_text()
        self.fit_codec()
        folder = self.world.folder
        if self.contradictions:
            said = [
                f"{option}: the world in {folder} was trained with {', '.join(values)}"
                for option, values in self.contradictions.items()
            ]
            raise ValueError(f"{'; '.join(said)}; leave {'them' if len(said) > 1 else 'it'} out")
        if self.taken:
            log.info("%s was trained with %s: taken", folder, ", ".join(self.taken))
        if self.kept:
            log.warning("not as %s was trained: %s", folder, "; ".join(self.kept))

    def take(self, name: str, value: Any) -> None:
        """One option."""
        now = _plain(OmegaConf.select(self.cfg, name))
        option = self.chosen.option(name)
        if name in ALSO and ALSO[name] in self.chosen.typed:
            option, now = self.chosen.typed[ALSO[name]], OmegaConf.select(self.cfg, ALSO[name])
        own = name.startswith("kv_cache") and self.cfg.command in OWN_HISTORY
        if now == value:
            return
        if option is None and not own:
            self.set(name, value)
        elif any(name == free or name.startswith(f"{free}.") for free in self.free):
            self.kept.append(f"{name}={_shown(now)}, it had {_shown(value)}")
        else:
            assert option is not None
            alone = option.partition("=")[0] == name
            shown = _shown(value) if alone else f"{name}={_shown(value)}"
            self.contradictions.setdefault(option, []).append(shown)

    def set(self, name: str, value: Any) -> None:
        """Raises ValueError for a value that the option cannot have."""
        try:
            OmegaConf.update(self.cfg, name, value)
        except OmegaConfBaseException as error:
            said = str(error).splitlines()[0]
            raise ValueError(f"{self.world.file}: {name}={value!r}: {said}") from error
        self.taken.append(f"{name}={_shown(value)}")

    def fit_text(self) -> None:
        """The text encoder, and its own sizes."""
        wanted = dict(self.world.text)
        encoder = wanted.pop("encoder")
        schema = TEXTS.get(encoder)
        target = encoder if schema is None else schema._target_
        now, option = self.cfg.text.get("_target_"), self.chosen.option("text")
        if now != target:
            if option is not None and now == RandomText._target_:
                self.kept.append(f"{option}, it had {encoder}")
                return
            if option is not None or schema is None:
                remedy = f"text={encoder}" if schema else f"the text encoder {encoder}"
                self.contradictions.setdefault(option or "text", []).append(remedy)
                return
            self.cfg.text = OmegaConf.structured(schema(**wanted))
            self.taken.append(f"text={encoder}")
        if encoder == UMT5:
            self.fit_umt5(wanted["folder"])
        for name in ("text_dim", "text_len", "kernel_size"):
            if name in wanted:
                self.take(f"text.{name}", wanted[name])

    def fit_umt5(self, folder: str) -> None:
        """Its weights are no part of an export: where training found them, or where it is said."""
        if "text.folder" in self.chosen.typed:
            return
        own = self.world.folder / "text_encoder"
        place = str(self.world.folder) if own.is_dir() else folder
        if not Path(place).is_dir() or "${" in place:
            raise ValueError(
                f"the world in {self.world.folder} was trained with UMT5, which was in {folder!r}: "
                "give text.folder=FOLDER, one with text_encoder/ and tokenizer/"
            )
        self.cfg.text.folder = place

    def fit_codec(self) -> None:
        """The codec in whose latents the world lives: the one beside its weights."""
        own, codec = self.world.folder / CODEC, self.cfg.codec
        folder = None if codec.get("folder") is None else Path(codec.folder).absolute()
        if folder == own:
            return
        option = self.chosen.among("codec", "codec.dtype", "codec.memory_format")
        inside = folder is not None and folder.is_relative_to(self.world.folder)
        if option is None or inside:
            shared = {name: codec[name] for name in ("dtype", "memory_format")}
            self.cfg.codec = OmegaConf.structured(TrainedCodec(folder=str(own), **shared))
            self.taken.append("codec=world")
        elif folder is not None and same_codec(own, folder):
            return
        elif folder is None and self.cfg.command == "bench":  # which measures time alone
            self.kept.append(f"{option}, it had its own codec")
        else:
            self.contradictions.setdefault(option, []).append("its own codec (codec=world)")


def _leaves(node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Values of a nested node by their dotted names."""
    if not isinstance(node, dict):
        return [(prefix, node)]
    return [
        leaf
        for key, value in node.items()
        for leaf in _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    ]


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def _shown(value: Any) -> str:
    plain = _plain(value)
    return f"[{','.join(map(str, plain))}]" if isinstance(plain, list) else str(plain)
