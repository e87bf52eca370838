"""lingbot-evaluate on a tiny random world: what it writes, prints and refuses."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image
from rich.console import Console

from lingbot.evaluate import evaluate
from lingbot.launch import UserError
from lingbot.score_report import scores_table, write_metrics
from lingbot.scores import ChunkScore, SceneScore, summarize
from tests.commands import TINY, composed

SMALL = [
    *(override for override in TINY if not override.startswith("trainer.")),
    "weights=null", "device=cpu", "num_scenes=2", "num_chunks=2", "chunks=[1,2]",
    "frames_per_chunk=2", "readme_scenes=[2]", "sheet_columns=3", "readme_columns=2",
]  # fmt: skip


def test_an_evaluation_writes_its_numbers_with_all_they_depend_on_and_its_pictures(tmp_path):
    folders = [tmp_path / name for name in ("one", "two")]
    made = [evaluate(composed("evaluate", SMALL, folder)) for folder in folders]
    assert made[0] == made[1]  # the seed decides
    assert [summary.chunk for summary in made[0]] == [1, 2]
    found = {path.name: path for path in folders[0].rglob("*") if path.is_file()}
    assert set(found) == {"metrics.json", "contact_sheet.png", "scenes_01-02.png"}
    metrics = json.loads(found["metrics.json"].read_text())
    assert metrics["num_scenes"] == len(metrics["squared_errors"]) == 2
    assert metrics["num_frames"] == 1 + 4 + 8
    assert metrics["seed"] == 0
    assert metrics["device"].startswith("CPU")
    assert set(metrics["versions"]) >= {"lingbot", "torch"}
    assert metrics["chunks"][1]["psnr_db"]["generated"] == made[0][1].generated
    assert metrics["chunks"][1]["psnr_db"]["over_floor"] == made[0][1].over_floor
    assert 0 <= metrics["chunks"][1]["control_accuracy"] <= 1
    narrow, wide = (
        Image.open(found[name]).width for name in ("contact_sheet.png", "scenes_01-02.png")
    )
    assert narrow < wide


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("chunks=[3]", "chunks.*from 1 to 2"),
        ("chunks=[]", "chunks.*from 1 to 2"),
        ("chunks=[1,1]", "different numbers"),
        ("num_scenes=0", "num_scenes=0: give a whole number from 1 to 100,000"),
        ("num_scenes=1000000000", "num_scenes=1000000000"),
        ("num_chunks=1000000000", "num_chunks=1000000000"),
        ("other_drives=0", "other_drives=0: give a whole number from 1 to 1,000"),
        ("other_drives=1000000000", "other_drives=1000000000"),
        ("sheet_scenes=-1", "sheet_scenes=-1"),
        ("sheet_columns=0", "sheet_columns=0"),
        ("readme_columns=0", "readme_columns=0"),
        ("fps=0", "fps=0"),
        ("readme_scenes=[0]", "readme_scenes=0.*1 or more"),
        ("camera.translation_scale=offline", "longest step of the whole drive"),
        ("kv_cache={window: 1000000000, sink: 0}", "GiB of memory would be needed"),
        ("device=cuda:7", "device='cuda:7'"),
        ("split=holdout", "split='holdout'.*train, val, test"),
        ("device=tpu", "device='tpu'.*auto, cpu, cuda"),
        ("num_chunks=49", "choose kv_cache=sliding"),
        ("seed=-1", "seed=-1"),
        ("weights=nowhere", "nowhere"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(override, complaint, tmp_path):
    with pytest.raises(UserError, match=complaint):
        evaluate(composed("evaluate", [*SMALL, override], tmp_path))
    assert not list(tmp_path.rglob("*.json"))


def score(generated: float, *others: float) -> SceneScore:
    return SceneScore(0, "dusk", (ChunkScore(4, generated, 1.0, 100.0, others),))


def test_the_table_tells_the_gain_and_how_many_scenes_were_followed():
    summaries = summarize([score(10.0, 20.0, 30.0), score(10.0, 5.0, 30.0), score(10.0)])
    console = Console(width=100, file=io.StringIO())
    console.print(scores_table(summaries, "3 scenes"))
    text = console.file.getvalue()
    assert "chunk 4" in text
    assert "10.00" in text  # dB gained: a tenth of the error
    assert "50.0% (1/2)" in text


def test_numbers_that_are_not_finite_are_written_as_null(tmp_path):
    scores = [score(0.0)]
    write_metrics(tmp_path / "metrics.json", {"seed": 1}, summarize(scores), scores)
    chunk = json.loads((tmp_path / "metrics.json").read_text())["chunks"][0]
    assert chunk["psnr_db"]["generated"] is None
    assert chunk["control_accuracy"] is None
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
