"""What a `rollout_func` of TRL returned goes in, the episodes that it played come out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from turnppo_hf.environments.exits import exits_as_errors
from turnppo_hf.environments.integrations.tools import ToolEnvironment
from turnppo_hf.environments.messages import as_messages
from turnppo_hf.rollout.chat import Chat
from turnppo_hf.rollout.episode import EpisodePlan, FinishedEpisode
from turnppo_hf.trajectory import StopReason, Trajectory, Turn

RolloutFunction = Callable[[list[Any]], dict[str, Any]]
_REQUIRED = ("prompt_ids", "completion_ids", "logprobs")


def play_with(rollout_func: RolloutFunction, plans: Sequence[EpisodePlan], chat: Chat) -> list[FinishedEpisode]:
    """
    Let a function play episodes.

    Args:
        rollout_func (`Callable`):
            Takes the prompts and returns a dict with `prompt_ids`, `completion_ids` and `logprobs`, a list for each
            prompt, and optionally `env_mask`: 1 for each token of the completion that was sampled, 0 for what an
            environment wrote. Further entries are columns for the reward functions.
        plans (`Sequence[EpisodePlan]`): What to play.
        chat (`Chat`): Decodes.

    Returns:
        `list[FinishedEpisode]`: an episode for each prompt. Its turns are the maximal runs of sampled tokens.

    Raises:
        `ValueError`: entries are missing or of different lengths, or nothing was sampled.
        `RuntimeError`: the function would have ended the process.
    """
    if not plans:
        return []
    with exits_as_errors("`rollout_func`"):
        output = rollout_func(copy.deepcopy([plan.task["prompt"] for plan in plans]))
    if not isinstance(output, dict):
        raise ValueError(
            f"`rollout_func` returned {type(output).__name__}, so it is open what was sampled. Return a dict with "
            f"{', '.join(_REQUIRED)}, a list for each prompt."
        )
    if missing := [name for name in _REQUIRED if output.get(name) is None]:
        raise ValueError(
            f"`rollout_func` returned no {', '.join(missing)}. They are what was read and sampled, and how probable "
            f"it was. Return {', '.join(_REQUIRED)}, a list for each prompt."
        )
    masks = output.get("env_mask") or [[1] * len(ids) for ids in output["completion_ids"]]
    columns = {name: values for name, values in output.items() if name not in (*_REQUIRED, "env_mask")}
    for name in (*_REQUIRED, "env_mask"):
        if len(masks if name == "env_mask" else output[name]) != len(plans):
            raise ValueError(
                f"`rollout_func` returned `{name}` for another number of episodes than the {len(plans)} prompts it "
                "got. Return one entry for each prompt."
            )
    finished = []
    for number, plan in enumerate(plans):
        prompt, completion, logprobs = (list(output[name][number]) for name in _REQUIRED)
        turns = _turns(prompt, completion, logprobs, list(masks[number]), chat)
        is_complete = turns[-1].finish_reason == "stop"
        finished.append(
            FinishedEpisode(
                Trajectory(
                    task=dict(plan.task),
                    environment=plan.environment,
                    seed=plan.seed,
                    turns=turns,
                    stop_reason=StopReason.TERMINATED if is_complete else StopReason.CUT_RESPONSE,
                    group=plan.group,
                ),
                ToolEnvironment(),
                tuple(as_messages(plan.task["prompt"])),
                ({"role": "assistant", "content": chat.content(completion)},),
                {name: _entry(values, number, len(plans)) for name, values in columns.items()},
            )
        )
    return finished


def _turns(
    prompt: list[int], completion: list[int], logprobs: list[float], mask: list[int], chat: Chat
) -> tuple[Turn, ...]:
    if not len(completion) == len(logprobs) == len(mask) or not any(mask):
        raise ValueError(
            f"`rollout_func` returned {len(completion)} completion_ids, {len(logprobs)} logprobs and an env_mask of "
            f"{len(mask)} with {sum(map(bool, mask))} sampled tokens for one prompt. They describe the same tokens, "
            "of which at least one was sampled. Return lists of equal length."
        )
    turns: list[Turn] = []
    start = before = 0
    while start < len(mask):
        end = next((place for place in range(start, len(mask)) if bool(mask[place]) != bool(mask[start])), len(mask))
        if mask[start]:
            ids = tuple(completion[start:end])
            # an environment that answers has read a whole response
            is_complete = end < len(mask) or ids[-1] in chat.tokenizer.all_special_ids
            text = chat.content(ids)
            turns.append(
                Turn(
                    prompt_ids=(*prompt, *completion[:start]),
                    completion_ids=ids,
                    sampling_logprobs=tuple(map(float, logprobs[start:end])),
                    observation=chat.content(completion[before:start]) if turns else "",
                    completion=text,
                    action=text,
                    reward=0.0,
                    penalty=0.0,
                    finish_reason="stop" if is_complete else "length",
                )
            )
            before = end
        start = end
    return tuple(turns)


def _entry(values: Any, number: int, count: int) -> Any:
    return values[number] if isinstance(values, list) and len(values) == count else values
