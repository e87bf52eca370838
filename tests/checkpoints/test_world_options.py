"""Commands take the options that a world was trained with, and refuse what contradicts them."""

from __future__ import annotations

import json
import logging
import shutil
import sys

import pytest
from omegaconf import OmegaConf

from lingbot import evaluate, generate
from lingbot.launch import compose_command
from lingbot.model import TransformerConfig
from lingbot.world import load_world, save_world
from tests.commands import TINY, composed
from tests.support.worlds import RECORD, tiny_world

COMMANDS = ["bench", "drift", "evaluate", "generate", "train"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_world(tmp_path_factory.mktemp("worlds") / "mine")


@pytest.fixture
def copied(folder, tmp_path):
    """A world of one's own, to be changed."""
    return shutil.copytree(folder, tmp_path / "copied")


def plain(cfg, *names):
    return [
        OmegaConf.to_container(OmegaConf.create({"x": OmegaConf.select(cfg, n)}))["x"]
        for n in names
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_the_options_of_the_world(command, folder):
    cfg = compose_command(command, [f"weights={folder}"])
    assert cfg.weights == str(folder)
    names = [
        "model.dim", "model.num_layers", "frames_per_chunk", "camera.frames_per_chunk",
        "camera.height", "camera.translation_scale", "sampler.indices", "sampler.schedule.shift",
        "sampler.schedule.kind", "text._target_", "text.kernel_size", "text.text_dim", "fps",
        "codec.folder",
    ]  # fmt: skip
    assert plain(cfg, *names) == [
        48, 1, 4, 4, 32, 0.5, [0, 250, 500, 750], 10.0, "exact",
        "lingbot.codec.text.ByteTextEncoder", 5, 64, 12, f"{folder}/codec",
    ]  # fmt: skip
    window = 18  # that of the world, or the command's own: bench and drift need a steady one
    assert plain(cfg, "kv_cache.window") == [window]
    assert plain(cfg, "kv_cache.sink") == [9 if command in ("bench", "drift") else 6]


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("frames_per_chunk=3", "frames_per_chunk=3: the world in .* was trained with 4; leave it"),
        ("camera.frames_per_chunk=3", "camera.frames_per_chunk=3: .* frames_per_chunk=4"),
        ("model.dim=96", "model.dim=96: the world in .* was trained with 48"),
        ("model=world_v2_1_3b", "model=world_v2_1_3b: .*model.dim=48, model.ffn_dim=64"),
        ("model.control=act", "model.control=act: .* trained with cam"),
        ("model.eps=1e-5", "model.eps=1e-5: .* trained with 1e-06"),
        ("camera=portrait_480p", "camera=portrait_480p: .*camera.height=32"),
        ("camera.height=64", "camera.height=64: .* trained with 32"),
        ("text=umt5", "text=umt5: .* trained with text=bytes"),
        ("text.kernel_size=7", "text.kernel_size=7: .* trained with 5"),
        ("codec=blockworld", "codec=blockworld: .* trained with its own codec"),
    ],
)
def test_an_option_that_contradicts_the_world_is_refused_by_name(override, told, folder):
    with pytest.raises(ValueError, match=told):
        compose_command("generate", [f"weights={folder}", override])


@pytest.mark.parametrize("command", ["bench", "drift", "evaluate"])
def test_every_command_refuses_what_contradicts_the_world(command, folder):
    with pytest.raises(ValueError, match="frames_per_chunk=3: the world in"):
        compose_command(command, [f"weights={folder}", "frames_per_chunk=3"])


def test_all_contradictions_are_told_at_once(folder):
    with pytest.raises(
        ValueError, match=r"model\.dim=96: .*; frames_per_chunk=3: .*leave them out"
    ):
        compose_command("generate", [f"weights={folder}", "frames_per_chunk=3", "model.dim=96"])


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("sampler=v1", "sampler.indices", [0, 179, 358, 679]),
        ("schedule=published", "sampler.schedule.kind", "published"),
        ("kv_cache.sink=3", "kv_cache.sink", 3),
        ("camera.translation_scale=0.2", "camera.translation_scale", 0.2),
        ("fps=16", "fps", 16),
    ],
)
def test_what_a_drive_may_choose_stays_and_the_log_says_that_training_had_another(
    override, name, value, folder, caplog
):
    cfg = compose_command("generate", [f"weights={folder}", override])
    assert plain(cfg, name) == [value]
    assert f"not as {folder} was trained: " in caplog.text
    assert f"{override.partition('=')[0]}" in caplog.text


