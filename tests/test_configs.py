"""Every YAML composes, is typed, and instantiates what it names."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields
from functools import partial
from importlib.util import find_spec

import lightning as L
import pytest
import torch
from hydra.errors import ConfigCompositionException
from hydra.utils import get_method, instantiate
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError

from lingbot.conf.check import check_configuration
from lingbot.conf.renamed import RENAMED, with_new_names
from lingbot.conf.schemas import GROUPS
from lingbot.diffusion import FlowMatching
from lingbot.launch import check_options
from lingbot.model import CausalLingBotTransformer, KVCacheConfig, TransformerConfig
from lingbot.module import LingBotModule
from tests.commands import TINY, composed
from tests.conftest import REPOSITORY

CONF = REPOSITORY / "conf"
CHOICES = sorted(
    (path.parent.name, path.stem) for path in CONF.glob("*/*.yaml") if path.parent.name != "hydra"
)
COMMANDS = ("bench", "drift", "evaluate", "generate", "train")
OF_TRAINING = ("objective", "optimizer", "scheduler", "data")
# what a choice stands on: a codec to train, weights to load
NEEDS = {
    ("codec", "world"): ["weights=FOLDER"],
    ("codec", "wan"): ["weights=FOLDER"],
    ("text", "umt5"): ["weights=FOLDER"],
    **{
        ("experiment", name): ["weights=FOLDER"]
        for name in (
            "world_fast_14b", "world_fast_14b_streaming", "world_v2_14b", "world_v2_1_3b"
        )
    },
}  # fmt: skip


def command_of(group: str, name: str) -> str:
    """The command a choice is for: experiments and debug settings say so in their first lines."""
    if group in ("experiment", "debug"):
        text = (CONF / group / f"{name}.yaml").read_text()
        return next((name for name in COMMANDS if f"lingbot-{name}" in text), "generate")
    training = group in OF_TRAINING or name.startswith("train") or name.endswith("_training")
    return "train" if training else "generate"


def chosen(group: str, name: str, *overrides: str) -> DictConfig:
    command = command_of(group, name)
    choice = [f"{group}={name}"] if (group, name) != ("paths", "default") else []
    base = [] if group in ("codec", "experiment") else ["codec=blockworld_untrained"]
    weights = ["weights=null"] if command == "generate" and group != "experiment" else []
    return composed(command, [*base, *choice, *weights, *NEEDS.get((group, name), []), *overrides])


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=lambda value: value)
def test_every_yaml_composes_and_resolves(group, name):
    cfg = chosen(group, name)
    OmegaConf.resolve(cfg)
    assert group in ("experiment", "debug") or cfg[group] is not None


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_compose_as_they_are(command):
    cfg = composed(command)
    assert cfg.command == command
    assert cfg.paths.output_dir.startswith(f"outputs/{command}/")


@pytest.mark.parametrize(
    ("name", "billions"),
    [("tiny", 0.01), ("world_fast_14b", 18.5), ("world_v2_14b", 18.5), ("world_v2_1_3b", 1.7)],
)
def test_model_presets_have_the_size_they_are_named_after(name, billions):
    config = instantiate(chosen("model", name).model)
    assert isinstance(config, TransformerConfig)
    with torch.device("meta"):
        model = CausalLingBotTransformer(config)
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    assert count == pytest.approx(billions, rel=0.05)


@pytest.mark.parametrize("name", [name for group, name in CHOICES if group == "kv_cache"])
def test_kv_cache_presets_hold_the_chunks_they_are_for(name):
    cache = instantiate(chosen("kv_cache", name).kv_cache)
    assert isinstance(cache, KVCacheConfig)
    cache.check_chunk(4 if name == "v2" else 3)


def test_sampler_presets_are_the_published_ladders():
    ladders = {
        name: instantiate(chosen("sampler", name).sampler)
        for group, name in CHOICES
        if group == "sampler"
    }
    assert {name: (s.indices, s.schedule.shift) for name, s in ladders.items()} == {
        "v1": ((0, 179, 358, 679), 10.0),
        "v1_shift5": ((0, 179, 358, 679), 5.0),
        "v2": ((0, 250, 500, 750), 10.0),
        "v2_shift5": ((0, 250, 500, 750), 5.0),
    }


def test_the_schedule_is_one_word_for_driving_and_training():
    cfg = composed("train", ["schedule=exact", "codec=blockworld_untrained"])
    assert instantiate(cfg.sampler).schedule.kind == "exact"
    assert instantiate(cfg.objective).schedule.kind == "exact"


@pytest.mark.parametrize("policy", ["step", "denoise", "off"])
def test_the_conditioner_cache_is_chosen_by_its_policy(policy):
    cfg = composed("generate", [*TINY, "weights=null", f"conditioner_cache={policy}"])
    assert instantiate(cfg.module, _convert_="all").conditioner_cache == policy


@pytest.mark.parametrize(
    "name", ["world_fast_14b", "world_fast_14b_streaming", "world_v2_14b", "world_v2_1_3b"]
)
def test_experiments_of_the_public_checkpoints_fit_together(name):
    cfg = chosen("experiment", name)
    module = instantiate(cfg.module, _convert_="all")
    assert isinstance(module, LingBotModule)
    assert module.grid.tokens == 1560 * cfg.frames_per_chunk
    assert (cfg.frames_per_chunk == 4) == ("v2" in name)


@pytest.mark.parametrize("name", ["blockworld", "blockworld_frames"])
def test_data_modules_instantiate(name, tmp_path):
    cfg = composed("train", [*TINY, f"data={name}"], tmp_path)
    assert isinstance(instantiate(cfg.data, _convert_="all"), L.LightningDataModule)


@pytest.mark.parametrize("name", ["world_training", "codec_training"])
def test_training_modules_make_optimizer_and_schedule(name, tmp_path):
    cfg = composed("train", [*TINY, f"module={name}"], tmp_path)
    module = instantiate(cfg.module, _convert_="all")
    module.configure_model()
    made = module.configure_optimizers()
    assert made["optimizer"].param_groups[0]["betas"] == (0.9, 0.95)
    assert made["lr_scheduler"]["scheduler"].get_last_lr()[0] < cfg.optimizer.lr


@pytest.mark.parametrize("name", [name for group, name in CHOICES if group == "scheduler"])
def test_schedules_step_to_the_end_of_the_run(name):
    cfg = chosen("scheduler", name, "trainer.max_steps=20")
    if name == "warmup_cosine":
        cfg.scheduler.warmup_steps = 5
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = instantiate(cfg.scheduler)(optimizer)
    rates = []
    for _ in range(20):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert max(rates) == pytest.approx(1.0)
    if name == "warmup_cosine":
        assert rates[0] < 0.2
        assert schedule.get_last_lr()[0] == pytest.approx(cfg.scheduler.floor)


@pytest.mark.parametrize("name", [name for group, name in CHOICES if group == "strategy"])
def test_strategies_are_taken_by_a_trainer(name, tmp_path):
    cfg = composed("train", [*TINY, f"strategy={name}", "trainer.num_sanity_val_steps=0"], tmp_path)
    trainer = instantiate(cfg.trainer, logger=False, _convert_="all")
    assert isinstance(trainer, L.Trainer)
    assert trainer.world_size == 1


@pytest.mark.parametrize(
    ("group", "name"), [choice for choice in CHOICES if choice[0] in ("callbacks", "logger")]
)
def test_callbacks_and_loggers_are_named_nodes(group, name, tmp_path):
    if name == "wandb" and find_spec("wandb") is None:
        pytest.skip("W&B is not installed")
    command = "train" if name.startswith("train") else "generate"
    cfg = composed(command, [*TINY, "weights=null", f"{group}={name}"], tmp_path)
    made = [instantiate(node, _convert_="all") for node in cfg[group].values() if node is not None]
    assert all(isinstance(thing, Callback if group == "callbacks" else Logger) for thing in made)
    assert bool(made) == (name != "none")


def test_wandb_is_offline_unless_the_environment_says_otherwise(monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    overrides = [*TINY, "weights=null", "logger=wandb"]
    assert composed("generate", overrides).logger.wandb.mode == "offline"
    monkeypatch.setenv("WANDB_MODE", "online")
    assert composed("generate", overrides).logger.wandb.mode == "online"


@pytest.mark.parametrize("group", ["conditioner_cache", "paths"])
def test_an_unknown_key_of_a_group_that_makes_nothing_does_not_compose(group):
    with pytest.raises(ConfigCompositionException, match="nonsense"):
        composed("train", [*TINY, f"{group}.nonsense=1"])
    with pytest.raises(ConfigKeyError, match="nonsense"):  # as a YAML file would have it
        OmegaConf.merge(composed("train", TINY)[group], {"nonsense": 1})


@pytest.mark.parametrize(
    "override",
    ["model.dim=wide", "kv_cache.window=1.5", "sampler.indices=[a]", "seed=abc", "prompt=[a]",
     "camera.height=tall", "num_steps=some", "promt=dusk", "fps=fast"],
)  # fmt: skip
def test_a_value_of_another_type_is_refused(override):
    with pytest.raises(ConfigCompositionException):
        composed("generate", [*TINY, "weights=null", override])


@pytest.mark.parametrize(
    "schema", [schema for group in GROUPS.values() for schema in group.values()]
)
def test_schemas_name_the_parameters_of_what_they_make(schema):
    names = {field.name for field in fields(schema)}
    if "_target_" not in names:
        assert schema.__name__ in ("ConditionerCache", "Paths")
        return
    accepted = inspect.signature(get_method(schema._target_)).parameters
    takes_more = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    assert takes_more or names - {"_target_", "_partial_"} <= set(accepted)


def test_factories_stay_factories_and_data_gets_the_codec_itself(tmp_path):
    cfg = composed("train", TINY, tmp_path)
    assert isinstance(instantiate(cfg.codec), partial)
    assert not isinstance(instantiate(cfg.data, _convert_="all").codec, partial)


@pytest.mark.parametrize("group", sorted(GROUPS))
@pytest.mark.parametrize("sign", ["", "+", "++"])
def test_no_key_that_nobody_reads_is_taken(group, sign):
    if not sign and group in ("conditioner_cache", "paths"):
        return  # which does not even compose
    cfg = composed("train", [*TINY, f"{sign}{group}.nonsense=1"])
    with pytest.raises(ValueError, match=rf"^{group}\.nonsense: there is no such option"):
        check_configuration(cfg)


def test_a_misspelt_key_is_answered_with_the_one_that_was_meant():
    with pytest.raises(ValueError, match=r"model\.num_layer: .* did you mean num_layers\?"):
        check_configuration(composed("generate", [*TINY, "weights=null", "+model.num_layer=3"]))
    with pytest.raises(ValueError, match=r"^actoins: .* did you mean actions\?"):
        check_configuration(composed("generate", [*TINY, "weights=null", "+actoins=w-3"]))


def test_another_s_class_has_keys_of_its_own():
    for sign in ("", "+", "++"):
        own = ["objective._target_=somebody.Objective", f"{sign}objective.margin=0.1"]
        cfg = composed("train", [*TINY, *own])
        check_configuration(cfg)
        assert cfg.objective.margin == 0.1
    with pytest.raises(ConfigCompositionException, match="few_step_fraction"):  # types stay
        composed("train", [*TINY, "objective.few_step_fraction=some", *own])
    check_configuration(composed("train", [*TINY, "+callbacks.x={_target_: a.B, c: 1}"]))


class Weighted(FlowMatching):
    """An objective of one's own, with an option of its own."""

    def __init__(self, margin: float, **options) -> None:
        super().__init__(**options)
        self.margin = margin


