import pytest
import torch
from torch import nn

from lingbot.checkpoints.weights import TEXT_ENCODER, TRANSFORMER, load_weights, save_weights
from lingbot.model import CausalLingBotTransformer, TransformerConfig
from tests.model.worlds import SMALL, small_transformer
from tests.support.published import LAYOUTS, write_shards


def same(a: nn.Module, b: nn.Module, atol: float = 0.0) -> bool:
    return all(
        torch.allclose(x, y, atol=atol, rtol=0)
        for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("layout", LAYOUTS.values())
def test_both_public_layouts_load_from_their_shards(tmp_path, layout):
    theirs, ours = small_transformer(), small_transformer(seed=5)
    write_shards(tmp_path / layout, theirs.state_dict())
    load_weights(ours, nn.Linear(1, 1), tmp_path)
    assert same(ours, theirs)


def test_a_world_folder_brings_transformer_and_text_encoder_back(tmp_path):
    theirs, ours = small_transformer(), small_transformer(seed=5)
    text, other = nn.Linear(3, 3), nn.Linear(3, 3)
    save_weights(theirs.state_dict(), tmp_path / TRANSFORMER, torch.float16)
    save_weights(text.state_dict(), tmp_path / TEXT_ENCODER, torch.float32)
    load_weights(ours, other, tmp_path)
    assert same(ours, theirs, atol=2e-3)
    assert same(other, text)
    assert next(ours.parameters()).dtype == torch.float32


def test_another_size_is_refused_before_anything_changes(tmp_path):
    small = small_transformer()
    save_weights(small.state_dict(), tmp_path / TRANSFORMER, torch.float32)
    other = CausalLingBotTransformer(TransformerConfig(48, 96, 4, 4, 16, 8, 32))
    before = [p.clone() for p in other.parameters()]
    with pytest.raises(ValueError, match=r"missing.*blocks\.3.*another shape.*ffn"):
        load_weights(other, nn.Linear(1, 1), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))


def test_a_folder_without_a_transformer_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no transformer in"):
        load_weights(small_transformer(), nn.Linear(1, 1), tmp_path)


def test_a_missing_shard_is_named_before_anything_is_read(tmp_path):
    write_shards(tmp_path / "transformer", small_transformer().state_dict())
    (tmp_path / "transformer" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="00002-of-00002"):
        load_weights(CausalLingBotTransformer(SMALL), nn.Linear(1, 1), tmp_path)


def test_parameter_names_are_the_public_ones():
    names = {n.replace("blocks.0.", "blocks.N.") for n in small_transformer().state_dict()}
    assert {
        "patch_embedding.weight", "patch_embedding_wancamctrl.bias",
        "c2ws_hidden_states_layer1.weight", "c2ws_hidden_states_layer2.weight",
        "text_embedding.0.weight", "text_embedding.2.weight",
        "time_embedding.0.weight", "time_embedding.2.weight", "time_projection.1.weight",
        "blocks.N.modulation", "blocks.N.self_attn.norm_q.weight", "blocks.N.self_attn.o.bias",
        "blocks.N.norm3.weight", "blocks.N.cross_attn.norm_k.weight", "blocks.N.ffn.2.weight",
        "blocks.N.cam_injector_layer1.weight", "blocks.N.cam_scale_layer.bias",
        "blocks.N.cam_shift_layer.weight", "head.head.weight", "head.modulation",
    } <= names  # fmt: skip
