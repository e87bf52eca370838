"""python -m tests.bad_inputs --count 1000 --seed 0"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bad_inputs.answers import Answer, answer
from tests.bad_inputs.files import make_files
from tests.bad_inputs.kinds import OPEN, Input, inputs, with_options


def is_right(given: Input, answered: Answer) -> bool:
    """Whether an input was answered as it should be."""
    if given.expected == OPEN:
        return answered.kind in ("refused", "accepted")
    return answered.kind == given.expected


def told(given: Input, answered: Answer) -> str:
    """An input that was answered wrongly, in two lines."""
    base = set(with_options(given.command))
    own = [option for option in given.options if option not in base]
    lines = [line for line in answered.said.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if "HYDRA_FULL_ERROR" not in line), "")
    return (
        f"{given.kind}: {given.command} ... {shlex.join(own)}\n"
        f"    {given.expected} expected, {answered.kind}: {last[:200]}"
    )


def table(answers: Iterable[tuple[Input, Answer]]) -> str:
    """Inputs by their kinds, and how they were answered."""
    counts: dict[str, Counter[str]] = {}
    for given, answered in answers:
        counter = counts.setdefault(given.kind, Counter())
        counter[answered.kind] += 1
        counter["right"] += is_right(given, answered)
    heads = ("kind", "inputs", "right", "refused", "accepted", "traceback", "hang", "other")
    rows = []
    for kind, counter in sorted(counts.items()):
        total = counter.total() - counter["right"]
        named = [counter[head] for head in heads[2:-1]]
        rows.append([kind, total, *named, total - sum(named[1:])])
    rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, len(heads)))])
    return "\n".join(
        f"{row[0]:<18}" + "".join(f"{value:>11}" for value in row[1:]) for row in [heads, *rows]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Tries bad inputs on all commands.")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for an answer")
    options = parser.parse_args()
    for name, value in (("OMP_NUM_THREADS", "1"), ("HF_HUB_OFFLINE", "1"), ("MPLBACKEND", "agg")):
        os.environ.setdefault(name, value)
    with tempfile.TemporaryDirectory() as folder:
        given = list(inputs(options.count, options.seed, make_files(Path(folder) / "files")))
        with ThreadPoolExecutor(options.processes) as pool:
            answers = pool.map(
                lambda one: answer(one.command, list(one.options), options.limit), given
            )
            pairs = []
            for pair in zip(given, answers, strict=True):
                pairs.append(pair)
                if not is_right(*pair):
                    print(told(*pair), flush=True)
    print(f"\n{table(pairs)}")
    sys.exit(not all(is_right(*pair) for pair in pairs))


if __name__ == "__main__":
    main()
