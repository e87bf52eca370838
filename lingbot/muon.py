"""Muon: momentum whose matrices are made orthogonal before each step.

Weights of linear and convolution layers are seen as matrices `[out, in * kernel]`; other parameters
take Adam steps. torch.optim.Muon takes neither convolutions nor the rest. A small model learns far
more from each of its first thousand steps than with AdamW, which counts where steps are dear.
Orthogonalisation: the Newton-Schulz iteration of Jordan et al. (2024),
https://kellerjordan.github.io/posts/muon.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# Quintic whose iterates take singular values in (0, 1] to about 1, fastest near 0 (Jordan et al.)
LINEAR, CUBIC, QUINTIC = 3.4445, -4.7750, 2.0315
ITERATIONS = 5


class Muon(Optimizer):
    """Muon on weight matrices, Adam on the rest.

    Args:
        params: the parameters.
        lr: step length of Muon: the spectral norm of a change of a weight matrix.
        momentum: decay of the running mean of the gradients.
        adam_ratio: Adam's learning rate as a share of `lr`, so that one schedule serves both.
        betas: decay rates of Adam's moments.
        smallest_side: weights with fewer rows or columns take Adam steps.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.02,
        momentum: float = 0.9,
        adam_ratio: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.99),
        smallest_side: int = 5,
    ) -> None:
        if lr <= 0:
            raise ValueError(f"lr must be positive, got {lr}.")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}.")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "adam_ratio": adam_ratio,
            "betas": tuple(betas),
            "smallest_side": smallest_side,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; `closure` recomputes the loss and is run first, as Lightning does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    matrix = is_matrix(weight, group["smallest_side"])
                    take_step = muon_step if matrix else adam_step
                    take_step(weight, weight.grad, self.state[weight], group)
        return loss


def is_matrix(weight: Tensor, smallest_side: int) -> bool:
    """Whether a parameter is a weight wide enough to be treated as a matrix."""
    return weight.dim() >= 2 and min(weight.shape[0], weight[0].numel()) >= smallest_side


def muon_step(weight: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """Move `weight` along its orthogonalised Nesterov momentum."""
    if not state:
        state["mean"] = torch.zeros_like(weight)
    mean = state["mean"].lerp_(grad, 1 - group["momentum"])
    direction = orthogonalise(grad.lerp(mean, group["momentum"]).flatten(1))
    tall = max(1.0, weight.shape[0] / weight[0].numel()) ** 0.5
    weight.add_(direction.view_as(weight), alpha=-group["lr"] * tall)


def adam_step(weight: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    """Move `weight` by an Adam step of rate `lr * adam_ratio`."""
    if not state:
        state.update(step=0, mean=torch.zeros_like(weight), square=torch.zeros_like(weight))
    state["step"] += 1
    first, second = group["betas"]
    mean = state["mean"].lerp_(grad, 1 - first) / (1 - first ** state["step"])
    square = state["square"].lerp_(grad.square(), 1 - second) / (1 - second ** state["step"])
    weight.sub_(group["lr"] * group["adam_ratio"] * mean / (square.sqrt() + 1e-8))


def orthogonalise(matrix: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix to `[rows, columns]`, roughly: singular values near 1."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = wide.bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = LINEAR * x + (CUBIC * gram + QUINTIC * gram @ gram) @ x
    return (x.T if wide is not matrix else x).to(matrix.dtype)
