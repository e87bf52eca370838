"""BlockWorld shows what geometry says, moves with the camera, follows its seed and words."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lingbot.camera.actions import action_poses, parse_actions
from lingbot.data import blockworld
from lingbot.data.blockworld import (
    INTRINSICS,
    BlockWorldPrompt,
    Scene,
    make_scene,
    random_prompt,
    render,
)
from lingbot.data.blockworld_clips import draw_drive
from lingbot.data.blockworld_rays import BOX, PILLAR, PLACE, ROWS, SPHERE, Solids, enter, local
from lingbot.data.blockworld_shading import pulses, random_cells, square_wave
from lingbot.data.blockworld_words import GROUNDS, TIMES, log_unheard

START = torch.eye(4)[None]


def drive(actions: str) -> Tensor:
    return action_poses(parse_actions(actions))


def difference(frames: Tensor, other: Tensor) -> Tensor:
    """Largest difference of the three colours, [..., H, W] in 0..255."""
    return (frames.int() - other.int()).abs().amax(dim=-1)


def only(kind: int, scene: Scene, **values: float) -> Scene:
    """The scene with one solid of a kind, standing where the values say."""
    rows = scene.solids.rows[:, scene.solids.span(kind)][:, :1].clone()
    for name, value in values.items():
        rows[ROWS.index(name)] = value
    counts = [0, 0, 0]
    counts[kind] = 1
    return replace(scene, solids=Solids(rows, tuple(counts)))


def inside(kind: int, point: tuple[Tensor, ...], place: Tensor) -> Tensor:
    """Whether points [n] lie in a solid, by its definition."""
    cx, cy, cz, hx, hy, hz, cos, sin = place[:, 0]
    x, y, z = local((point[0] - cx, point[1] - cy, point[2] - cz), cos, sin)
    if kind == SPHERE:
        return x**2 + y**2 + z**2 < hx**2
    across = x**2 + z**2 < hx**2 if kind == PILLAR else (x.abs() < hx) & (z.abs() < hz)
    return across & (y.abs() < hy)


def test_a_frame_has_the_size_asked_for() -> None:
    frames = render(make_scene(0), START.repeat(3, 1, 1), height=64, width=80)
    assert frames.shape == (3, 64, 80, 3)
    assert frames.dtype == torch.uint8


def test_the_same_seed_makes_the_same_frames_and_another_seed_makes_others() -> None:
    first, again, other = (render(make_scene(seed), START) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert difference(first, other).float().mean() > 10


def test_words_choose_the_scene_and_leave_the_rest_to_the_seed() -> None:
    noon, night = make_scene(3, "noon, tiles"), make_scene(3, "a night among tiles, please!")
    assert noon.prompt.ground == night.prompt.ground == "tiles"
    assert (noon.prompt.time_of_day, night.prompt.time_of_day) == ("noon", "night")
    assert torch.equal(noon.solids.rows, night.solids.rows)
    assert render(noon, START).float().mean() > 1.5 * render(night, START).float().mean()
    assert make_scene(3, str(noon.prompt)).prompt == noon.prompt


def test_words_that_choose_nothing_are_told_once_with_those_that_would(caplog) -> None:
    log_unheard("dusk, sand, vivid, dense")
    log_unheard("")
    assert not caplog.messages
    log_unheard("A castle at Dusk, or dusk by night; a castle")
    (message,) = caplog.messages
    assert "makes nothing of 'a', 'castle', 'at', 'or', 'by', 'night' in the prompt" in message
    assert "time of day: dawn, noon, dusk, night, overcast; ground: grass" in message


def test_random_prompts_are_whole_and_drawn_from_the_generator() -> None:
    prompts = [random_prompt(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert prompts[0] == prompts[1] != prompts[2]
    assert str(BlockWorldPrompt.parse(prompts[2])) == prompts[2]
    assert len(prompts[2].split(", ")) == 4


def test_a_word_that_does_not_exist_is_refused_with_those_that_do() -> None:
    with pytest.raises(ValueError, match=r"ground='lava'.*grass.*tiles"):
        BlockWorldPrompt(ground="lava")


@pytest.mark.parametrize(("height", "width"), [(90, 160), (96, 100), (0, 8)])
def test_a_size_that_tiles_do_not_fill_is_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"{height}x{width}.*multiples of 8"):
        render(make_scene(0), START, height=height, width=width)


def test_poses_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 4\).*frames, 4, 4"):
        render(make_scene(0), torch.eye(4)[:3])


@pytest.mark.parametrize("ground", list(GROUNDS))
@pytest.mark.parametrize("time_of_day", list(TIMES))
def test_every_step_forward_moves_the_ground_visibly(ground: str, time_of_day: str) -> None:
    frames = render(make_scene(2, f"{time_of_day}, {ground}, sparse"), drive("w-6"))
    changed = difference(frames[1:, 56:], frames[:-1, 56:]).float()  # below the horizon
    assert changed.mean(dim=(1, 2)).min() > 1.5
    thirds = changed.unflatten(2, (4, 40)).mean(dim=(1, 3))  # [frames, quarters of the width]
    assert thirds.min() > 0.7


@pytest.mark.parametrize("actions", ["l-4", "j-4", "i-4", "a-4", "s-4", "wl-4"])
def test_every_key_changes_every_frame(actions: str) -> None:
    frames = render(make_scene(4), drive(actions))
    assert difference(frames[1:], frames[:-1]).float().mean(dim=(1, 2)).min() > 1.5


def test_standing_still_shows_the_same_frame() -> None:
    frames = render(make_scene(4), drive("none-3"))
    assert torch.equal(frames[1:], frames[:-1])


@pytest.mark.parametrize("kind", [BOX, PILLAR, SPHERE])
def test_rays_enter_a_solid_where_marching_along_them_first_finds_its_inside(kind: int) -> None:
    scene = make_scene(1)
    place = only(kind, scene, x=0.3, z=2.5).solids.rows[:PLACE]
    generator = torch.Generator().manual_seed(0)
    rays = torch.randn(3, 400, generator=generator) * torch.tensor([[0.3], [0.2], [0.1]])
    rays = rays + torch.tensor([[0.0], [0.0], [1.0]])
    origin = torch.tensor([0.1, 0.0, 0.2])
    found = enter(kind, origin[:, None, None].unbind(), rays[:, None].unbind(), place)[0]
    steps = torch.arange(0, 5, 0.002)
    points = origin[:, None, None] + rays[:, :, None] * steps
    within = inside(kind, points.unbind(), place)
    hit = within.any(dim=1)
    first = steps[within.int().argmax(dim=1)]
    assert 30 < int(hit.sum()) < 370
    assert (found < math.inf)[hit].float().mean() > 0.99
    assert not (found < math.inf)[~hit].float().mean() > 0.01  # marching misses grazed corners
    both = hit & (found < math.inf)
    assert (found - first)[both].abs().max() < 0.0021


def test_a_camera_inside_a_solid_sees_out_of_it() -> None:
    scene = make_scene(1)
    around = only(SPHERE, scene, x=0.0, y=0.0, z=0.0, half_x=1.0)
    empty = only(SPHERE, scene, x=0.0, y=0.0, z=-9.0)
    assert torch.equal(render(around, START), render(empty, START))


@pytest.mark.parametrize("actions", ["none-1", "l-9", "jw-12", "i-5", "dk-7"])
def test_a_solid_appears_where_the_pinhole_projects_it(actions: str) -> None:
    scene = make_scene(1)
    pose = drive(actions)[-1:]
    with_ball = only(SPHERE, scene, x=0.4, y=0.1, z=4.0, half_x=0.5, half_y=0.5, half_z=0.5)
    without = only(SPHERE, scene, x=0.0, y=0.0, z=-90.0)
    changed = difference(render(with_ball, pose), render(without, pose))[0] > 3
    seen = torch.linalg.inv(pose[0]) @ torch.tensor([0.4, 0.1, 4.0, 1.0], dtype=torch.float64)
    fx, fy, cx, cy = (v * s for v, s in zip(INTRINSICS, (160 / 832, 0.2) * 2, strict=True))
    x, y = fx * seen[0] / seen[2] + cx, fy * seen[1] / seen[2] + cy
    rows, columns = changed.nonzero().double().add(0.5).unbind(1)
    assert abs(columns.mean() - x) < 1.0
    assert abs(rows.mean() - y) < 1.0
    area = math.pi * fx * fy * 0.25 / float(seen[2]) ** 2
    assert 0.85 < len(rows) / area < 1.25


def test_skipping_what_a_tile_cannot_see_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = [make_scene(seed, "dense") for seed in range(3)]
    poses = drive("wl-20,i-6,wa-20")[::6]
    quick = torch.stack([render(scene, poses) for scene in scenes])

    def everything(solids: Solids, cameras: blockworld.Cameras) -> Tensor:
        frames = cameras.position.shape[1]
        return torch.ones(frames, 12, 20, len(solids), dtype=torch.bool)

    monkeypatch.setattr(blockworld, "outlines", everything)
    slow = torch.stack([render(scene, poses) for scene in scenes])
    assert difference(quick, slow).max() <= 1


def test_frames_do_not_depend_on_how_many_are_rendered_together() -> None:
    scene, poses = make_scene(7), drive("wj-6")
    one, all_ = (render(scene, poses, frames_at_once=n) for n in (1, 7))
    assert difference(one, all_).max() <= 1


def test_far_ground_fades_to_its_mean_instead_of_flickering() -> None:
    scene = only(SPHERE, make_scene(2, "noon, tiles"), x=0.0, y=0.0, z=-90.0)
    frames = render(scene, drive("w-12")).float().mean(dim=-1)
    near, far = frames[:, 80:], frames[:, 51:54]
    assert near.std() > 20
    assert far.std(dim=2).mean() < 6
    assert (far[1:] - far[:-1]).abs().max() < 12


def test_filtered_patterns_equal_the_average_of_fine_samples() -> None:
    x = torch.linspace(-3, 3, 101).double()
    for width in (0.05, 0.4, 1.0, 2.7):
        w = torch.full_like(x, width)
        fine = x[:, None] + width * (torch.arange(4000).double() / 4000 - 0.5)
        waves = 1 - 2 * torch.floor(fine).remainder(2)
        lines = (fine - torch.floor(fine) < 0.12).double()
        assert (square_wave(x, w) - waves.mean(dim=1)).abs().max() < 0.01
        assert (pulses(x, w, 0.12) - lines.mean(dim=1)).abs().max() < 0.01


def test_cells_keep_one_shade_each_and_vanish_under_a_wide_footprint() -> None:
    u = torch.tensor([0.2, 0.5, 0.8, 1.2, -0.1])
    v = torch.full_like(u, 0.5)
    thin, wide = torch.full_like(u, 1e-3), torch.full_like(u, 2.0)
    shade = random_cells(u, v, thin, thin)
    assert shade[0] == shade[1] == shade[2]
    assert len(shade.unique()) == 3
    assert random_cells(u, v, wide, wide).abs().max() == 0


def test_solids_stand_on_the_ground_apart_and_away_from_the_start() -> None:
    for seed in range(5):
        scene = make_scene(seed, "dense")
        solids = scene.solids
        feet = solids["y"] + solids["half_y"]
        assert torch.allclose(feet, torch.full_like(feet, scene.eye))
        assert scene.clearance(START) > 1.7
        gaps = torch.hypot(
            solids["x"][:, None] - solids["x"], solids["z"][:, None] - solids["z"]
        ).fill_diagonal_(9)
        assert gaps.min() > 0.8


def test_a_crowded_scene_still_finds_room_for_its_last_solid():
    """Seed 352 once left no room for a pillar in view, and looked for it forever."""
    drive = draw_drive(352, 9)
    assert drive.scene.solids.rows.shape[1] > 0
