"""What launchers tell a process by environment variables, held to what they mean."""

from __future__ import annotations

import os

HIGHEST_PORT = 65_535
WHOLE_NUMBERS = {
    "MASTER_PORT": (1, HIGHEST_PORT),
    "WORLD_SIZE": (1, 1_000_000),
    "RANK": (0, 1_000_000),
    "LOCAL_RANK": (0, 1_000_000),
    "LOCAL_WORLD_SIZE": (1, 1_000_000),
    "NODE_RANK": (0, 1_000_000),
    "OMP_NUM_THREADS": (1, 1_000_000),
}


def check_environment() -> None:
    """Refuses what no launcher could have meant.

    Raises:
        ValueError: naming the variable, its value and what it may be.
    """
    for name, (low, high) in WHOLE_NUMBERS.items():
        value = os.environ.get(name)
        if value is None:
            continue
        if not value.strip().isdecimal() or not low <= int(value) <= high:
            raise ValueError(
                f"the environment variable {name} is {value!r}: a whole number from {low} to "
                f"{high:,} belongs there; unset it, or set it right"
            )
