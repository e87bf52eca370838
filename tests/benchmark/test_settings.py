import pytest

from lingbot.bench import bench, prepare
from lingbot.benchmark.settings import parse_compare, split_values
from lingbot.cli.arguments import for_hydra
from lingbot.errors import UserError
from tests.commands import TINY, composed

SMALL = [o for o in TINY if not o.startswith("trainer.")] + ["device=cpu", "threads=1"]


def settings_of(*overrides: str):
    given = [*SMALL, *for_hydra(overrides)]
    return prepare(composed("bench", given), given)


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ("conditioner_cache:[step,denoise,off]", "conditioner_cache", ["step", "denoise", "off"]),
        ("strategy.uniform_fast_path:[true, false]", "strategy.uniform_fast_path",
         ["true", "false"]),
        ("sampler.indices:[[0,179],[0,250,500]]", "sampler.indices", ["[0,179]", "[0,250,500]"]),
    ],
)  # fmt: skip
def test_a_comparison_is_a_key_and_its_values(text, key, values):
    assert parse_compare(text) == (key, values)


def test_commas_in_brackets_and_quotes_do_not_split():
    assert split_values("a, {b: [1,2]}, 'c,d'") == ["a", "{b: [1,2]}", "'c,d'"]


def test_every_setting_is_composed_anew_from_the_command_line():
    overrides = ("conditioner_cache=off", "compare=conditioner_cache:[step,denoise]")
    settings, plan = settings_of(*overrides, "kv_cache.window=12")
    assert [s.label for s in settings] == ["conditioner_cache=step", "conditioner_cache=denoise"]
    assert [s.module["conditioner_cache"] for s in settings] == ["step", "denoise"]
    assert [s.module["kv_cache"]["window"] for s in settings] == [12, 12]
    assert settings[0].module["model"] == settings[1].module["model"]
    assert plan.ranks == (1,)


def test_any_option_can_be_compared():
    settings, _ = settings_of("compare=decode:[true,false]")
    assert [s.decode for s in settings] == [True, False]
    settings, _ = settings_of("compare=kernels:[reference,fast]")
    assert [s.module["kernels"]["ops"] for s in settings] == ["reference", "triton"]
    settings, _ = settings_of("compare=dtype:[float32,bfloat16]")
    assert [s.dtype for s in settings] == ["float32", "bfloat16"]


def test_strategies_are_compared_on_two_ranks_unless_ranks_says_otherwise():
    settings, plan = settings_of("compare=strategy.uniform_fast_path:[true,false]")
    assert plan.ranks == (2,)
    assert [s.strategy["uniform_fast_path"] for s in settings] == [True, False]
    _, plan = settings_of("compare=strategy.uniform_fast_path:[null,false]", "ranks=[1,2]")
    assert plan.ranks == (1, 2)


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (["compare=conditioner_cache"], "KEY:"),
        (["compare=conditioner_cache:[step]"], "two or more"),
        (["compare=conditioner_cache:[step,step]"], "different values"),
        (["compare=conditioner_cache:[step,never]"], "never.*does not compose"),
        (["compare=nonsense:[1,2]"], "nonsense=1 does not compose.*option or a group"),
        (["compare=ranks:[1,2]"], r"same for all settings; ranks=\[1,2\]"),
        (["compare=steps:[1,2]"], "same for all settings"),
        (["compare=conditioner_cache:[step,off]", "sessions=3"], "sessions=3.*even"),
        (["ranks=3"], "4 attention heads.*1, 2, 4"),
        (["ranks=[1,1]"], "different ones"),
        (["ranks=0"], "ranks=0"),
        (["ranks=some"], "ranks=some"),
        (["ranks=64", "model.num_heads=64", "model.dim=768"], "ranks=64: each rank is a process"),
        (["steps=0"], "steps=0: give a whole number from 1"),
        (["steps=1000000000"], "steps=1000000000"),
        (["warmup_steps=-1"], "warmup_steps=-1: give a whole number from 0"),
        (["threads=1000000"], "threads=1000000"),
        (["timeout_s=nan"], "timeout_s=nan"),
        (["timeout_s=inf"], "timeout_s=inf"),
        (["strategy.push=true"], "push=true: the ranks"),
        (["model.num_layers=1000000"], "GiB of memory would be needed"),
        (["text.text_dim=5"], "text.text_dim=5 and model.text_dim=64 must be alike"),
        (["sessions=0"], "sessions=0"),
        (["threads=0"], "threads=0"),
        (["timeout_s=0"], "timeout_s=0"),
        (["seed=-1"], "seed=-1"),
        (["device=tpu"], "device='tpu'.*auto, cpu or cuda"),
        (["dtype=float8"], "dtype='float8'.*bfloat16"),
        (["kv_cache=full"], "no steady state.*kv_cache=sliding"),
        (["strategy=ddp"], "strategy=sequence_parallel"),
        (["strategy=auto"], "strategy=sequence_parallel"),
        (["strategy.sequence_size=2"], "give ranks="),
        (["strategy.uniform_fast_path=true", "camera.height=48", "ranks=4"], "equal splits"),
        (["compare=strategy.push:[true,false]"], "push=true"),
        (["strategy.push=true", "camera.height=48", "ranks=4"], "equal splits"),
        (["camera.translation_scale=offline"], "translation_scale"),
        (["weights=nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_built(
    overrides, complaint, tmp_path, monkeypatch
):
    monkeypatch.setattr("lingbot.bench.measure_on", lambda *_: pytest.fail("ranks were started"))
    given = [*(o for o in SMALL if o.split("=")[0] != overrides[0].split("=")[0]),
             *for_hydra(overrides)]  # fmt: skip
    with pytest.raises(UserError, match=complaint):
        bench(composed("bench", given, tmp_path), given)
    assert not list(tmp_path.rglob("*"))


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    given = [*SMALL, "device=cuda", "ranks=[1,2]"]
    with pytest.raises(ValueError, match="there are 1 here"):
        prepare(composed("bench", given), given)


def test_a_launcher_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="starts its ranks itself"):
        bench(composed("bench", SMALL, tmp_path), SMALL)
