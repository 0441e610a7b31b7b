"""A checkpoint or repository in, an agent out: it plays episodes and says what it expects from each of its turns."""

from __future__ import annotations

import copy
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import torch
from huggingface_hub import ModelHubMixin
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from turnppo_hf.environments import full_id, make_environment
from turnppo_hf.generation.transformers_generator import TransformersGenerator
from turnppo_hf.hub.agent_record import read_record, turn_discounts
from turnppo_hf.hub.card.card import prepare_release, render_card
from turnppo_hf.hub.client import create_repository, push_folder, read_card
from turnppo_hf.hub.exceptions import ReleaseError
from turnppo_hf.hub.files import CRITIC_FOLDER, EVIDENCE_FILES, check_folder
from turnppo_hf.models.actor_critic import ActorCritic
from turnppo_hf.models.adapters import check_mergeable, is_adapted
from turnppo_hf.models.checkpoint import save_networks
from turnppo_hf.models.pretrained import EMBEDDED_MODELS, find_model, load_agent_networks
from turnppo_hf.ppo.batch import stack
from turnppo_hf.ppo.credit import Credit, critic_credit, record_credit
from turnppo_hf.rollout.chat import Chat, Message, Prompt
from turnppo_hf.rollout.worker import EnvironmentPool, Episode, Limits, collect_trajectories
from turnppo_hf.trajectory import StopReason, Trajectory

_DATA_ARGUMENTS = ("data", "levels")  # of environments that read files or datasets
_SCORED_TOKENS = 16384  # padded tokens of one forward of the critic

EnvironmentSource = str | Callable[[], gymnasium.Env[str, str]]


