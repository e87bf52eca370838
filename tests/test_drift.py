"""lingbot-drift on a small random world: what it measures, writes and refuses."""

from __future__ import annotations

import io
import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from rich.console import Console

from lingbot.benchmark.worlds import Worlds
from lingbot.cli.arguments import for_hydra
from lingbot.data.blockworld_clips import GAP, BlockWorldClips
from lingbot.drift import drift
from lingbot.errors import UserError
from lingbot.fidelity.errors import (
    FRAMES,
    LATENTS,
    ChunkDrift,
    LayerError,
    SettingDrift,
    compare,
    record,
    relative_error,
)
from lingbot.fidelity.figure import draw_drifts
from lingbot.fidelity.plan import build_plan
from lingbot.fidelity.report import drift_table
from lingbot.realtime.session import RealtimeSession
from tests.commands import TINY, composed
from tests.support.worlds import tiny_world

SMALL = [
    *(override for override in TINY if not override.startswith("trainer.")),
    "model.num_layers=3", "kv_cache.window=6", "kv_cache.sink=3", "weights=null", "device=cpu",
    "num_chunks=3",
]  # fmt: skip
EXACT = "compare=conditioner_cache:[step,off]"  # bit for bit the same
ROUGH = "compare=kernels.linears:[bf16,fp8]"


def given(*overrides: str) -> list[str]:
    chosen = {override.split("=")[0] for override in overrides}
    kept = [override for override in SMALL if override.split("=")[0] not in chosen]
    return [*kept, *for_hydra(overrides)]


def run(folder, *overrides: str) -> list[SettingDrift]:
    return drift(composed("drift", given(*overrides), folder), given(*overrides))


