"""lingbot-generate: what it makes, the same on several ranks, and what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lingbot.data.video_file import read_frames
from lingbot.drive import build_drive, first_frame
from lingbot.generate import generate, main
from lingbot.launch import UserError
from tests.commands import TINY_DRIVE, composed

COMMAND = str(Path(sys.executable).with_name("lingbot-generate"))
DRIVE = [*TINY_DRIVE, "actions='w-9,jw-9'", "seed=3"]


@pytest.fixture(scope="module")
def drive(tmp_path_factory) -> dict:
    return generate(composed("generate", DRIVE, tmp_path_factory.mktemp("drive")))


def run(*arguments: str, timeout: float = 200) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        arguments, capture_output=True, text=True, timeout=timeout, env=environment
    )


def test_a_drive_leaves_a_video_a_plot_and_tables(drive):
    assert {"drive.mp4", "steps.png", "steps.csv"} <= set(drive["files"])
    # 18 actions are one chunk of 8 and one of 12, of which 2 are held
    assert (drive["steps"], drive["frames"]) == (2, 21)
    assert read_frames(drive["files"]["drive.mp4"]).shape == (21, 32, 48, 3)


def test_another_seed_is_another_world(drive, tmp_path):
    other = generate(composed("generate", [*DRIVE, "seed=4", "num_steps=1"], tmp_path))
    frames, others = (read_frames(d["files"]["drive.mp4"]).astype(int) for d in (drive, other))
    assert np.abs(frames[0] - others[0]).mean() > 5


def record(folder: Path, unit: float = 1) -> Path:
    """A folder with a drive of 9 frames straight ahead."""
    folder.mkdir()
    poses = torch.eye(4).repeat(9, 1, 1)
    poses[:, 2, 3] = unit * 0.05 * torch.arange(9)
    np.save(folder / "poses.npy", poses.numpy())
    np.save(folder / "intrinsics.npy", np.array([[520.0, 520.0, 416.0, 240.0]]))
    Image.new("RGB", (96, 64), (200, 40, 40)).save(folder / "image.jpg")
    (folder / "prompt.txt").write_text("a red wall")
    return folder


def test_a_given_image_and_a_recorded_drive_are_taken(tmp_path):
    folder = record(tmp_path / "recorded")
    cfg = composed("generate", [*TINY_DRIVE, f"folder='{folder}'"], tmp_path)
    made = generate(cfg)
    assert (made["steps"], made["frames"]) == (1, 9)


def test_the_scale_of_translations_and_the_scenes_own_prompt_are_told(caplog, monkeypatch):
    caplog.set_level("INFO")
    cfg = composed("generate", [*TINY_DRIVE, "num_steps=2"])
    _, prompt = first_frame(cfg, build_drive(cfg))
    assert "divided by 0.2 (camera.translation_scale)" in caplog.text
    assert f"No prompt was given: the scene chose {prompt!r}" in caplog.text
    assert "makes nothing of" not in caplog.text
    cfg = composed("generate", [*TINY_DRIVE, "prompt='a castle'", "prompt_events={1: 'rain'}"])
    first_frame(cfg, build_drive(cfg))
    assert "makes nothing of 'a', 'castle' in the prompt 'a castle'" in caplog.text
    assert "makes nothing of 'rain'" in caplog.text
    caplog.clear()
    monkeypatch.setenv("RANK", "1")  # one rank tells it
    first_frame(cfg, build_drive(cfg))
    assert "makes nothing of" not in caplog.text


def test_a_recorded_drive_is_told_its_longest_step(tmp_path, caplog):
    caplog.set_level("INFO")
    folder = record(tmp_path / "recorded", unit=30)
    build_drive(composed("generate", [*TINY_DRIVE, f"folder='{folder}'"]))
    assert "divided by 6, the longest step between latent frames" in caplog.text
    fixed = [*TINY_DRIVE, f"folder='{folder}'", "camera.recorded_scale=0.2"]
    build_drive(composed("generate", fixed))
    assert "divided by 0.2 (camera.recorded_scale)" in caplog.text


def test_act_control_follows_a_folder_with_keys(tmp_path):
    folder = record(tmp_path / "recorded")
    act = [*TINY_DRIVE, f"folder='{folder}'", "model.control=act"]
    with pytest.raises(UserError, match=r"action\.npy .*is missing: act control needs"):
        generate(composed("generate", act, tmp_path / "refused"))
    np.save(folder / "action.npy", np.tile([1, 0, 0, 0], (9, 1)))
    made = generate(composed("generate", act, tmp_path))
    assert (made["steps"], made["frames"]) == (1, 9)


@pytest.mark.processes
def test_two_ranks_launched_by_lightning_make_the_same_video_in_one_folder(drive, tmp_path):
    out = tmp_path / "two ranks"
    arguments = [*DRIVE, "strategy=sequence_parallel", "trainer.devices=2"]
    done = run(COMMAND, *arguments, f"paths.output_dir={out}")
    assert done.returncode == 0, done.stderr
    assert f"in {out}" in done.stdout
    assert (out / "drive.mp4").read_bytes() == drive_path(drive).read_bytes()
    assert (out / ".hydra" / "config.yaml").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["two ranks"]


@pytest.mark.processes
def test_two_ranks_of_torchrun_on_the_variable_path_share_a_dated_folder(drive, tmp_path):
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python")
    arguments = [*DRIVE, "strategy=sequence_parallel", "strategy.uniform_fast_path=false"]
    done = run(sys.executable, *torchrun, COMMAND, *arguments, f"paths.root_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    (out,) = (tmp_path / "generate").iterdir()
    assert (out / "drive.mp4").read_bytes() == drive_path(drive).read_bytes()
    assert "variable" in (out / "steps.csv").read_text()


def drive_path(drive: dict) -> Path:
    return Path(drive["files"]["drive.mp4"])


@pytest.mark.processes
@pytest.mark.parametrize(
    ("ranks", "ending"), [(1, signal.SIGTERM), (1, signal.SIGINT), (2, signal.SIGINT)]
)
def test_a_drive_that_is_told_to_end_ends_with_its_files_complete(ranks, ending, tmp_path):
    """At the end of a step, with the exit code that shells give such a process."""
    many = ["num_steps=50000", "kv_cache=sliding", f"trainer.devices={ranks}"]
    arguments = [COMMAND, *TINY_DRIVE, *many, f"paths.output_dir={tmp_path}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.PIPE
    process = subprocess.Popen(
        arguments, stdout=output, stderr=output, text=True, env=environment, start_new_session=True
    )
    try:
        video = tmp_path / "drive.mp4"
        until = time.monotonic() + 100
        while time.monotonic() < until and not (video.is_file() and video.stat().st_size > 20_000):
            time.sleep(0.1)
        process.send_signal(ending)
        told = "".join(process.communicate(timeout=60))
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + ending, told
    assert "Traceback" not in told
    frames = len(read_frames(video))
    assert 9 <= frames < 9 + 12 * 49_999
    assert f"{frames} frames" in told
    assert len((tmp_path / "steps.csv").read_text().splitlines()) > 1


@pytest.mark.processes
def test_a_sweep_drives_every_value_in_a_folder_of_its_own(tmp_path):
    arguments = ["--multirun", *TINY_DRIVE, "num_steps=1", "conditioner_cache=step,off"]
    done = run(COMMAND, *arguments, f"paths.root_dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    videos = sorted(tmp_path.glob("generate_sweeps/*/*/drive.mp4"))
    assert [video.parent.name for video in videos] == ["0", "1"]
    assert len({video.parent.parent for video in videos}) == 1
    assert np.array_equal(*(read_frames(video) for video in videos))


@pytest.mark.processes
def test_refusals_end_in_exit_code_2_and_one_line(tmp_path):
    done = run(COMMAND, *TINY_DRIVE, "actions=w-24,x-3", f"paths.output_dir={tmp_path}")
    assert done.returncode == 2
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("lingbot-generate:"))
    assert "'x'" in line
    assert "Traceback" not in done.stdout + done.stderr


def test_a_misspelt_option_ends_in_exit_code_2_and_is_named(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lingbot-generate", "promt=dusk"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert "promt" in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["actions=w-0"], "lasts no frame"),
        (["actions=''"], "holds no action"),
        (["actions=q-3"], "'q'"),
        (["folder=/nowhere"], "/nowhere"),
        (["folder=/nowhere", "actions=w-3"], "give one"),
        (["prompt=' '"], "prompt= is empty"),
        (["prompt=''"], "prompt= is empty"),
        (["prompt='caf\udce9'"], "prompt= holds bytes that are not UTF-8"),
        (["prompt='\x1b[31mdusk'"], "prompt= holds the control character U"),
        (["prompt_events={0: ''}"], "prompt event at step 0 is empty"),
        (["prompt_events={0: '  '}"], "prompt event at step 0 is empty"),
        (["prompt_events=[night]"], "give prompts by step"),
        (["image=''", "prompt=dusk"], "give that of a file"),
        (["image=/", "prompt=dusk"], "/ is a folder"),
        (["image=/dev/zero", "prompt=dusk"], "a device"),
        (["image=/proc/self/status", "prompt=dusk"], "is not an image that can be read"),
        (["scene=moon"], "scene='moon': give blockworld"),
        (["scene_seed=4294967296"], "scene_seed=4294967296"),
        (["camera.translation_scale=offline"], "which a live one does not know"),
        (["camera.recorded_scale=0"], "recorded scale 0"),
        (["camera.recorded_scale=nan"], "recorded scale nan"),
        (["callbacks.video_writer.path=/proc/x.mp4"], "/proc takes no files"),
        (["callbacks.video_writer.path=/"], "/ is a folder"),
        (["callbacks.step_plot.path=/dev/full"], "names no format: let it end in .png"),
        (["callbacks.step_plot.path=/proc/x.png"], "/proc takes no files"),
        (["callbacks.step_log.dirpath=/dev/null"], "/dev/null is no folder"),
        (["trainer.precision=16-mixed"], "choose bf16-mixed or 32-true"),
        (["callbacks.video_writer.fps=1e9"], "fps=1000000000.0"),
        (["callbacks.video_writer.quality=nan"], "quality=nan"),
        (["seed=-1"], "seed=-1"),
        (["scene_seed=-7"], "seed=-7"),
        (["num_steps=0"], "num_steps=0"),
        (["num_steps=500"], "choose kv_cache=sliding"),
        (["num_steps=300000000", "kv_cache=sliding"], "100,000"),
        (["image=/nowhere.png", "prompt=dusk"], "/nowhere.png"),
        (["image=/nowhere.png"], "needs a prompt"),
        (["scene=null"], "give image=PATH"),
        (["weights=/nowhere"], "/nowhere"),
        (["prompt_events={9: night}"], "9"),
        (["trainer.devices=0"], "devices=0"),
        (["trainer.devices=-2"], "devices"),
        (
            ["trainer.devices=4", "strategy=sequence_parallel", "strategy.sequence_size=2"],
            "2 groups",
        ),
        (["trainer.devices=3"], "1, 2, 4"),  # 4 heads
        (["trainer.devices=2", "strategy=ddp"], "strategy=sequence_parallel"),
        (["strategy=sequence_parallel", "strategy.data_size=2"], "data"),
        (["trainer.devices=2", "strategy.uniform_fast_path=false"], "choose that too"),
        (["strategy.sequence_size=2"], "strategy=sequence_parallel"),
        (["strategy=sequence_parallel", "strategy.uniform_fast_path=often"], "often"),
        (["strategy=sequence_parallel", "strategy.push=true", "trainer.devices=2"], "push=true"),
        (["trainer.devices=16", "model.num_heads=16", "camera.height=16", "camera.width=16"], "16"),
        (["camera.height=40"], "multiples"),
        (["kv_cache.window=2"], "kv_cache.window"),
        (["conditioner_cache.policy=sometimes"], "sometimes"),
        (["sampler.indices=[5, 2]"], "5, 2"),
        (["schedule=guess"], "guess"),
        (["camera.kind=act"], "control"),
        (["camera.frames_per_chunk=4"], "camera.frames_per_chunk=4 and frames_per_chunk=3 must be"),
        (["camera.translation_scale=offline"], "longest step of the whole drive"),
        (["camera.height=1600000"], "camera.height=1600000"),
        (["camera.height=16384", "camera.width=16384"], "GiB of memory would be needed"),
        (["kv_cache.window=1000000000"], "keys and values.*choose a smaller kv_cache.window"),
        (["kv_cache.sink=18"], "kv_cache.sink=18: nothing is ever dropped"),
        (["model.num_layers=1000000"], "GiB of memory would be needed"),
        (["model.num_layers=100000000"], "model.num_layers=100000000: .* to 10,000,000"),
        (["model.text_len=100000000"], "model.text_len=100000000"),
        (["scene=5"], "scene='5': give blockworld"),
        (["scene=''"], "scene='': give blockworld"),
        (["fps=99999999999"], "fps=99999999999: give a whole number from 1 to 240"),
        (["callbacks.video_writer.quality=abc"], "quality='abc'"),
        (
            ["callbacks.step_log.table=maybe"],
            "callbacks.step_log.table='maybe': give true or false",
        ),
        (
            ["callbacks.video_writer._target_=lingbot.nothing"],
            "video_writer._target_: .*lingbot.no",
        ),
        (["+callbacks.x={_target_: builtins.dict}"], "callbacks.x._target_=.*give a Callback"),
        (["+callbacks.x=5"], "callbacks.x=5: give a node with the _target_"),
        (["+trainer.foo=1"], "trainer: .*unexpected keyword argument 'foo'"),
        (["strategy=sequence_parallel", "+strategy.foo=1"], "no option 'foo'"),
        (["strategy=sequence_parallel", "strategy.timeout_s=inf"], "strategy.timeout_s=inf"),
        (["strategy=sequence_parallel", "strategy.timeout_s=1e300"], "strategy.timeout_s=1e"),
        (["trainer.num_nodes=2"], "nobody has started the other nodes"),
        (["trainer.devices=64", "model.num_heads=64", "model.dim=768"], "devices=64: each rank is"),
        (["module.kernels=null"], "module.kernels=None"),
        (["codec.dtype=float64"], "dtype='float64'"),
        (["codec.base_dim=0"], "codec.base_dim=0"),
        (["codec.dim_mult=[]"], "codec.dim_mult=[]"),
        (["codec.z_dim=8"], "codec.z_dim=8 and model.out_channels=16 must be alike"),
        (["text.text_dim=5"], "text.text_dim=5 and model.text_dim=64 must be alike"),
        (["text.kernel_size=-1"], "text.kernel_size=-1"),
        (["+foo=1"], "foo: there is no such option"),
        (["++foo.bar=1"], "foo: there is no such option"),
        (["+model.patch_sise=[1,2,2]"], "model.patch_sise: .*did you mean patch_size"),
        (["++camera.foo=1"], "camera.foo: there is no such option"),
        (["debug=overfit"], "debug=overfit is for lingbot-train, not for lingbot-generate"),
        (
            ["experiment=bench_14b", "text=random"],
            "bench_14b is for lingbot-bench or lingbot-drift",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_refused_before_anything_is_loaded(overrides, message, tmp_path, monkeypatch):
    monkeypatch.setattr("lingbot.module.LingBotModule.configure_model", pytest.fail)
    given = {override.split("=")[0] for override in overrides}
    kept = [override for override in TINY_DRIVE if override.split("=")[0] not in given]
    cfg = composed("generate", [*kept, *overrides], tmp_path)
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        generate(cfg)


def test_a_codec_that_is_not_there_is_refused(tmp_path):
    without = [o for o in TINY_DRIVE if not o.startswith("codec")]
    cfg = composed("generate", [*without, "codec=wan", "codec.folder=/nowhere"], tmp_path)
    with pytest.raises(UserError, match=r"codec\.folder='/nowhere'"):
        generate(cfg)