def test_a_yaml_of_ones_own_adds_keys_to_a_typed_group(tmp_path):
    (tmp_path / "objective").mkdir()
    (tmp_path / "objective" / "mine.yaml").write_text(
        "defaults: [flow_matching, _self_]\n"
        "_target_: tests.test_configs.Weighted\nmargin: 0.1\nhistory_noise: 0.3\n"
    )
    cfg = composed(
        "train", [*TINY, f"hydra.searchpath=['file://{tmp_path}']", "objective=mine"], tmp_path
    )
    check_configuration(cfg)
    made = instantiate(cfg.module, _convert_="all").objective
    assert isinstance(made, Weighted)
    assert (made.margin, made.history_noise, made.frames_per_chunk) == (0.1, 0.3, 3)


@pytest.mark.parametrize(
    "override",
    [
        "camera.frames_per_chunk=4",
        "objective.frames_per_chunk=2",
        "data.height=64",
        "data.width=64",
    ],
)
def test_values_of_one_thing_that_differ_are_refused_by_both_names(override):
    key = override.split("=")[0]
    with pytest.raises(ValueError, match=rf"^{key}=\d+ and [\w.]+=\d+ must be alike"):
        check_configuration(composed("train", [*TINY, override]))


def test_a_codec_is_trained_at_any_size():
    check_configuration(composed("train", ["experiment=blockworld_codec", "data.height=64"]))


