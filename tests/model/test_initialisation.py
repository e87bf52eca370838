import torch

from lingbot.diffusion import FlowMatching, FlowSchedule
from lingbot.model import KVCacheConfig, LocalExchange
from lingbot.model.initialisation import return_the_noise
from tests.model.worlds import SMALL, cached, chunk_inputs, small_transformer

WIDE = type(SMALL)(
    dim=144, ffn_dim=64, num_heads=4, num_layers=2, text_dim=16, text_len=8, freq_dim=32
)


def test_a_pass_returns_its_noise_before_any_training():
    transformer = small_transformer(WIDE)
    return_the_noise(transformer)
    noise, condition, controls = chunk_inputs(WIDE, chunks=1)
    model = cached(transformer, KVCacheConfig())
    with torch.no_grad():
        model.begin_chunk(controls, 0 * condition, 0)
        flow = model.predict(noise, 999.0)
    assert (flow - noise).square().mean() < 0.2 * noise.square().mean()


def test_the_head_takes_the_smallest_weights_that_return_the_noise():
    """Along directions that the noise does not span, weights could be anything."""
    transformer = small_transformer(WIDE)
    return_the_noise(transformer)
    assert 0.1 < transformer.head.head.weight.abs().max() < 3


def test_training_begins_far_below_the_default_initialisation():
    losses = []
    for initialise in (lambda transformer: None, return_the_noise):
        transformer = small_transformer(WIDE)
        initialise(transformer)
        latents, condition, controls = chunk_inputs(WIDE, chunks=2)
        objective = FlowMatching(FlowSchedule(5.0), few_step_fraction=1.0)
        losses.append(
            objective(
                transformer,
                latents,
                condition,
                controls,
                torch.zeros(1, 4, 16),
                cache=KVCacheConfig(),
                exchange=LocalExchange(4),
                generator=torch.Generator().manual_seed(0),
            )["loss"]
        )
    assert losses[1] < 0.75 * losses[0]


def test_every_branch_learns_within_three_steps():
    """Zero outputs at the start must not leave any weight without a gradient for long."""
    transformer = small_transformer(WIDE).requires_grad_(True)
    return_the_noise(transformer)
    optimizer = torch.optim.SGD(transformer.parameters(), lr=0.1)
    latents, condition, controls = chunk_inputs(WIDE, chunks=2)
    for _ in range(3):
        optimizer.zero_grad()
        FlowMatching(FlowSchedule(5.0))(
            transformer, latents, condition, controls, torch.ones(1, 4, 16),
            cache=KVCacheConfig(), exchange=LocalExchange(4),
            generator=torch.Generator().manual_seed(0),
        )["loss"].backward()  # fmt: skip
        optimizer.step()
    dead = [n for n, p in transformer.named_parameters() if p.grad is None or not p.grad.any()]
    assert dead == []
