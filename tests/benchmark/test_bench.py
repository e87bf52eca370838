"""lingbot-bench on a tiny world: what it measures, writes and says."""

from __future__ import annotations

import io
import json
import multiprocessing

import pytest
import torch
from PIL import Image
from rich.console import Console

from lingbot.bench import bench, prepare
from lingbot.benchmark.ranks import measure_on
from lingbot.benchmark.report import differences_table, results_table
from lingbot.benchmark.results import difference
from lingbot.benchmark.worlds import Worlds
from lingbot.cli.arguments import for_hydra
from lingbot.parallel.failure import RankFailure
from tests.benchmark.test_settings import SMALL
from tests.commands import composed

QUICK = ["sessions=2", "steps=2", "warmup_steps=1", "kv_cache.window=6", "kv_cache.sink=3"]
COMPARE = "compare=conditioner_cache:[step,off]"


def run(tmp_path, *overrides: str):
    given = [*SMALL, *QUICK, "model.num_layers=2", *for_hydra(overrides)]
    return bench(composed("bench", given, tmp_path), given)


def text_of(table) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


@pytest.mark.processes
@pytest.mark.timeout(200)
def test_settings_and_ranks_come_in_one_report_with_every_step_in_it(tmp_path):
    among = run(tmp_path, COMPARE, "ranks=[1,2]")
    assert [(r.ranks, r.label) for r in among] == [
        (n, f"conditioner_cache={policy}") for n in (1, 2) for policy in ("step", "off")
    ]
    made = {path.name: path for path in tmp_path.rglob("*") if path.is_file()}
    assert {"bench.json", "bench.png", "metrics.csv"} <= set(made)
    assert Image.open(made["bench.png"]).width > 800
    assert "bench/conditioner_cache_off_2_ranks/step_ms" in made["metrics.csv"].read_text()

    report = json.loads(made["bench.json"].read_text())
    assert report["command"].startswith("lingbot-bench ")
    assert report["environment"]["versions"]["torch"] == torch.__version__
    assert {"cpu", "driver", "cuda", "date"} <= set(report["environment"])
    policies = [setting["module"]["conditioner_cache"] for setting in report["compared"]]
    assert policies == ["step", "off"]
    alone, off_alone, together, _ = report["settings"]
    for setting in report["settings"]:
        summary = setting["summary"]
        assert (summary["measured_steps"], summary["left_out_steps"]) == (4, 4)
        assert summary["mfu"] is None
        assert summary["frames_per_second"] > 0
        assert summary["floor_ms"] > 0
        assert summary["peak_memory_bytes"] > 0
        assert 0 < summary["cadence_ms"]["p50"] <= summary["cadence_ms"]["p99"]
        assert [row["step"] for row in setting["steps"]] == [3, 4, 3, 4]  # after 2 are pretended
        for row in setting["steps"]:
            assert row["frames"] == 12
            for rank in row["ranks"]:
                parts = ("passes_ms", "context_update_ms", "camera_ms", "decode_ms", "host_ms")
                assert sum(rank[p] for p in parts) == pytest.approx(rank["step_ms"], abs=0.5)
                assert rank["key_to_frame_ms"] <= rank["step_ms"]
    assert alone["summary"]["speed_up_of_step"] == 1
    assert together["summary"]["speed_up_of_step"] > 0
    assert "exchange" in together["facts"][1]["floor"]["parts_ms"]
    assert "exchange" not in alone["facts"][0]["floor"]["parts_ms"]
    sent = together["summary"]["figures"]
    assert {"communication/qkv/uniform/ms", "communication/out/uniform/bytes"} <= set(sent)
    assert alone["summary"]["flops_per_step"] == together["summary"]["flops_per_step"]
    assert alone["summary"]["flops_per_step"] < off_alone["summary"]["flops_per_step"]
    compared = [(c["ranks"], c["setting"], c["against"]) for c in report["comparisons"]]
    policies = ("conditioner_cache=off", "conditioner_cache=step")
    assert compared == [(1, *policies), (2, *policies)]
    assert set(report["comparisons"][0]) >= {"context_update_ms", "transformer_ms", "step_ms"}

    more = difference(among[0], among[1], "conditioner_misses")
    assert more.ms.mean == 2 * 5 - 1 - 2  # all but the context update's last block, not 2 once
    assert more.ms.low == more.ms.high
    table, differences = text_of(results_table(among)), text_of(differences_table(among))
    for row in ("context update", "qkv, uniform", "frames a second", "fraction of the roofline"):
        assert row in table
    assert "against conditioner_cache=step" in differences
    assert "conditioner_cache=off, 2 ranks" in differences
    assert not multiprocessing.active_children()


