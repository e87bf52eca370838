"""What the entry points share: the command line, refusals in one line, the run folder, loggers.

Hydra composes; our own checks come before any work and end in exit code 2 with a message instead of
a traceback. Processes of one run, whoever started them, share one folder.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError

from lingbot.building import build
from lingbot.camera.controls import LONGEST_CHUNK
from lingbot.checkpoints.atomic import atomic_file
from lingbot.checkpoints.run_options import apply_run
from lingbot.checkpoints.world_options import apply_world
from lingbot.cli.arguments import for_hydra
from lingbot.cli.ending import end_for_rank, exit_code, interrupted, shows_all
from lingbot.cli.environment import check_environment
from lingbot.cli.folders import srun_task
from lingbot.cli.noise import silence
from lingbot.cli.terminal import make_tolerant
from lingbot.cli.wandb_run import begin_run, end_runs, is_wandb
from lingbot.conf.check import check_configuration
from lingbot.conf.renamed import with_new_names
from lingbot.data.video_file import FASTEST
from lingbot.errors import UserError
from lingbot.model.checks import check_count
from lingbot.model.checks import check_seed as check_seed
from lingbot.parallel.failure import RankFailure
from lingbot.termination import end_with_parent
from lingbot.trainer_options import check_trainer

log = logging.getLogger(__name__)

REFUSALS = (
    ValueError, OSError, OmegaConfBaseException, HydraException, MisconfigurationException,
    SafetensorError, torch.OutOfMemoryError,
)  # fmt: skip
FIRST_RANK = "LINGBOT_FIRST_RANK"  # tells ranks that Lightning starts who started them


class Preparation:
    """Everything before the first step, until `done` is called."""

    def __init__(self) -> None:
        self.going_on = True

    def done(self) -> None:
        """The work has begun: errors are no longer about what was asked for."""
        self.going_on = False


class FirstStep(Callback):
    """Ends a preparation with the first batch of a Trainer."""

    def __init__(self, preparation: Preparation) -> None:
        self._preparation = preparation

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any
    ) -> None:
        self._preparation.done()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._preparation.done()


@contextmanager
def refusing() -> Iterator[Preparation]:
    """Turns what checks and constructors object to into `UserError`, one line each.

    What is raised after the yielded preparation is done passes as it is.
    """
    preparation = Preparation()
    try:
        yield preparation
    except REFUSALS as error:
        if not preparation.going_on or isinstance(error, UserError):
            raise
        raise UserError(_one_line(_cause(error))) from error


def _cause(error: BaseException) -> BaseException:
    """The error that Hydra met when it made something, if it is about what was asked for.

    Raises:
        BaseException: that error, where it is a fault in the code.
    """
    cause = error.__cause__
    if not isinstance(error, InstantiationException) or cause is None:
        return error
    # Lightning's word on a wrong number of devices is a TypeError
    misfit = any(words in str(cause) for words in ("unexpected keyword argument", "`devices`"))
    if isinstance(cause, REFUSALS) or misfit:
        return cause
    if isinstance(cause, (ImportError, AttributeError, ModuleNotFoundError)):
        return error  # a target that is not there
    raise cause


def run_command(task: Callable[[DictConfig], Any], name: str) -> None:
    """Composes `conf/NAME.yaml` with the command line and runs the task.

    The process ends with 0, with 2 for input that is refused, with 1 for an error, and as shells
    expect of a process that a signal ends: 130 for Ctrl-C, 143 for SIGTERM. With HYDRA_FULL_ERROR=1
    whatever is told in one line shows its traceback, too.
    """
    began = False
    ended: list[Exception] = []

    def run(cfg: DictConfig) -> Any:
        """What is told in one line passes Hydra by, which has one of its own; not in a sweep."""
        try:
            return job(cfg)
        except (UserError, FloatingPointError) as error:
            if HydraConfig.get().mode == RunMode.MULTIRUN:
                raise
            ended.append(error)

    def job(cfg: DictConfig) -> Any:
        nonlocal began
        began = True
        if rank() == 0:
            os.environ[FIRST_RANK] = str(os.getpid())
        else:
            logging.getLogger("lingbot").setLevel(logging.WARNING)
            follow_first_rank()
        with refusing():
            fit_options(cfg, HydraConfig.get().overrides.task)
        keep_configuration(cfg)
        try:
            return task(cfg)
        except RankFailure as lost:
            if full:
                raise
            end_for_rank(name, lost, rank())

    make_tolerant()
    silence()
    full = shows_all()
    try:
        check_environment()
        sys.argv = [sys.argv[0], *for_hydra(sys.argv[1:]), *for_rank(rank())]
        hydra.main(version_base="1.3", config_path="pkg://lingbot.conf", config_name=name)(run)()
        for error in ended:
            raise error
    except UserError as refusal:
        _refuse(name, refusal, full)
    except FloatingPointError as error:  # says all there is to say
        print(f"lingbot-{name}: {error}", file=sys.stderr)
        raise SystemExit(1) from (error if full else None)
    except SystemExit as end:
        raise SystemExit(exit_code(end, began, rank())) from end
    except KeyboardInterrupt:
        if full:
            raise
        interrupted(name, rank())
    except (HydraException, OmegaConfBaseException, OSError, ValueError) as error:
        if began and not isinstance(error, (HydraException, OmegaConfBaseException)):
            raise
        _refuse(name, error, full)  # what could not be composed
    finally:
        GlobalHydra.instance().clear()


def _refuse(name: str, error: BaseException, full: bool) -> None:
    if full:
        raise error
    if rank() == 0:
        print(f"lingbot-{name}: {_one_line(error)}", file=sys.stderr)
    elif started_by_first_rank():  # which did not refuse it
        who = f"rank {rank()} (pid {os.getpid()})"
        print(f"lingbot-{name}: {who}: {_one_line(error)}", file=sys.stderr)
    raise SystemExit(2)


def check_options(cfg: DictConfig) -> None:
    """Refuses options that nothing could be done with, whatever else is asked for.

    Raises:
        ValueError: unknown keys, values that contradict each other, or a Trainer that cannot be.
    """
    check_configuration(cfg)
    check_count("fps", cfg.fps, high=FASTEST)
    check_count("frames_per_chunk", cfg.frames_per_chunk, high=LONGEST_CHUNK)
    if "trainer" in cfg:
        options = OmegaConf.to_container(cfg.trainer, resolve=True)
        check_trainer(options)  # type: ignore[arg-type]


def compose_command(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration of `lingbot-NAME`, with the options of the world that it names.

    A Hydra that is at work already goes on after.

    Raises:
        FileNotFoundError, ValueError: see `fit_options`.
    """
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("lingbot.conf", version_base="1.3"):
            return fit_options(compose(name, list(overrides)), overrides)
    finally:
        if outer is not None:
            GlobalHydra.instance().initialize(outer)


