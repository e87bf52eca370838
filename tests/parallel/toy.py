"""A toy sequence-parallel LightningModule with exact arithmetic, and its poisoned data.

Weights before the shard, between the exchanges and after the gather; float64, so that ranks and
meshes can be compared to rounding error.
"""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lingbot.model.exchange import Exchange, LocalExchange
from lingbot.parallel.sequence_parallel import SequenceParallelMixin

HEADS, WIDTH, CHANNELS, CHUNKS = 12, 2, 3, 2
MODEL = HEADS * WIDTH


class Clips(Dataset):
    """Regression clips; off a sequence group's first rank the data is wrong, on purpose."""

    def __init__(self, tokens: int, size: int = 16, poison: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(7)
        shape = (size, CHUNKS, tokens, CHANNELS)
        self.x, self.y = (
            torch.randn(shape, generator=generator, dtype=torch.float64) + poison for _ in range(2)
        )

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self.x[index], "y": self.y[index], "name": f"clip {index}"}


class Toy(pl.LightningModule):
    """One attention block over each chunk, trained by regression."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.losses: list[float] = []
        self.names: list[str] = []

    def configure_model(self) -> None:
        if hasattr(self, "embed"):
            return
        torch.manual_seed(3)
        self.embed = nn.Linear(CHANNELS, MODEL)
        self.block = nn.ModuleDict(
            {"qkv": nn.Linear(MODEL, 3 * MODEL), "out": nn.Linear(MODEL, MODEL)}
        )
        self.head = nn.Linear(MODEL, CHANNELS)
        self.after = nn.Linear(CHANNELS, CHANNELS)
        self.double()

    def exchange(self) -> Exchange:
        if isinstance(self.trainer.strategy, SequenceParallelMixin):
            return self.trainer.strategy.exchange(self.tokens, HEADS)
        return LocalExchange(HEADS)

    def forward(self, x: Tensor) -> Tensor:
        exchange = self.exchange()
        x = exchange.shard(self.embed(x), dim=2)
        q, k, v = self.block["qkv"](x).unflatten(-1, (3 * HEADS, WIDTH)).chunk(3, dim=3)
        q, k, v = exchange.to_heads(exchange.pack(q, k, v))
        scores = torch.einsum("bcqhd,bcshd->bchqs", q, k).softmax(-1)
        y = exchange.to_tokens(torch.einsum("bchqs,bcshd->bcqhd", scores, v))
        return self.after(exchange.gather(self.head(x + self.block["out"](y.flatten(-2)))))

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = (self(batch["x"]) - batch["y"]).square().mean()
        self.losses.append(loss.item())
        self.names.append(" ".join(batch["name"]))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.02)

    def whole_weights(self) -> dict[str, Tensor]:
        return {
            name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone()
            for name, p in self.named_parameters()
        }


class ShardedToy(Toy):
    """The toy with FSDP2 weights."""

    def configure_model(self) -> None:
        built = hasattr(self, "embed")
        super().configure_model()
        if not built and self.device_mesh is not None:
            world = self.device_mesh["data", "sequence"]._flatten("world")
            fully_shard(self.block["qkv"], mesh=world)
            fully_shard(self.block["out"], mesh=world)
            for layer in (self.embed, self.head, self.after):
                fully_shard(layer, mesh=world)


def train(
    toy: Toy, batch_size: int, devices: int = 1, poison: float = 0.0, **kwargs: Any
) -> pl.Trainer:
    """Two optimizer steps of two accumulated batches each."""
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=devices,
        max_epochs=1,
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )
    clips = Clips(toy.tokens, poison=poison)
    # Lightning shuffles when it shards; one device has to be given the same order
    sampler = DistributedSampler(clips, num_replicas=1, rank=0) if devices == 1 else None
    trainer.fit(toy, DataLoader(clips, batch_size=batch_size, sampler=sampler))
    return trainer
