"""Keys and values in 8-bit floating point, and attention in it: all of it in e4m3.

Queries and keys are normed, so they are stored as they are; values, and the output with them, times
a fixed power of two, so that ranks and steps share one scale and what has been kept never has to be
rescaled. On a GPU cuDNN attends (its Python frontend, the extra `[fp8]`): on Hopper at
1.4 times the rate of bfloat16. K/V cache and exchange hold and carry half the bytes.
Letters: B batch, S queries, T keys, H heads, D head width.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lingbot.kernels.fp8 import FP8, FP8_MAX
from lingbot.model.kv_format import KVFormat
from lingbot.model.sdpa import attend

VALUE_SCALE = 8.0  # values up to 56, and nothing above 0.002 loses digits
WEIGHT_SCALE = 256.0  # of the attention weights, which are at most 1


def check_frontend() -> None:
    """Raises ValueError where there is a GPU, but not what makes it attend in fp8."""
    if torch.cuda.is_available() and find_spec("cudnn") is None:
        raise ValueError(
            "kernels.kv='fp8' attends by cuDNN's Python frontend, which is not installed: "
            "pip install 'lingbot-on-lightning[fp8]', or choose kernels.kv=bf16"
        )


def encode(x: Tensor, scale: float = 1.0) -> Tensor:
    """x times `scale` in fp8, as near as it can be."""
    return (x.float() * scale).clamp(-FP8_MAX, FP8_MAX).to(FP8)


def encode_keys_values(k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values as the memory keeps them."""
    return encode(k), encode(v, VALUE_SCALE)


def decode_values(v: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values, or what attention made of them."""
    return (v.float() / VALUE_SCALE).to(dtype)


def attend_in_fp8(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [B, S, H, D], k and v [B, T, H, D], encoded -> attended values [B, S, H, D], encoded."""
    if not q.is_cuda:  # only the attention weights are not rounded here
        return encode(attend(q.float(), k.float(), v.float()))
    out = torch.empty(q.shape, dtype=FP8, device=q.device)
    shapes = tuple((tuple(x.shape), tuple(x.stride())) for x in (q, k, v, out))
    _graph(q.device, shapes).run(q, k, v, out)
    return out


class Fp8KV(KVFormat):
    """Keys and values in e4m3."""

    name = "fp8"

    def dtype(self, weights: torch.dtype) -> torch.dtype:
        return FP8

    def encode(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return encode(q), *encode_keys_values(k, v)

    def encode_kv(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return encode_keys_values(k, v)

    def decode_kv(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return k.float(), decode_values(v)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend_in_fp8(q, k, v)

    def decode(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        return decode_values(y, dtype)

    def fill_random(self, kept: Tensor, generator: torch.Generator) -> None:
        drawn = torch.empty(kept.shape, device=kept.device)  # fp8 cannot be drawn
        kept.copy_(drawn.normal_(generator=generator))


class _Scales(NamedTuple):
    """The numbers a graph takes, on its device."""

    one: Tensor
    weights: Tensor
    weights_back: Tensor
    largest: Tensor  # [2], what cuDNN says of weights and output; nobody asks


class _Graph:
    """cuDNN's plan for tensors of certain shapes [B, S, H, D] and strides.

    Args:
        device: of the tensors.
        shapes: shape and stride of q, k, v and the output.
    """

    def __init__(self, device: torch.device, shapes: tuple[Any, ...]) -> None:
        import cudnn

        types = cudnn.data_type
        self._handle, self._cudnn = _handle(device), cudnn
        graph = cudnn.pygraph(
            io_data_type=types.FP8_E4M3, intermediate_data_type=types.FLOAT,
            compute_data_type=types.FLOAT, handle=self._handle,
        )  # fmt: skip
        names = ("descale_q", "descale_k", "descale_v", "descale_s", "scale_s", "scale_o")
        one = {"dim": [1] * 4, "stride": [1] * 4}
        scales = {n: graph.tensor(name=n, data_type=types.FLOAT, **one) for n in names}
        *inputs, out = [
            {"dim": [s[i] for i in (0, 2, 1, 3)], "stride": [t[i] for i in (0, 2, 1, 3)]}
            for s, t in shapes
        ]
        q, k, v = (
            graph.tensor(name=name, data_type=types.FP8_E4M3, **where)
            for name, where in zip("qkv", inputs, strict=True)
        )
        width = shapes[0][0][-1]
        made, _, *largest = graph.sdpa_fp8(
            q=q, k=k, v=v, **scales, attn_scale=width**-0.5, generate_stats=False
        )
        made.set_output(True).set_dim(out["dim"]).set_stride(out["stride"])
        made.set_data_type(types.FP8_E4M3)
        for number in largest:
            number.set_output(True).set_dim([1] * 4).set_stride([1] * 4)
            number.set_data_type(types.FLOAT)
        graph.build([cudnn.heur_mode.A])
        self._graph, self._tensors = graph, (q, k, v, made)
        numbers = _scales(device)
        values = dict.fromkeys(names, numbers.one)
        values |= {"scale_s": numbers.weights, "descale_s": numbers.weights_back}
        self._constants = {scales[name]: value for name, value in values.items()}
        self._constants |= dict(zip(largest, numbers.largest.split(1), strict=True))
        size = max(1, graph.get_workspace_size())
        self._workspace = torch.empty(size, dtype=torch.uint8, device=device)

    def run(self, *tensors: Tensor) -> None:
        """q, k, v and the output to be filled, on the current stream."""
        stream = torch.cuda.current_stream(tensors[0].device).cuda_stream
        self._cudnn.set_stream(handle=self._handle, stream=stream)
        given = zip(self._tensors, (x.view(torch.uint8) for x in tensors), strict=True)
        self._graph.execute(self._constants | dict(given), self._workspace, handle=self._handle)


@cache
def _graph(device: torch.device, shapes: tuple[Any, ...]) -> _Graph:
    with torch.inference_mode(False):
        return _Graph(device, shapes)


@cache
def _handle(device: torch.device) -> Any:
    import cudnn

    with torch.cuda.device(device):
        return cudnn.create_handle()


@cache
def _scales(device: torch.device) -> _Scales:
    one, weights, back = (
        torch.full((1,), value, device=device) for value in (1.0, WEIGHT_SCALE, 1 / WEIGHT_SCALE)
    )
    return _Scales(one, weights, back, torch.zeros(2, device=device))
