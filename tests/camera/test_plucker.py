"""Rays: where they start, where they point, how they fold."""

import torch

from lingbot.camera.actions import rotation_y
from lingbot.camera.plucker import fold_rays, plucker_rays, scale_intrinsics

GIVEN = torch.tensor([520.0, 500.0, 416.0, 240.0], dtype=torch.float64)


def test_intrinsics_rescale_by_width_and_height_separately() -> None:
    scaled = scale_intrinsics(GIVEN, height=240, width=208)
    assert scaled.tolist() == [130.0, 250.0, 104.0, 120.0]


def test_a_ray_through_a_pixel_centre_points_where_the_pinhole_says() -> None:
    rays = plucker_rays(torch.eye(4)[None], GIVEN, 480, 832)
    pixel = torch.tensor([(700.5 - 416) / 520, (100.5 - 240) / 500, 1.0])
    torch.testing.assert_close(rays[3:, 0, 100, 700], pixel / pixel.norm())
    torch.testing.assert_close(rays[3:].norm(dim=0), torch.ones(1, 480, 832))
    assert rays.dtype == torch.float32


def test_rays_turn_and_start_with_the_camera() -> None:
    relative = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    relative[1, :3, :3] = rotation_y(90.0)
    relative[1, :3, 3] = torch.tensor([1.0, 2.0, 3.0])
    rays = plucker_rays(relative, torch.tensor([8.0, 8.0, 4.5, 4.5]), 8, 8)
    torch.testing.assert_close(rays[3:, 1, 4, 4], torch.tensor([1.0, 0.0, 0.0]))  # turned right
    assert torch.all(rays[:3, 1] == torch.tensor([1.0, 2.0, 3.0])[:, None, None])
    assert torch.all(rays[:3, 0] == 0)


def test_folding_puts_the_ray_slowest_then_rows_then_columns() -> None:
    rays = torch.arange(2 * 3 * 16 * 24).reshape(2, 3, 16, 24)
    folded = fold_rays(rays)
    assert folded.shape == (2 * 64, 3, 2, 3)
    ray, row, column, frame, y, x = 1, 5, 7, 2, 1, 2
    found = folded[ray * 64 + row * 8 + column, frame, y, x]
    assert found == rays[ray, frame, y * 8 + row, x * 8 + column]


def test_autocast_does_not_touch_the_rays() -> None:
    relative = torch.eye(4).repeat(2, 1, 1)
    relative[1, :3, :3] = rotation_y(11.0)
    exact = plucker_rays(relative, GIVEN, 32, 48)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plucker_rays(relative, GIVEN, 32, 48), exact)
