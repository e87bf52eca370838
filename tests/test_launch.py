"""The command line, refusals and the run folder."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import OmegaConf

from lingbot.conf import resolvers
from lingbot.launch import (
    UserError,
    build_loggers,
    check_loggers,
    check_seed,
    for_hydra,
    for_rank,
    refusing,
    run_command,
    run_folder,
)
from tests.commands import TINY_DRIVE, composed


def value_of(argument: str):
    return OverridesParser.create().parse_override(argument).value()


@pytest.mark.parametrize(
    "text",
    ["w-24,jw-24,none-12", "dusk: sand, (vivid) & dense", "it's \\'quoted\\'", "a\\", "12", "x=y"],
)
def test_free_text_reaches_the_configuration_as_it_was_typed(text):
    for key in ("actions", "prompt", "paths.output_dir", "ckpt_path"):
        (argument,) = for_hydra([f"{key}={text}"])
        assert value_of(argument) == text


@given(st.text(st.characters(codec="utf-8", exclude_characters="$\n\r"), min_size=1))
def test_any_prompt_can_be_typed(text):
    (argument,) = for_hydra([f"prompt={text}"])
    if text[0] not in "'\"" and text != "null":
        assert value_of(argument) == text


def test_quoting_twice_changes_nothing_more():
    once = for_hydra(["prompt=dusk, sand"])
    assert for_hydra(once) == once == ["prompt='dusk, sand'"]


def test_null_and_other_arguments_stay_as_they_are():
    arguments = ["prompt=null", "trainer.devices=2", "kv_cache=sliding", "--help"]
    assert for_hydra(arguments) == arguments


def ends_with(raised: BaseException, monkeypatch, rank: int = 0):
    """The exit code of a command whose work ends so."""

    def work(cfg):
        try:
            raise raised
        except KeyboardInterrupt:
            sys.exit(1)  # as Lightning does

    monkeypatch.setattr(sys, "argv", ["lingbot-generate", "hydra.run.dir=.", *TINY_DRIVE])
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    with pytest.raises(SystemExit) as end:
        run_command(work, "generate")
    return end.value.code


def test_commands_end_with_the_codes_that_shells_expect(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert ends_with(KeyboardInterrupt(), monkeypatch) == 130
    assert ends_with(SIGTERMException(), monkeypatch) == 143
    # the launcher of a run takes another rank's code for a failure
    assert not ends_with(SIGTERMException(), monkeypatch, rank=1)
    assert ends_with(UserError("no"), monkeypatch) == 2
    assert ends_with(SystemExit(7), monkeypatch) == 7


def test_a_sweep_means_its_commas():
    arguments = ["--multirun", "actions=w-24,s-24"]
    assert for_hydra(arguments) == arguments


def test_later_ranks_of_torchrun_write_no_configuration(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert for_rank(0) == []
    assert "hydra.output_subdir=null" in for_rank(1)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert for_rank(1) == []  # Lightning says so itself


def test_objections_become_one_line():
    with pytest.raises(UserError, match=r"^window=2 is too small: give more$"), refusing():
        raise ValueError("window=2 is too small:\n   give more\n")


def test_a_mistake_in_the_code_is_no_refusal():
    with pytest.raises(KeyError), refusing():
        raise KeyError("mistake")


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_numpy_cannot_take_are_refused(seed):
    with pytest.raises(ValueError, match=str(seed)):
        check_seed(seed)


def test_the_run_folder_is_made_and_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = OmegaConf.create({"paths": {"output_dir": "outputs/here"}})
    assert run_folder(cfg) == tmp_path / "outputs" / "here"
    assert cfg.paths.output_dir == str(tmp_path / "outputs" / "here")
    assert (tmp_path / "outputs" / "here").is_dir()


def test_wandb_without_a_key_keeps_the_run_offline_and_says_so(tmp_path, monkeypatch, caplog):
    wandb = pytest.importorskip("wandb")
    modes = []

    def init(**options):
        modes.append(options["mode"])
        if options["mode"] == "online":
            raise wandb.errors.UsageError("No API key configured.")
        return SimpleNamespace(define_metric=lambda *_, **__: None)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_MODE", "online")
    cfg = composed("generate", [*TINY_DRIVE, "logger=wandb"], tmp_path)
    run_folder(cfg)
    (logger,) = build_loggers(cfg)
    assert modes == ["online", "offline"]
    assert "No API key configured." in caplog.text
    assert isinstance(logger, WandbLogger)


def test_a_logger_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setattr("lingbot.launch.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"lingbot-on-lightning\[wandb\]"):
        check_loggers(composed("generate", [*TINY_DRIVE, "logger=wandb"]))


def test_a_world_that_is_not_shipped_is_named_with_those_that_are():
    with pytest.raises(ValueError, match="'atlantis'"):
        resolvers.shipped_world("atlantis")
