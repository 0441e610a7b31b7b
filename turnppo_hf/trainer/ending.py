"""A training that a signal or an error ends; what its last finished step left, saved, and a sentence how to go on."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers.utils import logging

from turnppo_hf._trl import BaseTrainer
from turnppo_hf.trainer.checkpoints import CheckpointError, describe_newest
from turnppo_hf.trainer.interruptions import Interrupted, Signals, interruptible
from turnppo_hf.trajectory import FailedEpisodesError, GenerationError, NonFiniteError, RolloutError

# raised on every rank, so that all of them can save together
_OF_ALL_RANKS = (FailedEpisodesError, GenerationError, NonFiniteError, RolloutError)

logger = logging.get_logger(__name__)


class Part(Protocol):
    """What a step changes before it is finished, beside the rollout batch."""

    def copy(self) -> Any:
        """Return what `restore` takes."""
        ...

    def restore(self, copied: Any) -> None:
        """Return to what was copied."""
        ...


class Ending:
    """
    Saves a training before it ends early.

    A checkpoint that is saved on an error is that of the last finished step: random numbers, log and values of tasks
    are those of its end, so a run that goes on from it equals one that was never interrupted. While the optimizer
    moves the weights no such state exists; then the newest complete checkpoint is named.

    Args:
        trainer ([`~transformers.Trainer`]): What trains and saves.
        parts (`Sequence[Part]`): What a step changes before it is finished.

    Attributes:
        resume_with (`str`): What a sentence about resuming names.
        moves_at (`int`, *optional*): Finished steps at which the optimizer began to move the weights.
        saved_at (`int`, *optional*): The step of the newest checkpoint of this training.
    """

    def __init__(self, trainer: BaseTrainer, parts: Sequence[Part]) -> None:
        self.trainer, self.parts = trainer, parts
        self.resume_with = "train(resume_from_checkpoint=True)"
        self.moves_at: int | None = None
        self.saved_at: int | None = None
        self._signals = Signals()
        self._copied: tuple[int, Any] | None = None  # the last finished step, and its state

    @contextmanager
    def saving_first(self, checkpoint: str | None) -> Iterator[None]:
        """
        Train in here; whatever ends the training early, save first.

        Args:
            checkpoint (`str`, *optional*): What the training goes on from.
        """
        self._copied, self.moves_at, self.saved_at = None, None, None
        if checkpoint is None:
            self._copy_state(0)
        with interruptible() as self._signals, self._signals.finishing():
            try:
                yield
                if (number := self._number_of_all()) and self.saved_at == self.trainer.state.global_step:
                    self._end(number)  # it came after the last step
            except (KeyboardInterrupt, CheckpointError):  # at once; and what names the last good one by itself
                raise
            except BaseException as error:
                sentence = self._save_last_step(error, checkpoint)
                if isinstance(error, _OF_ALL_RANKS):
                    raise type(error)(f"{error} {sentence}") from error
                error.add_note(sentence)
                if not isinstance(error, Exception):  # such as `sys.exit` in a callback, which shows no notes
                    logger.warning(sentence)
                raise

    def after_step(self) -> None:
        """Keep the state of a finished step, and end the training where a signal asked for it; all ranks call it."""
        step = self.trainer.state.global_step
        self._copy_state(step)
        if number := self._number_of_all():
            if self.saved_at != step or self.trainer.args.save_only_model:
                self._save_whole()
            self._end(number)

    def _number_of_all(self) -> int:
        """Return the signal that some rank got, on every rank, and 0 where none did."""
        number = self._signals.number
        if self.trainer.accelerator.num_processes > 1:
            number = int(
                self.trainer.accelerator.gather(torch.tensor([number], device=self.trainer.accelerator.device)).max()
            )
        return number

    def _end(self, number: int) -> None:
        if self.trainer.is_world_process_zero():
            name = Interrupted(number).args[0]
            sentence = self._how_to_go_on(f"Step {self.trainer.state.global_step} was saved")
            logger.warning("%s ended the training. %s", name, sentence)
        raise Interrupted(number)

    def _copy_state(self, step: int) -> None:
        random_state = random.getstate(), np.random.get_state(), torch.get_rng_state(), _cuda_states()
        self._copied = step, (random_state, [part.copy() for part in self.parts])

    def _save_last_step(self, error: BaseException, resumed_from: str | None) -> str:
        """Save the last finished step where that can be; return a sentence with what there is to go on from."""
        args, step = self.trainer.args, int(self.trainer.state.global_step)
        together = self.trainer.accelerator.num_processes == 1 or isinstance(error, _OF_ALL_RANKS)
        if self.saved_at == step and not args.save_only_model:
            return self._how_to_go_on(f"The checkpoint of step {step} is complete")
        if resumed_from is not None and self._copied is None:
            return f"No step was finished since {resumed_from}: go on from there again."
        is_whole = self.moves_at != step and self.trainer.lr_scheduler is not None
        problem = "" if is_whole else "The weights were being moved, so they are no step's. "
        if together and is_whole:
            try:
                if self._copied is not None and self._copied[0] == step:
                    _restore(self._copied[1], self.parts)
                self._save_whole()
                return self._how_to_go_on(f"A checkpoint of step {step} was saved")
            except KeyboardInterrupt:
                raise
            except Exception as second:
                problem = f"Step {step} could not be saved either ({type(second).__name__}: {second}). "
        newest = describe_newest(Path(str(args.output_dir)))
        return f"{problem}{newest}" + ("" if newest.startswith("No ") else f" Resume from it: `{self.resume_with}`.")

    def _save_whole(self) -> None:
        """Save what a run can go on from, whatever else is saved; push nothing, since the end would wait for it."""
        args = self.trainer.args
        asked = args.save_only_model, args.push_to_hub
        args.save_only_model = args.push_to_hub = False
        try:
            self.trainer._save_checkpoint(self.trainer.model, trial=None)
        finally:
            args.save_only_model, args.push_to_hub = asked

    def _how_to_go_on(self, what: str) -> str:
        place = f"{what} in {self.trainer.args.output_dir}."
        return f"{place} Resume from it with `resume_from_checkpoint`: `{self.resume_with}`."


def _cuda_states() -> list[torch.Tensor]:
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def _restore(copied: Any, parts: Sequence[Part]) -> None:
    (of_python, of_numpy, of_torch, of_cuda), copies = copied
    random.setstate(of_python)
    np.random.set_state(of_numpy)
    torch.set_rng_state(of_torch)
    if of_cuda:
        torch.cuda.set_rng_state_all(of_cuda)
    for part, state in zip(parts, copies, strict=True):
        part.restore(state)


@contextmanager
def randomness_kept() -> Iterator[None]:
    """Leave the random numbers of Python, numpy and torch as they were."""
    state = random.getstate(), np.random.get_state(), torch.get_rng_state(), _cuda_states()
    try:
        yield
    finally:
        _restore((state, []), [])