def test_options_that_agree_are_no_contradiction(folder, caplog):
    agreeing = ["model.dim=48", "frames_per_chunk=4", "sampler=v2", "text=bytes", "codec=world"]
    with caplog.at_level(logging.WARNING):
        compose_command("generate", [f"weights={folder}", *agreeing, "text.kernel_size=5"])
    assert "not as" not in caplog.text


def test_a_codec_elsewhere_that_is_the_same_is_no_contradiction(folder, tmp_path):
    same = shutil.copytree(folder / "codec", tmp_path / "same")
    cfg = compose_command("generate", [f"weights={folder}", f"codec.folder={same}"])
    assert cfg.codec.folder == str(same)


def test_a_training_that_starts_from_a_world_may_teach_it_another_chunk(folder, caplog):
    cfg = compose_command("train", [f"weights={folder}", "frames_per_chunk=2", "camera.height=64"])
    assert (cfg.frames_per_chunk, cfg.camera.height, cfg.camera.width) == (2, 64, 48)
    assert "frames_per_chunk=2, it had 4" in caplog.text
    with pytest.raises(ValueError, match=r"model\.dim=96"):
        compose_command("train", [f"weights={folder}", "model.dim=96"])


def rewritten(folder, **changes):
    """A world that says something else of itself."""
    file = folder / "world.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def test_a_world_with_umt5_takes_it_from_where_training_did_or_asks_for_it(copied, tmp_path):
    place = tmp_path / "umt5"
    place.mkdir()
    text = {"encoder": "umt5", "text_len": 64, "folder": str(place)}
    rewritten(copied, text=text)
    for command in ("generate", "bench"):
        cfg = compose_command(command, [f"weights={copied}"])
        assert cfg.text._target_ == "lingbot.codec.text.UMT5TextEncoder"
        assert (cfg.text.folder, cfg.text.text_len) == (str(place), 64)
    rewritten(copied, text=text | {"folder": "/gone"})
    with pytest.raises(ValueError, match=r"UMT5, which was in '/gone': give text\.folder=FOLDER"):
        compose_command("generate", [f"weights={copied}"])
    cfg = compose_command("generate", [f"weights={copied}", "text=umt5", f"text.folder={place}"])
    assert cfg.text.folder == str(place)


def test_an_experiment_of_its_size_drives_a_published_world_that_was_trained_on(copied, tmp_path):
    cfg = composed("generate", ["experiment=world_v2_14b", f"weights={copied}"])
    model = json.loads((copied / "world.json").read_text())["model"]
    sizes = {name: cfg.model[name] for name in model if name in cfg.model}
    camera = {name: cfg.camera[name] for name in ("height", "width", "translation_scale")}
    rewritten(
        copied, model=model | OmegaConf.to_container(OmegaConf.create(sizes)),
        camera=camera | {"intrinsics": list(cfg.camera.intrinsics)},
        text={"encoder": "umt5", "text_len": 512, "folder": str(tmp_path)},
    )  # fmt: skip
    fitted = compose_command("generate", [f"weights={copied}", "experiment=world_v2_14b"])
    assert fitted.codec.folder == f"{copied}/codec"  # an export has it there, not in vae/
    assert fitted.codec.dtype == "bfloat16"
    assert fitted.text.folder == str(tmp_path)


def test_what_an_experiment_chooses_counts_as_chosen(folder):
    with pytest.raises(ValueError, match=r"experiment=world_fast_14b: .*model\.dim=48.*text=bytes"):
        compose_command("generate", [f"weights={folder}", "experiment=world_fast_14b"])


@pytest.mark.parametrize(
    "name", ["world_fast_14b", "world_fast_14b_streaming", "world_v2_14b", "world_v2_1_3b"]
)
def test_experiments_that_require_weights_are_refused_without(name):
    with pytest.raises(ValueError, match=f"experiment={name} needs weights: give weights="):
        compose_command("generate", [f"experiment={name}"])


def test_a_public_folder_loads_as_today_and_the_log_says_what_is_assumed(copied, caplog):
    (copied / "world.json").unlink()
    cfg = compose_command("generate", [f"weights={copied}", "model.dim=96"])
    assert (cfg.model.dim, cfg.frames_per_chunk) == (96, 3)
    assert "does not say how it was trained; assumed: model.dim=96" in caplog.text
    assert "sampler.indices=[0,179,358,679]" in caplog.text


def test_random_weights_ask_no_world(caplog):
    cfg = compose_command("generate", ["weights=null", "model.dim=96"])
    assert cfg.weights is None
    assert not caplog.text


