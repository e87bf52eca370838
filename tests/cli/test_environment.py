"""Environment variables of launchers."""

from __future__ import annotations

import pytest

from lingbot import generate
from lingbot.cli.environment import check_environment


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MASTER_PORT", "70000"), ("MASTER_PORT", "-1"), ("MASTER_PORT", "http"),
        ("RANK", "first"), ("WORLD_SIZE", "0"), ("LOCAL_RANK", ""),
    ],
)  # fmt: skip
def test_what_no_launcher_means_is_refused_by_name(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=rf"{name} is '{value}': a whole number from"):
        check_environment()


def test_what_launchers_say_is_taken(monkeypatch):
    for name, value in (("MASTER_PORT", "29500"), ("RANK", "0"), ("WORLD_SIZE", "1")):
        monkeypatch.setenv(name, value)
    check_environment()


def test_a_command_refuses_it_in_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MASTER_PORT", "70000")
    monkeypatch.setattr("sys.argv", ["lingbot-generate"])
    with pytest.raises(SystemExit) as end:
        generate.main()
    assert end.value.code == 2
    assert "MASTER_PORT is '70000'" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())
