"""Tasks in, the trajectories of a rollout batch out: episodes, generator, progress bar and what all ranks agree on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

import numpy as np
from accelerate.utils import gather_object
from datasets import Dataset
from tqdm import tqdm
from transformers import PreTrainedModel

from turnppo_hf.environments.pool import EnvironmentPool
from turnppo_hf.generation.base import Generator
from turnppo_hf.generation.self_check import check_engine
from turnppo_hf.rollout.chat import Chat
from turnppo_hf.rollout.rewards import Rewards
from turnppo_hf.rollout.rollout_func import RolloutFunction, play_with
from turnppo_hf.rollout.worker import Episode, Limits, Rollout, RolloutTiming, plan_episodes
from turnppo_hf.trainer.generators import make_generator, open_engine
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig
from turnppo_hf.trajectory import GenerationError, Trajectory


class Collector:
    """
    Plays this rank's share of rollout batches and evaluations.

    Args:
        args ([`TurnPPOConfig`]): How to sample, and what cuts an episode.
        actor ([`~transformers.PreTrainedModel`]): Its weights are sampled with, as they are at each call.
        chat (`Chat`): Renders conversations.
        environments (`EnvironmentPool`): Where to take environments from.
        default_environment (`str`): For tasks that name none.
        tasks (`Dataset`): Where oversampling draws further tasks from.
        autocast (`Callable`): Makes the context of each of the actor's forwards.
        rewards ([`~turnppo_hf.rollout.rewards.Rewards`], *optional*): Pays for whole episodes.
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
        self.default_environment, self.tasks, self.autocast = default_environment, tasks, autocast
        self.rewards, self.rollout_func = rewards, rollout_func
        self.engine = open_engine(args, actor, chat.tokenizer, gather_object)
        self.generator = self._generator(args.temperature)
        self.timing = RolloutTiming()  # of the last batch: for each entry, the slowest rank's
        self._rollout = self._start(self.generator)
        self._checked = False

    def collect(
        self, rows: Sequence[Mapping[str, Any]], batch_number: int
    ) -> tuple[list[Trajectory], list[Trajectory]]:
        """
        Play this rank's share of a rollout batch.

        Args:
            rows (`Sequence[Mapping]`): Its tasks; as many episodes as these make its share.
            batch_number (`int`): Seeds the batch, with the run's seed.

        Returns:
            `tuple[list[Trajectory], list[Trajectory]]`: this rank's trajectories, and all ranks'.

        Raises:
            [`~turnppo_hf.trajectory.GenerationError`]: on every rank, where one of them could not sample.
        """
        rank, rollout = self.args.process_index, self._rollout
        per_task = int(self.args.num_generations or 1)
        episodes = self._plan(rows, (0, batch_number), rank * len(rows), per_task)
        wanted = math.ceil(self.args.oversampling_factor * len(rows))
        if (more := wanted - len(rows) - rollout.num_left) > 0:
            random = np.random.default_rng((self.args.seed, 3, batch_number, rank))
            extra = self.tasks.select(random.integers(len(self.tasks), size=more))
            episodes += self._plan(extra, (4, batch_number), rank * wanted)
        return self._on_all_ranks(rollout, episodes, len(rows), "rollout")

    def evaluate(self, dataset: Dataset, temperature: float) -> list[Trajectory]:
        """Play every task once, over all ranks; return all trajectories."""
        rank, ranks = self.args.process_index, self.args.world_size
        episodes = self._plan(dataset, (1,))[rank::ranks]
        rollout = self._start(self._generator(temperature))
        try:
            return self._on_all_ranks(rollout, episodes, len(episodes), "evaluation")[1]
        finally:
            rollout.close()

    def _on_all_ranks(
        self, rollout: Rollout, episodes: list[Episode], enough: int, label: str
    ) -> tuple[list[Trajectory], list[Trajectory]]:
        """Play, and raise on every rank what one rank has to say against going on."""
        mine, problem = [], None
        rollout.timing = RolloutTiming()
        try:
            mine = self._play(rollout, episodes, enough, label)
        except GenerationError as error:
            problem = str(error)
            rollout.give_up()
        shares = gather_object([(mine, problem, asdict(rollout.timing))])
        if problems := [problem for _, problem, _ in shares if problem]:
            raise GenerationError(problems[0])
        self.timing = RolloutTiming(**{name: max(times[name] for *_, times in shares) for name in shares[0][2]})
        self.timing.num_tokens = sum(times["num_tokens"] for *_, times in shares)
        return mine, [trajectory for share, *_ in shares for trajectory in share]

    def _play(self, rollout: Rollout, episodes: list[Episode], enough: int, label: str) -> list[Trajectory]:
        quiet = self.args.disable_tqdm or self.args.process_index > 0
        with tqdm(total=enough, desc=label, unit=" episodes", disable=quiet or None, leave=False) as bar:
            start = time.perf_counter()

            def show(_: Trajectory) -> None:
                rate = rollout.timing.num_tokens / (time.perf_counter() - start)
                bar.set_postfix_str(f"{rollout.num_running} running, {rate:.0f} tokens/s", refresh=False)
                bar.update()

            rollout.on_finished = show
            rollout.sync()
            if self.engine is not None and not self._checked:
                check_engine(self.engine, self.actor, temperature=self.args.temperature, autocast=self.autocast)
                self._checked = True
            if self.rollout_func is not None and self.rewards is not None:
                return self.rewards(play_with(self.rollout_func, episodes, self.chat))
            rollout.start(episodes)
            trajectories = rollout.collect(enough)
        if self.args.oversampling_rest == "drop":
            rollout.give_up()
        # nothing computed with these weights is of use to the coming ones, and its memory is to the update
        rollout.generator.reset()
        return trajectories

    def _plan(
        self, rows: Sequence[Mapping[str, Any]] | Dataset, key: tuple[int, ...], first: int = 0, per_task: int = 1
    ) -> list[Episode]:
        return plan_episodes(
            rows,
            key=(self.args.seed, *key),
            first=first,
            per_task=per_task,
            default_environment=self.default_environment,
        )

    def _generator(self, temperature: float) -> Generator:
        return make_generator(
            self.args,
            self.engine,
            self.actor,
            self.chat.tokenizer,
            temperature=temperature,
            autocast=self.autocast,
        )

    def _start(self, generator: Generator) -> Rollout:
        contexts = getattr(self.actor.config.get_text_config(), "max_position_embeddings", None), generator.max_context
        limits = Limits(
            max_turns=self.args.max_turns,
            max_turn_length=self.args.max_turn_length,
            max_completion_length=self.args.max_completion_length,
            max_tool_calling_iterations=self.args.max_tool_calling_iterations,
            max_context=min((tokens for tokens in contexts if tokens), default=None),
        )
        return Rollout(self.environments, generator, self.chat, limits, score=self.rewards)
