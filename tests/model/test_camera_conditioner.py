import pytest
import torch

from lingbot.model import ConditionerCache, KVCacheConfig
from tests.model.worlds import SMALL, cached, chunk_inputs, small_transformer

LAYERS, PASSES = SMALL.num_layers, 4


def drive(policy: str) -> tuple[list[torch.Tensor], list]:
    """Flows of 3 chunks of 4 passes and a context update, and the counts of each step."""
    model = cached(small_transformer(), KVCacheConfig(), policy=policy)
    latents, condition, controls = chunk_inputs(SMALL, chunks=3)
    flows, counts = [], []
    with torch.no_grad():
        for chunk in range(3):
            span = slice(3 * chunk, 3 * chunk + 3)
            model.begin_chunk(controls[:, :, span], condition[:, :, span], span.start)
            flows += [model.predict(latents[:, :, span], t) for t in (999.0, 957.0, 899.0, 702.0)]
            model.update_context(latents[:, :, span])
            counts.append(model.conditioner.take_counts())
    flows += [m for layer in range(LAYERS) for m in model.kv_cache.visible(layer)]
    return flows, counts


def test_policies_agree_bit_for_bit():
    step, denoise, off = (drive(policy)[0] for policy in ("step", "denoise", "off"))
    for a, b, c in zip(step, denoise, off, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize(
    ("policy", "misses", "hits"),
    [
        # the context update ends in the last block before that block's camera part
        ("step", LAYERS, (PASSES - 1) * LAYERS + LAYERS - 1),
        ("denoise", LAYERS + LAYERS - 1, (PASSES - 1) * LAYERS),
        ("off", PASSES * LAYERS + LAYERS - 1, 0),
    ],
)
def test_every_policy_computes_exactly_as_often_as_it_says(policy, misses, hits):
    for counts in drive(policy)[1]:
        assert (counts.misses, counts.hits) == (misses, hits)


def test_bytes_are_those_of_scale_and_shift_of_every_block():
    counts = drive("step")[1][-1]
    tokens = 3 * 2 * 3
    assert counts.bytes == LAYERS * 2 * tokens * SMALL.dim * 4
    assert drive("off")[1][-1].bytes == 0


def test_an_in_place_change_of_the_rays_drops_what_was_kept():
    cache, rays = ConditionerCache("step"), torch.ones(1, 1, 2, 2)
    compute = lambda x: (x + 1, x + 2)  # noqa: E731
    cache(0, rays, compute, updating=False)
    rays.mul_(3)
    scale, _ = cache(0, rays, compute, updating=False)
    assert torch.equal(scale, rays + 1)
    assert cache.counts.misses == 2


def test_an_equal_but_different_tensor_is_another_step():
    cache, rays = ConditionerCache("step"), torch.ones(1, 1, 2, 2)
    for tensor in (rays, rays.clone()):
        cache(0, tensor, lambda x: (x, x), updating=False)
    assert (cache.counts.misses, cache.counts.hits) == (2, 0)


def test_rays_of_inference_mode_are_refused_with_the_remedy():
    with torch.inference_mode():
        rays = torch.ones(1, 1, 2, 2)
    with pytest.raises(ValueError, match=r"torch\.no_grad"):
        ConditionerCache("step")(0, rays, lambda x: (x, x), updating=False)


def test_an_unknown_policy_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match=r"step.*denoise.*off"):
        ConditionerCache("sometimes")
