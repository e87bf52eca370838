"""Whether this machine can compile kernels, asked of torch before anything is built."""

from __future__ import annotations

import os

import torch


def check_compiler(choice: str) -> None:
    """Refuses kernels that torch would compile in C++ where it finds no compiler.

    On a GPU they are compiled by Triton.

    Args:
        choice: the option that asks for them.

    Raises:
        ValueError: naming the choice, what torch looked for and what to do.
    """
    if torch.cuda.is_available():
        return
    from torch._inductor.cpp_builder import get_cpp_compiler  # which takes a second to import
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError) as error:
        looked = os.environ.get("CXX", "g++")
        raise ValueError(
            f"{choice}: torch.compile needs a C++ compiler on CPUs, and {looked} does not run: "
            "install g++, set CXX to a compiler, or choose kernels=reference"
        ) from error
