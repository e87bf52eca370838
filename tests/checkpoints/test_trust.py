"""A run's configuration is code: what may be built unasked, and what needs the user's word."""

from __future__ import annotations

import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lingbot.checkpoints.trust import check_targets
from tests.commands import TINY, composed
from tests.conftest import REPOSITORY

CONF = REPOSITORY / "conf"
CALLED: list[str] = []


def remember(*words: str) -> None:
    """What a malicious run would have called."""
    CALLED.extend(words)


def test_every_configuration_of_the_package_is_trusted():
    for path in CONF.rglob("*.yaml"):
        check_targets(OmegaConf.load(path), source=path)


@pytest.mark.parametrize("command", ["bench", "drift", "evaluate", "generate", "train"])
def test_what_the_commands_compose_is_trusted(command, tmp_path):
    check_targets(composed(command, folder=tmp_path))


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "builtins.exec",
        "subprocess.Popen",
        "hydra.utils.get_method",
        "hydra.utils.instantiate",
        "importlib.import_module",
        "torch.load",
        "torch.hub.load",
        "tests.checkpoints.test_trust.remember",
        # through what an allowed module has imported
        "torch.optim.optimizer.os.system",
        "torch.optim.lr_scheduler.types.FunctionType",
        "lightning.pytorch.callbacks.model_checkpoint.shutil.rmtree",
        "lightning.pytorch.callbacks.os",
        "lingbot.launch.os.system",
        "lingbot.launch.hydra.utils.call",
        "lingbot.launch.instantiate",
        "lingbot.module.torch.load",
        # our own, but no business of a configuration
        "lingbot.checkpoints.atomic.shutil.rmtree",
        "lingbot.launch.run_command",
        "lingbot.module.LingBotModule.load_from_checkpoint",
        "lingbot.world.load_checkpoint",
        "lingbot.no_such_module.Thing",
        "lingbotevil.Thing",
        "wandb.init",
        "",
        "LingBotModule",
        "${callback}",
        None,
        ["os", "system"],
    ],
)
def test_targets_that_could_do_anything_are_refused_by_name(target):
    with pytest.raises(ValueError, match=r"a\.b\.\d names .*trust_run_code=true"):
        check_targets({"a": {"b": [{"_target_": target, "_partial_": True}]}})


@pytest.mark.parametrize(
    "target",
    [
        "torch.optim.SGD",
        "torch.optim.lr_scheduler.OneCycleLR",
        "lightning.pytorch.callbacks.WeightAveraging",
        "lightning.pytorch.strategies.FSDPStrategy",
        "lightning.pytorch.loggers.TensorBoardLogger",
        "lingbot.callbacks.StepProgress",
        "lingbot.muon.Muon",
        "lingbot.codec.video.VideoCodec",
    ],
)
def test_what_researchers_add_to_a_run_is_trusted(target):
    check_targets(OmegaConf.create({"x": {"_target_": target, "_partial_": True}}))


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:HOME}",
        "${oc.env:AWS_SECRET_ACCESS_KEY,none}",
        "a\\${oc.env:HOME}",
        "${oc.decode:'[1]'}",
        "${oc.decode:${text}}",
        '${oc.decode:${oc.env:LOCAL_WORLD_SIZE,"{_target_: os.system}"}}',
        "${oc.create:{_target_: os.system}}",
        "${oc.dict.values:x}",
        "${hydra:runtime.cwd}",
        "${unknown:x}",
        "${shipped_world:${oc.env:HOME}}",
        "${broken",
    ],
)
def test_interpolations_that_read_more_than_the_run_are_refused(value):
    with pytest.raises(ValueError, match=r"prompt is .*look values of the run up"):
        check_targets({"prompt": value})


@pytest.mark.parametrize(
    "value",
    ["${model.dim}", "${a.${b}.c}", "${claim_folder:${paths.root_dir}/${command}}",
     "${shipped_world:blockworld}/codec",
     "${instance_of:codec}", '${oc.decode:${oc.env:LOCAL_WORLD_SIZE,"1"}}',
     "${oc.env:WANDB_MODE,offline}", "plain $ text"],
)  # fmt: skip
def test_interpolations_of_the_package_are_trusted(value):
    check_targets({"prompt": value})


@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "wandb.Settings", "base_url": "https://example.org"},
        {"_target_": "wandb.Settings", "_args_": ["https://example.org"]},
        {
            "_target_": "lightning.pytorch.loggers.WandbLogger",
            "settings": {"base_url": "https://example.org"},
        },
        {"_target_": "lightning.pytorch.loggers.WandbLogger", "experiment": "x"},
    ],
)
def test_a_run_cannot_send_the_users_key_to_another_server(node):
    with pytest.raises(ValueError, match="more than runs may"):
        check_targets({"logger": {"wandb": node}})


def test_the_users_word_lets_a_run_build_what_it_names(tmp_path):
    cfg = composed("train", TINY, tmp_path)
    called = {"_target_": "tests.checkpoints.test_trust.remember", "_args_": ["called"]}
    OmegaConf.update(cfg, "callbacks.x", called, force_add=True)
    with pytest.raises(ValueError, match=r"run/config.*callbacks\.x names .*--trust-run-code"):
        check_targets(cfg, source="run/config.yaml", remedy="--trust-run-code")
    assert not CALLED
    check_targets(cfg, trusted=True)
    instantiate(cfg.callbacks.x)
    assert CALLED == ["called"]
