"""What `weights=` means, and what a folder lacks, told before anything is loaded."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from lingbot import generate
from lingbot.checkpoints.world_folder import check_files, find_world
from lingbot.conf.resolvers import shipped_world
from lingbot.errors import UserError
from lingbot.launch import compose_command
from lingbot.module import LingBotModule
from lingbot.world import load_world
from tests.support.published import write_umt5
from tests.support.worlds import tiny_world


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_world(tmp_path_factory.mktemp("worlds") / "mine")


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copied")


def test_weights_are_a_folder_here_or_anywhere_or_a_shipped_world(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert find_world("mine") == find_world("./mine") == find_world(folder) == folder
    assert find_world("blockworld") == find_world(shipped_world("blockworld"))
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find_world("~/mine") == folder
    monkeypatch.chdir(folder)
    assert find_world(".") == folder


def test_a_folder_of_a_shipped_name_wins_where_it_is_a_world_and_the_log_says_so(
    folder, tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blockworld").mkdir()
    (tmp_path / "blockworld" / "notes.txt").touch()
    assert str(find_world("blockworld")) == shipped_world("blockworld")
    assert not caplog.text
    shutil.copytree(folder, tmp_path / "blockworld", dirs_exist_ok=True)
    assert find_world("blockworld") == tmp_path / "blockworld"
    assert "not the shipped world" in caplog.text


def test_weights_that_are_no_folder_are_refused_with_what_would_be_right(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "last.ckpt").touch()
    for name, told in (
        ("moon", "no world 'moon' is shipped; there are: blockworld"),
        ("moon/base", "no world in .*moon/base"),
        ("pipe", "is no folder"),
        ("last.ckpt", "is no folder.*python -m lingbot.world"),
        ("", "is empty"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=told):
            find_world(name)
        with pytest.raises(UserError, match=told):
            load_world(name)


def broken(change, folder) -> str:
    """Breaks a world; the file that is to be named."""
    if change == "no codec":
        shutil.rmtree(folder / "codec")
        return "codec.folder="
    if change == "codec without config":
        (folder / "codec" / "config.json").unlink()
        return r"codec.*config\.json"
    if change == "other statistics":
        file = folder / "codec" / "config.json"
        config = json.loads(file.read_text())
        file.write_text(json.dumps(config | {"latents_std": [2.0] * 16}))
        return r"codec/config\.json has another latents_std"
    if change == "text encoder cut":
        file = folder / "text_encoder.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        return r"text_encoder\.safetensors is no whole"
    if change == "text encoder of another size":
        file = folder / "text_encoder.safetensors"
        weights = load_file(file)
        weights["positions"] = weights["positions"][1:].contiguous()
        save_file(weights, file)
        return r"text_encoder\.safetensors does not hold"
    if change == "no transformer":
        (folder / "transformer.safetensors").unlink()
        (folder / "text_encoder.safetensors").unlink()
        return "no transformer in"
    file = folder / "transformer.safetensors"
    weights = load_file(file)
    weights["head.head.weight"] = weights["head.head.weight"][1:].contiguous()
    save_file(weights, file)
    return r"transformer\.safetensors does not hold.*head\.head\.weight is"


@pytest.mark.parametrize(
    "change",
    ["no codec", "codec without config", "other statistics", "text encoder cut",
     "text encoder of another size", "no transformer", "transformer of another size"],
)  # fmt: skip
def test_what_is_wrong_with_a_world_is_told_before_anything_is_built(change, copied, monkeypatch):
    told = broken(change, copied)
    monkeypatch.setattr(LingBotModule, "configure_model", pytest.fail)
    with pytest.raises(UserError, match=told):
        load_world(copied)
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        check_files(compose_command("generate", [f"weights={copied}"]))


def test_nan_in_a_world_ends_a_command_with_one_line_and_2(copied, tmp_path, monkeypatch, capsys):
    file = copied / "transformer.safetensors"
    weights = load_file(file)
    weights["head.head.bias"][3] = torch.nan
    save_file(weights, file)
    few = ["num_steps=1", "trainer.accelerator=cpu", "callbacks=none", "logger=none"]
    place = [f"weights={copied}", f"paths.output_dir={tmp_path}/run"]
    monkeypatch.setattr(sys, "argv", ["lingbot-generate", *few, *place])
    with pytest.raises(SystemExit) as end:
        generate.main()
    assert end.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "lingbot-generate" in line]
    assert "transformer.safetensors: head.head.bias holds NaN" in line


@pytest.fixture
def public(tmp_path, folder):
    """A folder in the published layout, with a UMT5 of the model's width and the tiny codec."""
    place = tmp_path / "public"
    write_umt5(place, width=64)
    shutil.copytree(folder / "codec", place / "vae")
    (place / "transformer").mkdir()
    shutil.copy(folder / "transformer.safetensors", place / "transformer")
    return place


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("vae", "codec.folder=.*vae"),
        ("vae/config.json", r"vae.*config\.json"),
        ("vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model"),
        ("tokenizer/tokenizer_config.json", "tokenizer_config"),
        ("tokenizer/tokenizer.json", r"tokenizer\.json or"),
        ("text_encoder/config.json", r"text_encoder/config\.json"),
        ("text_encoder/model.safetensors", r"needs weights in .*text_encoder"),
    ],
)
def test_what_a_public_folder_lacks_is_told_before_the_transformer_is_read(missing, told, public):
    typed = [
        f"weights={public}", "codec=wan", "text=umt5", "model.dim=48", "model.ffn_dim=64",
        "model.num_heads=4", "model.num_layers=1",
    ]  # fmt: skip
    check_files(compose_command("generate", typed))
    path = public / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        check_files(compose_command("generate", typed))


def test_a_text_encoder_of_another_width_is_refused(public):
    typed = [f"weights={public}", "codec=wan", "text=umt5", "model.text_dim=32"]
    with pytest.raises(ValueError, match=r"d_model=64, and model\.text_dim=32"):
        check_files(compose_command("generate", typed))
