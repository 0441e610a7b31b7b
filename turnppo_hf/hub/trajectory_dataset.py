"""Trajectories in, a dataset for the Hub out: a Parquet row per episode, session traces of the same, and a card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from datasets import Dataset, Features, List, Value
from huggingface_hub import CommitInfo, DatasetCardData, HfApi

from turnppo_hf.environments.messages import Message, as_messages, open_conversation, text_of
from turnppo_hf.evaluation.summary import Summary, comparison_table, summarize
from turnppo_hf.hub.client import create_repository, with_retries
from turnppo_hf.hub.secret_check import check_no_secrets
from turnppo_hf.redaction import redact, redact_text
from turnppo_hf.trajectory import StopReason, Trajectory

_HARNESS = "turnppo_hf"  # names us to the Hub's trace viewer
MAX_TRACES = 100  # one file each: enough to look at, and a repository that stays quick to list

_NUMBERS = List(Value("float64"))
# name -> (type, meaning); `turn_` columns are parallel to the assistant's messages
_COLUMNS: dict[str, tuple[Any, str]] = {
    "episode_id": (Value("string"), "unique in this dataset"),
    "environment": (Value("string"), "Gymnasium id, or the name of what built the environment"),
    "seed": (Value("int64"), "that the environment was reset with"),
    "task": (Value("string"), "the dataset row that started the episode, without its prompt, as JSON"),
    "split": (Value("string"), "as in the file's name"),
    "agent": (Value("string"), "who played"),
    "success": (Value("bool"), "whether the goal was reached; null where the environment does not define it"),
    "stop_reason": (Value("string"), f"why the episode ended: {', '.join(r for r in StopReason if r != 'error')}"),
    "return": (Value("float64"), "undiscounted sum of the environment's rewards"),
    "penalty": (Value("float64"), "sum of the format penalties, zero or negative, not in `return`"),
    "num_turns": (Value("int32"), "answers of the model"),
    "messages": (
        List({"role": Value("string"), "content": Value("string")}),
        "the conversation: the task's prompt, then observations (user) and answers (assistant) in turn",
    ),
    "turn_actions": (List(Value("string")), "what the environment executed; empty where it understood nothing"),
    "turn_rewards": (_NUMBERS, "the environment's reward after each answer"),
    "turn_penalties": (_NUMBERS, "the format penalty of each answer"),
    "turn_values": (_NUMBERS, "the critic's value of the state before each answer; null where it was not scored"),
    "turn_advantages": (_NUMBERS, "the advantage of each answer before whitening; null where it was not scored"),
    "turn_prompt_tokens": (List(Value("int32")), "tokens that the model read before each answer"),
    "turn_completion_tokens": (List(Value("int32")), "tokens of each answer"),
}
FEATURES = Features({name: kind for name, (kind, _) in _COLUMNS.items()})

_OURS = "Written by `turnppo_hf.hub.trajectory_dataset`"
_CARD = """---
{{ card_data }}
---
# Episodes of {{ player }}

{{ summary.episodes }} episode{{ "s" if summary.episodes > 1 }} that {{ player }} played in {{ environments }}, one row
each: the conversation, and the reward, value and advantage of every turn.

{% if environment_kwargs %}
The environment was made with `{{ environment_kwargs }}`.

{% endif %}
{% if summary.failed %}
{{ summary.failed }} more failed in their environment and {{ "are" if summary.failed > 1 else "is" }} left out.

{% endif %}
```text
{{ table }}
```

```python
from datasets import load_dataset

episodes = load_dataset("{{ repo }}", split="{{ split }}")
print(episodes[0]["messages"], episodes[0]["turn_values"])
```

## Columns

`turn_` columns hold one entry for each answer of the model.

| column | type | meaning |
|---|---|---|
{% for name, kind, meaning in columns %}
| `{{ name }}` | {{ kind }} | {{ meaning }} |
{% endfor %}

## Traces

