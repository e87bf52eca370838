"""Codecs between what people see and read and what the transformer works on.

`video` turns frames into latents and back, `streaming` chunk by chunk, `split` shared out over
ranks; `text` turns prompts into embeddings; `training` trains a small video codec.
"""

from lingbot.codec.split import SplitDecoder, make_decoder
from lingbot.codec.text import ByteTextEncoder, UMT5TextEncoder
from lingbot.codec.video import (
    StreamingDecoder,
    VideoCodec,
    build_codec,
    frames_to_uint8,
    load_codec,
    uint8_to_frames,
)

__all__ = [
    "ByteTextEncoder",
    "SplitDecoder",
    "StreamingDecoder",
    "UMT5TextEncoder",
    "VideoCodec",
    "build_codec",
    "frames_to_uint8",
    "load_codec",
    "make_decoder",
    "uint8_to_frames",
]
