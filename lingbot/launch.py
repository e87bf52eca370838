"""What the entry points share: the command line, refusals in one line, the run folder, loggers.

Hydra composes; our own checks come before any work and end in exit code 2 with a message instead of
a traceback. Processes of one run, whoever started them, share one folder.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lingbot.checkpoints.atomic import atomic_file
from lingbot.checkpoints.world_options import apply_world
from lingbot.errors import UserError
from lingbot.termination import end_with_parent

log = logging.getLogger(__name__)

# Written by people, so commas, spaces and colons in them must not be read as Hydra's grammar.
FREE_TEXT = re.compile(
    r"(actions|compare|prompt|image|folder|weights|ckpt_path|export_dir|codec\.folder|paths\.\w+)=(.+)",
    re.DOTALL,
)
REFUSALS = (ValueError, OSError, OmegaConfBaseException, MisconfigurationException)
LARGEST_SEED = 2**32 - 1
FIRST_RANK = "LINGBOT_FIRST_RANK"  # tells ranks that Lightning starts who started them


@contextmanager
def refusing() -> Iterator[None]:
    """Turn what checks and constructors object to into `UserError`, one line each."""
    try:
        yield
    except REFUSALS as error:
        raise UserError(_one_line(error)) from error
    except InstantiationException as error:
        cause = error.__cause__
        # Lightning's word on a wrong number of devices is a TypeError
        misfit = any(words in str(cause) for words in ("unexpected keyword argument", "`devices`"))
        if isinstance(cause, REFUSALS) or misfit:
            raise UserError(_one_line(cause or error)) from error
        raise


def run_command(task: Callable[[DictConfig], Any], name: str) -> None:
    """Compose `conf/NAME.yaml` with the command line and run the task.

    The process ends with 0, with 2 for input that is refused, with 1 for an error, and as shells
    expect of a process that a signal ends: 130 for Ctrl-C, 143 for SIGTERM.
    """
    began = False

    def job(cfg: DictConfig) -> Any:
        nonlocal began
        began = True
        if rank() == 0:
            os.environ[FIRST_RANK] = str(os.getpid())
        else:
            logging.getLogger("lingbot").setLevel(logging.WARNING)
            follow_first_rank()
        try:
            with refusing():
                apply_world(cfg, HydraConfig.get().overrides.task)
            keep_configuration(cfg)
            return task(cfg)
        except UserError as refusal:
            log.debug("refused", exc_info=True)
            if rank() == 0:
                print(f"lingbot-{name}: {refusal}", file=sys.stderr)
            sys.exit(2)

    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6 on torch 2.13
    # of sharded blocks whose outputs are views; none of them is written to in place
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    sys.argv = [sys.argv[0], *for_hydra(sys.argv[1:]), *for_rank(rank())]
    try:
        hydra.main(version_base="1.3", config_path="pkg://lingbot.conf", config_name=name)(job)()
    except SystemExit as end:
        raise SystemExit(_exit_code(end, began)) from end
    finally:
        GlobalHydra.instance().clear()


def _exit_code(end: SystemExit, began: bool) -> Any:
    if isinstance(end, SIGTERMException):
        # a launcher kills what is left of a run when one of its ranks fails
        return 128 + signal.SIGTERM if rank() == 0 else 0
    if isinstance(end.__context__, KeyboardInterrupt):
        return 128 + signal.SIGINT
    # Hydra has said what it could not compose; that is bad input too
    return 2 if end.code == 1 and not began else end.code


def compose_command(name: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration of `lingbot-NAME`, with the options of the world that it names.

    A Hydra that is at work already goes on after.

    Raises:
        FileNotFoundError, ValueError: see `apply_world`.
    """
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("lingbot.conf", version_base="1.3"):
            return apply_world(compose(name, list(overrides)), overrides)
    finally:
        if outer is not None:
            GlobalHydra.instance().initialize(outer)


def keep_configuration(cfg: DictConfig) -> None:
    """Write the run's configuration again, with what the world that it names has changed."""
    hydra = HydraConfig.get()
    if rank() == 0 and hydra.output_subdir is not None and cfg.weights is not None:
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


def check_seed(seed: int) -> int:
    """The seed, if NumPy and torch can both take it."""
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed={seed}: give a whole number from 0 to {LARGEST_SEED}")
    return seed


def build_all(nodes: DictConfig | None) -> list[Any]:
    """Instantiate named nodes (callbacks, loggers) in the order they are written."""
    chosen = (node for node in (nodes or {}).values() if node is not None)
    return [instantiate(node, _convert_="all") for node in chosen]


def check_loggers(cfg: DictConfig) -> None:
    """Raises ValueError for W&B where it is not installed."""
    if any(_is_wandb(node) for node in (cfg.logger or {}).values()) and not find_spec("wandb"):
        raise ValueError("logger=wandb needs W&B: pip install 'lingbot-on-lightning[wandb]'")


def build_loggers(cfg: DictConfig) -> list[Logger]:
    """The chosen loggers; W&B starts at once, offline where its server cannot be reached."""
    nodes = [node for node in (cfg.logger or {}).values() if node is not None]
    return [_wandb(node) if _is_wandb(node) else instantiate(node) for node in nodes]


def log_configuration(cfg: DictConfig, loggers: Sequence[Logger]) -> None:
    """Hand the whole configuration, resolved and plain, to the loggers."""
    plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=False)
    for logger in loggers:
        logger.log_hyperparams(plain)  # type: ignore[arg-type]


def finish_loggers(cfg: DictConfig) -> None:
    """End W&B's run, so that the next job of a sweep begins one of its own."""
    if any(_is_wandb(node) for node in (cfg.logger or {}).values()):
        import wandb

        wandb.finish()


def _is_wandb(node: DictConfig | None) -> bool:
    return node is not None and str(node._target_).endswith("WandbLogger")


def _wandb(node: DictConfig) -> Logger:
    """A W&B logger whose run has begun."""
    logger = instantiate(node, _convert_="all")
    import wandb

    try:
        logger.experiment  # noqa: B018  (begins the run)
    except (wandb.errors.CommError, wandb.errors.UsageError) as error:
        log.warning("W&B takes no run online (%s): this one is kept offline", _one_line(error))
        logger = instantiate(node, mode="offline", _convert_="all")
        logger.experiment  # noqa: B018
    return logger


def for_hydra(arguments: Sequence[str]) -> list[str]:
    """Quote free text for Hydra's grammar; sweeps mean their commas."""
    if {"-m", "--multirun"} & set(arguments):
        return list(arguments)
    return [_quoted(argument) for argument in arguments]


def _quoted(argument: str) -> str:
    match = FREE_TEXT.fullmatch(argument)
    if match is None or match[2][0] in "'\"" or match[2] == "null":
        return argument
    return f"{match[1]}={QuotedString(match[2], Quote.single).with_quotes()}"


def for_rank(rank: int) -> list[str]:
    """Ranks that torchrun started write no configuration and log beside the first one."""
    if rank == 0 or "TORCHELASTIC_RUN_ID" not in os.environ:
        return []
    return ["hydra.output_subdir=null", f"hydra.job.name=rank_{rank}"]


def follow_first_rank() -> None:
    """A rank that Lightning has started ends when the first one does; torchrun sees to its own."""
    first = int(os.environ.get(FIRST_RANK, os.getpid()))
    if first != os.getpid() and "TORCHELASTIC_RUN_ID" not in os.environ:
        end_with_parent(first)


def rank() -> int:
    """This process's rank, as whoever started it says."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line) or type(error).__name__
