"""What people type, as Hydra's grammar takes it.

Prompts, actions and paths are free text: commas, quotes, `=` and `$` in them mean themselves. Only
in a sweep (`-m`) do commas outside of quotes part choices. An option may be written `--key=value`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString

LITERAL = "actions|prompt|prompt_events"  # `${...}` in them is text, never looked up
PATHS = r"image|folder|weights|ckpt_path|export_dir|(?:codec|text)\.folder|paths\.\w+"
FREE_TEXT = re.compile(rf"(\+*)({LITERAL}|compare|{PATHS})=(.*)", re.DOTALL)
STRUCTURED = ("prompt_events",)  # written in Hydra's own grammar
HYDRAS_OWN = (
    "cfg", "config-dir", "config-name", "config-path", "experimental-rerun", "hydra-help", "info",
    "package", "shell-completion",
)  # fmt: skip
OPTION = re.compile(r"--([A-Za-z_][\w.@/-]*)=", re.DOTALL)


def for_hydra(arguments: Sequence[str]) -> list[str]:
    """Arguments of a command line, quoted for Hydra's grammar where they are free text.

    Raises:
        ValueError: for bytes that are not text in the terminal's encoding.
    """
    sweep = bool({"-m", "--multirun"} & set(arguments))
    return [_for_hydra(_without_dashes(check_text(a)), sweep) for a in arguments]


def check_text(argument: str) -> str:
    """The argument, if all of it is text."""
    if any("\ud800" <= letter <= "\udfff" for letter in argument):
        shown = argument.encode("utf-8", "backslashreplace").decode()
        raise ValueError(f"{shown!r} holds bytes that are no text: type it in UTF-8")
    return argument


def _without_dashes(argument: str) -> str:
    match = OPTION.match(argument)
    return argument if match is None or match[1] in HYDRAS_OWN else argument[2:]


def _for_hydra(argument: str, sweep: bool) -> str:
    match = FREE_TEXT.fullmatch(argument)
    if match is None:
        return argument
    plus, key, value = match.groups()
    value = value.replace("${", r"\${") if re.fullmatch(LITERAL, key) else _at_home(value)
    quoted = value[:1] in ("'", '"') and _is_one_quoted_string(value)
    if sweep or quoted or key in STRUCTURED or value in ("", "null"):
        return f"{plus}{key}={value}"
    return f"{plus}{key}={QuotedString(value, Quote.single).with_quotes()}"


def _at_home(path: str) -> str:
    """The path with a leading `~` as the shell would have it, inside of quotes too."""
    quote = path[:1] if path[:1] in ("'", '"') else ""
    rest = path[len(quote) :]
    try:
        return quote + str(Path(rest).expanduser()) if rest.startswith("~") else path
    except RuntimeError:  # no such user: the file system will say that there is no such folder
        return path


def _is_one_quoted_string(value: str) -> bool:
    """Whether a value is a quoted string from its first to its last letter."""
    quote = re.escape(value[0])
    return re.fullmatch(rf"{quote}(?:\\.|(?!{quote}).)*{quote}", value, re.DOTALL) is not None
