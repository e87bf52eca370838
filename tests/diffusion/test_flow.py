import math
import re

import pytest
import torch
from safetensors.torch import load_file

from lingbot.diffusion.flow import FlowSchedule, add_noise, clean_from_flow
from lingbot.diffusion.flow_matching import FlowMatching
from lingbot.diffusion.sampler import V1_INDICES, V2_INDICES, FewStepSampler


@pytest.mark.parametrize("shift", [1, 3, 5, 10])
def test_the_schedule_is_the_published_table(golden_dir, shift):
    golden = load_file(golden_dir / "camera_schedule.safetensors")
    schedule = FlowSchedule(shift)
    assert torch.allclose(schedule.sigmas, golden[f"sigmas.shift{shift}"], atol=1e-7, rtol=0)
    assert torch.equal(schedule.timesteps, golden[f"timesteps.shift{shift}"])


def test_tied_timesteps_are_read_at_the_first_level_and_noised_to_the_second():
    schedule = FlowSchedule(5.0, "published")
    tied = torch.nonzero(schedule.timesteps == 957.0).flatten()
    level = schedule.level(179)
    assert len(tied) > 1
    assert level.timestep == 957.0
    assert level.x0_sigma == schedule.sigmas[tied[0]]
    assert level.renoise_sigma == schedule.sigmas[tied[1]]
    alone = schedule.level(679)
    assert alone.x0_sigma == alone.renoise_sigma == schedule.sigmas[679]


def test_the_exact_schedule_has_no_ties():
    schedule = FlowSchedule(10.0, "exact")
    for index in (*V1_INDICES, *V2_INDICES):
        level = schedule.level(index)
        assert level.x0_sigma == level.renoise_sigma == schedule.sigmas[index]
        assert level.timestep == pytest.approx(1000 * level.x0_sigma)


def test_the_true_flow_leads_back_to_the_clean_latents():
    torch.manual_seed(0)
    clean, noise = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.allclose(clean_from_flow(add_noise(clean, noise, 0.7), noise - clean, 0.7), clean)


def test_a_perfect_model_is_sampled_perfectly_and_draws_fresh_noise_between_passes_only():
    torch.manual_seed(0)
    clean = torch.randn(1, 16, 3, 2, 2)
    sampler = FewStepSampler(FlowSchedule(5.0, "exact"))
    seen, draws = [], []

    def fresh() -> torch.Tensor:
        draws.append(torch.randn_like(clean))
        return draws[-1]

    def predict(noisy: torch.Tensor, timestep: float) -> torch.Tensor:
        seen.append(timestep)
        return (noisy - clean) / (timestep / 1000)

    assert torch.allclose(sampler(torch.randn_like(clean), predict, fresh), clean, atol=1e-5)
    assert seen == [1000 * level.x0_sigma for level in sampler.levels]
    assert len(draws) == len(seen) - 1 == 3


@pytest.mark.parametrize("indices", [(), (0, 0), (5, 2), (0, 1000), (-1, 5), (0, 1.5)])
def test_indices_that_do_not_descend_the_schedule_are_refused(indices):
    with pytest.raises(ValueError, match=r"sampler\.indices="):
        FewStepSampler(FlowSchedule(5.0), indices)
    with pytest.raises(ValueError, match=r"objective\.few_step_indices="):
        FlowMatching(FlowSchedule(5.0), few_step_indices=indices)


def test_unknown_kinds_and_shifts_are_refused():
    with pytest.raises(ValueError, match=r"published.*exact"):
        FlowSchedule(5.0, "fast")
    for shift in (0, -5.0, math.inf, math.nan, 1e308):
        with pytest.raises(ValueError, match=f"schedule.shift={re.escape(str(shift))}"):
            FlowSchedule(shift)
