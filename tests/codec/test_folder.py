"""A codec's folder is what the package works with, or the file and the difference are named."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from lingbot.codec.folder import check_codec
from lingbot.codec.video import build_codec, load_codec

SMALL = {
    "base_dim": 8, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "temperal_downsample": [True, True],
    "patch_size": 2, "in_channels": 12, "out_channels": 12, "is_residual": True,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    build_codec(**SMALL).save(tmp_path / "vae")
    return tmp_path / "vae"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"_class_name": "AutoencoderKL"}, "is of a AutoencoderKL; worlds are decoded by an"),
        ({"scale_factor_spatial": 16}, "stride of 4x16x16"),
        ({"scale_factor_temporal": 8}, "stride of 8x8x8"),
        ({"dim_mult": [1, 2, 2, 2], "temperal_downsample": [True, True, False]}, "stride of 4x16"),
        ({"temperal_downsample": [True, False]}, "stride of 2x8x8"),
        ({"z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}, "z_dim=4"),
        ({"latents_mean": [0.0] * 15}, "latents_mean=.*16 finite numbers"),
        ({"latents_mean": [math.nan] * 16}, "latents_mean=.*16 finite numbers"),
        ({"latents_mean": "zero"}, "latents_mean=zero"),
        ({"latents_std": [0.0] * 16}, "latents_std=.*above 0"),
        ({"latents_std": [-1.0] * 16}, "latents_std=.*above 0"),
        ({"latents_std": None}, "latents_std=None"),
        ({"tiling": True}, "does not take: tiling"),
        ({"base_dim": "wide"}, "describes no autoencoder"),
        ({"base_dim": 16}, "of another shape"),
        ({"num_res_blocks": 2}, "missing"),
    ],
    ids=str,
)
def test_a_config_of_something_else_is_refused_before_anything_is_loaded(change, told, folder):
    file = folder / "config.json"
    check_codec(folder)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    for reads in (check_codec, load_codec):
        with pytest.raises(ValueError, match=rf"vae/.*{told}"):
            reads(folder)


@pytest.mark.parametrize("text", ["{", "[]", '"config"'])
def test_a_config_that_is_none_is_named(text, folder):
    (folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"vae/config\.json"):
        check_codec(folder)


def test_what_a_config_leaves_out_is_as_diffusers_has_it(folder):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    del config["scale_factor_spatial"], config["dropout"], config["_diffusers_version"]
    file.write_text(json.dumps(config))
    assert check_codec(folder)["scale_factor_spatial"] == 8
    load_codec(folder)


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "nan"])
def test_weights_that_diffusers_would_make_up_or_pass_over_are_refused(change, folder):
    file = folder / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    name = "decoder.conv_in.weight"
    if change == "missing":
        del weights[name]
    elif change == "extra":
        weights["decoder.conv_inn.weight"] = weights[name].clone()
    elif change == "shape":
        weights[name] = weights[name][:, :-1].contiguous()
    else:
        weights[name][0] = torch.nan
    save_file(weights, file)
    told = "holds NaN" if change == "nan" else "does not hold this model.*conv_in"
    with pytest.raises(ValueError, match=rf"{file.name}.*{told}"):
        load_codec(folder)
    if change != "nan":
        with pytest.raises(ValueError, match=told):
            check_codec(folder)


def test_a_folder_without_weights_is_refused_with_the_file_it_lacks(folder):
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"vae/diffusion_pytorch_model\.safetensors"):
        check_codec(folder)
