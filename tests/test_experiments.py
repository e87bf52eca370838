"""Every experiment runs at reduced size: by its own command, from the command line to its files."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.conftest import REPOSITORY
from tests.support.published import AT_THIS_SIZE, LAYOUTS, published_folder

EXPERIMENTS = sorted(file.stem for file in (REPOSITORY / "conf" / "experiment").glob("*.yaml"))


@dataclass(frozen=True)
class Reduced:
    """What makes an experiment one of seconds.

    Args:
        command: that it is for.
        options: typed besides `experiment=`.
        files: that it leaves in the run's folder.
        published: whether it takes a checkpoint in a published layout, and a picture.
    """

    command: str
    options: tuple[str, ...]
    files: tuple[str, ...]
    published: bool = False


SMALL_CODEC = ("codec.base_dim=8", "codec.dim_mult=[1,1,1,1]", "codec.num_res_blocks=1")
SMALL_WORLD = (
    "model.dim=48", "model.ffn_dim=64", "model.num_heads=4", "model.num_layers=1",
    "camera.height=32", "camera.width=48", "trainer.accelerator=cpu",
)  # fmt: skip
SMALL_DATA = (
    "data.num_frames=21", "data.train_clips=2", "data.val_clips=1", "data.batch_size=2",
    "data.num_workers=0", "trainer.max_steps=2", "trainer.val_check_interval=2",
    "scheduler.warmup_steps=1",
)  # fmt: skip
CLIPS_TOO = ("data.val_batch_size=1", "codec=blockworld_untrained", "codec.base_dim=8")
DRIVEN = Reduced(
    "generate",
    ("trainer.accelerator=cpu", "actions=w-9,jw-9", "prompt=dusk, sand", "image=first.png"),
    ("drive.mp4", "first_frame.png", "steps.csv", "steps.png"),
    published=True,
)
BENCH = (
    *AT_THIS_SIZE, *SMALL_CODEC, "device=cpu", "threads=1", "ranks=1", "sessions=2", "steps=2",
    "kv_cache.window=8", "kv_cache.sink=4",
)  # fmt: skip
REDUCED = {
    "bench_14b": Reduced("bench", BENCH, ("bench.json", "bench.png")),
    "bench_1_3b": Reduced("bench", BENCH, ("bench.json", "bench.png")),
    "bench_training_14b": Reduced(
        "train",
        (*AT_THIS_SIZE, *SMALL_CODEC, "data.latent_frames=6", "trainer.max_steps=5",
         "trainer.log_every_n_steps=1", "trainer.accelerator=cpu", "trainer.devices=1"),
        ("metrics/metrics.csv",),
    ),
    "blockworld_codec": Reduced(
        "train",
        (*SMALL_DATA, "camera.height=32", "camera.width=48", "data.num_frames=5",
         "codec.base_dim=8", "trainer.accelerator=cpu"),
        ("codec/config.json", "checkpoints/last.ckpt"),
    ),
    "blockworld_world": Reduced(
        "train", (*SMALL_WORLD, *SMALL_DATA, *CLIPS_TOO),
        ("world/world.json", "checkpoints/last.ckpt", "contact_sheets"),
    ),
    "blockworld_world_cpu": Reduced(
        "train", (*SMALL_WORLD, *SMALL_DATA, *CLIPS_TOO),
        ("world/world.json", "checkpoints/last.ckpt"),
    ),
    **dict.fromkeys(
        ("world_fast_14b", "world_fast_14b_streaming", "world_v2_14b", "world_v2_1_3b"), DRIVEN
    ),
}  # fmt: skip
CASES = [
    (name, layout)
    for name in EXPERIMENTS
    for layout in (LAYOUTS if REDUCED.get(name, DRIVEN).published else ["none"])
]


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict[str, list[str]]:
    """The options that drive a folder of each layout."""
    return {
        layout: published_folder(tmp_path_factory.mktemp("published") / layout, layout)
        for layout in LAYOUTS
    }


@pytest.fixture
def _uncompiled(monkeypatch) -> Iterator[None]:
    """Kernels as they are chosen, but nothing compiled, here or in ranks: that takes minutes."""
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    with torch._dynamo.config.patch(disable=True):
        yield


@pytest.mark.usefixtures("_uncompiled")
@pytest.mark.parametrize(("name", "layout"), CASES)
def test_an_experiment_runs_from_its_command_line_to_its_files(
    name, layout, published, tmp_path, monkeypatch
):
    assert name in REDUCED, f"say in REDUCED how experiment={name} runs in a few seconds"
    reduced = REDUCED[name]
    monkeypatch.chdir(tmp_path)
    Image.radial_gradient("L").convert("RGB").save("first.png")
    options = [*published.get(layout, []), *reduced.options]
    typed = [f"experiment={name}", *options, "paths.output_dir=run", "paths.data_dir=data"]
    monkeypatch.setattr(sys, "argv", [f"lingbot-{reduced.command}", *typed])
    importlib.import_module(f"lingbot.{reduced.command}").main()
    for file in reduced.files:
        assert Path("run", file).exists(), file


def test_only_experiments_that_are_there_are_described():
    assert set(REDUCED) == set(EXPERIMENTS)
