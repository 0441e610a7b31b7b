"""Tasks in, the trajectories of a rollout batch out: played on every rank, rewarded, and gathered from all ranks."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from datasets import Dataset
from tqdm import tqdm
from transformers import PreTrainedModel

from turnppo_hf.environments.exits import describe_error
from turnppo_hf.environments.pool import EnvironmentPool
from turnppo_hf.generation.sampler_check import check_sampler, check_training_mode
from turnppo_hf.generation.self_check import check_engine
from turnppo_hf.ppo.algorithms import ALGORITHMS
from turnppo_hf.rollout.chat import Chat
from turnppo_hf.rollout.episode import FinishedEpisode
from turnppo_hf.rollout.rewards import Rewards
from turnppo_hf.rollout.rollout_func import RolloutFunction, play_with
from turnppo_hf.rollout.worker import EpisodePlan, Limits, RolloutTiming, RolloutWorker, plan_episodes
from turnppo_hf.trainer.generators import make_generator, open_engine
from turnppo_hf.trainer.group_filter import replace_equal_groups
from turnppo_hf.trainer.replacement import FURTHER_TASKS, Replacements, first_group
from turnppo_hf.trainer.rollout_batch import is_masked
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig
from turnppo_hf.trajectory import GenerationError, RolloutError, StopReason, Trajectory

# fields that make the sampler and the limits of an episode, once
_OF_THE_SAMPLER = (
    *("temperature", "top_p", "top_k", "min_p", "generation_kwargs", "max_turns", "max_turn_length"),
    *("max_completion_length", "max_tool_calling_iterations", "environment_timeout_s"),
)

FurtherGroups = Callable[[int, int], list[EpisodePlan]]  # attempt, number of groups -> plans


class Collector:
    """
    Plays this rank's part of rollout batches and evaluations.

    Args:
        args ([`TurnPPOConfig`]): How to sample, and what cuts an episode.
        actor ([`~transformers.PreTrainedModel`]): Its weights are sampled with, as they are at each call.
        chat (`Chat`): Renders conversations.
        environments (`EnvironmentPool`): Where to take environments from.
        default_environment (`str`): For tasks that name none.
        tasks (`Dataset`): Where oversampling draws further tasks from.
        autocast (`Callable`): Makes the context of each of the actor's forwards.
        rewards ([`~turnppo_hf.rollout.rewards.Rewards`], *optional*): Rewards whole episodes.
        rollout_func (`Callable`, *optional*): Plays the episodes instead; needs `rewards`.

    Raises:
        `ImportError`, `ValueError`, [`~turnppo_hf.trajectory.GenerationError`]: vLLM cannot be used as asked.
    """

    def __init__(
        self,
        args: TurnPPOConfig,
        actor: PreTrainedModel,
        chat: Chat,
        environments: EnvironmentPool,
        default_environment: str,
        tasks: Dataset,
        *,
        autocast: Callable[[], AbstractContextManager[Any]],
        rewards: Rewards | None = None,
        rollout_func: RolloutFunction | None = None,
    ) -> None:
        self.args, self.actor, self.chat, self.environments = args, actor, chat, environments
        self.tasks, self.autocast, self.rewards, self.rollout_func = tasks, autocast, rewards, rollout_func
        self.engine = open_engine(args, actor, chat.tokenizer, gather_object)
        self.timing = RolloutTiming()  # of the last batch: for each entry, the slowest rank's
        self._plan = partial(plan_episodes, default_environment=default_environment)
        self._worker = self._make_worker(args.temperature)
        self.generator = self._worker.generator
        self._checked = False
        self._began_with = {name: getattr(args, name) for name in _OF_THE_SAMPLER}

    def collect(
        self, rows: Sequence[Mapping[str, Any]], batch_number: int
    ) -> tuple[list[Trajectory], list[Trajectory]]:
        """
        Play this rank's part of a rollout batch.

        Args:
            rows (`Sequence[Mapping]`): Its tasks; as many episodes as these make its part. Those that fail are
                replaced and returned as well.
            batch_number (`int`): Seeds the batch, with the run's seed.

        Returns:
            `tuple[list[Trajectory], list[Trajectory]]`: this rank's trajectories, and all ranks'.

        Raises:
            `ValueError`: a callback changed how is sampled.
            [`~turnppo_hf.trajectory.GenerationError`]: on every rank, where one of them could not sample.
            [`~turnppo_hf.trajectory.RolloutError`]: on every rank of several, where one raised anything else.
        """
        self._check_unchanged()
        seed, rank = self.args.seed, self.args.process_index
        per_task = int(self.args.num_generations or 1)
        first = first_group(self.args, batch_number)
        plans = self._plan(rows, key=(seed, 0, batch_number), first=first + rank * len(rows), per_task=per_task)
        wanted = math.ceil(self.args.oversampling_factor * len(rows))
        if (more := wanted - len(rows) - self._worker.num_left) > 0:
            random = np.random.default_rng((seed, 3, batch_number, rank))
            extra = self.tasks.select(random.integers(len(self.tasks), size=more))
            beyond = first + int(self.args.generation_batch_size or 0) * FURTHER_TASKS + rank * wanted
            plans += self._plan(extra, key=(seed, 4, batch_number), first=beyond)
        further = partial(self._further_groups, batch_number, len(rows)) if self.args.filter_groups else None
        replacements = partial(Replacements, self.args, self.tasks, batch_number, self._plan)
        return self._play_on_all_ranks(
            partial(self._play, self._worker, plans, len(rows), "rollout", replacements, further)
        )

    def evaluate(self, dataset: Dataset, temperature: float) -> list[Trajectory]:
        """Play every task `num_generations_eval` times, over all ranks; return all trajectories."""
        per_task = self.args.num_generations_eval or 1
        rows = dataset.select(np.arange(len(dataset)).repeat(per_task)) if per_task > 1 else dataset
        plans = self._plan(rows, key=(self.args.seed, 1), per_task=per_task)[
            self.args.process_index :: self.args.world_size
        ]
        worker = self._make_worker(temperature)
        try:
            none = partial(Replacements, self.args, self.tasks, 0, self._plan, rounds=0)
            return self._play_on_all_ranks(partial(self._play, worker, plans, len(plans), "evaluation", none))[1]
        finally:
            worker.close()

    @property
    def is_exact(self) -> bool:
        """Whether the log-probs at sampling serve as the old ones; those of a `rollout_func` are not known to."""
        return self.rollout_func is None and self.generator.exact

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Begin and, where an exception ends it, leave a training without episodes under way."""
        self.give_up()
        try:
            yield
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        """Leave the episodes under way."""
        self._worker.give_up()
        if self.engine is None:  # its cache is of no use any more; an engine's would be asked of a server
            self.generator.reset()

    def _make_worker(self, temperature: float) -> RolloutWorker:
        args, actor, chat = self.args, self.actor, self.chat
        generator = make_generator(
            args, self.engine, actor, chat.tokenizer, temperature=temperature, autocast=self.autocast
        )
        contexts = getattr(actor.config.get_text_config(), "max_position_embeddings", None), generator.max_context
        limits = Limits(
            max_turns=args.max_turns,
            max_turn_length=args.max_turn_length,
            max_completion_length=args.max_completion_length,
            max_tool_calling_iterations=args.max_tool_calling_iterations,
            max_context=min((tokens for tokens in contexts if tokens), default=None),
            environment_timeout_s=args.environment_timeout_s,
        )
        needs_states = ALGORITHMS[args.algorithm].credits_states
        return RolloutWorker(self.environments, generator, chat, limits, needs_states)

    def _check_unchanged(self) -> None:
        """Refuse new values of what the sampler was made with: the update would read them, and the sampler not."""
        for name, before in self._began_with.items():
            if (now := getattr(self.args, name)) != before:
                raise ValueError(
                    f"`{name}` was {before!r} when the trainer was made and is {now!r} now, and the sampler keeps "
                    "what it was made with, so what is learned would not be what was sampled. Leave it as it is in "
                    "callbacks, or train a second run from the first one's folder with the other value."
                )

    def _further_groups(self, batch_number: int, num_episodes: int, attempt: int, count: int) -> list[EpisodePlan]:
        """Plan groups of further tasks for this rank, numbered after those of the batch and of earlier attempts."""
        args, per_task = self.args, int(self.args.num_generations or 1)
        random = np.random.default_rng((args.seed, 5, batch_number, args.process_index, attempt))
        rows = self.tasks.select(random.integers(len(self.tasks), size=count).repeat(per_task))
        first = int(args.generation_batch_size or 0) * (1 + attempt) + args.process_index * num_episodes
        return self._plan(rows, key=(args.seed, 6, batch_number, attempt), first=first, per_task=per_task)

    def _play_on_all_ranks(
        self, play: Callable[[], tuple[list[Trajectory], RolloutTiming]]
    ) -> tuple[list[Trajectory], list[Trajectory]]:
        """Play this rank's part; return its trajectories and all ranks', or raise on every rank what one raised."""
        mine: list[Trajectory] = []
        timing, problem, cause = RolloutTiming(), None, None
        try:
            mine, timing = play()
        except Exception as error:
            if self.args.world_size == 1:
                raise
            cause, is_known = error, isinstance(error, GenerationError)
            problem = is_known, str(error) if is_known else describe_error(error)
        by_rank = gather_object([(mine, problem, asdict(timing))])
        if problems := [(rank, *problem) for rank, (_, problem, _) in enumerate(by_rank) if problem]:
            rank, is_known, text = problems[0]
            if is_known:
                raise GenerationError(text) from cause
            raise RolloutError(f"Rank {rank} could not collect its episodes, it raised {text}.") from cause
        self.timing = RolloutTiming(**{name: max(times[name] for *_, times in by_rank) for name in by_rank[0][2]})
        self.timing.num_tokens = sum(times["num_tokens"] for *_, times in by_rank)
        self.timing.num_replaced = sum(times["num_replaced"] for *_, times in by_rank)
        return mine, [trajectory for trajectories, *_ in by_rank for trajectory in trajectories]

    def _play(
        self,
        worker: RolloutWorker,
        plans: list[EpisodePlan],
        enough: int,
        label: str,
        replacements: Callable[..., Replacements],
        further: FurtherGroups | None = None,
    ) -> tuple[list[Trajectory], RolloutTiming]:
        """Sample with the actor's current weights, play until enough episodes have ended, and reward these."""
        sync_s = worker.sync()
        if not self._checked:
            self._check()
            self._checked = True
        if self.rollout_func is not None:
            return self._rewarded(play_with(self.rollout_func, plans, self.chat)), RolloutTiming(sync_s=sync_s)
        quiet = self.args.disable_tqdm or self.args.process_index > 0
        with tqdm(total=enough, desc=label, unit=" episodes", disable=quiet or None, leave=False) as bar:
            start = time.perf_counter()

            def show(ended: Trajectory, timing: RolloutTiming) -> None:
                rate = timing.num_tokens / (time.perf_counter() - start)
                bar.set_postfix_str(f"{worker.num_running} running, {rate:.0f} tokens/s", refresh=False)
                bar.update(ended.stop_reason is not StopReason.ERROR)

            worker.start(plans)
            trajectories, timing = self._play_until_full(worker, enough, replacements(), show)
        if further is not None:

            def play_groups(attempt: int, count: int) -> list[Trajectory]:
                nonlocal timing
                worker.start(further(attempt, count))
                others, spent = self._play_until_full(worker, None, replacements(part=1 + attempt))
                timing = timing.plus(spent)
                return others

            masked = partial(is_masked, args=self.args)
            trajectories, replaced = replace_equal_groups(trajectories, play_groups, self.args.filter_groups, masked)
            timing = replace(timing, num_replaced=replaced)
        if self.args.oversampling_rest == "drop":
            worker.give_up()
        # nothing computed with these weights is of use to the coming ones, and its memory is to the update
        worker.generator.reset()
        return trajectories, replace(timing, sync_s=sync_s)

    def _play_until_full(
        self,
        worker: RolloutWorker,
        enough: int | None,
        replacements: Replacements,
        show: Callable[[Trajectory, RolloutTiming], None] | None = None,
    ) -> tuple[list[Trajectory], RolloutTiming]:
        """Play and reward episodes; where some fail, in a step or in their reward, others in their place."""
        trajectories: list[Trajectory] = []
        finished, timing = worker.play(enough, show)
        while True:
            plans = replacements.plans([*trajectories, *(item.trajectory for item in finished)])
            if not plans and finished:
                trajectories += self._reward_and_return(worker, finished)
                finished = []
                plans = replacements.plans(trajectories)
            if not plans:
                return replacements.in_order(trajectories), timing
            worker.start(plans[: max(0, len(plans) - worker.num_left)])  # those that oversampling left come first
            others, spent = worker.play(len(plans), show)
            finished, timing = [*finished, *others], timing.plus(spent)

    def _reward_and_return(self, worker: RolloutWorker, finished: list[FinishedEpisode]) -> list[Trajectory]:
        """Reward episodes, and return their environments to the pool, whatever a reward function raises."""
        try:
            return self._rewarded(finished)
        finally:
            worker.give_back(finished)

    def _check(self) -> None:
        """Measure once, before anything is played, that what is sampled with is what is trained."""
        if self.engine is not None:
            check_engine(self.engine, self.actor, temperature=self.args.temperature, autocast=self.autocast)
        elif self.rollout_func is None:
            check_sampler(self.actor, autocast=self.autocast)
        if self.args.disable_dropout:
            check_training_mode(self.actor, autocast=self.autocast)

    def _rewarded(self, finished: Sequence[FinishedEpisode]) -> list[Trajectory]:
        """Apply the reward functions while the environments are as the episodes left them."""
        return [episode.trajectory for episode in finished] if self.rewards is None else self.rewards(finished)
