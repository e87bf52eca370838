"""What befalls one rank of a command in the middle of its work, and how the command ends then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch.distributed as dist
from lightning import Callback

from tests.distributed import processes

HANGS = -1


class Fault(Callback):
    """Befalls a rank at the beginning of a step.

    Args:
        ranks: whose, as `rank1`, and the number of the signal that it is sent, 0 for an error that
            it raises, -1 for a wait without end.
        step: realtime step, or training step less one.
        note: file for the time, system-wide.
    """

    def __init__(self, ranks: dict[str, int], step: int, note: str) -> None:
        self.ranks, self.step, self.note = ranks, step, note

    def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, *_) -> None:
        self._befall(trainer.global_rank, batch_idx)

    def on_train_batch_start(self, trainer, *_) -> None:
        self._befall(trainer.global_rank, trainer.global_step)

    def _befall(self, rank: int, step: int) -> None:
        number = self.ranks.get(f"rank{rank}")
        if number is None or step != self.step:
            return
        while number == HANGS:
            time.sleep(1)
        Path(self.note).write_text(f"{os.getpid()} {time.monotonic()}")
        if number == 0:
            raise RuntimeError("a fault\nof two lines")
        os.kill(os.getpid(), number)


@dataclass(frozen=True)
class Ended:
    """How the ranks of a command have ended.

    Attributes:
        codes: exit codes by rank, negative for signals.
        output: of all ranks.
        lost: process of the rank that the fault befell.
        seconds: from the fault to the end of the last rank.
    """

    codes: list[int]
    output: str
    lost: int
    seconds: float


def fault(folder: Path, step: int, **ranks: int) -> str:
    """The override that adds `Fault(rank1=number)` to a command's callbacks."""
    who = ", ".join(f"{name}: {int(n)}" for name, n in ranks.items())
    options = f"ranks: {{{who}}}, step: {step}, note: '{folder}/fault'"
    return f"+callbacks.fault={{_target_: tests.support.faults.Fault, {options}}}"


def end_of(command: str, overrides: Sequence[str], folder: Path, timeout: float = 90.0) -> Ended:
    """Runs lingbot-COMMAND on two ranks, as torchrun does, and waits for them to end."""
    arguments = [f"lingbot-{command}", *overrides, f"paths.output_dir={folder}/run"]
    workers = [
        processes.Process(target=_rank, args=(rank, command, arguments, folder))
        for rank in range(2)
    ]
    try:
        for worker in workers:
            worker.start()
        until = time.monotonic() + timeout
        for worker in workers:
            worker.join(max(0.0, until - time.monotonic()))
        ended = time.monotonic()
        codes = [worker.exitcode for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    output = (folder / "output").read_text()
    assert None not in codes, f"{codes} after {timeout} s\n{output}"
    pid, began = (folder / "fault").read_text().split()
    return Ended(codes, output, int(pid), ended - float(began))


def end_of_launched(
    command: str, overrides: Sequence[str], folder: Path, timeout: float = 120.0
) -> Ended:
    """Runs lingbot-COMMAND, which starts its other ranks itself; the first one's exit code.

    Raises:
        AssertionError: a process of it is left.
    """
    program = f"from lingbot.{command} import main; main()"
    script = folder / f"lingbot-{command}"
    script.write_text(program)  # Lightning runs it again
    process = subprocess.Popen(
        [sys.executable, script, *overrides, f"paths.output_dir={folder}/run"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=timeout)
        ended = time.monotonic()
    finally:
        left = process_group_exists(process.pid)
        if left:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not left, output
    pid, began = (folder / "fault").read_text().split()
    return Ended([process.returncode], output, int(pid), ended - float(began))


def process_group_exists(group: int) -> bool:
    """Whether a group has any process."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _rank(rank: int, command: str, arguments: list[str], folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    output = os.open(folder / "output", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(output, stream.fileno())
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), GROUP_RANK="0", WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
        TORCHELASTIC_RUN_ID="test", MASTER_ADDR="localhost", MASTER_PORT="29500",
    )  # fmt: skip
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    sys.argv = arguments
    import_module(f"lingbot.{command}").main()
