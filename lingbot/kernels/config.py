"""The choice of kernels."""

from __future__ import annotations

from dataclasses import dataclass

from lingbot.kernels.compiler import check_compiler
from lingbot.kernels.fp8_kv import check_frontend
from lingbot.kernels.registry import REGISTRY
from lingbot.model.checks import check_choice, check_switch

PRECISIONS = ("bf16", "fp8")
VAES = ("reference", "fused")


@dataclass(frozen=True)
class KernelConfig:
    """How arithmetic is carried out; what it computes stays the same.

    Args:
        ops: the arithmetic of a block: `reference`, one kernel per operation; `compiled` by
            `torch.compile`; or fused by hand in `triton`, driving only, where the weights are on a
            GPU, and compiled elsewhere.
        pack_qkv: q, k and v of self-attention out of one matmul.
        linears: the blocks' linears in `bf16`, which stands for the weights' own precision, or in
            `fp8`; driving only.
        kv: keys, values and self-attention in `bf16` or `fp8` likewise; driving only.
        vae: the decoder as published, `reference`, or `fused`, see `lingbot.kernels.vae`.
        cuda_graph: on CUDA, sessions decode by a recorded graph, see `lingbot.kernels.cuda_graph`.

    Raises:
        ValueError: for an unknown choice, or one that this machine lacks something for.
    """

    ops: str = "reference"
    pack_qkv: bool = False
    linears: str = "bf16"
    kv: str = "bf16"
    vae: str = "reference"
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        check_choice("kernels.ops", self.ops, tuple(REGISTRY))
        check_choice("kernels.linears", self.linears, PRECISIONS)
        check_choice("kernels.kv", self.kv, PRECISIONS)
        check_choice("kernels.vae", self.vae, VAES)
        check_switch("kernels.pack_qkv", self.pack_qkv)
        check_switch("kernels.cuda_graph", self.cuda_graph)
        if REGISTRY[self.ops].packed_only and not self.pack_qkv:
            raise ValueError(
                f"kernels.ops={self.ops} makes q, k and v at once: set kernels.pack_qkv=true"
            )
        if self.kv == "fp8":
            check_frontend()
        if self.ops != "reference":
            check_compiler(f"kernels.ops={self.ops}")

    def check_training(self) -> None:
        """Refuses kernels that have no backward pass.

        Raises:
            ValueError: naming those that have one.
        """
        for option, value, trains in (
            ("ops", self.ops, REGISTRY[self.ops].trains),
            ("linears", self.linears, self.linears != "fp8"),
            ("kv", self.kv, self.kv != "fp8"),
        ):
            if not trains:
                raise ValueError(
                    f"kernels.{option}={value} is for driving: train with kernels=reference or "
                    "kernels=compiled"
                )
