"""Datasets in, checked; the order in which a run plays their rows out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from datasets import Dataset, DatasetInfo, IterableDataset

from turnppo_hf._trl import RepeatSampler, identity
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig

_FROM_SEEDS = "turnppo_hf: one task for each seed"
_MAX_SEEDS = 100_000_000


class TaskSampler(RepeatSampler):
    """
    TRL's sampler of repeated tasks, with an order for each epoch that a resumed run finds again.

    Args:
        dataset (`Dataset`): Tasks.
        args ([`TurnPPOConfig`]): The size of batches and groups; its seed and the epoch's number seed the order.
        epoch (`Callable`): Returns the number of the epoch that begins.
    """

    def __init__(self, dataset: Dataset, args: TurnPPOConfig, epoch: Callable[[], int]) -> None:
        super().__init__(
            data_source=dataset,
            mini_repeat_count=args.num_generations,
            batch_size=args.tasks_per_batch,
            repeat_count=args.updates_per_batch,
            # a run that is extended goes on with further seeds: an order drawn over all of them would be another one
            shuffle=args.shuffle_dataset and dataset.info.description != _FROM_SEEDS,
            seed=args.task_seed,
        )
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(self.seed + self.epoch())
        return super().__iter__()


class TaskStream(torch.utils.data.IterableDataset):
    """
    A rank's part of each rollout batch of a dataset without a length, in the order of its rows.

    Every rank reads the whole stream, so all agree on its batches; a stream that ends begins again, and the rows that
    fill no batch at its end are left out.

    Args:
        rows (`IterableDataset`): Tasks.
        args ([`TurnPPOConfig`]): How many tasks and ranks a batch has, and how often it is used.
        names (`list[str]`): Environments.
    """

    def __init__(self, rows: IterableDataset, args: TurnPPOConfig, names: list[str]) -> None:
        self.rows, self.args, self.names = rows, args, names

    def __iter__(self) -> Iterator[dict[str, Any]]:
        args, batch, filled = self.args, list[dict[str, Any]](), False
        size = args.generation_batch_size // args.world_size  # type: ignore[operator]  # filled in __post_init__
        mine = slice(args.process_index * size, (args.process_index + 1) * size)
        while True:  # so that a resumed run may skip more batches than one pass has
            for row in self.rows:
                _check_names({row.get("environment")}, self.names)
                batch += [row] * int(args.num_generations or 1)
                if len(batch) == args.generation_batch_size:
                    for _ in range(args.updates_per_batch):
                        yield from batch[mine]
                    batch, filled = [], True
            if not filled:
                raise ValueError(
                    f"`train_dataset` ended after {len(batch) // int(args.num_generations or 1)} rows, but a rollout "
                    f"batch takes {args.tasks_per_batch} tasks. Add tasks or lower `generation_batch_size`."
                )
            batch = []


def check_tasks(
    dataset: Dataset | IterableDataset | None, args: TurnPPOConfig, names: list[str]
) -> Dataset | TaskStream:
    """
    Check that the tasks fill rollout batches; make tasks from seeds where there is no dataset.

    Raises:
        `ValueError`: an empty dataset, fewer rows than a batch has tasks, an unknown environment in a row, neither
        dataset nor `max_steps`, or a stream without `max_steps` or with oversampling, which draws rows by number.
    """
    _check_split("train_dataset", dataset)
    if dataset is None:
        if args.max_steps <= 0:
            raise ValueError(
                f"There is no `train_dataset` and `max_steps` is {args.max_steps}, so the run has no end. Set "
                "`max_steps`, or pass a dataset with a column `seed`."
            )
        batches = -(-args.max_steps // args.updates_per_batch)
        if batches * args.tasks_per_batch > _MAX_SEEDS:
            raise ValueError(
                f"`max_steps` is {args.max_steps}, which takes {batches * args.tasks_per_batch} tasks, and without "
                f"`train_dataset` at most {_MAX_SEEDS} are made, a row in memory each. Lower it, or pass a dataset."
            )
        seeds = {"seed": range(batches * args.tasks_per_batch)}
        return Dataset.from_dict(seeds, info=DatasetInfo(description=_FROM_SEEDS))
    if isinstance(dataset, IterableDataset):
        if args.task_sampling != "uniform":
            raise ValueError(
                f'`task_sampling` is "{args.task_sampling}", but `train_dataset` is a stream, whose tasks come once '
                "and in their own order. Pass a datasets.Dataset, or leave it out."
            )
        if args.max_steps <= 0 or args.oversampling_factor > 1.0 or args.filter_groups:
            raise ValueError(
                f"`train_dataset` has no length, `max_steps` is {args.max_steps}, `oversampling_factor` "
                f"{args.oversampling_factor:g} and `filter_groups` {args.filter_groups}: the end of the run and "
                "further tasks are unknown. Set `max_steps` and leave the others out, or pass a datasets.Dataset."
            )
        return TaskStream(dataset, args, names)
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "column_names"):
        raise ValueError(
            f"`train_dataset` is a {type(dataset).__name__} without a length. Rollout batches take tasks by "
            "their number: pass a datasets.Dataset or a datasets.IterableDataset."
        )
    if len(dataset) < args.tasks_per_batch:
        raise ValueError(
            f"`train_dataset` has {len(dataset)} rows, but a rollout batch takes {args.tasks_per_batch} distinct "
            f"tasks (`generation_batch_size` {args.generation_batch_size} / `num_generations` "
            f"{args.num_generations}), so no batch would ever be full. Add tasks or lower `generation_batch_size`."
        )
    _check_environment_column(dataset, names)
    return dataset


def load_rows(
    tasks: Dataset | TaskStream, args: TurnPPOConfig, epoch: Callable[[], int], get_dataloader: Callable[..., Any]
) -> torch.utils.data.DataLoader[Any]:
    """
    Load a rank's rows of one rollout batch at a time, once for each of its updates.

    Args:
        tasks (`Dataset` or `TaskStream`): From [`check_tasks`].
        args ([`TurnPPOConfig`]): The size of batches.
        epoch (`Callable`): Returns the number of the epoch that begins.
        get_dataloader (`Callable`): The trainer's; shards batches over the ranks.
    """
    size = args.generation_batch_size // args.world_size  # type: ignore[operator]  # filled in __post_init__
    if isinstance(tasks, TaskStream):  # it yields each rank's own rows
        return torch.utils.data.DataLoader(tasks, batch_size=size, collate_fn=identity)
    return get_dataloader(
        dataset=tasks,
        description="Training",
        batch_size=size,
        sampler_fn=lambda rows: TaskSampler(rows, args, epoch),
        is_training=True,
    )


def describe_tasks(dataset: Any) -> str | None:
    """Describe the rows of training by which a run is told from another; None where they are seeds or a stream."""
    if not isinstance(dataset, Dataset) or dataset.info.description == _FROM_SEEDS:
        return None
    return f"{len(dataset)} rows of {', '.join(sorted(dataset.column_names))}"


def check_eval_tasks(
    dataset: Dataset | None, names: list[str], *, needs_prompt: bool, is_needed: bool = False
) -> None:
    """
    Check the tasks of an evaluation before any of them is played.

    Args:
        dataset (`Dataset`, *optional*): The tasks.
        names (`list[str]`): Of the environments.
        needs_prompt (`bool`): Whether a task is its prompt.
        is_needed (`bool`, *optional*, defaults to `False`): Whether there must be some.

    Raises:
        `ValueError`: none where some are needed, several datasets, an empty one, one without prompts, or an unknown
            environment in a row.
    """
    if dataset is None and is_needed:
        raise ValueError("There is no `eval_dataset` to evaluate on. Pass one here or to TurnPPOTrainer.")
    if dataset is None:
        return
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "column_names") or isinstance(dataset, Mapping):
        raise ValueError(
            f"`eval_dataset` is a {type(dataset).__name__}; one datasets.Dataset with a length is played. Pass one, "
            "and call evaluate() for the others."
        )
    if len(dataset) == 0:
        raise ValueError("`eval_dataset` has no rows, so there is nothing to play. Add tasks or leave it out.")
    if needs_prompt and "prompt" not in dataset.column_names:
        raise ValueError(
            "`eval_dataset` has no column `prompt`, and there is no `environment_factory`, so there is nothing to "
            "answer. Pass a dataset of prompts."
        )
    _check_environment_column(dataset, names)


def _check_environment_column(dataset: Dataset, names: list[str]) -> None:
    if "environment" in dataset.column_names:
        _check_names(set(dataset.unique("environment")), names)


def _check_names(used: set[Any], names: list[str]) -> None:
    # an empty cell stands for the default environment
    unknown = sorted(used - {*names, None, ""})
    if unknown:
        raise ValueError(
            f"The column `environment` names {', '.join(map(repr, unknown))}, but `environment_factory` has "
            f"{', '.join(map(repr, names))}. Use these names."
        )


def _check_split(name: str, dataset: Any) -> None:
    if isinstance(dataset, Mapping):
        splits = ", ".join(map(str, dataset))
        raise ValueError(
            f"`{name}` is a {type(dataset).__name__} with the splits {splits}, and it is open which of them holds the "
            f"tasks. Pass one of them, such as dataset[{next(iter(dataset), 'train')!r}]."
        )
