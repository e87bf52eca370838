import json
import os

import pytest
import torch
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


def test_a_file_that_is_not_there_is_told_where_such_files_come_from(tmp_path, capsys):
    assert main([str(tmp_path / "none.safetensors")]) == 2
    assert "computed by the published LingBot-World code" in capsys.readouterr().err


@pytest.mark.timeout(60)
def test_what_is_no_file_of_tensors_exits_with_2_in_one_line(golden_dir, tmp_path, capsys):
    whole = (golden_dir / CAUSAL[1]).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-1000])
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "empty.safetensors").touch()
    save_file({"flow": torch.zeros(1)}, tmp_path / "plain.safetensors")
    os.mkfifo(tmp_path / "pipe.safetensors")
    for name, says in (
        ("cut", "not a safetensors file"),
        ("pointer", "git lfs pull"),
        ("empty", "is empty"),
        ("plain", "no metadata"),
        ("pipe", "a pipe or a device"),
    ):
        assert main([str(tmp_path / f"{name}.safetensors")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
    assert main([str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"num_layers": "1000000000"}, "num_layers=1000000000, and the weights are of 2"),
        ({"num_layers": "1"}, "the weights are of 2"),
        ({"dim": "192"}, "'model."),
        ({"num_chunks": "5"}, "'noise' is [16, 18, 8, 12], by the metadata it is [16, 15, 8, 12]"),
        ({"num_chunks": "0"}, "by the metadata"),
        ({"frames_per_chunk": "-3"}, "by the metadata"),
        ({"text_len": "1000000000"}, "text_len=1000000000: give a whole number"),
        ({"text_len": "2"}, "'text' is [13, 48]: up to 2 tokens"),
        ({"local_attn_size": "1000000000"}, "local_attn_size=1000000000: at most"),
        ({"local_attn_size": "0"}, "window"),
        ({"flow_shift": "nan"}, "no sampler"),
        ({"flow_shift": "five"}, "no sampler"),
        ({"timestep_indices": "[0]"}, "by the metadata"),
        ({"timestep_indices": "0"}, "no sampler"),
        ({"patch_size": "1,0,2"}, ""),
        ({"patch_size": "one"}, "no model"),
        ({"control_type": "act"}, "'control' is"),
        ({"num_chunks": "many"}, "num_chunks='many' is not a whole number"),
    ],
    ids=str,
)
def test_metadata_of_other_tensors_exit_with_2_in_one_line(
    metadata, says, golden_dir, tmp_path, capsys
):
    odd = altered(golden_dir / CAUSAL[1], tmp_path / "odd.safetensors", "", 0, metadata)
    assert main([str(odd)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


@pytest.mark.parametrize("name", ["text", "noise", "renoise", "model.head.head.weight", "flow"])
def test_a_tensor_that_is_missing_exits_with_2_and_is_named(name, golden_dir, tmp_path, capsys):
    with safe_open(golden_dir / CAUSAL[1], "pt") as file:
        kept = {key: file.get_tensor(key) for key in file.keys() if key != name}  # noqa: SIM118
        save_file(kept, tmp_path / "less.safetensors", metadata=file.metadata())
    assert main([str(tmp_path / "less.safetensors")]) == 2
    assert f"tensor {name!r} is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "shape"), [("00.poses", (81, 3)), ("00.plucker_packed", (3,)), ("action.a", (1,))]
)
def test_a_camera_file_of_other_shapes_is_told(name, shape, golden_dir, tmp_path, capsys):
    with safe_open(golden_dir / "camera_schedule.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        save_file(
            tensors | {name: torch.zeros(shape)}, tmp_path / "odd.safetensors", file.metadata()
        )
    code = main([str(tmp_path / "odd.safetensors")])
    assert code == (1 if name == "action.a" else 2)
    assert "Traceback" not in capsys.readouterr().err
