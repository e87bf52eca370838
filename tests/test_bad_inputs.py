"""Bad inputs made by chance: none is a traceback, none hangs, none that is nonsense is accepted.

    python -m tests.bad_inputs --count 1000 --seed 0

tries as many as are wanted; here are a few of every kind.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.bad_inputs.__main__ import is_right, told
from tests.bad_inputs.answers import Answer, answer
from tests.bad_inputs.files import make_files
from tests.bad_inputs.kinds import ACCEPTED, OPEN, REFUSED, Input, inputs

COUNT, SEED = 72, 20


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[Input]:
    folder = make_files(tmp_path_factory.mktemp("bad") / "files")
    return list(inputs(COUNT, SEED, folder))


@pytest.mark.processes
@pytest.mark.timeout(280)
def test_bad_inputs_are_refused_in_time_and_fine_ones_are_taken(given: list[Input]) -> None:
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda one: answer(one.command, list(one.options), 120), given))
    wrong = [told(*pair) for pair in zip(given, answers, strict=True) if not is_right(*pair)]
    assert not wrong, "\n" + "\n".join(wrong)


def test_inputs_are_of_every_kind_and_the_same_for_a_seed(given: list[Input], tmp_path: Path):
    kinds = Counter(one.kind for one in given)
    assert len(kinds) == 12
    assert len({(one.command, one.options) for one in given}) == COUNT
    folder = make_files(tmp_path / "files")
    again, others = (list(inputs(COUNT, seed, folder)) for seed in (SEED, SEED + 1))
    assert [one.kind for one in again] == [one.kind for one in given]
    assert again != others


@pytest.mark.parametrize(
    ("expected", "answered", "right"),
    [
        (REFUSED, "refused", True), (REFUSED, "accepted", False), (REFUSED, "traceback", False),
        (REFUSED, "hang", False), (ACCEPTED, "refused", False), (ACCEPTED, "accepted", True),
        (OPEN, "refused", True), (OPEN, "accepted", True), (OPEN, "exit 1", False),
    ],
)  # fmt: skip
def test_an_answer_is_right_or_wrong(expected: str, answered: str, right: bool) -> None:
    one = Input("numbers", "lingbot-generate", (), expected)
    assert is_right(one, Answer(answered, "")) is right


@pytest.mark.processes
def test_what_hangs_is_ended_and_what_fails_is_told() -> None:
    hanging = answer("lingbot-generate", ["--help"], limit_s=0.001)
    assert hanging.kind == "hang"
    assert answer("lingbot-generate", ["--help"]).kind == "accepted"
    refused = answer("lingbot-parity", ["--ranks=none", "file"])
    assert refused.kind == "refused"
    assert "--ranks" in refused.said
