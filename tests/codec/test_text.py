"""Text encoders: encodings depend on the prompt alone, and missing folders are named at once."""

import logging

import pytest
import torch
from transformers import UMT5EncoderModel

from lingbot.codec.text import ByteTextEncoder, UMT5TextEncoder
from tests.support.published import write_umt5


@pytest.fixture
def byte_encoder() -> ByteTextEncoder:
    torch.manual_seed(0)
    return ByteTextEncoder(text_dim=16, text_len=24)


@pytest.fixture(scope="module")
def umt5_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    write_umt5(folder, width=16)
    return folder


def test_bytes_become_one_embedding_each_after_a_begin_token(byte_encoder):
    out = byte_encoder(["noon", "café"])  # é is two bytes
    assert out.shape == (2, 6, 16)
    assert (out[0, 5] == 0).all()
    assert (out[1, 5] != 0).any()


def test_an_encoding_does_not_depend_on_the_rest_of_the_batch(byte_encoder):
    alone = byte_encoder(["noon"])
    together = byte_encoder(["noon", "a much longer one"])[:1]
    torch.testing.assert_close(together[:, : alone.shape[1]], alone)
    assert (together[:, alone.shape[1] :] == 0).all()


def test_prompts_differ_and_an_empty_one_has_an_encoding(byte_encoder):
    assert not torch.allclose(byte_encoder(["noon"]), byte_encoder(["dawn"]))
    assert byte_encoder([""]).shape == (1, 1, 16)
    assert (byte_encoder([""]) != 0).any()


def test_a_prompt_that_is_too_long_is_cut_and_the_log_says_so(byte_encoder, caplog):
    with caplog.at_level(logging.WARNING):
        assert byte_encoder(["x" * 100]).shape == (1, 24, 16)
    assert "prompt of 100 bytes cut to 23 bytes" in caplog.text
    assert "text.text_len=24" in caplog.text


def test_the_byte_encoder_learns_through_every_parameter(byte_encoder):
    byte_encoder(["noon, grass", "dawn"]).square().sum().backward()
    assert all(weight.grad is not None for weight in byte_encoder.parameters())


@pytest.mark.parametrize(
    "bad",
    [
        {"text_len": 0},
        {"text_dim": -1},
        {"text_dim": 10**20},
        {"kernel_size": 4},
        {"kernel_size": -1},
        {"kernel_size": 131},
    ],
    ids=str,
)
def test_the_byte_encoder_refuses_sizes_that_cannot_work(bad):
    ((name, value),) = bad.items()
    with pytest.raises(ValueError, match=f"text.{name}={value}"):
        ByteTextEncoder(**bad)


def test_umt5_says_which_prompt_is_cut_and_how_far(umt5_folder, caplog):
    encoder = UMT5TextEncoder(umt5_folder, text_len=4, dtype="float32")
    with caplog.at_level(logging.WARNING):
        encoder(["noon grass warm"])
        assert not caplog.messages  # three words and the end: just fits
        assert encoder(["noon grass warm sparse", "noon"]).shape == (2, 4, 16)
    (message,) = [record for record in caplog.messages if "cut to" in record]
    assert "prompt of 5 tokens cut to 4 tokens" in message
    assert "noon grass warm sparse" in message


def test_umt5_encodes_from_a_local_folder_and_zeroes_the_padding(umt5_folder):
    encoder = UMT5TextEncoder(umt5_folder, text_len=8, dtype="float32")
    out = encoder(["noon grass", "warm"])
    assert encoder.text_dim == 16
    assert out.shape == (2, 3, 16)
    assert out.dtype == torch.float32
    assert (out[1, 2] == 0).all()
    torch.testing.assert_close(out[1:, :2], encoder(["warm"]), atol=1e-5, rtol=1e-4)
    assert not any(weight.requires_grad for weight in encoder.parameters())


def test_umt5_cuts_at_its_text_length(umt5_folder):
    encoder = UMT5TextEncoder(umt5_folder, text_len=4)
    assert encoder(["noon " * 20]).shape == (1, 4, 16)


@pytest.mark.parametrize("missing", ["text_encoder", "tokenizer"])
def test_umt5_names_what_is_missing_before_it_loads_anything(missing, tmp_path, monkeypatch):
    for name, file in (("text_encoder", "config.json"), ("tokenizer", "tokenizer_config.json")):
        if name != missing:
            (tmp_path / name).mkdir()
            (tmp_path / name / file).write_text("{}")
    monkeypatch.setattr(UMT5EncoderModel, "from_pretrained", None)  # loading would be a TypeError
    with pytest.raises(FileNotFoundError, match=rf"{missing}.*Diffusers-style"):
        UMT5TextEncoder(tmp_path)
