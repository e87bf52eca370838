"""What tells the transformer which frame a video begins with."""

from torch import Tensor

MASK = 4  # channels: 1 where a frame is given


def image_condition(latent: Tensor, frames: int) -> Tensor:
    """Mask and image latents [B, 20, frames, h, w] of a clip that begins with an image.

    Later chunks of a video have zeros in their place.

    Args:
        latent: of the image, [B, 16, 1, h, w].
    """
    batch, channels, _, height, width = latent.shape
    condition = latent.new_zeros(batch, MASK + channels, frames, height, width)
    condition[:, :MASK, 0] = 1
    condition[:, MASK:, :1] = latent
    return condition
