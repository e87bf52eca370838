"""Options that had another name or value before: they are refused with the new one named.

A later rename adds a line to `RENAMED`, with the value where only that has changed.
"""

from __future__ import annotations

import re

from omegaconf import DictConfig, OmegaConf

CHECKPOINTING = "module.activation_checkpointing"
RENAMED = {
    "kernels.name": "left out, since options tell what runs",
    "kernels.parts": "kernels.ops",
    "kernels.attention": "kernels.kv",
    "kernels.rows": "kernels.ops",
    "kernels.fuse_decode": "kernels.vae=fused",
    "kernels.graph_decode": "kernels.cuda_graph",
    "kernels.ops=eager": "kernels.ops=reference",
    "kernels.ops=fused": "kernels.ops=triton",
    "kernels.linears=exact": "kernels.linears=bf16",
    "kernels.kv=exact": "kernels.kv=bf16",
    "module.recompute": CHECKPOINTING,
    f"{CHECKPOINTING}=nothing": f"{CHECKPOINTING}=none",
    f"{CHECKPOINTING}=blocks": f"{CHECKPOINTING}=full",
    f"{CHECKPOINTING}=all_but_attention": f"{CHECKPOINTING}=selective",
}
# how Hydra says that there is no such key: on the command line, and in a YAML file
UNKNOWN = re.compile(
    r"Could not override '([\w.]+)'\.( To append to your config use \+[^\s);]+)?"
    r"|Key '\w+' not in '\w+' full_key: ([\w.]+)"
)


def check_renamed(cfg: DictConfig) -> None:
    """Refuses keys and values by names that they had before.

    Raises:
        ValueError: naming the new one.
    """
    for old in RENAMED:
        key, _, value = old.partition("=")
        found = OmegaConf.select(cfg, key, default=None)
        if found is not None and value in ("", str(found)):
            raise ValueError(_refusal(old))


def with_new_names(message: str) -> str:
    """A message of Hydra's, in which keys of an old name are told by their new one."""

    def told(found: re.Match[str]) -> str:
        key = found[1] or found[3]
        return _refusal(key) if key in RENAMED else found[0]

    return UNKNOWN.sub(told, message)


def _refusal(old: str) -> str:
    return f"{old}: this is now {RENAMED[old]}"
