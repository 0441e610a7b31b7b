"""A checkpoint in, an agent out: it plays episodes and says what it expects from each of its turns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import gymnasium
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from turnppo_hf.chat import Chat
from turnppo_hf.checkpoint import CRITIC_FOLDER, read_record
from turnppo_hf.generation.transformers_generator import TransformersGenerator
from turnppo_hf.rollout import EnvironmentPool, Episode, Limits, collect_trajectories
from turnppo_hf.trajectory import Trajectory

EMBEDDED_MODELS = {"tiny": "sokoban_tiny", "tiny-webshop": "webshop_tiny"}  # name -> folder in turnppo_hf/models


class TurnPPOAgent:
    """
    An actor that plays text environments, with its critic where there is one.

    Args:
        actor ([`~transformers.PreTrainedModel`]):
            Causal language model.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its tokenizer, with a chat template.
        critic ([`~transformers.PreTrainedModel`], *optional*):
            Token classifier with one label: V of the state that ends with a token.
        record (`Mapping`, *optional*):
            `turnppo.json` of the checkpoint: environment, limits, chat template arguments.
    """

    def __init__(
        self,
        actor: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        critic: PreTrainedModel | None = None,
        record: Mapping[str, Any] | None = None,
    ) -> None:
        self.actor = actor
        self.critic = critic
        self.record = dict(record or {})
        self.chat = Chat(tokenizer, self.record.get("chat_template_kwargs"))

    @classmethod
    def from_pretrained(
        cls, model: str, device: torch.device | str | None = None, record: Mapping[str, Any] | None = None
    ) -> TurnPPOAgent:
        """
        Load an agent.

        Args:
            model (`str`):
                Folder that the trainer saved, any causal language model on the Hub or in a folder, `"tiny"` or
                `"tiny-webshop"`.
            device (`torch.device` or `str`, *optional*):
                Defaults to the accelerator where there is one.
            record (`Mapping`, *optional*):
                What to use instead of the same keys of `turnppo.json`.

        Raises:
            `ValueError`: there is no such model, or its tokenizer has no chat template.
        """
        folder = find_model(model)
        if device is None:
            device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
        # on CPU a checkpoint in half precision would be slow, and its greedy choices would differ from the trainer's
        dtype = torch.float32 if torch.device(device).type == "cpu" else "auto"
        actor = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device).eval()
        critic = None
        if (folder / CRITIC_FOLDER).is_dir():
            critic = AutoModelForTokenClassification.from_pretrained(folder / CRITIC_FOLDER, dtype=dtype)
            critic = critic.to(device).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return cls(actor, tokenizer, critic, {**read_record(str(folder)), **(record or {})})

    def play(
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
        Play one episode of each task.

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
            `list[Trajectory]`: in the order of `tasks`.
        """
        generator = TransformersGenerator.for_chat(
            self.actor,
            self.chat.tokenizer,
            temperature=temperature,
            max_parallel_episodes=max_parallel_episodes,
        )
        max_context = getattr(self.actor.config.get_text_config(), "max_position_embeddings", None)
        limits = Limits(**self.record.get("limits", {}), max_context=max_context)
        episodes = [Episode(task, name, seed=task["seed"], sampling_seed=task["seed"]) for task in tasks]
        pool = EnvironmentPool({name: environment})
        try:
            return collect_trajectories(episodes, pool, generator, self.chat, limits, on_finished)
        finally:
            pool.close()

    @torch.no_grad()
    def with_values(self, trajectory: Trajectory) -> Trajectory:
        """Return the trajectory with the critic's V of each turn's state, as it is where there is no critic."""
        if self.critic is None:
            return trajectory
        turns = []
        for turn in trajectory.turns:
            prompt = torch.tensor([turn.prompt_ids], device=self.critic.device)
            value = self.critic(input_ids=prompt, use_cache=False).logits[0, -1, 0]
            turns.append(replace(turn, value=float(value)))
        return replace(trajectory, turns=tuple(turns))


def find_model(model: str) -> Path:
    """
    Return the folder of a model: the embedded one, a local one, or a snapshot from the Hub.

    Raises:
        `ValueError`: there is none.
    """
    if model in EMBEDDED_MODELS:
        return Path(str(files("turnppo_hf") / "models" / EMBEDDED_MODELS[model]))
    folder = Path(model)
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise ValueError(
                f"The folder {model!r} holds no config.json, so it is no model. Name the folder that a run saved (its "
                "`output_dir`, or a checkpoint in it)."
            )
        return folder
    try:
        # weights in safetensors and text only: nothing that is loaded can carry code
        patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
        return Path(snapshot_download(model, allow_patterns=patterns, ignore_patterns=["checkpoint-*"]))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{model!r} is no folder here and no model that the Hub gives ({reason}). Name the folder of a run, a "
            "model id on the Hub, or `tiny` or `tiny-webshop` for the actors in the package."
        ) from error
