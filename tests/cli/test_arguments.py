"""Free text on the command line means itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from lingbot.cli.arguments import for_hydra
from tests.commands import composed


def prompt_of(text: str, prefix: str = "") -> str:
    return composed("generate", for_hydra([f"{prefix}prompt={text}"])).prompt


@pytest.mark.parametrize(
    "text",
    [
        '"dusk" is a word', "'dusk' is a word", "it's dusk", 'a "b" c', "dusk, sand", "a=b", "a: b",
        "{dusk}", "[sand]", "100%", "back\\slash", "two\nlines", "naïve 夕暮れ", "$5 (five)",
        "ends with a quote'", '"', "~", "a\\'b",
    ],
)  # fmt: skip
@pytest.mark.parametrize("prefix", ["", "--"])
def test_a_prompt_is_taken_as_it_was_typed(text: str, prefix: str) -> None:
    assert prompt_of(text, prefix) == text


def test_a_prompt_that_is_quoted_for_hydra_is_unquoted() -> None:
    assert prompt_of("'dusk, sand'") == "dusk, sand"


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "${foo.bar} dusk", "'${oc.env:HOME}'"])
def test_dollars_and_braces_of_a_prompt_are_never_looked_up(text: str) -> None:
    assert prompt_of(text) == text.strip("'")


def test_dollars_and_braces_of_prompt_events_are_never_looked_up() -> None:
    overrides = for_hydra(["prompt_events={1: '${oc.env:HOME}'}"])
    assert composed("generate", overrides).prompt_events[1] == "${oc.env:HOME}"


@pytest.mark.parametrize("key", ["paths.root_dir", "folder", "image", "ckpt_path", "weights"])
def test_a_tilde_is_the_home_folder_in_every_path(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    (made,) = for_hydra([f"{key}=~/runs"])
    assert made == f"{key}='/home/someone/runs'"
    (quoted,) = for_hydra([f"{key}='~/runs, old'"])
    assert quoted == f"{key}='/home/someone/runs, old'"


def test_options_with_two_dashes_are_those_without_and_hydras_own_stay() -> None:
    typed = ["--seed=3", "--config-dir=x", "--multirun", "-m", "--cfg=job", "~callbacks.step_plot"]
    assert for_hydra(typed) == ["seed=3", *typed[1:]]


def test_in_a_sweep_commas_part_choices() -> None:
    assert for_hydra(["-m", "prompt=dusk,noon"]) == ["-m", "prompt=dusk,noon"]


def test_bytes_that_are_no_text_are_refused() -> None:
    with pytest.raises(ValueError, match="no text: type it in UTF-8"):
        for_hydra([b"prompt=\xff\xfe".decode("utf-8", "surrogateescape")])


def test_a_relative_path_stays_relative() -> None:
    assert for_hydra(["folder=a b/c"]) == ["folder='a b/c'"]
    assert not Path("a b/c").is_absolute()
