"""Episodes as a dataset: what a row says, that readers get back what was written, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import DatasetCard, HfApi

from tests.fake_hub.fixture import Hub
from tests.helpers.scripted import ScriptedEnvironment, ScriptedGenerator
from turnppo_hf.hub import trajectory_dataset
from turnppo_hf.hub.exceptions import PushError
from turnppo_hf.hub.trajectory_dataset import (
    FEATURES,
    episode_rows,
    messages_of,
    push_dataset,
    session_trace,
    write_dataset,
)
from turnppo_hf.rollout.chat import Chat
from turnppo_hf.rollout.parquet import read_trajectories, save_trajectories
from turnppo_hf.rollout.worker import EnvironmentPool, EpisodePlan, Limits, collect_trajectories
from turnppo_hf.trajectory import StopReason, Trajectory, Turn

FIRST = Turn((1, 2, 3), (4,), (-0.5,), "a wall", "Go up", "Up", -0.1, 0.0, "stop", value=0.5, advantage=0.25)
SECOND = Turn((1, 2, 3, 4, 5), (6, 7), (-0.5, -0.1), "a box", "??", "", 1.0, -0.2, "length", value=1.5, advantage=-1.0)
SYSTEM = {"role": "system", "content": "Play."}
EPISODE = Trajectory(
    task={"prompt": [SYSTEM], "seed": 7, "level": "ab"},
    environment="turnppo_hf/Sokoban-v0",
    seed=7,
    turns=(FIRST, SECOND),
    stop_reason=StopReason.SOLVED,
    metrics={"solved": 1.0},
)
UNSCORED = replace(
    EPISODE,
    turns=tuple(replace(turn, value=None, advantage=None) for turn in EPISODE.turns),
    stop_reason=StopReason.TASK_BUDGET,
    metrics={},
)
FAILED = replace(EPISODE, stop_reason=StopReason.ERROR, error="OSError: no board")


def rows_of(*trajectories: Trajectory) -> list[dict[str, Any]]:
    return episode_rows(trajectories, agent="alice/agent", split="test")


def write(folder: Path, *trajectories: Trajectory, **options: Any) -> Any:
    return write_dataset(trajectories, folder, **{"agent": "alice/agent", **options})


def test_row_says_what_happened() -> None:
    row = rows_of(EPISODE)[0]
    assert list(row) == list(FEATURES)
    assert row == {
        "episode_id": "test-000000",
        "environment": "turnppo_hf/Sokoban-v0",
        "seed": 7,
        "task": '{"level": "ab", "seed": 7}',
        "split": "test",
        "agent": "alice/agent",
        "success": True,
        "stop_reason": "solved",
        "return": 0.9,  # -0.1 + 1.0
        "penalty": -0.2,
        "num_turns": 2,
        "messages": [
            SYSTEM,
            {"role": "user", "content": "a wall"},
            {"role": "assistant", "content": "Go up"},
            {"role": "user", "content": "a box"},
            {"role": "assistant", "content": "??"},
        ],
        "turn_actions": ["Up", ""],
        "turn_rewards": [-0.1, 1.0],
        "turn_penalties": [0.0, -0.2],
        "turn_values": [0.5, 1.5],
        "turn_advantages": [0.25, -1.0],
        "turn_prompt_tokens": [3, 5],
        "turn_completion_tokens": [1, 2],
    }


def test_what_is_not_known_is_null() -> None:
    row = rows_of(UNSCORED)[0]
    assert row["turn_values"] is row["turn_advantages"] is row["success"] is None
    assert rows_of(replace(UNSCORED, metrics={"solved": 0.0}))[0]["success"] is False
    half = replace(EPISODE, turns=(FIRST, replace(SECOND, value=None)))
    assert rows_of(half)[0]["turn_values"] == [0.5, None]


def test_failed_episodes_are_left_out_of_rows() -> None:
    assert [row["episode_id"] for row in rows_of(FAILED, EPISODE, FAILED, UNSCORED)] == ["test-000000", "test-000001"]


@pytest.mark.parametrize(
    ("prompt", "opening"),
    [
        (None, [{"role": "user", "content": "a wall"}]),
        ("Go: ", [{"role": "user", "content": "Go: a wall"}]),
        ([SYSTEM, {"role": "user", "content": "Go: "}], [SYSTEM, {"role": "user", "content": "Go: a wall"}]),
        ([SYSTEM], [SYSTEM, {"role": "user", "content": "a wall"}]),
    ],
)
def test_first_observation_joins_the_prompt_of_the_task(prompt: Any, opening: list[dict[str, str]]) -> None:
    messages = messages_of(replace(EPISODE, task={"prompt": prompt}))
    assert messages[: len(opening)] == opening and len(messages) == len(opening) + 3
    assert messages_of(replace(EPISODE, turns=())) == []


def test_messages_are_what_the_model_read(tiny_tokenizer: Any) -> None:
    replies = [("here", -0.1, False, False, {}), ("there", 1.0, True, False, {"solved": True})]
    environments = EnvironmentPool({"scripted": lambda: ScriptedEnvironment(replies)})
    episode = EpisodePlan({"prompt": [SYSTEM]}, "scripted", 0, 0, 0)
    generator = ScriptedGenerator(tiny_tokenizer, ["Up", "Down"])
    limits = Limits(max_completion_length=200)
    played = collect_trajectories([episode], environments, generator, Chat(tiny_tokenizer), limits)[0]
    read = tiny_tokenizer.apply_chat_template(messages_of(played)[:-1], add_generation_prompt=True, tokenize=False)
    assert tiny_tokenizer(read, add_special_tokens=False)["input_ids"] == list(played.turns[-1].prompt_ids)
    assert messages_of(played)[-1] == {"role": "assistant", "content": "Down"}


@pytest.mark.parametrize("episodes", [(EPISODE,), (UNSCORED,), (UNSCORED, EPISODE, FAILED)])
def test_folder_is_read_back_equal_with_its_types(tmp_path: Path, episodes: tuple[Trajectory, ...]) -> None:
    write(tmp_path / "data set", *episodes, split="held_out")
    data = load_dataset(str(tmp_path / "data set"), split="held_out", cache_dir=str(tmp_path / "cache"))
    assert data.features == FEATURES
    assert data.to_list() == episode_rows(episodes, agent="alice/agent", split="held_out")


def test_episodes_kept_by_a_run_are_read_back_equal(tmp_path: Path) -> None:
    other = replace(UNSCORED, task={"goal": 3, "prompt": "Go"}, metrics={"score": 0.5}, bootstrap_ids=(1, 2))
    bare = replace(UNSCORED, task={}, metrics={})
    for episodes in ([EPISODE, other, FAILED], [bare]):
        save_trajectories(episodes, tmp_path / "kept" / "episodes.parquet")
        assert read_trajectories(tmp_path / "kept" / "episodes.parquet") == episodes


def test_trace_is_a_session_and_its_messages(tmp_path: Path) -> None:
    row = rows_of(EPISODE)[0]
    header, *messages = map(json.loads, session_trace(row).splitlines())
    assert [header[name] for name in ("type", "harness", "id")] == ["session", "turnppo_hf", "test-000000"]
    assert header["name"] == "turnppo_hf/Sokoban-v0, seed 7: solved" and header["turn_values"] == [0.5, 1.5]
    assert {line["type"] for line in messages} == {"message"}
    assert messages[2]["message"] == {"role": "assistant", "content": "Go up", "model": "alice/agent"}
    assert [{**line["message"], "model": 0} for line in messages] == [{**line, "model": 0} for line in row["messages"]]


def test_traces_are_read_as_json_lines(tmp_path: Path) -> None:
    write(tmp_path / "d", EPISODE, UNSCORED)
    options: dict[str, Any] = {"split": "train", "cache_dir": str(tmp_path / "cache")}
    files = str(tmp_path / "d" / "traces" / "*.jsonl")
    lines = load_dataset("json", data_files=files, parse_agent_traces=False, **options)
    assert lines["type"] == 2 * ["session", *5 * ["message"]]
    # control: were they a second configuration of this dataset, nothing could read them
    card = DatasetCard.load(tmp_path / "d" / "README.md")
    card.data.configs.append({"config_name": "traces", "data_files": "traces/*.jsonl"})
    card.save(tmp_path / "d" / "README.md")
    with pytest.raises((DatasetGenerationError, ValueError), match=r"(?i)parquet|generating"):
        load_dataset(str(tmp_path / "d"), "traces", **options)


def test_number_of_traces_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trajectory_dataset, "MAX_TRACES", 2)
    write(tmp_path, EPISODE, EPISODE, EPISODE)
    assert len(list((tmp_path / "traces").iterdir())) == 2
    assert "holds the first 2 of these episodes" in (tmp_path / "README.md").read_text()


def test_card_describes_columns_and_links_the_agent(tmp_path: Path) -> None:
    summary = write(tmp_path, EPISODE, FAILED, repo_id="alice/episodes", environment_kwargs={"size": 5})
    assert (summary.episodes, summary.failed) == (1, 1)
    card = DatasetCard.load(tmp_path / "README.md")
    assert card.data.task_categories == ["reinforcement-learning"] and "sokoban" in card.data.tags
    assert card.data.size_categories == "n<1K"
    assert "[alice/agent](https://huggingface.co/alice/agent)" in card.text
    assert 'load_dataset("alice/episodes", split="test")' in card.text and '`{"size": 5}`' in card.text
    assert "1 more failed in their environment and is left out" in card.text and "1.000 (0.207 to 1.000)" in card.text
    assert [card.text.count(f"| `{name}` |") for name in FEATURES] == [1] * len(FEATURES)
    write(tmp_path, EPISODE, agent="random play")
    text = (tmp_path / "README.md").read_text()
    assert "`random play`" in text and "huggingface.co/random" not in text and "failed" not in text


def test_writing_again_replaces_and_changes_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, EPISODE, UNSCORED)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    write(tmp_path, EPISODE, UNSCORED)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    write(tmp_path, EPISODE, split="train")
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert files == {"README.md", "data/train.parquet", "traces/train-000000.jsonl"}


def test_nothing_to_write_is_refused(tmp_path: Path) -> None:
    for episodes, message in (((), "None of 0 episodes"), ((FAILED,), "OSError: no board")):
        with pytest.raises(ValueError, match=message):
            write(tmp_path / "new", *episodes)
    with pytest.raises(ValueError, match="`split` is 'held-out'"):
        write(tmp_path / "new", EPISODE, split="held-out")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["README.md", "data/mine.parquet", "notes.txt", "data/notes.txt", "traces/a/b.jsonl"])
def test_folder_with_something_else_is_refused_and_kept(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=f"already holds '{name}'"):
        write(tmp_path, EPISODE)
    assert [path.read_text() for path in tmp_path.rglob("*.*")] == ["mine"]
    with pytest.raises(ValueError, match="holds no dataset"):
        push_dataset(tmp_path, "alice/episodes")


@pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)
def test_pushed_dataset_is_read_back_equal(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "d"
    write(folder, UNSCORED, EPISODE)
    first = push_dataset(folder, "episodes", private=True)
    assert hub.repos["dataset", "alice/episodes"].private
    data = load_dataset("alice/episodes", split="test")
    assert data.features == FEATURES and data.to_list() == rows_of(UNSCORED, EPISODE)
    local = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
    assert hub.files("alice/episodes", repo_type="dataset") == local
    assert push_dataset(folder, "alice/episodes").oid == first.oid  # the same again is no commit
    assert hub.saw_token(hub.token) == []


def test_smaller_push_deletes_the_episodes_that_are_gone(hub: Hub, tmp_path: Path) -> None:
    write(tmp_path / "d", UNSCORED, EPISODE)
    old = push_dataset(tmp_path / "d", "alice/episodes").oid
    HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="LICENSE", repo_id="alice/episodes", repo_type="dataset")
    write(tmp_path / "d", EPISODE, split="train")
    push_dataset(tmp_path / "d", "alice/episodes", revision="smaller")
    files = hub.files("alice/episodes", "smaller", repo_type="dataset")
    assert set(files) == {"LICENSE", "README.md", "data/train.parquet", "traces/train-000000.jsonl"}
    assert "data/test.parquet" in hub.files("alice/episodes", repo_type="dataset")
    assert load_dataset("alice/episodes", split="train", revision="smaller").to_list()[0]["split"] == "train"
    assert load_dataset("alice/episodes", split="test", revision=old).num_rows == 2


def test_push_that_fails_says_why_and_keeps_the_folder(hub: Hub, tmp_path: Path) -> None:
    write(tmp_path / "d", EPISODE)
    with pytest.raises(PushError, match="may not write there"):
        push_dataset(tmp_path / "d", "bob/episodes")
    assert hub.repos == {}
    hub.inject("POST .*/commit/", status=413)
    with pytest.raises(PushError, match="too large"):
        push_dataset(tmp_path / "d", "episodes")
    push_dataset(tmp_path / "d", "episodes")
    assert "data/test.parquet" in hub.files("alice/episodes", repo_type="dataset")
