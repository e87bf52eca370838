"""Writes the configuration reference from schemas and YAML files whenever the docs are built."""

from __future__ import annotations

from dataclasses import MISSING, fields
from importlib.resources import files
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from omegaconf import MISSING as REQUIRED

from lingbot.conf import schemas

COMMANDS = {
    "generate": schemas.Generate, "train": schemas.Train, "evaluate": schemas.Evaluate,
    "bench": schemas.Bench, "drift": schemas.Drift,
}  # fmt: skip


def on_files(found: Files, config: MkDocsConfig) -> Files:
    """Adds `configuration.md`."""
    found.append(File.generated(config, "configuration.md", content=reference()))
    return found


def reference() -> str:
    """Options of the commands, then choices and options of the groups."""
    conf = files("lingbot.conf")
    groups = sorted(entry.name for entry in conf.iterdir() if _is_group(entry))
    lines = [
        "# Configuration",
        "",
        "`COMMAND --help` prints the same for one command, with the values that it has by default. "
        "A group is chosen by `GROUP=CHOICE`, a value by `GROUP.KEY=VALUE`.",
        "",
        "## Commands",
    ]
    for name, schema in COMMANDS.items():
        plain = [field for field in fields(schema) if field.name not in groups]
        lines += ["", f"### lingbot-{name}", "", *_table(plain)]
    lines += ["", "## Groups"]
    for group in groups:
        choices = sorted(
            entry.name.removesuffix(".yaml")
            for entry in conf.joinpath(group).iterdir()
            if entry.name.endswith(".yaml")
        )
        lines += ["", f"### {group}", "", "Choices: " + ", ".join(f"`{c}`" for c in choices)]
        for schema in schemas.GROUPS.get(group, {}).values():
            target = getattr(schema, "_target_", None)
            title = f"`{target}`" if target else ""
            options = [field for field in fields(schema) if not field.name.startswith("_")]
            lines += ["", title, "", *_table(options)]
    return "\n".join(lines) + "\n"


def _is_group(entry: Any) -> bool:
    return entry.is_dir() and any(file.name.endswith(".yaml") for file in entry.iterdir())


def _table(options: list[Any]) -> list[str]:
    rows = [f"| `{field.name}` | `{_kind(field.type)}` | {_default(field)} |" for field in options]
    return ["| option | type | default of the type |", "|---|---|---|", *rows]


def _kind(kind: Any) -> str:
    return str(getattr(kind, "__name__", kind)).replace("|", "or")


def _default(field: Any) -> str:
    if field.default is not MISSING:
        return "set by the YAML file" if field.default == REQUIRED else f"`{field.default}`"
    return f"`{field.default_factory()}`" if field.default_factory is not MISSING else ""
