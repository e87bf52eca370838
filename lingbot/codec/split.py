"""Decoding shared out over the ranks of a sequence group: each decodes a strip of the picture.

The Wan decoder attends over the whole frame once, at the resolution of the latents, where little
is computed; after that it only convolves. So every rank runs the whole frame through that
beginning, and then its own columns alone, with as many neighbouring ones as the convolutions still
to come reach. These are fewer at every resolution, and are cut away on the way. What is cut at the
end has seen a border that is not there; what remains equals a decode of the whole picture.
Autoencoder: Wan (arXiv:2503.20314).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from lingbot.codec.streaming import StreamingDecoder
from lingbot.codec.video import VideoCodec
from lingbot.model.exchange import Exchange
from lingbot.parallel.splits import Splits, even_splits

log = logging.getLogger(__name__)

Decode = Literal["auto", "split", "whole"]
WORTHWHILE = 0.9  # of the whole work; a strip that needs more is not worth an exchange


@dataclass(frozen=True)
class StripPlan:
    """Which columns each rank decodes, and which it needs for them.

    Args:
        splits: columns of the latents per rank.
        scales: columns that one latent column has become at the input of each up block; the last
            entry is that of the decoder's output.
        halos: columns beside a strip that an up block, and all that follows it, reaches; at the
            resolution of the block's input, one entry a block.
    """

    splits: Splits
    scales: tuple[int, ...]
    halos: tuple[int, ...]

    def strip(self, rank: int) -> tuple[int, int]:
        """Columns [begin, end) that the rank decodes, at the decoder's output."""
        begin, scale = self.splits.start(rank), self.scales[-1]
        return begin * scale, (begin + self.splits.sizes[rank]) * scale

    def begin(self, rank: int, block: int) -> int:
        """The first column that the rank still has, where an up block or what follows takes it."""
        if block == 0:
            return 0
        return self.needed(rank, block - 1)[0] * self.scales[block] // self.scales[block - 1]

    def needed(self, rank: int, block: int) -> tuple[int, int]:
        """Columns [begin, end) of an up block's input that the rank's strip depends on.

        What follows the last block is the decoder's output, of which that is the strip.
        """
        if block == len(self.halos):
            return self.strip(rank)
        begin, scale, halo = self.splits.start(rank), self.scales[block], self.halos[block]
        end = (begin + self.splits.sizes[rank]) * scale
        return max(0, begin * scale - halo), min(self.splits.total * scale, end + halo)

    def work(self, decoder: nn.Module, rank: int) -> float:
        """Multiply-adds of the rank's convolutions as a fraction of those of a whole decode."""
        beginning, *blocks = convolution_work(decoder)
        done = float(beginning)
        for block, work in enumerate(blocks):
            begin, end = self.needed(rank, block)
            done += work * (end - begin) / (self.splits.total * self.scales[block])
        return done / (beginning + sum(blocks))


class SplitDecoder(StreamingDecoder):
    """Streams one video: `pictures` are whole on every rank, `decode` gives this rank's strip.

    Args:
        codec: the codec, the same on every rank.
        exchange: the sequence group.
        width: columns of the latents.

    Raises:
        ValueError: fewer columns than ranks.
    """

    def __init__(self, codec: VideoCodec, exchange: Exchange, width: int) -> None:
        super().__init__(codec)
        self.plan = plan_strips(codec.vae.decoder, width, exchange.size)
        self._exchange = exchange
        patch = codec.vae.config.patch_size or 1
        strips = [self.plan.strip(rank) for rank in range(exchange.size)]
        self._widths = tuple((end - begin) * patch for begin, end in strips)

    def gather(self, strip: Tensor) -> Tensor:
        """Whole pictures from the strips of all ranks: a collective."""
        return self._exchange.gather_strips(strip, self._widths)

    def _needed(self, x: Tensor, place: int) -> Tensor:
        rank = self._exchange.rank
        left, right = self.plan.needed(rank, place)
        begin = self.plan.begin(rank, place)
        return x[..., left - begin : right - begin]

    def _check(self, latents: Tensor) -> None:
        super()._check(latents)
        if latents.shape[-1] != self.plan.splits.total:
            raise ValueError(
                f"latents of {latents.shape[-1]} columns, but the strips were planned for "
                f"{self.plan.splits.total}: make a decoder for this width"
            )