`traces/` holds {{ shown }} of these episodes in the
[Session Trace Simple Format](https://huggingface.co/docs/hub/session-traces-format), a file each; what the format has
no place for stands in its header. The Hub's trace viewer shows them in a dataset of their own:

```shell
hf upload {{ repo }}-traces traces . --repo-type dataset
```

{{ signature }} from what environment and trainer recorded.
"""
_FILES = ("data/*.parquet", "traces/*.jsonl")
_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}


def messages_of(trajectory: Trajectory) -> list[dict[str, str]]:
    """Return an episode's conversation: the task's own prompt first, then observations and answers in turn."""
    if not trajectory.turns:
        return []
    first, *others = trajectory.turns
    messages = open_conversation(first.observation, trajectory.task.get("prompt") or ())
    messages.append({"role": "assistant", "content": first.completion})
    for turn in others:
        messages.append({"role": "user", "content": turn.observation})
        messages.append({"role": "assistant", "content": turn.completion})
    return plain_messages(messages)


def plain_messages(messages: str | Sequence[Message] | None) -> list[dict[str, str]]:
    """Return messages with their role and their content as a text; a text is the user's."""
    return [{"role": message["role"], "content": text_of(message["content"])} for message in as_messages(messages)]


def episode_rows(trajectories: Sequence[Trajectory], *, agent: str, split: str) -> list[dict[str, Any]]:
    """
    Turn episodes into rows of `FEATURES`; failed ones are left out.

    Args:
        trajectories (`Sequence[Trajectory]`): Scored or not.
        agent (`str`): Who played, such as the model's repository.
        split (`str`): What the tasks were for, such as `"test"`.
    """
    played = [trajectory for trajectory in trajectories if trajectory.stop_reason is not StopReason.ERROR]
    return [_row(trajectory, f"{split}-{number:06d}", agent, split) for number, trajectory in enumerate(played)]


def _row(trajectory: Trajectory, episode_id: str, agent: str, split: str) -> dict[str, Any]:
    turns = trajectory.turns
    has_success = trajectory.solved or "solved" in trajectory.metrics
    task = {name: value for name, value in trajectory.task.items() if name != "prompt"}
    values, advantages = [turn.value for turn in turns], [turn.advantage for turn in turns]
    return {
        "episode_id": episode_id,
        "environment": trajectory.environment,
        "seed": trajectory.seed,
        "task": json.dumps(task, ensure_ascii=False, sort_keys=True, default=str),
        "split": split,
        "agent": agent,
        "success": trajectory.solved if has_success else None,
        "stop_reason": trajectory.stop_reason.value,
        "return": trajectory.total_reward,
        "penalty": trajectory.total_penalty,
        "num_turns": len(turns),
        "messages": messages_of(trajectory),
        "turn_actions": [turn.action for turn in turns],
        "turn_rewards": [turn.reward for turn in turns],
        "turn_penalties": [turn.penalty for turn in turns],
        "turn_values": None if all(value is None for value in values) else values,
        "turn_advantages": None if all(advantage is None for advantage in advantages) else advantages,
        "turn_prompt_tokens": [len(turn.prompt_ids) for turn in turns],
        "turn_completion_tokens": [len(turn.completion_ids) for turn in turns],
    }


def session_trace(row: Mapping[str, Any]) -> str:
    """
    Return an episode as JSON lines in the Hub's Session Trace Simple Format, for its trace viewer.

    Args:
        row (`Mapping`): From `episode_rows`. What the format has no place for stands in the session's header.

    Source: https://huggingface.co/docs/hub/session-traces-format
    """
    session = {
        "type": "session",
        "harness": _HARNESS,
        "id": row["episode_id"],
        "name": f"{row['environment']}, seed {row['seed']}: {row['stop_reason'].replace('_', ' ')}",
    }
    metadata = {name: value for name, value in row.items() if name not in ("episode_id", "messages")}
    lines: list[dict[str, Any]] = [{**session, **metadata}]
    for message in row["messages"]:
        speaker = {"model": row["agent"]} if message["role"] == "assistant" else {}
        lines.append({"type": "message", "message": {**message, **speaker}})
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def write_dataset(
    trajectories: Sequence[Trajectory],
    folder: str | Path,
    *,
    agent: str,
    split: str = "test",
    repo_id: str | None = None,
    environment_kwargs: Mapping[str, Any] | None = None,
) -> Summary:
    """
    Write a dataset that `datasets.load_dataset` reads: `data/<split>.parquet`, `traces/<episode>.jsonl`, `README.md`.

    Unlike `save_trajectories`, whose file keeps every token and log-probability for reports and for scoring again,
    this is for people and for other trainers: texts, and one number a turn.

    Args:
        trajectories (`Sequence[Trajectory]`): Episodes, scored or not. Failed ones are left out and counted.
        folder (`str` or `Path`): New, empty, or with an earlier dataset of ours, which is replaced.
        agent (`str`): Who played; a repository id becomes a link.
        split (`str`, *optional*, defaults to `"test"`): What the tasks were for.
        repo_id (`str`, *optional*): Where it will go, for the commands in the card.
        environment_kwargs (`Mapping`, *optional*): Arguments that the environment was made with, for the card.

    Returns:
        [`~turnppo_hf.evaluation.summary.Summary`]: of the episodes, with the number of failed ones.

    Raises:
        `ValueError`: no episode was played to its end, a split that cannot be a file's name, or a folder that holds
            something else.
    """
    if not re.fullmatch(r"\w+(\.\w+)*", split):
        raise ValueError(
            f"`split` is {split!r}, and a split's name has letters, digits and underscores only, or no reader finds "
            'it. Name it for example "train" or "test".'
        )
    summary, place = summarize(trajectories), Path(folder)
    _clear(place)
    rows = redact(episode_rows(trajectories, agent=agent, split=split))
    for name in ("data", "traces"):
        (place / name).mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=FEATURES).to_parquet(str(place / "data" / f"{split}.parquet"))
    for row in rows[:MAX_TRACES]:
        (place / "traces" / f"{row['episode_id']}.jsonl").write_text(session_trace(row), encoding="utf-8")
    card = _card(
        rows,
        summary,
        agent=agent,
        split=split,
        repo=repo_id or "NAMESPACE/NAME",
        environment_kwargs=json.dumps(redact(environment_kwargs), sort_keys=True, default=redact_text)
        if environment_kwargs
        else "",
    )
    (place / "README.md").write_text(card, encoding="utf-8")
    return summary