@pytest.mark.parametrize("name", [name for group, name in CHOICES if group == "experiment"])
def test_experiments_pass_the_checks_of_the_command_they_are_for(name):
    check_options(chosen("experiment", name))


def test_experiments_and_debug_settings_are_for_the_commands_they_name():
    for command in ("bench", "drift"):
        check_configuration(composed(command, ["experiment=bench_14b"]))
    with pytest.raises(ValueError, match="experiment=bench_14b is for lingbot-bench or lingbot-dr"):
        check_configuration(composed("generate", ["experiment=bench_14b", "weights=null"]))
    with pytest.raises(ValueError, match="debug=overfit is for lingbot-train, not for lingbot-gen"):
        check_configuration(composed("generate", ["debug=overfit"]))
    check_configuration(composed("train", ["debug=overfit"]))


@pytest.mark.parametrize("target", ["lingbot.nothing", "lingbot.muon"])
def test_a_target_of_ours_that_is_none_is_refused_by_its_place(target):
    with pytest.raises(ValueError, match=rf"model\._target_={target}: there is nothing"):
        check_configuration(
            composed("generate", [*TINY, "weights=null", f"model._target_={target}"])
        )


@pytest.mark.parametrize(
    ("given", "now"),
    [
        ("+kernels.parts=fused", "kernels.ops"),
        ("++kernels.attention=fp8", "kernels.kv"),
        ("kernels.linears=exact", "kernels.linears=bf16"),
        ("+module.recompute=blocks", "module.activation_checkpointing"),
        ("module.activation_checkpointing=all_but_attention", "CHECKPOINTING=selective"),
    ],
)
def test_an_option_of_before_is_refused_with_its_new_name(given, now):
    now = now.replace("CHECKPOINTING", "module.activation_checkpointing")
    with pytest.raises(ValueError, match=rf"^[\w.=]+: this is now {re.escape(now)}$"):
        check_configuration(composed("train", [*TINY, given]))


def test_what_hydra_says_of_an_old_key_is_told_with_its_new_name():
    with pytest.raises(ConfigCompositionException) as refused:
        composed("train", [*TINY, "module.recompute=blocks"])
    told = with_new_names(str(refused.value))
    assert told.startswith("module.recompute: this is now module.activation_checkpointing")
    assert "+module" not in told
    of_a_file = "Key 'recompute' not in 'Module' full_key: module.recompute"
    assert (
        with_new_names(of_a_file) == "module.recompute: this is now " + RENAMED["module.recompute"]
    )
    other = (
        "Could not override 'kernels.nonsense'. To append to your config use +kernels.nonsense=1"
    )
    assert with_new_names(other) == other


def test_new_names_are_options_that_there_are():
    cfg = composed("train", TINY)
    for new in RENAMED.values():
        key = new.split("=")[0]
        assert " " in key or OmegaConf.select(cfg, key) is not None, new