@pytest.mark.processes
def test_a_rank_that_fails_is_told_with_its_traceback_and_none_is_left(tmp_path):
    given = [*SMALL, *QUICK]
    settings, plan = prepare(composed("bench", given, tmp_path), given)
    settings[0].module["codec"]["base_dim"] = 0  # nobody checks the codec's sizes beforehand
    told: list[str] = []
    line = r"^rank 0 \(pid \d+\) raised .* with ranks=1 \(last heard: measuring the floor\)"
    with pytest.raises(RankFailure, match=line + "; nothing was written") as failure:
        measure_on(1, settings, plan, told.append)
    assert str(failure.value.__cause__).startswith("rank 0 of 1 failed:\nTraceback")
    assert told == ["measuring the floor"]
    assert not multiprocessing.active_children()


@pytest.mark.processes
def test_a_rank_that_is_killed_is_told_by_name_and_the_other_is_ended(tmp_path):
    given = [*SMALL, *QUICK]
    settings, plan = prepare(composed("bench", given, tmp_path), given)
    pids: list[int] = []

    def kill(text: str) -> None:
        if text.startswith("session 1"):
            (second,) = (p for p in multiprocessing.active_children() if p.name == "rank 1 of 2")
            pids.append(second.pid)
            second.kill()

    with pytest.raises(RankFailure) as failure:
        measure_on(2, settings, plan, kill)
    assert str(failure.value).startswith(
        f"rank 1 (pid {pids[0]}) died of signal 9 with ranks=2 (last heard: session 1 of 2"
    )
    assert str(failure.value).endswith("; the others were ended; nothing was written")
    assert failure.value.failure.code == 1
    assert failure.value.__cause__ is None
    assert not multiprocessing.active_children()


def test_settings_of_the_same_nodes_share_what_is_built_and_others_get_the_same_weights(tmp_path):
    given = [*SMALL, *for_hydra([COMPARE])]
    (step, off), _ = prepare(composed("bench", given, tmp_path), given)
    worlds = Worlds(torch.device("cpu"), seed=0)
    first, second = worlds.module(step), worlds.module(off)
    assert first.transformer is second.transformer
    assert first.codec is second.codec
    assert (first.conditioner_cache, second.conditioner_cache) == ("step", "off")

    given = [*SMALL, *for_hydra(["compare=kernels.cuda_graph:[false,true]"])]
    (plain, graphed), _ = prepare(composed("bench", given, tmp_path), given)
    assert worlds.module(plain).transformer is worlds.module(graphed).transformer
    assert worlds.module(graphed).kernels.cuda_graph

    given = [*SMALL, *for_hydra(["compare=dtype:[float32,bfloat16]"])]
    (exact, rough), _ = prepare(composed("bench", given, tmp_path), given)
    before = worlds.module(exact)
    after = worlds.module(rough)
    assert before.transformer is first.transformer
    assert after.transformer is not before.transformer
    assert after.transformer.dtype == torch.bfloat16
    assert torch.get_default_dtype() == torch.float32
    again = worlds.module(exact)
    assert again.transformer is not before.transformer
    for here, there in zip(
        before.transformer.parameters(), again.transformer.parameters(), strict=True
    ):
        assert torch.equal(here, there)


@pytest.mark.gpu
@pytest.mark.processes
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_is_measured_in_bfloat16_with_its_memory(tmp_path):
    given = [o for o in [*SMALL, *QUICK] if not o.startswith("device")]
    (result,) = bench(composed("bench", given, tmp_path), given)
    assert result.facts.dtype == "bfloat16"
    assert result.records[0].device == torch.cuda.get_device_name()
    assert 0 < result.peak_bytes < torch.cuda.get_device_properties(0).total_memory
    assert result.floor_ms > 0
