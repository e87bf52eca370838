"""Muon: momentum whose matrices are made orthogonal before each step.

Weights of linear and convolution layers are seen as matrices `[out, in * kernel]`; other parameters
take Adam steps. A weight with an attribute `stacked` is that many matrices one above the other,
each of them made orthogonal by itself (see `lingbot.kernels.linears.PackedLinear`).
torch.optim.Muon takes neither convolutions nor the rest. A small model learns far more from each of
its first thousand steps than with AdamW, which counts where steps are dear.
Orthogonalisation: the Newton-Schulz iteration of Jordan et al. (2024),
https://kellerjordan.github.io/posts/muon.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lingbot.model.checks import check_count, check_number

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

    Raises:
        ValueError: for rates, decays or sizes that are none.
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
        check_number("optimizer.lr", lr, above=0)
        check_number("optimizer.adam_ratio", adam_ratio, low=0)
        check_count("optimizer.smallest_side", smallest_side)
        if len(betas) != 2:
            raise ValueError(f"optimizer.betas={betas}: give two, as in [0.9,0.99]")
        for name, decay in (("momentum", momentum), ("betas", betas[0]), ("betas", betas[1])):
            if check_number(f"optimizer.{name}", decay, low=0, high=1) == 1:
                raise ValueError(f"optimizer.{name}={decay}: give a number below 1, as in 0.9")
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
        """One step; `closure` recomputes the loss and is run first, as Lightning does.

        All weights move together: a step of a small model is otherwise thousands of small kernels,
        and takes longer to launch than the passes.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            for take_step, wanted in ((muon_step, True), (adam_step, False)):
                chosen = [w for w in weights if is_matrix(w, group["smallest_side"]) is wanted]
                if chosen:
                    take_step(chosen, [self.state[w] for w in chosen], group)
        return loss


def is_matrix(weight: Tensor, smallest_side: int) -> bool:
    """Whether a parameter is a weight wide enough to be treated as a matrix, or as several."""
    if weight.dim() < 2:
        return False
    return min(weight.shape[0] // matrices_in(weight), weight[0].numel()) >= smallest_side


def matrices_in(weight: Tensor) -> int:
    """How many matrices of the same size a weight is, one above the other."""
    return getattr(weight, "stacked", 1)


def muon_step(weights: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]) -> None:
    """Move `weights` along their orthogonalised Nesterov momentum, those of one shape at once."""
    grads = [weight.grad for weight in weights if weight.grad is not None]
    for weight, state in zip(weights, states, strict=True):
        if not state:
            state["mean"] = torch.zeros_like(weight)
    means = [state["mean"] for state in states]
    torch._foreach_lerp_(means, grads, 1 - group["momentum"])
    ahead = torch._foreach_lerp(grads, means, group["momentum"])
    alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
    for weight, direction in zip(weights, ahead, strict=True):
        count = matrices_in(weight)
        for matrix, part in zip(weight.chunk(count), direction.chunk(count), strict=True):
            alike.setdefault(part.flatten(1).shape, []).append((matrix, part))
    for (rows, columns), pairs in alike.items():
        directions = orthogonalise(torch.stack([part.flatten(1) for _, part in pairs]))
        moved = [matrix for matrix, _ in pairs]
        steps = [d.view_as(w) for d, w in zip(directions.unbind(), moved, strict=True)]
        torch._foreach_add_(moved, steps, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def adam_step(weights: list[Tensor], states: list[dict[str, Any]], group: dict[str, Any]) -> None:
    """Move `weights` by an Adam step of rate `lr * adam_ratio`."""
    for weight, state in zip(weights, states, strict=True):
        if not state:
            state.update(step=0, mean=torch.zeros_like(weight), square=torch.zeros_like(weight))
        state["step"] += 1
    first, second = group["betas"]
    grads = [weight.grad for weight in weights if weight.grad is not None]
    means, squares = ([state[name] for state in states] for name in ("mean", "square"))
    torch._foreach_lerp_(means, grads, 1 - first)
    torch._foreach_lerp_(squares, torch._foreach_mul(grads, grads), 1 - second)
    steps = torch._foreach_div(means, [1 - first ** state["step"] for state in states])
    scales = torch._foreach_div(squares, [1 - second ** state["step"] for state in states])
    torch._foreach_sqrt_(scales)
    torch._foreach_add_(scales, 1e-8)
    torch._foreach_div_(steps, scales)
    torch._foreach_add_(weights, steps, alpha=-group["lr"] * group["adam_ratio"])


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices to `[..., rows, columns]`, roughly.

    Their singular values come out near 1.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = LINEAR * x + (CUBIC * gram + QUINTIC * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)
