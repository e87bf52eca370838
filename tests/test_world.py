"""Worlds in and out: saved whole, loaded anywhere, made of checkpoints."""

from __future__ import annotations

import pytest
import torch
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image

from lingbot.camera.controls import Controls
from lingbot.codec.video import VideoCodec
from lingbot.launch import UserError
from lingbot.world import load_checkpoint, load_world, save_world
from tests.commands import TINY_DRIVE, TINY_TRAINING, composed

TINY_WORLD = [o for o in TINY_DRIVE if not o.startswith(("weights", "codec"))]
NAMES = {"transformer.safetensors", "text_encoder.safetensors", "codec", "world.json"}


@pytest.fixture(scope="module")
def world():
    torch.manual_seed(5)
    return load_world(overrides=TINY_DRIVE)


def first_step(module) -> torch.Tensor:
    image = torch.arange(32 * 48 * 3, dtype=torch.uint8).view(32, 48, 3)
    with module.new_session(image, "dusk, sand") as session:
        return session.step(Controls(("w",) * 8))


def test_a_loaded_world_is_ready_to_drive_and_in_evaluation_mode(world):
    assert first_step(world).shape == (9, 32, 48, 3)
    assert not world.training


@pytest.mark.parametrize(
    ("start", "complaint"),
    [
        ({"image": [[0]]}, "the first frame is a list"),
        ({"image": "nowhere.png"}, r"nowhere\.png"),
        ({"prompt": " "}, "the prompt is empty"),
        ({"seed": 2**32}, "seed=4294967296"),
        ({"seed": 1.5}, "seed=1.5"),
    ],
)
def test_a_start_is_checked_before_anything_is_built(start, complaint, monkeypatch):
    module = instantiate(composed("generate", TINY_DRIVE).module, _convert_="all")
    monkeypatch.setattr(module, "configure_model", pytest.fail)
    given = {"image": Image.new("RGB", (9, 9)), "prompt": "dusk", "seed": 0, **start}
    for begin in (module.new_session, module.start_world):
        with pytest.raises((ValueError, FileNotFoundError), match=complaint):
            begin(**given)


def test_a_saved_world_is_loaded_as_it_was(world, tmp_path):
    save_world(world, tmp_path / "a")
    assert {path.name for path in (tmp_path / "a").iterdir()} == NAMES
    once = load_world(tmp_path / "a", [*TINY_WORLD, "codec.dtype=float32"])
    for name, value in once.state_dict().items():
        assert torch.equal(value, world.state_dict()[name].half().float()), name
    save_world(once, tmp_path / "b")
    again = load_world(str(tmp_path / "b"), [*TINY_WORLD, "codec.dtype=float32"])
    assert torch.equal(first_step(once), first_step(again))


def test_a_world_is_replaced_whole_or_not_at_all(world, tmp_path, monkeypatch):
    save_world(world, tmp_path / "world")
    save_world(world, tmp_path / "world")
    before = (tmp_path / "world" / "transformer.safetensors").stat().st_mtime_ns

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(VideoCodec, "save", fail)
    for name in ("world", "fresh"):
        with pytest.raises(OSError, match="disk full"):
            save_world(world, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["world"]
    assert {path.name for path in (tmp_path / "world").iterdir()} == NAMES
    assert (tmp_path / "world" / "transformer.safetensors").stat().st_mtime_ns == before


def test_what_is_not_a_world_is_not_replaced(world, tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="something else than a world"):
        save_world(world, tmp_path)
    assert (tmp_path / "thesis.tex").exists()


def test_a_module_that_is_not_built_cannot_be_saved(tmp_path):
    module = instantiate(composed("generate", TINY_DRIVE).module, _convert_="all")
    with pytest.raises(ValueError, match="configure_model"):
        save_world(module, tmp_path / "world")


def test_worlds_that_are_not_there_are_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="no world 'moon' is shipped; there are"):
        load_world("moon")
    with pytest.raises(UserError, match=r"no world in .*transformer\.safetensors"):
        load_world(tmp_path / "nothing")
    with pytest.raises(UserError, match="modle"):
        load_world(overrides=[*TINY_DRIVE, "modle=tiny"])


def test_a_world_of_other_sizes_is_read_with_them(world, tmp_path):
    save_world(world, tmp_path / "world")
    loaded = load_world(tmp_path / "world")
    assert loaded.config == world.config
    assert (loaded.camera.height, loaded.camera.width) == (32, 48)
    (tmp_path / "world" / "world.json").unlink()
    with pytest.raises(UserError, match="is it another model= preset"):
        load_world(tmp_path / "world")


def test_loading_leaves_a_hydra_that_is_at_work_alone():
    with initialize_config_module("lingbot.conf", version_base="1.3"):
        at_work = GlobalHydra.instance().hydra
        load_world(overrides=TINY_DRIVE)
        assert GlobalHydra.instance().hydra is at_work
    assert not GlobalHydra.instance().is_initialized()


def test_a_checkpoint_is_made_a_world_by_the_configuration_of_its_run(tmp_path):
    cfg = composed("train", TINY_TRAINING, tmp_path)
    trained = instantiate(cfg.module, _convert_="all")
    trained.configure_model()
    (tmp_path / ".hydra").mkdir()
    OmegaConf.save(cfg, tmp_path / ".hydra" / "config.yaml")
    checkpoint = {"state_dict": trained.state_dict()}
    trained.on_save_checkpoint(checkpoint)
    path = tmp_path / "checkpoints" / "last.ckpt"
    path.parent.mkdir()
    torch.save(checkpoint, path)

    loaded = load_checkpoint(path)
    for part in ("transformer", "text_encoder"):
        state = getattr(trained, part).state_dict()
        for name, value in getattr(loaded, part).state_dict().items():
            assert torch.equal(value, state[name])

    checkpoint["state_dict"].popitem()
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="1 tensors missing"):
        load_checkpoint(path)
    (tmp_path / ".hydra" / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="not in the folder of a run"):
        load_checkpoint(path)
