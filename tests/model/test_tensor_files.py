"""Files of weights that cannot be used: the file is named, nothing hangs or is half loaded."""

from __future__ import annotations

import json
import os
import re
import struct

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lingbot.checkpoints.weights import TRANSFORMER, load_weights, save_weights
from lingbot.model.tensor_files import check_finite, copy_tensors, read_index, tensor_files
from tests.model.worlds import small_transformer

INDEX = "diffusion_pytorch_model.safetensors.index.json"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 20227120\n"


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def no_header(path) -> None:
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")


def pipe(path) -> None:
    path.unlink()
    os.mkfifo(path)


def device(path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def folder(path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("gone"))


BROKEN = [
    (lambda path: path.write_text(LFS), "git-lfs pointer.*git lfs pull"),
    (lambda path: path.write_bytes(b""), "is empty"),
    (lambda path: path.write_text("not tensors at all"), "no whole safetensors file"),
    (cut, "no whole safetensors file"),
    (no_header, "no whole safetensors file"),
    (pipe, "a pipe or a device"),
    (device, "a pipe or a device"),
    (folder, "is a folder"),
    (dangling, "no such file"),
]


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("breaks", "told"), BROKEN)
@pytest.mark.parametrize("layout", ["world", "shards"])
def test_a_file_that_cannot_be_used_is_named_and_nothing_is_loaded(layout, breaks, told, tmp_path):
    theirs, ours = small_transformer(), small_transformer(seed=5)
    if layout == "world":
        path = tmp_path / TRANSFORMER
        save_weights(theirs.state_dict(), path, torch.float32)
    else:
        path = tmp_path / "transformer" / "shard.safetensors"
        save_weights(theirs.state_dict(), path, torch.float32)
        weight_map = dict.fromkeys(theirs.state_dict(), path.name)
        (path.parent / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    breaks(path)
    before = [parameter.clone() for parameter in ours.parameters()]
    with pytest.raises((ValueError, FileNotFoundError), match=rf"{path.name}.*{told}"):
        load_weights(ours, nn.Linear(1, 1), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(before, ours.parameters(), strict=True))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        ("[]", "no weight_map"),
        ("{}", "no weight_map"),
        ('{"weight_map": {}}', "no weight_map"),
        ('{"weight_map": ["a.safetensors"]}', "no weight_map"),
        ('{"weight_map": {"a": 5}}', "names 5"),
        ('{"weight_map": {"a": "../other/a.safetensors"}}', "beside their index"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "beside their index"),
        ('{"weight_map": {"a": ".."}}', "beside their index"),
        ('{"weight_map": {"a": ""}}', "beside their index"),
        (LFS, "git-lfs pointer"),
        ("", "is empty"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "bytes",
)
def test_an_index_that_is_none_is_named(text, told, tmp_path):
    index = tmp_path / INDEX
    index.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"{INDEX}.*{told}"):
        tensor_files(tmp_path)


@pytest.mark.timeout(30)
def test_a_pipe_for_an_index_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / INDEX)
    with pytest.raises(ValueError, match="a pipe or a device"):
        read_index(tmp_path / INDEX)


def test_tensors_of_other_shapes_are_named_with_their_file_and_both_sizes(tmp_path):
    file = tmp_path / "linear.safetensors"
    save_file({"weight": torch.zeros(3, 2), "scale": torch.zeros(1)}, file)
    told = (
        "linear.safetensors does not hold this model: 1 tensors missing (bias), 1 tensors unknown "
        "(scale), 1 of another shape (weight is [3, 2] in linear.safetensors, [3, 3] in the model)"
    )
    with pytest.raises(ValueError, match=re.escape(told)):
        copy_tensors(nn.Linear(3, 3), [file], "")


def test_a_tensor_in_two_files_is_refused(tmp_path):
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for file in files:
        save_file({"weight": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"weight is in .*a\.safetensors and in .*b\.safetensors"):
        copy_tensors(nn.Linear(1, 1), files, "")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("place", [0, 4999, -1])
def test_a_single_value_that_is_not_finite_is_found_wherever_it_is(value, dtype, place):
    tensor = torch.linspace(-1, 1, 10_007).to(dtype)
    check_finite(tensor, "x")
    tensor[place] = value
    with pytest.raises(ValueError, match="x holds NaN or infinite values"):
        check_finite(tensor, "x")


def test_weights_with_nan_are_refused_where_they_are_read_and_where_they_are_written(tmp_path):
    file = tmp_path / "linear.safetensors"
    state = nn.Linear(3, 3).state_dict()
    state["bias"][1] = torch.nan
    save_file(state, file)
    with pytest.raises(ValueError, match=r"linear\.safetensors: bias holds NaN"):
        copy_tensors(nn.Linear(3, 3), [file], "")
    with pytest.raises(ValueError, match=r"other\.safetensors in float16: bias holds NaN"):
        save_weights(state, tmp_path / "other.safetensors", torch.float16)
    state["bias"][1] = 1e6  # beyond float16
    with pytest.raises(ValueError, match="bias holds NaN or infinite"):
        save_weights(state, tmp_path / "other.safetensors", torch.float16)
    assert [path.name for path in tmp_path.iterdir()] == ["linear.safetensors"]
