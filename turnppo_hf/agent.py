"""A checkpoint or repository in, an agent out: it plays episodes and values each of its turns."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any

import gymnasium
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from turnppo_hf.environments.factory import require_callable
from turnppo_hf.environments.reading import read_count
from turnppo_hf.generation.sampler_check import check_sampler
from turnppo_hf.generation.transformers_generator import TransformersGenerator
from turnppo_hf.hub.agent_record import RECORD_FILE, AgentRecord, EnvironmentSource, resolve_environment
from turnppo_hf.hub.card.card import Published, prepare_release, render_card
from turnppo_hf.hub.card.merge import is_ours, merge_cards
from turnppo_hf.hub.client import create_repository, push_release, read_account
from turnppo_hf.hub.files import CRITIC_FOLDER, EMBEDDED_MODELS, agent_files, check_folder, copy_evidence
from turnppo_hf.models.actor_critic import ActorCritic
from turnppo_hf.models.adapters import ADAPTER_CONFIG, check_mergeable, is_adapted
from turnppo_hf.models.checkpoint import save_networks
from turnppo_hf.models.pretrained import find_model, load_agent_networks, load_tokenizer
from turnppo_hf.ppo.algorithms import ALGORITHMS
from turnppo_hf.ppo.batch import stack
from turnppo_hf.ppo.credit import Credit, critic_credit, record_credit
from turnppo_hf.rollout.arguments import checked_list, checked_seed
from turnppo_hf.rollout.chat import Chat, Message, Prompt
from turnppo_hf.rollout.context import FULL
from turnppo_hf.rollout.history import read_history
from turnppo_hf.rollout.worker import EnvironmentPool, EpisodePlan, Limits, collect_trajectories, read_seed
from turnppo_hf.trajectory import StopReason, Trajectory

_WITH_CRITIC = [name for name, algorithm in ALGORITHMS.items() if algorithm.has_critic]
_SCORED_TOKENS = 16384  # padded tokens of one forward of the critic
_MEASURED_TOKENS = (
    320  # of the sampler, before the first response: an agent that acts once on a processor waits for it
)


class TurnPPOAgent:
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
        record ([`~turnppo_hf.hub.agent_record.AgentRecord`], *optional*):
            `turnppo.json` of the checkpoint: environment, limits, sampling, chat template arguments.
        folder (`Path`, *optional*):
            Where it was loaded from; its card and evidence are copied when the agent is saved elsewhere.
        is_local (`bool`, *optional*, defaults to `True`):
            Whether the record is trusted. Data that another's record names is not read.
    """

    def __init__(
        self,
        actor: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        critic: PreTrainedModel | None = None,
        record: AgentRecord | None = None,
        folder: Path | None = None,
        *,
        is_local: bool = True,
    ) -> None:
        self.actor = actor
        self.critic = critic
        self.record = record or AgentRecord()
        self.folder = folder
        self.is_local = is_local
        self.chat = Chat(tokenizer, self.record.chat_template_kwargs, self.record.context or FULL)
        self._is_checked = False  # whether the sampler was measured

    @classmethod
    def from_pretrained(
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
            `ValueError`: its tokenizer has no chat template, or the device is not here.
        """
        if device is None:
            device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
        try:
            torch.empty(0, device=device)
        except Exception as error:  # each kind of accelerator has errors of its own
            cause = str(error).partition("\n")[0]
            raise ValueError(
                f'`device` is {device!r}, where no network can be put ({cause}). Pass another one such as "cpu", or '
                "leave it out for the best that is here."
            ) from error
        name = str(pretrained_model_name_or_path)
        download: dict[str, Any] = {"token": token, "cache_dir": cache_dir}
        download |= {"force_download": force_download, "local_files_only": local_files_only}
        folder = find_model(name, revision=revision, **download)
        check_folder(folder, name)
        known = AgentRecord.from_folder(folder)
        if record:
            known = known.changed(record)
        is_local = name in EMBEDDED_MODELS or Path(name).is_dir()
        # on CPU a checkpoint in half precision would be slow, and its greedy choices would differ from the trainer's
        dtype = torch.float32 if torch.device(device).type == "cpu" else "auto"
        actor, critic = load_agent_networks(folder, dtype, **download)
        tokenizer = load_tokenizer(folder, name)
        return cls(
            actor.to(device),
            tokenizer,
            None if critic is None else critic.to(device),
            known,
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
        prompt = read_history(self.chat, observation)[-1]
        generator = self._generator(self._temperature(temperature))
        self._check_length(prompt, len(prompt.ids) + 1)
        limits = self._limits
        room = min(limits.max_completion_length, limits.max_turn_length or limits.max_completion_length)
        if limits.max_context is not None:
            room = min(room, limits.max_context - len(prompt.ids))
        generator.submit(0, prompt.ids, max_new_tokens=room, seed=checked_seed(seed))
        (completion,) = generator.take_completions()
        return self.chat.content(completion.completion_ids)

    @torch.no_grad()
    def values(self, history: str | Sequence[Message] | Trajectory) -> list[float]:
        """
        Return V of each state in which the agent acts: the expected return before each of its turns.

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
        for prompt in read_history(self.chat, history):
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
        task = {**(options or {}), "seed": checked_seed(seed)}
        return self.score(self.play_tasks(factory, [task], temperature=temperature, name=name))[0]

    def play_tasks(
        self,
        environment: Callable[[], gymnasium.Env],
        tasks: Sequence[Mapping[str, Any]],
        *,
        temperature: float | None = 0.0,
        max_parallel_episodes: int = 256,
        environment_timeout_s: float = 600.0,
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
                0 is greedy. Above, each task's seed also seeds the sampling. `None` is the one that the agent was
                evaluated with.
            max_parallel_episodes (`int`, *optional*, defaults to `256`):
                Bounds the key-value cache.
            environment_timeout_s (`float`, *optional*, defaults to `600.0`):
                Seconds that a reset or a step may take; an episode that takes longer failed.
            name (`str`, *optional*):
                The environment's name in the trajectories.
            on_finished (`Callable`, *optional*):
                Called with each trajectory when it ends.

        Returns:
            `list[Trajectory]`: in the order of `tasks`, without values: see `score`.
        """
        require_callable(environment, "`environment` is")
        if not isinstance(environment_timeout_s, Real) or not environment_timeout_s > 0:
            raise ValueError(
                f"`environment_timeout_s` must be a number above 0, got {environment_timeout_s!r}: no episode could "
                "be played. Pass some seconds."
            )
        most = read_count("max_parallel_episodes", max_parallel_episodes)
        tasks = checked_list("tasks", tasks, Mapping)
        generator = self._generator(self._temperature(temperature), most)
        for number, task in enumerate(tasks):
            if "seed" not in task:
                raise ValueError(
                    f"Task {number} has no `seed`, of which its episode would be made: {dict(task)!r:.80}. Give each "
                    "task one."
                )
        read = [read_seed(task["seed"], number) for number, task in enumerate(tasks)]
        plans = [
            EpisodePlan(task, name, seed=seed, sampling_seed=seed, problem=problem)
            for task, (seed, problem) in zip(tasks, read, strict=True)
        ]
        pool = EnvironmentPool({name: environment})
        try:
            limits = replace(self._limits, environment_timeout_s=environment_timeout_s)
            return collect_trajectories(plans, pool, generator, self.chat, limits, on_finished)
        finally:
            pool.close()

    @torch.no_grad()
    def score(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
        """
        Write the critic's value and the advantage and return of turn-level GAE into each turn.

        Gamma and lambda are the record's; they are 1 for an agent of token PPO, as in its critic's training.
        Without a critic, and for failed episodes, trajectories stay as they are.
        """
        trajectories = checked_list("trajectories", trajectories, Trajectory)
        played = [item for item in trajectories if item.stop_reason is not StopReason.ERROR]
        if self.critic is None or not played:
            return trajectories
        gamma, lam = self.record.turn_discounts
        batch = stack(played, bootstrap_truncated=self.record.bootstrap_truncated).to(self.critic.device)
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
        Choose an environment: the one given, else the held-out one of the record, with `kwargs` on top.

        Returns and raises what [`~turnppo_hf.hub.agent_record.resolve_environment`] does.
        """
        name = self.actor.name_or_path
        return resolve_environment(self.record, environment, kwargs, model=name, is_local=self.is_local)

    def merge_and_unload(self) -> TurnPPOAgent:
        """
        Return an agent of whole networks, with the adapters added into copies of their base models.

        Copies, since a trainer's actor and critic may have one base, which would get both adapters.

        Raises:
            `ValueError`: an adapter of tied embeddings cannot be merged.
        """
        networks: tuple[Any, Any] = (self.actor, self.critic)
        check_mergeable(self.actor)
        whole = [copy.deepcopy(item) for item in networks]
        whole = [item.merge_and_unload() if is_adapted(item) else item for item in whole]
        return type(self)(whole[0], self.chat.tokenizer, whole[1], self.record, self.folder, is_local=self.is_local)

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **push_to_hub_kwargs: Any,
    ) -> str | None:
        """
        Write actor, critic, tokenizer, record, card and the evidence of the training into a folder.

        Where the folder holds another agent, its networks, figures and pictures go once the new one is there; sections
        of your own stay in the card.

        Args:
            save_directory (`str` or `Path`): Created where it is missing.
            push_to_hub (`bool`, *optional*, defaults to `False`): Push the agent as well.
            repo_id (`str`, *optional*): Where it is pushed; the folder's name by default.
            push_to_hub_kwargs: Passed to `push_to_hub`.

        Returns:
            `str`: the address of the push; `None` without one.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        card = folder / "README.md"
        is_own = self.folder is not None and self.folder.resolve() == folder.resolve()
        earlier = card.read_text(encoding="utf-8") if card.exists() and not is_own else ""
        record = folder / RECORD_FILE
        with tempfile.TemporaryDirectory(dir=folder, prefix="_") as made:  # whole, before anything is replaced
            save_networks(ActorCritic(self.actor, self.critic), self.chat.tokenizer, self.record, made)
            if self.folder is not None:
                copy_evidence(self.folder, Path(made))
            brings_card = (Path(made) / card.name).exists()
            was_adapter = self.folder is not None and (self.folder / ADAPTER_CONFIG).exists()
            is_as_trained = was_adapter == (Path(made) / ADAPTER_CONFIG).exists()  # not merged since
            stale = set[Path]()
            if is_own or record.exists():  # of another agent, or the adapters of one that was merged
                is_same = is_own or record.read_bytes() == (Path(made) / RECORD_FILE).read_bytes()
                stale = agent_files(folder, networks_only=is_same)
            for file in [path for path in sorted(Path(made).rglob("*")) if path.is_file()]:
                target = folder / file.relative_to(made)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.replace(target)
                stale.discard(target)
        for path in stale:
            path.unlink()
        written = card.read_text(encoding="utf-8") if brings_card else render_card(folder)
        if brings_card and not is_as_trained and is_ours(written):
            written = merge_cards(written, render_card(folder))
        merged = merge_cards(earlier, written) if earlier and is_ours(written) else written
        card.write_text(merged, encoding="utf-8")
        return self.push_to_hub(repo_id or folder.name, **push_to_hub_kwargs) if push_to_hub else None

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload agent",
        private: bool | None = None,
        token: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """
        Push actor, critic, tokenizer, record and card as one commit, and return its address.

        Args:
            repo_id (`str`): `"name"` in the namespace of the token, or `"namespace/name"`.
            commit_message (`str`, *optional*, defaults to `"Upload agent"`): Title of the commit.
            private (`bool`, *optional*): Of a repository that is created; the Hub's default otherwise.
            token (`str`, *optional*): Defaults to the one that `hf auth login` or `HF_TOKEN` gives.
            revision (`str`, *optional*): Branch; created where it is missing.
            create_pr (`bool`, *optional*, defaults to `False`): Open a pull request instead.

        Raises:
            `PushError`: nothing was committed; the message names the reason.
        """
        if "/" not in repo_id:
            repo_id = f"{read_account(token)['name']}/{repo_id}"
        if not create_pr:
            create_repository(repo_id, token=token, private=private)
        published = Published.read(repo_id, token=token, revision=revision)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            run = prepare_release(folder, repo_id, published=published)
            commit = push_release(
                folder,
                repo_id,
                message=commit_message,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
                called=f"The agent {self.actor.name_or_path!r}",
                is_other_agent=published.is_of_other_figures(run),
            )
        return str(commit.pr_url or commit.commit_url)

    def _need_critic(self) -> PreTrainedModel:
        if self.critic is None:
            why = f"there is no folder `{CRITIC_FOLDER}` beside the actor"
            if self.record.method is not None and not self.record.method.has_critic:
                why = f"it was trained with {self.record.algorithm}, which has none"
            raise ValueError(
                f"The agent {self.actor.name_or_path!r} has no critic ({why}), so it gives no values. It plays all "
                f"the same; values need an agent trained with {' or '.join(_WITH_CRITIC)}."
            )
        return self.critic

    def _check_length(self, prompt: Prompt, needed: int) -> None:
        most = self._limits.max_context
        if most is not None and needed > most:
            raise ValueError(
                f"The conversation has {len(prompt.ids)} tokens, but the model reads {most} at most, so it cannot be "
                "answered or judged. Shorten it."
            )

    def _generator(self, temperature: float, max_parallel_episodes: int = 256) -> TransformersGenerator:
        if not self._is_checked:
            check_sampler(self.actor, at_most=_MEASURED_TOKENS)
            self._is_checked = True
        return TransformersGenerator.for_chat(
            self.actor,
            self.chat.tokenizer,
            temperature=temperature,
            top_p=self.record.top_p,
            top_k=self.record.top_k,
            min_p=self.record.min_p,
            max_parallel_episodes=max_parallel_episodes,
        )

    def _temperature(self, wanted: float | None) -> float:
        if wanted is None:
            return float(self.record.evaluation.temperature or 0.0)
        if not isinstance(wanted, Real) or not 0 <= wanted < math.inf:
            raise ValueError(
                f"`temperature` must be 0 (greedy) or positive and finite, got {wanted!r}: nothing could be drawn. "
                "Leave it out to sample as the agent was judged."
            )
        return float(wanted)

    @property
    def _limits(self) -> Limits:
        max_context = getattr(self.actor.config.get_text_config(), "max_position_embeddings", None)
        return Limits(**(self.record.limits or {}), max_context=max_context)  # type: ignore[arg-type]
