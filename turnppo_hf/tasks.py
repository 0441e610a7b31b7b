"""Datasets in, checked at the door; the order in which a run plays their rows out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from datasets import Dataset

from turnppo_hf._trl import RepeatSampler
from turnppo_hf.config import TurnPPOConfig


class TaskSampler(RepeatSampler):
    """
    TRL's sampler of repeated tasks, with an order for each epoch that a resumed run finds again.

    Args:
        epoch (`Callable`): Tells the epoch whose pass begins.
        seed (`int`): With the epoch's number it seeds the order.
        kwargs: See TRL's `RepeatSampler`.
    """

    def __init__(self, *, epoch: Callable[[], int], seed: int, **kwargs: Any) -> None:
        super().__init__(seed=seed, **kwargs)
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed + self.epoch())
        return super().__iter__()


def check_tasks(dataset: Dataset | None, args: TurnPPOConfig, names: list[str]) -> Dataset:
    """
    Check that the tasks fill rollout batches; make tasks from seeds where there is no dataset.

    Raises:
        `ValueError`: an empty dataset, fewer rows than a batch has tasks, an unknown environment in a row, or neither
        dataset nor `max_steps`.
    """
    if dataset is None:
        if args.max_steps <= 0:
            raise ValueError(
                f"There is no `train_dataset` and `max_steps` is {args.max_steps}, so the run has no end. Set "
                "`max_steps`, or pass a dataset with a column `seed`."
            )
        batches = -(-args.max_steps // args.updates_per_batch)
        return Dataset.from_dict({"seed": range(batches * args.tasks_per_batch)})
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "column_names"):
        raise ValueError(
            f"`train_dataset` is a {type(dataset).__name__} without a length. Rollout batches need to know their "
            "tasks: pass a datasets.Dataset."
        )
    if len(dataset) < args.tasks_per_batch:
        raise ValueError(
            f"`train_dataset` has {len(dataset)} rows, but a rollout batch takes {args.tasks_per_batch} distinct "
            f"tasks (`generation_batch_size` {args.generation_batch_size} / `num_generations` "
            f"{args.num_generations}), so no batch would ever be full. Add tasks or lower `generation_batch_size`."
        )
    _check_environment_column(dataset, names)
    return dataset


def check_eval_tasks(dataset: Dataset | None, names: list[str]) -> None:
    """
    Check the tasks of the evaluation before anything is trained.

    Raises:
        `ValueError`: several datasets, an empty one, or an unknown environment in a row.
    """
    if dataset is None:
        return
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "column_names") or isinstance(dataset, Mapping):
        raise ValueError(
            f"`eval_dataset` is a {type(dataset).__name__}; one datasets.Dataset with a length is played. Pass one, "
            "and call evaluate() for the others."
        )
    if len(dataset) == 0:
        raise ValueError("`eval_dataset` has no rows, so there is nothing to play. Add tasks or leave it out.")
    _check_environment_column(dataset, names)


def _check_environment_column(dataset: Dataset, names: list[str]) -> None:
    if "environment" in dataset.column_names:
        # an empty cell stands for the default environment
        unknown = sorted(set(dataset.unique("environment")) - {*names, None, ""})
        if unknown:
            raise ValueError(
                f"The column `environment` names {', '.join(map(repr, unknown))}, but `environment_factory` has "
                f"{', '.join(map(repr, names))}. Use these names."
            )