def push_dataset(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> CommitInfo:
    """
    Upload what `write_dataset` wrote as one commit; episodes of an earlier push that are not in it are deleted.

    Args:
        folder (`str` or `Path`): The dataset.
        repo_id (`str`): `"name"` in the namespace of the token, or `"namespace/name"`; created where it is missing.
        private (`bool`, *optional*): Of a repository that is created; the Hub's default otherwise.
        token (`str`, *optional*): Defaults to the one that `hf auth login` or `HF_TOKEN` gives.
        revision (`str`, *optional*): Branch; created where it is missing.

    Returns:
        [`~huggingface_hub.CommitInfo`]

    Raises:
        `ValueError`: the folder holds no dataset of ours.
        `PushError`: nothing was committed; the message names the reason and what to do.
    """
    place = Path(folder)
    if not list(place.glob(_FILES[0])) or not _is_ours(place / "README.md"):
        raise ValueError(f"{str(folder)!r} holds no dataset that `write_dataset` wrote, so nothing was pushed.")
    allowed = ["README.md", *_FILES]
    check_no_secrets(place, allow_patterns=allowed)
    api, repo = HfApi(token=token), create_repository(repo_id, token=token, private=private, repo_type="dataset")

    def push() -> CommitInfo:
        if revision is not None and revision != "main":
            api.create_branch(repo, branch=revision, repo_type="dataset", exist_ok=True)
        return api.upload_folder(
            repo_id=repo,
            folder_path=place,
            repo_type="dataset",
            commit_message="Episodes of a turnppo_hf agent",
            revision=revision,
            allow_patterns=allowed,
            delete_patterns=list(_FILES),
        )

    commit: CommitInfo = with_retries(push, f"{folder} was not pushed to {repo!r}")
    return commit


def _is_ours(readme: Path) -> bool:
    return readme.exists() and _OURS in readme.read_text(encoding="utf-8")


def _clear(folder: Path) -> None:
    """Remove an earlier dataset of ours; refuse a folder with anything else before anything is removed."""
    files = sorted(path for path in folder.rglob("*") if not path.is_dir()) if folder.exists() else []
    ours = {path for pattern in ("README.md", *_FILES) for path in folder.glob(pattern)}
    foreign = [path for path in files if path not in ours or not _is_ours(folder / "README.md")]
    if foreign:
        raise ValueError(
            f"{str(folder)!r} already holds {foreign[0].relative_to(folder).as_posix()!r}, which is not of a dataset "
            "that `write_dataset` wrote and would be pushed with it. Name a new folder."
        )
    for path in files:
        path.unlink()


def _card(rows: Sequence[Mapping[str, Any]], summary: Summary, *, agent: str, split: str, **facts: Any) -> str:
    environments = sorted({row["environment"] for row in rows})
    # a dataset has one reader for all of its configurations (datasets 5.2), chosen by the first: JSON lines cannot be
    # a second one beside Parquet
    data = DatasetCardData(
        pretty_name=f"Episodes of {agent}",
        task_categories=["reinforcement-learning"],
        size_categories=next((size for limit, size in _SIZES.items() if len(rows) < limit), "1M<n<10M"),
        tags=["turn-ppo", "turnppo-hf", "agent", "agent-traces", *(_slug(name) for name in environments)],
        configs=[
            {
                "config_name": "episodes",
                "default": True,
                "data_files": [{"split": split, "path": f"data/{split}.parquet"}],
            }
        ],
    )
    is_repository = re.fullmatch(r"[\w.-]+/[\w.-]+", agent) is not None
    template = jinja2.Template(_CARD, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    return template.render(
        **facts,
        card_data=data.to_yaml(),
        player=f"[{agent}](https://huggingface.co/{agent})" if is_repository else f"`{agent}`",
        environments=", ".join(f"`{name}`" for name in environments),
        split=split,
        summary=summary,
        table=comparison_table({split: summary}),
        columns=[(name, _type_name(kind), meaning) for name, (kind, meaning) in _COLUMNS.items()],
        shown=f"the first {MAX_TRACES}" if len(rows) > MAX_TRACES else "all",
        signature=_OURS,
    )


def _slug(environment: str) -> str:
    """`"turnppo_hf/Sokoban-v0"` -> `"sokoban"`."""
    return re.sub(r"-v\d+$", "", environment.rpartition("/")[2]).lower()


def _type_name(kind: Any) -> str:
    if isinstance(kind, List):
        inner = kind.feature
        return "list of {role, content}" if isinstance(inner, dict) else f"list of {inner.dtype}"
    return str(kind.dtype)
