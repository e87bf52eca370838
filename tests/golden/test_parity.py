import json

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from lingbot.parity import compare_file, main

CAUSAL = ("causal_global.safetensors", "causal_window.safetensors")


def altered(source, target, name: str, change: float, metadata: dict[str, str] | None = None):
    """A copy of a golden file in which one tensor is off by `change`."""
    with safe_open(source, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        told = file.metadata() | (metadata or {})
    if name in tensors:
        tensors[name].view(-1)[-1] += change
    save_file(tensors, target, metadata=told)
    return target


@pytest.mark.parametrize("name", CAUSAL)
def test_every_golden_tensor_is_met_within_2e_5(golden_dir, name):
    rows = {row.tensor: row for row in compare_file(golden_dir / name)}
    assert {"flow", "x0", "context_flow", "cache_k_last", "cache_v_last"} <= rows.keys()
    assert all(row.ok and row.tolerance <= 2e-5 for row in rows.values()), rows


@pytest.mark.processes
@pytest.mark.parametrize(("ranks", "uniform"), [(2, None), (4, False)])
def test_sequence_parallel_ranks_meet_them_too_on_both_paths(golden_dir, ranks, uniform):
    rows = compare_file(golden_dir / CAUSAL[1], ranks, uniform)
    assert all(row.ok for row in rows), rows


def test_camera_and_schedule_files_are_met(golden_dir):
    rows = compare_file(golden_dir / "camera_schedule.safetensors")
    assert len(rows) == 16
    assert all(row.ok for row in rows), rows


@pytest.mark.parametrize("name", ["flow", "x0", "context_flow", "cache_v_last", "x0_sigmas"])
def test_a_tensor_beyond_tolerance_exits_with_1_and_says_which(golden_dir, tmp_path, capsys, name):
    wrong = altered(golden_dir / CAUSAL[1], tmp_path / "wrong.safetensors", name, 1e-3)
    assert main([str(wrong), "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["files"][str(wrong)]
    assert [row["tensor"] for row in rows if not row["ok"]] == [name]


def test_files_that_cannot_be_used_exit_with_2_and_say_why(golden_dir, tmp_path, capsys):
    text = tmp_path / "text.safetensors"
    text.write_text("not tensors")
    odd = altered(golden_dir / CAUSAL[1], tmp_path / "odd.safetensors", "", 0, {"dim": "97"})
    for path, says in (
        (tmp_path / "none.safetensors", "no such file"),
        (text, "not a safetensors file"),
        (odd, "dim=97"),
    ):
        assert main([str(path)]) == 2
        assert says in capsys.readouterr().err
    assert main([str(golden_dir / CAUSAL[0]), "--ranks", "3"]) == 2
    assert "1, 2, 4" in capsys.readouterr().err


@pytest.mark.parametrize("ranks", ["0", "-1", "two"])
def test_ranks_that_are_no_number_exit_with_2_for_any_file(ranks, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--ranks", ranks, "camera_schedule.safetensors"])
    assert end.value.code == 2
    assert f"'{ranks}' is no number of processes" in capsys.readouterr().err


def test_the_table_names_every_tensor(golden_dir, capsys):
    assert main([str(golden_dir / CAUSAL[1])]) == 0
    printed = capsys.readouterr().out
    assert "flow" in printed
    assert "ok" in printed
    assert "BEYOND" not in printed