class TurnPPOAgent(ModelHubMixin):
    """
    An actor that plays text environments, with its critic where there is one.

    Example:
    ```python
    from turnppo_hf import TurnPPOAgent

    agent = TurnPPOAgent.from_pretrained("tiny-trained")
    trajectory = agent.play(seed=1_000_000)
    print(trajectory.solved, agent.values(trajectory))
    ```

    Args:
        actor ([`~transformers.PreTrainedModel`]):
            Causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer, with a chat template.
        critic ([`~transformers.PreTrainedModel`], *optional*):
            Token classifier with one label: V of the state that ends with a token.
        record (`Mapping`, *optional*):
            `turnppo.json` of the checkpoint: environment, limits, sampling, chat template arguments.
        folder (`Path`, *optional*):
            Where it was loaded from; its card and evidence are copied when the agent is saved elsewhere.
        is_local (`bool`, *optional*, defaults to `True`):
            Whether the record is one's own. Data that a stranger's record names is not read.
    """

    def __init__(
        self,
        actor: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        critic: PreTrainedModel | None = None,
        record: Mapping[str, Any] | None = None,
        folder: Path | None = None,
        *,
        is_local: bool = True,
    ) -> None:
        self.actor = actor
        self.critic = critic
        self.record = dict(record or {})
        self.folder = folder
        self.is_local = is_local
        self.chat = Chat(tokenizer, self.record.get("chat_template_kwargs"))
        self._hub_mixin_config = None  # else the mixin would write the arguments above as the model's config.json

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        device: torch.device | str | None = None,
        record: Mapping[str, Any] | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
    ) -> TurnPPOAgent:
        """
        Load an agent. Weights are read from safetensors only, and no code of the repository is run.

        Args:
            pretrained_model_name_or_path (`str` or `Path`):
                Repository on the Hub, folder that the trainer saved, any causal language model with a chat template,
                or the name of an actor in the package: `"tiny"`, `"tiny-webshop"`, `"tiny-trained"`.
            revision (`str`, *optional*):
                Branch, tag or commit; both networks are those of this one commit.
            device (`torch.device` or `str`, *optional*):
                Defaults to the accelerator where there is one.
            record (`Mapping`, *optional*):
                What to use instead of the same keys of `turnppo.json`.
            token, cache_dir, force_download, local_files_only (*optional*):
                As in [`~huggingface_hub.snapshot_download`].

        Raises:
            `ReleaseError`: there is no such model, or it has to be refused.
            `ValueError`: its tokenizer has no chat template.
        """
        name = str(pretrained_model_name_or_path)
        folder = find_model(
            name,
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            force_download=force_download,
            local_files_only=local_files_only,
        )
        check_folder(folder, name)
        known = read_record(folder)
        is_local = name in EMBEDDED_MODELS or Path(name).is_dir()
        if device is None:
            device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
        # on CPU a checkpoint in half precision would be slow, and its greedy choices would differ from the trainer's
        dtype = torch.float32 if torch.device(device).type == "cpu" else "auto"
        actor, critic = load_agent_networks(folder, dtype)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return cls(
            actor.to(device),
            tokenizer,
            None if critic is None else critic.to(device),
            {**known, **(record or {})},
            folder,
            is_local=is_local,
        )

    def act(self, observation: str | Sequence[Message], *, temperature: float | None = None, seed: int = 0) -> str:
        """
        Answer an observation, or the last one of a conversation.

        Args:
            observation (`str` or `Sequence[dict]`):
                What the environment shows, or messages with `role` and `content` that end with the user's.
            temperature (`float`, *optional*):
                0 is greedy; by default the one that the agent was evaluated with.
            seed (`int`, *optional*, defaults to `0`):
                Seeds the sampling: the same history and seed give the same answer.

        Returns:
            `str`: the response, what an environment's `step` takes.
        """
        prompt = self._prompts(observation)[-1]
        generator = self._generator(self._temperature(temperature))
        limits = self._limits
        room = limits.max_completion_length
        if limits.max_context is not None:
            room = min(room, limits.max_context - len(prompt.ids))
        self._check_length(prompt, len(prompt.ids) + 1)
        room = min(room, limits.max_turn_length or room)
        generator.submit(0, prompt.ids, max_new_tokens=room, seed=seed)
        (completion,) = generator.collect()
        return self.chat.content(completion.completion_ids)

    @torch.no_grad()
    def values(self, history: str | Sequence[Message] | Trajectory) -> list[float]:
        """
        Return V of each state in which the agent acts: what it expected, before each of its turns.

        Args:
            history (`str`, `Sequence[dict]` or `Trajectory`):
                An observation (one value), messages (a value at each of the user's), or an episode (one per turn,
                read at exactly the tokens that were sampled).

        Raises:
            `ValueError`: the agent has no critic.
        """
        if isinstance(history, Trajectory):
            self._need_critic()
            (scored,) = self.score([history])
            return [float(turn.value) for turn in scored.turns if turn.value is not None]
        critic = self._need_critic()
        found = []
        for prompt in self._prompts(history):
            self._check_length(prompt, len(prompt.ids))
            ids = torch.tensor([prompt.ids], device=critic.device)
            found.append(float(critic(input_ids=ids, use_cache=False).logits[0, -1, 0]))
        return found

    def play(
        self,
        environment: EnvironmentSource | None = None,
        seed: int = 0,
        *,
        options: Mapping[str, Any] | None = None,
        temperature: float | None = None,
    ) -> Trajectory:
        """
        Play one episode.

        Args:
            environment (`str` or `Callable`, *optional*):
                Gymnasium id, or a callable that builds an environment with Text spaces; by default the held-out one
                that the agent was judged in.
            seed (`int`, *optional*, defaults to `0`):
                Of the environment and the sampling.
            options (`Mapping`, *optional*):
                Of the environment's reset, such as a level.
            temperature (`float`, *optional*):
                0 is greedy; by default the one that the agent was evaluated with.

        Returns:
            [`Trajectory`]: with the critic's value, advantage and return of each turn where there is a critic.
        """
        name, factory = self.environment(environment)
        task = {**(options or {}), "seed": seed}
        return self.score(self.play_tasks(factory, [task], temperature=self._temperature(temperature), name=name))[0]

    def play_tasks(
        self,
        environment: Callable[[], gymnasium.Env],
        tasks: Sequence[Mapping[str, Any]],
        *,
        temperature: float = 0.0,
        max_parallel_episodes: int = 256,
        name: str = "environment",
        on_finished: Callable[[Trajectory], None] | None = None,
    ) -> list[Trajectory]:
        """
        Play one episode of each task, many at a time.

        Args:
            environment (`Callable`):
                Builds an environment with Text spaces.
            tasks (`Sequence[Mapping]`):
                Rows with a `seed`; other columns are the reset's options.
            temperature (`float`, *optional*, defaults to `0.0`):
                0 is greedy. Above, each task's seed also seeds the sampling.
            max_parallel_episodes (`int`, *optional*, defaults to `256`):
                Bounds the key-value cache.
            name (`str`, *optional*):
                The environment's name in the trajectories.
            on_finished (`Callable`, *optional*):
                Called with each trajectory when it ends.

        Returns:
            `list[Trajectory]`: in the order of `tasks`, without values: see `score`.
        """
        generator = self._generator(temperature, max_parallel_episodes)
        episodes = [Episode(task, name, seed=task["seed"], sampling_seed=task["seed"]) for task in tasks]
        pool = EnvironmentPool({name: environment})
        try:
            return collect_trajectories(episodes, pool, generator, self.chat, self._limits, on_finished)
        finally:
            pool.close()

    @torch.no_grad()
    def score(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
        """
        Write the critic's value and the advantage and return of turn-level GAE into each turn.

        Gamma and lambda are the record's; they are 1 for an agent of token PPO, whose critic learned such returns.
        Without a critic, and for failed episodes, trajectories stay as they are.
        """
        played = [item for item in trajectories if item.stop_reason is not StopReason.ERROR]
        if self.critic is None or not played:
            return list(trajectories)
        gamma, lam = turn_discounts(self.record)
        batch = stack(played).to(self.critic.device)
        networks = ActorCritic(self.actor, self.critic)
        parts = []
        for group in batch.micro_batches(_SCORED_TOKENS):
            part = batch.select(group)
            values = networks("critic", part)
            at_turns, after = part.at_turns(values), part.at_bootstrap(values)
            parts.append((group, critic_credit(part, at_turns, after, decision="turn", gamma=gamma, lam=lam)))
        scored = iter(record_credit(played, Credit.merge(parts, len(batch))))
        return [item if item.stop_reason is StopReason.ERROR else next(scored) for item in trajectories]

    def environment(
        self, environment: EnvironmentSource | None = None, **kwargs: Any
    ) -> tuple[str, partial[gymnasium.Env[str, str]]]:
        """
        Choose an environment: the one given, else the held-out one of the record.

        Args:
            environment (`str` or `Callable`, *optional*): Gymnasium id, or what builds an environment.
            kwargs: Arguments of the environment, on top of the record's where it is the record's.

        Returns:
            `tuple[str, functools.partial]`: its name, and what builds one, with all arguments in `keywords`.

        Raises:
            `ReleaseError`: the record names none, or one that cannot be built here.
        """
        if environment is not None and not isinstance(environment, str):
            return getattr(environment, "__name__", type(environment).__name__), partial(environment, **kwargs)
        recorded = self.record.get("environment")
        name = full_id(environment) if environment else recorded
        if environment is None and (tools := self.record.get("tools")) is not None:
            raise ReleaseError(
                f"The model {self.actor.name_or_path!r} was trained in conversations with tools ({', '.join(tools)}), "
                "and code that only its training script has. Build that environment and evaluate with the trainer's "
                "evaluate(), or name another environment here."
            )
        if name is None:
            raise ReleaseError(
                f"The model {self.actor.name_or_path!r} does not say which environment it plays: it has no "
                "turnppo.json, or played one that Gymnasium does not know. Name one, such as turnppo_hf/Sokoban-v0."
            )
        if environment is None and ":" in name:
            raise ReleaseError(
                f"The model's record names the environment {name!r}, which would import the module "
                f"{name.partition(':')[0]!r} on this machine. Name the environment yourself if you trust it."
            )
        if name == recorded:
            held_out = self.record.get("evaluation", {}).get("environment_kwargs", {})
            recorded_kwargs = {**self.record.get("environment_kwargs", {}), **held_out}
            for key in _DATA_ARGUMENTS:
                if not self.is_local and key not in kwargs and recorded_kwargs.get(key, "synthetic") != "synthetic":
                    raise ReleaseError(
                        f"The agent's record wants to read the data {recorded_kwargs[key]!r} on this machine or with "
                        f"your token. Name it yourself if you trust it: --environment_kwargs "
                        f"{json.dumps({key: recorded_kwargs[key]})!r}."
                    )
            kwargs = {**recorded_kwargs, **kwargs}
        factory = partial(make_environment, name, **kwargs)
        factory().close()  # so that a mistake shows here
        return name, factory

    def merge_and_unload(self) -> TurnPPOAgent:
        """
        Give an agent of whole networks, with the adapters added into copies of their base models.

        Copies, since a trainer's actor and critic may stand on one base, which would take both adapters.

        Raises:
            `ValueError`: an adapter of words that two layers share cannot be merged.
        """
        networks: tuple[Any, Any] = (self.actor, self.critic)
        check_mergeable(self.actor)
        whole = [copy.deepcopy(item) for item in networks]
        whole = [item.merge_and_unload() if is_adapted(item) else item for item in whole]
        return type(self)(whole[0], self.chat.tokenizer, whole[1], self.record, self.folder, is_local=self.is_local)

    def _save_pretrained(self, save_directory: Path) -> None:
        networks = ActorCritic(self.actor, self.critic)
        record = {name: value for name, value in self.record.items() if name != "schema_version"}
        save_networks(networks, self.chat.tokenizer, record, str(save_directory))
        for path in _evidence(self.folder):
            assert self.folder is not None
            target = save_directory / path.relative_to(self.folder)
            if target.resolve() != path.resolve():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        card = save_directory / "README.md"
        if not card.exists():
            card.write_text(render_card(save_directory), encoding="utf-8")

    def push_to_hub(  # type: ignore[override]
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload agent",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool = False,
        config: Any = None,
        model_card_kwargs: Any = None,
    ) -> str:
        """
        Push actor, critic, tokenizer, record and card as one commit, and return its address.

        `config` and `model_card_kwargs`, which other models of the mixin take, have no effect: configuration and card
        are written from what is known of the agent.

        Raises:
            `PushError`: nothing was committed; the message says why.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            namespaced = create_repository(repo_id, token=token, private=private) if not create_pr else repo_id
            prepare_release(folder, namespaced, published=read_card(namespaced, token=token, revision=branch))
            commit = push_folder(
                folder,
                repo_id,
                message=commit_message,
                private=private,
                token=token,
                revision=branch,
                create_pr=create_pr,
                release=True,
            )
        return str(commit.pr_url or commit.commit_url)

    def _need_critic(self) -> PreTrainedModel:
        if self.critic is None:
            algorithm = self.record.get("algorithm")
            why = (
                f"it was trained with {algorithm}, which has none"
                if algorithm in ("grpo", "rloo")
                else f"there is no folder `{CRITIC_FOLDER}` beside the actor"
            )
            raise ValueError(
                f"The agent {self.actor.name_or_path!r} has no critic ({why}), so it cannot say what it expects. It "
                "plays all the same; values need an agent trained with turn_ppo or token_ppo."
            )
        return self.critic

    def _check_length(self, prompt: Prompt, needed: int) -> None:
        most = self._limits.max_context
        if most is not None and needed > most:
            raise ValueError(
                f"The conversation has {len(prompt.ids)} tokens, but the model reads {most} at most, so it cannot be "
                "answered or judged. Shorten it."
            )

    def _prompts(self, history: str | Sequence[Message]) -> list[Prompt]:
        """Render what the model reads before each of its turns in a conversation."""
        if isinstance(history, str):
            return [self.chat.start(history)]
        if not all(isinstance(message, Mapping) and {"role", "content"} <= set(message) for message in history):
            raise ValueError(
                "A history is an observation (a text) or a list of messages with `role` and `content`, got "
                f"{history!r:.80}. Write a state as {{'role': 'user', 'content': ...}}."
            )
        if not history or history[-1]["role"] != "user":
            raise ValueError(
                "The history does not end with a message of the user, so there is nothing to answer. Append the "
                'environment\'s observation as {"role": "user", "content": ...}.'
            )
        ends = [number for number, message in enumerate(history) if message["role"] == "user"]
        return [self.chat.start(history[end]["content"], _without_user_end(history[:end])) for end in ends]

    def _generator(self, temperature: float, max_parallel_episodes: int = 256) -> TransformersGenerator:
        self._check_temperature(temperature)
        sampling = self.record.get("sampling", {})
        return TransformersGenerator.for_chat(
            self.actor,
            self.chat.tokenizer,
            temperature=temperature,
            top_p=sampling.get("top_p", 1.0),
            top_k=sampling.get("top_k", 0),
            max_parallel_episodes=max_parallel_episodes,
        )

    def _temperature(self, wanted: float | None) -> float:
        return float(self.record.get("evaluation", {}).get("temperature", 0.0) if wanted is None else wanted)

    @staticmethod
    def _check_temperature(temperature: float) -> None:
        if not 0 <= temperature < math.inf:
            raise ValueError(
                f"`temperature` must be 0 (greedy) or positive and finite, got {temperature}: nothing could be drawn. "
                "Leave it out to sample as the agent was judged."
            )

    @property
    def _limits(self) -> Limits:
        max_context = getattr(self.actor.config.get_text_config(), "max_position_embeddings", None)
        return Limits(**self.record.get("limits", {}), max_context=max_context)


def _without_user_end(messages: Sequence[Message]) -> Sequence[Message]:
    """Refuse two messages of the user in a row, which `Chat.start` would join."""
    if messages and messages[-1]["role"] == "user":
        raise ValueError(
            "The history has two messages of the user in a row, so it is unclear what the agent answered. Join them, "
            "or put the agent's answer between them."
        )
    return messages


def _evidence(folder: Path | None) -> list[Path]:
    return [] if folder is None else [path for pattern in EVIDENCE_FILES for path in sorted(folder.glob(pattern))]
