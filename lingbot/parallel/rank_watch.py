"""Several ranks end together when one of them is lost, soon and with one line that says which.

Where the system closes connections (gloo) an exchange fails by itself once a rank is gone. Where
nothing does (NCCL, memory that GPUs write for each other) it would wait, and a thread that watches
beside it ends the process, after the callbacks have finished their files.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from lightning.pytorch.trainer.call import _call_callback_hooks
from torch.distributed.distributed_c10d import _get_default_store

from lingbot.parallel.failure import (
    Failure,
    OtherRankFailed,
    RankFailure,
    is_follow_up,
    is_interrupt,
    is_orderly,
    tell,
)
from lingbot.parallel.rank_board import RankBoard
from lingbot.parallel.rank_launcher import RankLauncher
from lingbot.termination import Termination

POLL_S = 0.2
CAUSE_S = 3.0  # until an error that says that somebody is gone is told as it is
STUCK_S = 2.5  # after another rank was lost: this one waits for it
FILES_S = 5.0  # for callbacks to finish their files
FOLLOW_S = 1.5  # for ranks that have no files to end
TOGETHER_S = 5.0  # for ranks that all have been told to end
LEAVE_S = 30.0  # for the first rank to end after an exception


@contextmanager
def watching(
    trainer: L.Trainer, kept: Callable[[int], str], termination: Termination | None = None
) -> Iterator[None]:
    """Looks after the ranks of a Trainer's work, if there are several.

    Args:
        trainer: what does the work; no other work of it is looked after.
        kept: the last step whose results are whole (-1 for none) -> what is left of the work.
        termination: where the ranks drive; that one has been told to end reaches the first.

    Raises:
        RankFailure: another rank was lost, or this one that is not the first. What the first one
            raises itself it goes on raising, with a note on the others.
    """
    strategy = trainer.strategy
    launcher = strategy.launcher
    if trainer.world_size == 1 or isinstance(launcher, _MultiProcessingLauncher):
        yield
        return
    if type(launcher) is _SubprocessScriptLauncher:
        environment, local = launcher.cluster_environment, launcher.num_processes
        strategy._launcher = RankLauncher(environment, local, launcher.num_nodes)
    watch = RankWatch(trainer, kept, termination)
    trainer.callbacks.insert(0, watch)  # type: ignore[attr-defined]
    try:
        yield
        watch.wait_for_others()
    except BaseException as error:
        failure = watch.explain(error)
        watch.end_others(FOLLOW_S if failure else TOGETHER_S)
        if failure is None:
            raise
        if failure.rank == watch.rank == 0:
            error.add_note(watch.sentence())
            raise
        raise RankFailure(watch.sentence(), failure, failure.teller == watch.rank) from error
    finally:
        watch.stop()


class RankWatch(L.Callback):
    """One rank's part: knows how far it is, tells the others, and hears of them.

    Args: as `watching` takes them.

    Attributes:
        rank: this one.
        failure: the rank that was lost first, once one was.
    """

    def __init__(
        self, trainer: L.Trainer, kept: Callable[[int], str], termination: Termination | None
    ) -> None:
        assert isinstance(trainer.strategy, ParallelStrategy)
        assert trainer.strategy.cluster_environment is not None
        self.rank = trainer.strategy.cluster_environment.global_rank()
        self.failure: Failure | None = None
        self._trainer, self._kept, self._termination = trainer, kept, termination
        self._step, self._where = -1, "before the first step"
        self._board: RankBoard | None = None
        self._parent = os.getppid()
        self._failing, self._stopped = threading.Event(), threading.Event()
        self._last_word = threading.Lock()
        threading.Thread(target=self._watch, name="rank-watch", daemon=True).start()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """The ranks have met."""
        if self._board is None:
            self._board = RankBoard(_get_default_store(), self.rank, trainer.world_size)

    def on_predict_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        self._step, self._where = batch_idx, f"at realtime step {batch_idx}"

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._step = trainer.global_step + 1
        self._where = f"at training step {self._step}"

    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        self._where = f"in the validation after training step {trainer.global_step}"

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._where = "after the last step"

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._where = "after the last step"

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Tell the others, before any other callback begins to finish its files."""
        self._note(exception)

    # ---- how the work ends ----------------------------------------------------------------------

    def explain(self, error: BaseException) -> Failure | None:
        """The loss of a rank that is behind an error; None where a run was told to end.

        Does not return where this process is being ended already.
        """
        self._last_word.acquire()
        self._note(error)
        if is_orderly(error):
            return None
        if threading.current_thread() is threading.main_thread():
            # torchrun sends it to all others; this process is about to end, with a word
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        until = time.monotonic() + CAUSE_S
        while self.failure is None and time.monotonic() < until:
            self.failure = self._look()
            time.sleep(0.05)
        if self.failure is None:
            self.failure = self._post(Failure.of_error(self.rank, error, self._where))
        return self.failure

    def sentence(self) -> str:
        """The line that tells how a rank was lost."""
        assert self.failure is not None
        # where the first rank is lost, its last two steps were on their way to the files
        unsure = 3 if self.failure.teller > 0 else 1
        return self.failure.sentence(self._where, self._kept(max(-1, self._step - unsure)))

    def wait_for_others(self) -> None:
        """Leave; the first rank, which holds what they tell each other by, leaves last.

        Raises:
            OtherRankFailed: one was lost.
        """
        if self._board is None:
            return
        if self.rank > 0:
            self._board.leave()
            return
        while not self._board.all_left():
            self.failure = self.failure or self._look()
            if self.failure is not None:
                raise OtherRankFailed(self.failure.what)
            time.sleep(0.02)
        self._board.leave()

    def end_others(self, patience_s: float = FOLLOW_S) -> None:
        """Ends the ranks that this one has started, if they do not end by themselves until then."""
        until = time.monotonic() + patience_s
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, until - time.monotonic()))
            process.kill()
            process.wait()

    def stop(self) -> None:
        """The work is over."""
        self._stopped.set()

    def _note(self, error: BaseException) -> None:
        if self._failing.is_set() or self._stopped.is_set():
            return
        if is_orderly(error):
            if is_interrupt(error) and self.rank > 0:
                self._post(Failure.of_error(self.rank, error, self._where))
            self.stop()
            return
        if not is_follow_up(error):
            own = Failure.of_error(self.rank, error, self._where)
            first = self._post(own)
            self.failure = own if self.rank == 0 else first
        self._failing.set()

    # ---- the others -----------------------------------------------------------------------------

    @property
    def _processes(self) -> list[subprocess.Popen]:
        return getattr(self._trainer.strategy.launcher, "procs", [])

    def _watch(self) -> None:
        while not self._stopped.wait(POLL_S) and self.failure is None:
            self.failure = self._look()
        first = self.rank == 0
        if not self._failing.wait(STUCK_S if first else FOLLOW_S):
            self._end(with_files=first)
        if not self._stopped.wait(LEAVE_S if first else FOLLOW_S):
            self._end()

    def _look(self) -> Failure | None:
        """The rank that was lost first, if one was."""
        if self._board is None:
            return self._lost_child()
        leader = self._board.pid(self.rank - self._trainer.local_rank)
        started = self._trainer.local_rank > 0 and leader == self._parent
        if started and os.getppid() != self._parent:  # and what ranks tell each other by with it
            return Failure(self.rank - self._trainer.local_rank, self._parent, "died")
        if self._termination is not None:
            self._share(self._termination, self._board)
        failure = self._board.failure() or self._lost_child()
        if failure is None and not started and not self._processes:
            pids = {rank: self._board.pid(rank) for rank in self._board.gone()}
            failure = next((Failure(r, pid or 0, "died") for r, pid in pids.items()), None)
        return None if failure is None else self._post(failure)

    def _lost_child(self) -> Failure | None:
        """The process that this one has started and that has ended in the middle of its work."""
        lost = [
            Failure.of_exit(rank, process.pid, code)
            for rank, process in enumerate(self._processes, self.rank + 1)
            if (code := process.poll()) is not None
            and not (self._board is not None and self._board.left(rank))
        ]
        # whoever was killed was first: the others follow
        return min(lost, key=lambda one: not one.killed, default=None)

    def _share(self, termination: Termination, board: RankBoard) -> None:
        if self.rank == 0 and (number := board.told()):
            termination.tell(number)
        if self.rank > 0 and termination.told:
            board.tell(termination.told)

    def _post(self, failure: Failure) -> Failure:
        """Let all ranks know; returns the one of which they know already."""
        try:
            return failure if self._board is None else self._board.post(failure)
        except dist.DistError:  # the first rank is gone, and the store with it
            return failure

    def _end(self, with_files: bool = False) -> None:
        """Ends this process, whatever its main thread is waiting for."""
        if self._stopped.is_set() or not self._last_word.acquire(blocking=False):
            return  # the main thread is ending it
        assert self.failure is not None
        if with_files:
            finishing = threading.Thread(target=self._finish_files, daemon=True)
            finishing.start()
            finishing.join(FILES_S)
        self.end_others()
        if self.failure.teller == self.rank:
            tell(self.sentence())
        for worker in multiprocessing.active_children():
            worker.kill()
        os._exit(self.failure.code)

    def _finish_files(self) -> None:
        assert self.failure is not None
        lost = OtherRankFailed(self.failure.what)
        _call_callback_hooks(self._trainer, "on_exception", lost)
        for logger in self._trainer.loggers:
            logger.finalize("failed")
