"""Who is evaluated: an agent, any causal language model, or a model behind an endpoint; all play the same tasks."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gymnasium

    from turnppo_hf.agent import TurnPPOAgent
    from turnppo_hf.trajectory import Trajectory

DEFAULT_BATCH_SIZE = {"agent": 256, "endpoint": 8}
_LONG = 1 << 20  # tokens of an episode: no limit but the model's own


def add_player(parser: argparse.ArgumentParser, model_help: str) -> None:
    """Declare who plays."""
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help=f"{model_help}; or any causal LM with a chat template"
    )
    parser.add_argument("--endpoint", metavar="URL", help="OpenAI-compatible server that answers instead")
    parser.add_argument("--model", dest="endpoint_model", metavar="NAME", help="the model's name at the endpoint")
    parser.add_argument("--max_requests", type=int, help="to the endpoint, repeated ones included (default: no limit)")
    parser.add_argument("--request_timeout", type=float, help="seconds (default: 60)")
    parser.add_argument("--retries", type=int, help="times that a request is sent again (default: 3)")
    parser.add_argument(
        "--batch_size", type=int, help="episodes at a time (default: 256, over an endpoint 8); recorded"
    )


def check_player(arguments: argparse.Namespace) -> None:
    """
    Check who plays.

    Raises:
        `ValueError`: nobody or two.
    """
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise ValueError(f"--batch_size must be at least 1, got {arguments.batch_size}: nothing would be played.")
    if arguments.endpoint is None:
        if arguments.endpoint_model is not None:
            raise ValueError(
                f"--model names {arguments.endpoint_model!r} at an endpoint, and no --endpoint is given, so nobody "
                "would be asked. Name the address, or write the model without --model."
            )
        if arguments.model is None:
            raise ValueError(
                "No model is named, so nobody plays. Name one, such as tiny-trained, or a server with --endpoint URL "
                "--model NAME."
            )
        for name in ("max_requests", "request_timeout", "retries"):
            if getattr(arguments, name) is not None:
                raise ValueError(
                    f"--{name} is of the requests to an endpoint, and no --endpoint is given, so it would have no "
                    "effect. Leave it out."
                )
    elif arguments.revision is not None:
        raise ValueError(
            "--revision names a commit on the Hub, and what an endpoint serves is its own choice, so it would have no "
            "effect. Leave it out."
        )
    elif arguments.model is not None or arguments.endpoint_model is None:
        raise ValueError(
            f"Behind the endpoint {arguments.endpoint!r} the model is named with --model NAME, and no other plays. "
            "Write: turnppo evaluate --endpoint URL --model NAME."
        )


class AgentPlayer:
    """
    An agent or any causal language model, played in this process.

    Args:
        arguments (`argparse.Namespace`): Of the command.
        max_turn_length (`int`, *optional*): Tokens of one answer, instead of the agent's own limits; its own nucleus
            is left out then, too.
    """

    def __init__(self, arguments: argparse.Namespace, max_turn_length: int | None = None) -> None:
        from turnppo_hf.agent import TurnPPOAgent

        limits = {"max_turns": None, "max_turn_length": max_turn_length, "max_completion_length": _LONG}
        self.name = str(arguments.model)
        self.agent: TurnPPOAgent = TurnPPOAgent.from_pretrained(
            arguments.model,
            revision=arguments.revision,
            record=None if max_turn_length is None else {"limits": limits, "sampling": {}},
        )
        self.batch_size = arguments.batch_size or DEFAULT_BATCH_SIZE["agent"]

    def play(
        self,
        environment: Callable[[], gymnasium.Env],
        tasks: Sequence[Mapping[str, Any]],
        *,
        temperature: float,
        name: str,
        on_finished: Callable[[Trajectory], None],
    ) -> list[Trajectory]:
        """Play one episode of each task, and judge it where there is a critic."""
        played = self.agent.play_tasks(
            environment,
            tasks,
            temperature=temperature,
            name=name,
            on_finished=on_finished,
            max_parallel_episodes=self.batch_size,
        )
        return self.agent.score(played)

    def how(self) -> dict[str, Any]:
        """Return how the model is asked, for the record."""
        chat, actor = self.agent.chat, self.agent.actor
        template = json.dumps([chat.tokenizer.chat_template, chat.template_kwargs], sort_keys=True)
        return {
            "kind": "agent" if self.agent.record.algorithm else "causal language model",
            "chat_template": hashlib.sha256(template.encode()).hexdigest()[:16],
            "context": self.agent.record.context or "full",
            "batch_size": self.batch_size,
            "dtype": str(actor.dtype).removeprefix("torch."),
            "device": actor.device.type,
        }


class EndpointPlayer:
    """
    A model behind an endpoint.

    Args:
        arguments (`argparse.Namespace`): Of the command.
        temperature (`float`): Of the sampling; 0 is greedy.
        max_turn_length (`int`, *optional*, defaults to 512): Tokens of one answer.
    """

    def __init__(self, arguments: argparse.Namespace, temperature: float, max_turn_length: int = 512) -> None:
        from turnppo_hf.generation.endpoint import ChatEndpoint

        self.name, self.url = str(arguments.endpoint_model), str(arguments.endpoint)
        self.batch_size = arguments.batch_size or DEFAULT_BATCH_SIZE["endpoint"]
        self.temperature = temperature
        self.endpoint = ChatEndpoint(
            self.url,
            self.name,
            max_tokens=max_turn_length,
            temperature=temperature,
            timeout_s=60.0 if arguments.request_timeout is None else arguments.request_timeout,
            retries=3 if arguments.retries is None else arguments.retries,
            max_requests=arguments.max_requests,
        )

    def play(
        self,
        environment: Callable[[], gymnasium.Env],
        tasks: Sequence[Mapping[str, Any]],
        *,
        temperature: float,
        name: str,
        on_finished: Callable[[Trajectory], None],
    ) -> list[Trajectory]:
        """Play one episode of each task."""
        from turnppo_hf.rollout.endpoint_episodes import play_over_endpoint

        assert temperature == self.temperature
        size = self.batch_size
        return play_over_endpoint(
            self.endpoint, environment, tasks, name=name, max_parallel_episodes=size, on_finished=on_finished
        )

    def how(self) -> dict[str, Any]:
        """Return how the model is asked, for the record."""
        return {
            "kind": "endpoint",
            "endpoint": self.url,
            "chat_template": "the endpoint's own",
            "context": "full",
            "batch_size": self.batch_size,
            **self.endpoint.summary(),
        }

    def report(self) -> str:
        """Return what the endpoint was asked, in a sentence."""
        counts = self.endpoint.summary()
        return (
            f"{counts['requests']} requests, {counts['repeated']} of them repeated, {counts['failed']} without usable "
            f"answer; {counts['empty']} answers without text; {counts['completion_tokens']} tokens written"
        )