def fit_options(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration with the options of what it goes on with: a run, or else a world.

    Raises:
        FileNotFoundError, ValueError: see `apply_run` and `apply_world`.
    """
    return cfg if apply_run(cfg, overrides) else apply_world(cfg, overrides)


def keep_configuration(cfg: DictConfig) -> None:
    """Write the run's configuration again, with what a world or a run before has changed."""
    hydra = HydraConfig.get()
    fitted = cfg.weights is not None or cfg.get("ckpt_path") is not None
    if rank() == 0 and hydra.output_subdir is not None and fitted:
        with atomic_file(
            Path(hydra.runtime.output_dir, hydra.output_subdir, "config.yaml")
        ) as file:
            OmegaConf.save(cfg, file)


def run_folder(cfg: DictConfig) -> Path:
    """The run's folder, made; `paths.output_dir` of the configuration becomes absolute."""
    folder = cfg.paths.output_dir
    if HydraConfig.initialized():
        folder = HydraConfig.get().runtime.output_dir
    path = Path(folder).absolute()
    path.mkdir(parents=True, exist_ok=True)
    cfg.paths.output_dir = str(path)
    return path


def build_all(nodes: DictConfig | None) -> list[Any]:
    """Named callbacks in the order they are written.

    Raises:
        ValueError: for a node that makes none.
    """
    chosen = ((name, node) for name, node in (nodes or {}).items() if node is not None)
    return [build(node, f"callbacks.{name!s}", Callback) for name, node in chosen]


def check_loggers(cfg: DictConfig) -> None:
    """Raises ValueError for W&B where it is not installed."""
    if any(is_wandb(node) for node in (cfg.logger or {}).values()) and not find_spec("wandb"):
        raise ValueError("logger=wandb needs W&B: pip install 'lingbot-on-lightning[wandb]'")


def build_loggers(cfg: DictConfig) -> list[Logger]:
    """The chosen loggers; W&B starts at once, offline where its server cannot be reached."""
    nodes = [(name, node) for name, node in (cfg.logger or {}).items() if node is not None]
    return [
        begin_run(node) if is_wandb(node) else build(node, f"logger.{name}", Logger)
        for name, node in nodes
    ]


def log_configuration(cfg: DictConfig, loggers: Sequence[Logger]) -> None:
    """Hand the whole configuration, resolved and plain, to the loggers."""
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    for logger in loggers:
        logger.log_hyperparams(plain)  # type: ignore[arg-type]


def finish_loggers(loggers: Sequence[Logger]) -> None:
    """Ends the W&B runs that were begun for these loggers, and no others."""
    end_runs(list(loggers))


def for_rank(rank: int) -> list[str]:
    """Ranks that torchrun or srun started write no configuration and log beside the first one."""
    if rank == 0 or not ("TORCHELASTIC_RUN_ID" in os.environ or srun_task()):
        return []
    return ["hydra.output_subdir=null", f"hydra.job.name=rank_{rank}"]


def follow_first_rank() -> None:
    """A rank that Lightning has started ends when the first one does; torchrun sees to its own."""
    if started_by_first_rank():
        end_with_parent(int(os.environ[FIRST_RANK]), grace_s=3)


def started_by_first_rank() -> bool:
    """Whether Lightning has started this process, after the first rank had checked everything."""
    first = int(os.environ.get(FIRST_RANK, os.getpid()))
    return first != os.getpid() and "TORCHELASTIC_RUN_ID" not in os.environ


def rank() -> int:
    """This process's rank, as whoever started it says: torchrun, Lightning or srun."""
    of_srun = os.environ["SLURM_PROCID"] if srun_task() else "0"
    told = os.environ.get("RANK", os.environ.get("LOCAL_RANK", of_srun))
    return int(told) if told.isdecimal() else 0  # what else it is, check_environment refuses


def _one_line(error: BaseException) -> str:
    if isinstance(error, OmegaConfBaseException) and isinstance(error.__cause__, REFUSALS):
        error = error.__cause__  # what a resolver objects to
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith("object_type=")]
    return with_new_names(" ".join(told)) or type(error).__name__