def test_the_shipped_world_says_what_the_commands_have_by_default():
    cfg, default = compose_command("generate"), composed("generate")
    default.weights = cfg.weights
    # as containers: each look at the run folder claims another one
    assert OmegaConf.to_container(cfg) == OmegaConf.to_container(default)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("format", 99, "upgrade"),
        ("format", None, "no format"),
        ("frames_per_chunk", "three", "frames_per_chunk is 'three'"),
        ("frames_per_chunk", True, "frames_per_chunk is True"),
        ("schedule", "${oc.env:HOME}", "schedule is"),
        ("text", {"encoder": "${oc.env:HOME}"}, "text is"),
        ("text", {"encoder": "bytes"}, "text is"),
        ("latents", {"latents_mean": [0.0], "latents_std": None}, "latents_std"),
        ("model", {}, "model.dim is None"),
        ("model", [], "model.dim is None"),
        ("trained", "yes", "trained is 'yes'"),
    ],
)
def test_a_description_that_cannot_be_is_refused_with_its_file(name, value, told, copied):
    file = copied / "world.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(ValueError, match=rf"copied/world\.json.*{told}"):
        compose_command("generate", [f"weights={copied}"])
    file.write_text("{")
    with pytest.raises(ValueError, match=r"copied/world\.json is no JSON"):
        compose_command("generate", [f"weights={copied}"])


def test_nothing_that_a_world_names_is_instantiated(copied):
    file = copied / "world.json"
    evil = json.loads(file.read_text()) | {
        "text": {"encoder": "os.system", "_target_": "os.system"}
    }
    file.write_text(json.dumps(evil | {"module": {"_target_": "os.system"}}))
    with pytest.raises(ValueError, match=r"text: .* trained with the text encoder os.system"):
        compose_command("generate", [f"weights={copied}"])


def test_a_loaded_world_has_its_options_and_hands_them_on(folder, tmp_path):
    world = load_world(folder)
    assert world.config == TransformerConfig(48, 64, 4, 1, 64, 64)
    assert (world.camera.frames_per_chunk, world.sampler.schedule.kind) == (4, "exact")
    save_world(world, tmp_path / "again")
    one, other = (json.loads((f / "world.json").read_text()) for f in (folder, tmp_path / "again"))
    assert one == other
    assert one["trained"] == RECORD
    assert one["fps"] == 12


def test_a_module_made_by_hand_is_held_to_its_world_too(folder):
    from hydra.utils import instantiate

    cfg = composed("generate", [*TINY, f"weights='{folder}'"])  # composed by Hydra alone
    with pytest.raises(Exception, match=r"frames_per_chunk=3: the world in .* was trained with 4"):
        instantiate(cfg.module, _convert_="all")


def run(command, arguments, monkeypatch):
    """Exit code of a command in this process."""
    monkeypatch.setattr(sys, "argv", [f"lingbot-{command.__name__.split('.')[-1]}", *arguments])
    try:
        command.main()
    except SystemExit as end:
        return end.code
    return 0


def test_the_command_line_drives_a_world_by_its_name_alone(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder.parent)
    drive = [
        "weights=mine", "num_steps=1", "trainer.accelerator=cpu", "callbacks=none", "logger=none",
        f"paths.output_dir={tmp_path}/run", "codec.dtype=float32",
    ]  # fmt: skip
    assert run(generate, drive, monkeypatch) == 0
    assert "1 realtime steps, 13 frames" in capsys.readouterr().out
    kept = OmegaConf.load(tmp_path / "run" / ".hydra" / "config.yaml")
    assert (kept.model.dim, kept.frames_per_chunk, kept.weights) == (48, 4, str(folder))

    assert run(generate, [*drive, "frames_per_chunk=3"], monkeypatch) == 2
    told = capsys.readouterr().err
    assert "lingbot-generate: frames_per_chunk=3: the world in" in told
    assert "Traceback" not in told


def test_a_world_of_another_size_is_evaluated_as_it_is(folder, tmp_path, monkeypatch):
    few = [
        "device=cpu", "num_scenes=1", "num_chunks=1", "chunks=[1]", "other_drives=1",
        "readme_scenes=[]", "sheet_columns=2", "codec.dtype=float32",
    ]  # fmt: skip
    place = [f"weights={folder}", f"paths.output_dir={tmp_path}/run"]
    assert run(evaluate, [*few, *place], monkeypatch) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["num_frames"] == 13
