import math

import pytest
import torch

from lingbot.diffusion import FlowMatching, FlowSchedule
from lingbot.model import KVCacheConfig, LocalExchange
from tests.model.worlds import SMALL, chunk_inputs, small_transformer

TEXT = torch.linspace(-1, 1, 2 * 5 * 16).view(2, 5, 16)


def losses(objective: FlowMatching, transformer, chunks: int = 2, seed: int = 0, step=None):
    latents, condition, controls = (x.repeat(2, 1, 1, 1, 1) for x in chunk_inputs(SMALL, chunks))
    return objective(
        transformer, latents, condition, controls, TEXT, cache=KVCacheConfig(),
        exchange=LocalExchange(4), generator=torch.Generator().manual_seed(seed),
        step=step,
    )  # fmt: skip


def test_training_on_one_clip_lowers_its_loss():
    transformer = small_transformer().requires_grad_(True)
    objective = FlowMatching(FlowSchedule(5.0))
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=3e-3)
    history = []
    for _ in range(60):
        loss = losses(objective, transformer)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[-1] < 0.6 * history[0]


def test_every_parameter_gets_a_gradient():
    transformer = small_transformer().requires_grad_(True)
    losses(FlowMatching(FlowSchedule(5.0)), transformer)["loss"].backward()
    without = [n for n, p in transformer.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_the_few_step_fraction_of_levels_are_the_samplers_rungs():
    rungs = (0, 179, 358, 679)
    for fraction in (0.0, 0.5, 1.0):
        objective = FlowMatching(FlowSchedule(5.0), few_step_fraction=fraction)
        levels = objective.draw_levels(64, 100, torch.Generator().manual_seed(0))
        share = torch.isin(levels, torch.tensor(rungs)).float().mean()
        assert share == pytest.approx(fraction, abs=0.03)
        assert levels.min() >= 0
        assert levels.max() < 1000


def test_the_same_seed_gives_the_same_loss_and_another_another():
    objective, transformer = FlowMatching(FlowSchedule(5.0)), small_transformer()
    assert losses(objective, transformer)["loss"] == losses(objective, transformer)["loss"]
    assert losses(objective, transformer, seed=1)["loss"] != losses(objective, transformer)["loss"]


def test_noise_on_the_history_changes_later_chunks_only():
    transformer = small_transformer()
    plain, noised = (
        losses(FlowMatching(FlowSchedule(5.0), history_noise=h), transformer, chunks=c)["loss"]
        for h, c in ((0.0, 1), (0.5, 1))
    )
    assert plain == noised  # the only chunk has no history
    plain, noised = (
        losses(FlowMatching(FlowSchedule(5.0), history_noise=h), transformer)["loss"]
        for h in (0.0, 0.5)
    )
    assert plain != noised


def test_a_resampled_history_is_made_by_the_model_and_carries_no_gradient():
    transformer = small_transformer().requires_grad_(True)
    seen = HistoryRecorder(transformer)
    result = losses(FlowMatching(FlowSchedule(5.0), resampled_history=1.0), seen, step=0)
    truth = chunk_inputs(SMALL, 2)[0]
    first, second = seen.histories
    assert torch.equal(first[:1], truth)  # the clip is made from its own clean history
    assert not torch.equal(second[:1], truth)
    assert not second.requires_grad
    result["loss"].backward()
    assert all(p.grad is not None for p in transformer.parameters())


def test_a_validation_sees_the_clean_history():
    seen = HistoryRecorder(small_transformer())
    losses(FlowMatching(FlowSchedule(5.0), resampled_history=1.0), seen)
    (history,) = seen.histories
    assert torch.equal(history[:1], chunk_inputs(SMALL, 2)[0])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_the_asked_share_of_steps_resamples_its_history_evenly(share):
    objective = FlowMatching(FlowSchedule(5.0), resampled_history=share)
    chosen = [objective._resamples(step) for step in range(1000)]
    assert sum(chosen) == pytest.approx(1000 * share, abs=1)
    assert sum(chosen[:20]) == pytest.approx(20 * share, abs=1)


class HistoryRecorder:
    """A transformer that keeps the history of every pass."""

    def __init__(self, transformer) -> None:
        self.transformer, self.histories = transformer, []

    def __call__(self, latents, *args, **kwargs):
        self.histories.append(latents[:, :16, : latents.shape[2] // 2])
        return self.transformer(latents, *args, **kwargs)

    def __getattr__(self, name):
        return getattr(self.transformer, name)


def test_clips_that_are_not_whole_chunks_are_refused_with_the_length_that_works():
    objective = FlowMatching(FlowSchedule(5.0), frames_per_chunk=4)
    with pytest.raises(ValueError, match="cut it to 4"):
        losses(objective, small_transformer())


def test_fractions_outside_0_and_1_are_refused():
    for share in (2, -0.1, math.nan):
        for name in ("few_step_fraction", "history_noise", "resampled_history"):
            with pytest.raises(ValueError, match=f"objective.{name}={share}"):
                FlowMatching(FlowSchedule(5.0), **{name: share})


def test_an_objective_without_schedule_or_frames_is_refused():
    with pytest.raises(ValueError, match=r"objective\.schedule=None"):
        FlowMatching(None)
    with pytest.raises(ValueError, match=r"objective\.frames_per_chunk=0"):
        FlowMatching(FlowSchedule(5.0), frames_per_chunk=0)
