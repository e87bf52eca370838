"""Holds camera and schedule against a camera golden file."""

from __future__ import annotations

import re
from collections.abc import Iterator

from lingbot.camera.actions import action_poses, parse_actions
from lingbot.camera.controls import FOLD
from lingbot.camera.offline import offline_camera
from lingbot.diffusion.flow import FlowSchedule
from lingbot.golden.compare import Comparison, GoldenFile, UnusableFile, compare

SCHEDULE_TOLERANCE = 1e-7  # the golden levels were computed in float32
FLOAT32_TOLERANCE = 2e-5  # poses and rays of the file were computed in float32
ACTION_TOLERANCE = 1e-9


def compare_camera(golden: GoldenFile) -> list[Comparison]:
    """Rows for every schedule, trajectory and action string in the file.

    Raises:
        UnusableFile: when the file holds none of them.
    """
    rows = [*_schedules(golden), *_trajectories(golden), *_actions(golden)]
    if not rows:
        raise UnusableFile("it holds no model, no poses, no action strings and no schedule")
    return rows


def _schedules(golden: GoldenFile) -> Iterator[Comparison]:
    for name in sorted(golden.names):
        if found := re.fullmatch(r"(sigmas|timesteps)\.shift([\d.]+)", name):
            schedule = FlowSchedule(float(found[2]), "published")
            ours = schedule.sigmas if found[1] == "sigmas" else schedule.timesteps
            yield compare(name, ours, golden[name], SCHEDULE_TOLERANCE)


def _trajectories(golden: GoldenFile) -> Iterator[Comparison]:
    suffix = ".plucker_packed"
    for example in sorted(n.removesuffix(suffix) for n in golden.names if n.endswith(suffix)):
        _, frames, height, width = golden[example + suffix].shape
        ours = offline_camera(
            golden[f"{example}.poses"].double(),
            golden[f"{example}.intrinsics"],
            height * FOLD,
            width * FOLD,
            frames,
        )
        for part, tensor in ours._asdict().items():
            name = f"{example}.{part}"
            yield compare(name, tensor, golden[name], FLOAT32_TOLERANCE)


def _actions(golden: GoldenFile) -> Iterator[Comparison]:
    for name, actions in sorted(golden.metadata.items()):
        if name.startswith("action."):
            ours = action_poses(parse_actions(actions))
            yield compare(name, ours, golden[name], ACTION_TOLERANCE)