def make_decoder(
    codec: VideoCodec, exchange: Exchange, width: int, decode: str = "auto"
) -> StreamingDecoder:
    """The decoder of a session, by name.

    Args:
        codec: the codec.
        exchange: the sequence group; on one rank there is nothing to share.
        width: columns of the latents.
        decode: `split` shares the picture out over the ranks, `whole` decodes all of it on every
            rank. `auto` shares it out on GPUs, where the busiest rank saves a tenth or more; on
            CPUs it decodes whole pictures, since their kernels may round a strip otherwise (in
            bfloat16 those of AMX do) and any number of ranks is to make the same bytes.

    Raises:
        ValueError: an unknown name, or `split` with fewer columns than ranks.
    """
    check_decode(decode)
    ranks, convolutions = exchange.size, codec.vae.decoder
    same_bytes = decode == "auto" and codec.device.type == "cpu"
    if decode == "whole" or same_bytes or ranks == 1 or (decode == "auto" and ranks > width):
        chosen, why = codec.stream(), "whole pictures on every rank"
    else:
        split = SplitDecoder(codec, exchange, width)
        most = max(split.plan.work(convolutions, rank) for rank in range(ranks))
        chosen, why = split, f"split into strips, at most {most:.0%} of the work on a rank"
        if decode == "auto" and most > WORTHWHILE:
            chosen = codec.stream()
            why = f"whole pictures on every rank, since strips with halos need {most:.0%} of them"
    if ranks > 1 and exchange.rank == 0:
        log.info("Decoding on %d ranks: %s (decode=%s).", ranks, why, decode)
    return chosen


def check_decode(decode: str) -> str:
    """Return the name of a way to decode, or raise ValueError where it is none."""
    if decode not in get_args(Decode):
        raise ValueError(f"decode={decode!r} is not known: choose one of {get_args(Decode)}")
    return decode


def plan_strips(decoder: nn.Module, width: int, ranks: int) -> StripPlan:
    """Strips of equal width, or nearly so, of `width` latent columns.

    Raises:
        ValueError: fewer columns than ranks.
    """
    if ranks > width:
        raise ValueError(
            f"{ranks} ranks cannot share {width} columns of latents: use decode=whole or at most "
            f"{width} ranks"
        )
    scales = [1]
    for block in decoder.up_blocks:  # type: ignore[union-attr]
        scales.append(scales[-1] * _growth(block))
    return StripPlan(even_splits(width, ranks), tuple(scales), block_halos(decoder))


def block_halos(decoder: nn.Module) -> tuple[int, ...]:
    """Columns that the pixels of a strip depend on beside it, at the input of every up block.

    Counted backwards from the pixels. A convolution k wide reaches (k - 1) / 2 columns further.
    Upsampling makes two columns of one, so n columns come from n / 2, rounded up: exact, since the
    edges of a strip are edges of latent columns and fall between two source columns everywhere.
    Shortcuts reach less than what they lead around, and time has no width: the features remembered
    of earlier frames reach as far as those of the present one.
    """
    reach = _reach(decoder.conv_out, 0)  # type: ignore[arg-type]
    halos = []
    for block in reversed(list(decoder.up_blocks)):  # type: ignore[arg-type]
        for layer in reversed(list(block.modules())):
            reach = _reach(layer, reach)
        halos.append(reach)
    return tuple(reversed(halos))


def convolution_work(decoder: nn.Module) -> list[int]:
    """Multiply-adds a latent pixel and frame: of the beginning, then of each up block.

    The head belongs to the last block; attention in the middle, below 1%, is left out.
    """
    beginning = [decoder.conv_in, *decoder.mid_block.modules()]  # type: ignore[union-attr]
    works, area, frames = [sum(_weights(layer) for layer in beginning)], 1, 1
    for block in decoder.up_blocks:  # type: ignore[union-attr]
        work = 0
        for layer in block.modules():
            if isinstance(in_time := getattr(layer, "time_conv", None), nn.Conv3d):
                work += _weights(in_time) * area * frames  # then the frames are twice as many
                frames *= 2
            if isinstance(layer, nn.Upsample):
                area *= 4
            elif not _only_in_time(layer):
                work += _weights(layer) * area * frames
        works.append(work)
    works[-1] += _weights(decoder.conv_out) * area * frames  # type: ignore[arg-type]
    return works


def _reach(layer: nn.Module, beyond: int) -> int:
    """Columns beside its input's edge that `beyond` columns beside its output's depend on."""
    if isinstance(layer, nn.Upsample):
        return -(-beyond // 2)
    if isinstance(layer, nn.Conv2d | nn.Conv3d):
        return beyond + layer.kernel_size[-1] // 2
    return beyond


def _growth(block: nn.Module) -> int:
    return 2 ** sum(isinstance(layer, nn.Upsample) for layer in block.modules())


def _weights(layer: nn.Module) -> int:
    return layer.weight.numel() if isinstance(layer, nn.Conv2d | nn.Conv3d) else 0


def _only_in_time(layer: nn.Module) -> bool:
    if not isinstance(layer, nn.Conv3d):
        return False
    return layer.kernel_size[0] > 1 and layer.kernel_size[1:] == (1, 1)