def text_of(table) -> str:
    console = Console(width=120, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_settings_that_compute_the_same_do_not_drift_at_all(tmp_path):
    (same,) = run(tmp_path, EXACT)
    assert same.label == "conditioner_cache=off"
    for chunk in same.chunks:
        errors = chunk.figures()
        assert errors.pop(FRAMES) == math.inf
        assert set(errors.values()) == {0.0}
    (report,) = tmp_path.rglob("drift.json")
    first = json.loads(report.read_text())["settings"][0]["chunks"][0]
    assert first["free"]["psnr_db"] is None
    assert first["free"]["squared_error"] == 0
    (picture,) = tmp_path.rglob("drift.png")
    assert Image.open(picture).width > 800


def test_fp8_drifts_and_a_history_that_is_given_does_not_let_it_grow(tmp_path):
    (rough,) = run(tmp_path, ROUGH, "num_chunks=9")
    assert [chunk.chunk for chunk in rough.chunks] == list(range(1, 10))
    for name in rough.chunks[0].figures():
        errors = rough.series(name)
        if name == FRAMES:
            assert all(math.isfinite(value) for value in errors)
            continue
        assert min(errors) > 0
        if name.startswith("forced/"):
            assert max(errors) < 0.2
            assert sum(errors[6:]) < 1.5 * sum(errors[:3])

    (path,) = tmp_path.rglob("drift.json")
    report = json.loads(path.read_text())
    assert report["command"].startswith("lingbot-drift model.dim=48")
    assert report["reference"] == "kernels.linears=bf16"
    assert report["device"].startswith("CPU")
    assert report["environment"]["versions"]["torch"] == torch.__version__
    assert [s["module"]["kernels"]["linears"] for s in report["compared"]] == ["bf16", "fp8"]
    assert report["layers"] == [0, 1, 2]
    assert [len(step) for step in report["drive"]["actions"]] == [8] + 8 * [12]
    (setting,) = report["settings"]
    assert set(setting["summary"]) == set(rough.chunks[0].figures())
    assert set(setting["summary"][LATENTS]) == {
        "mean", "worst", "last_10_mean", "last_10_worst"
    }  # fmt: skip
    for chunk, measured in zip(setting["chunks"], rough.chunks, strict=True):
        assert chunk["free"]["psnr_db"] == measured.psnr_db
        assert chunk["free"]["latents"] == measured.latents
        for history in ("free", "forced"):
            for rows in ("keys", "values"):
                assert set(chunk[history][rows]) == {"layer_0", "layer_1", "layer_2"}
        assert chunk["forced"]["values"]["layer_2"] == measured.forced[2].values


def test_a_known_change_of_the_weights_is_found_where_it_was_made(tmp_path):
    plan = build_plan(composed("drift", given(EXACT), tmp_path), given(EXACT))
    worlds = Worlds(plan.device, seed=0)
    module = worlds.module(plan.settings[0])
    reference = record(module, plan.drive, plan.layers, lambda done: None)
    attention = module.transformer.blocks[0].self_attn
    with torch.no_grad():
        for parameter in attention.v.parameters():
            parameter.mul_(1.01)
    chunks = compare(module, plan.drive, reference, plan.layers, lambda done: None)
    for chunk in chunks:
        first, later, _ = chunk.forced
        assert first.values == pytest.approx(0.01, rel=1e-3)
        assert first.keys == 0
        assert later.keys > 0
    assert chunks[-1].latents > 0


def test_every_setting_is_driven_the_same_way(tmp_path, monkeypatch):
    seen: list[list] = []
    reset, step = RealtimeSession.reset, RealtimeSession.step

    def spy_reset(self, image, prompt, seed=0):
        seen.append([image, prompt, seed])
        reset(self, image, prompt, seed)

    def spy_step(self, controls):
        seen[-1].append(controls.actions)
        return step(self, controls)

    monkeypatch.setattr(RealtimeSession, "reset", spy_reset)
    monkeypatch.setattr(RealtimeSession, "step", spy_step)
    run(tmp_path, "compare=conditioner_cache:[step,denoise,off]", "num_chunks=2")
    driven = [session for session in seen if len(session) > 3]
    assert len(driven) == 3
    for image, *rest in driven[1:]:
        assert torch.equal(image, driven[0][0])
        assert rest == driven[0][1:]


def test_the_drive_is_a_held_out_scenes_clear_of_solids_and_the_same_each_time():
    overrides = given("scene=3", "num_chunks=20")
    one, two = (build_plan(composed("drift", overrides), overrides).drive for _ in range(2))
    assert torch.equal(one.image, two.image)
    assert (one.prompt, one.controls) == (two.prompt, two.controls)
    assert len(one.controls) == 20
    clips = BlockWorldClips("test", 4, 237, 32, 48)
    drawn = clips.drive(3)
    assert drawn.scene.clearance(drawn.poses) > GAP
    assert one.prompt == drawn.prompt
    assert sum((c.actions for c in one.controls), ()) == drawn.actions
    assert torch.equal(one.image, clips.render(replace(drawn, poses=drawn.poses[:1]))[0])


def test_another_first_frame_comes_with_its_own_words(tmp_path):
    Image.new("RGB", (48, 32), (200, 10, 10)).save(tmp_path / "red.png")
    overrides = [f"image={tmp_path / 'red.png'}", "prompt=red"]
    plan = build_plan(composed("drift", given(*overrides)), given(*overrides))
    assert plan.drive.prompt == "red"
    assert plan.drive.image.float().mean(dim=(0, 1)).tolist() == [200, 10, 10]


def test_worlds_of_other_weights_are_other_worlds(tmp_path):
    first = tiny_world(tmp_path / "first")
    second = shutil.copytree(first, tmp_path / "second")
    overrides = for_hydra([f"compare=weights:[{first},{second}]", "num_chunks=2"])
    with pytest.raises(ValueError, match=r"is another world than weights=.*with another .*weights"):
        build_plan(composed("drift", overrides), overrides)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["compare=null"], "compare=null: name a reference"),
        (["compare=kernels:[fp8]"], "two or more"),
        (["compare=kernels"], "KEY:"),
        (["compare=nonsense:[1,2]"], "does not compose.*option or a group of lingbot-drift"),
        (["compare=num_chunks:[1,2]"], "num_chunks must be the same for all settings"),
        (["compare=model.num_layers:[1,2]"], "another world.*model.num_layers.*choose kernels"),
        (["compare=weights:[null,lingbot/worlds/blockworld]"], "was trained with"),
        (["compare=sampler:[v1_shift5,v2_shift5]"], "another world.*sampler.indices"),
        (["compare=camera.translation_scale:[0.2,0.3]"], "camera.translation_scale"),
        (["compare=frames_per_chunk:[3,2]"], "another world.*camera.frames_per_chunk"),
        (["compare=dtype:[float32,bfloat16]"], "random weights of bfloat16.*give weights=FOLDER"),
        (["compare=dtype:[float32,float8]"], "dtype='float8'.*choose auto"),
        (["num_chunks=0"], "num_chunks=0: give a whole number from 1"),
        (["num_chunks=1000000000"], "num_chunks=1000000000"),
        (["num_chunks=90000", "kv_cache=sliding"], "num_frames=1079997: .* to 20,000"),
        (["model.num_layers=1000000"], "GiB of memory would be needed"),
        (["prompt="], "prompt= is empty"),
        (["prompt='  '"], "prompt= is empty"),
        (["compare=kv_cache:[sliding,full]", "num_chunks=40"], "choose kv_cache=sliding"),
        (["layers=[0,3]"], r"layers=\[0, 3\].*from 0 to 2"),
        (["layers=[]"], "null for first, middle and last"),
        (["layers=[1,1]"], "different numbers"),
        (["scene=-1"], "scene=-1: give a whole number from 0"),
        (["scene=2000000000"], "scene=2000000000"),
        (["image=nowhere.png"], "needs a prompt"),
        (["image=nowhere.png", "prompt=red"], "nowhere.png"),
        (["image=/dev/zero", "prompt=red"], "a device"),
        (["prompt=''"], "prompt= is empty"),
        (["device=tpu"], "device='tpu'"),
        (["seed=-1"], "seed=-1"),
        (["weights=nowhere"], "nowhere"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused_before_anything_is_built(
    overrides, complaint, tmp_path, monkeypatch
):
    monkeypatch.setattr("lingbot.drift.measure", lambda *_: pytest.fail("something was built"))
    compared = [] if overrides[0].startswith("compare=") else [EXACT]
    dropped = ("kv_cache.window", "kv_cache.sink") if "kv_cache" in " ".join(overrides) else ()
    given_now = [o for o in given(*compared, *overrides) if o.split("=")[0] not in dropped]
    with pytest.raises(UserError, match=complaint):
        drift(composed("drift", given_now, tmp_path), given_now)
    assert not list(tmp_path.rglob("*"))


def test_what_leaves_the_world_as_it_is_can_be_compared():
    for text in (
        "kernels:[reference,fast,fp8]", "kv_cache.sink:[3,0]", "codec.dtype:[float32,bfloat16]",
    ):  # fmt: skip
        overrides = given(f"compare={text}")
        plan = build_plan(composed("drift", overrides), overrides)
        assert len(plan.settings) >= 2
    overrides = [*for_hydra(["compare=dtype:[float32,bfloat16]"]), "device=cpu", "num_chunks=1"]
    plan = build_plan(composed("drift", overrides), overrides)  # of the world that comes along
    assert [setting.dtype for setting in plan.settings] == ["float32", "bfloat16"]
    assert plan.layers == (0, 3, 5)


def test_the_full_size_composes_with_random_weights(monkeypatch):
    monkeypatch.setattr("lingbot.memory.host_room", lambda: 2**40)
    overrides = for_hydra([
        "experiment=bench_14b", "weights=null", "text=random", "compare=kernels:[fast,fp8]",
        "num_chunks=2", "device=cpu", "dtype=bfloat16",
    ])  # fmt: skip
    plan = build_plan(composed("drift", overrides), overrides)
    assert plan.layers == (0, 20, 39)
    assert plan.drive.image.shape == (480, 832, 3)
    assert [setting.module["kernels"]["kv"] for setting in plan.settings] == ["bf16", "fp8"]


def chunk(number: int, squared_error: float, error: float) -> ChunkDrift:
    layers = (LayerError(0, error, 2 * error),)
    return ChunkDrift(number, squared_error, error, layers, layers)


def test_summaries_are_over_all_chunks_and_over_the_last_ten():
    chunks = tuple(chunk(n, 0.0 if n > 2 else 65.025, float(n)) for n in range(1, 13))
    made = SettingDrift("kernels=fp8", chunks).summaries()
    frames, keys = made[FRAMES], made["forced/keys/layer_0"]
    assert frames.mean == pytest.approx(30 + 10 * math.log10(6))  # of the mean error
    assert frames.worst == pytest.approx(30)
    assert (frames.last_mean, frames.last_worst) == (math.inf, math.inf)
    assert (keys.mean, keys.worst, keys.last_mean, keys.last_worst) == (6.5, 12, 7.5, 12)
    assert made["free/values/layer_0"].worst == 24


def test_the_table_names_every_figure_and_the_picture_takes_several_settings():
    drifts = [
        SettingDrift(label, (chunk(1, 1.0, 0.125), chunk(2, 0.0, 0.25)))
        for label in ("kernels=fast", "sampler.indices=[0,179]")
    ]
    text = text_of(drift_table(drifts, "2 chunks, kernels:[reference,fast]"))
    for words in (
        "kernels:[reference,fast]", "indices=[0,179]", "free: PSNR of frames, dB", "last 2, worst",
        "forced: values, layer 0", "0.188",
    ):  # fmt: skip
        assert words in text
    labels = [line.get_label() for line in draw_drifts(drifts, "title").axes[1].get_lines()]
    assert "kernels=fast: values, layer 0" in labels
    assert len(labels) == 2 * 3


def test_settings_far_apart_are_drawn_on_a_logarithmic_scale():
    near, far, none = (
        SettingDrift(f"kernels={error}", (chunk(1, 1.0, error),)) for error in (1e-7, 0.1, 0.0)
    )
    scales = [
        draw_drifts(drifts, "title").axes[1].get_yscale()
        for drifts in ([near, far], [far], [none, far])
    ]
    assert scales == ["log", "linear", "linear"]


def test_a_relative_error_is_of_the_reference():
    true = torch.tensor([3.0, 4.0])
    assert relative_error(true, true) == 0
    assert relative_error(true + torch.tensor([0.0, 0.5]), true) == pytest.approx(0.1)
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0
    assert relative_error(true, torch.zeros(2)) == math.inf
    with pytest.raises(ValueError, match="cannot be compared"):
        relative_error(true, true[:1])
