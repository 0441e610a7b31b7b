"""Demonstrations and imitation: rows as the actor reads them, tokenizers of words, and a stop when it is asked for."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig

from tests.helpers.scripted import CountingEnvironment
from tests.helpers.tiny import make_trajectory, make_turn
from turnppo_hf.environments import make_environment
from turnppo_hf.models.demonstrations import (
    make_demonstrations,
    read_demonstrations,
    reference_player,
    rows_in_context,
)
from turnppo_hf.models.imitation import imitate, tiny_llama, word_tokenizer
from turnppo_hf.rollout.chat import Chat
from turnppo_hf.rollout.parquet import save_trajectories
from turnppo_hf.trajectory import StopReason

SOKOBAN = {"size": 5, "max_actions_per_turn": 1, "max_turns": 12, "max_actions": 12, "action_format": "bare"}


def demonstrate(num_episodes=4, noise=0.0):
    environment = make_environment("sokoban", **SOKOBAN)
    return make_demonstrations(environment, reference_player(environment), num_episodes, noise, seed=1)


def sft(folder, **changes):
    defaults = {"max_steps": 4, "per_device_train_batch_size": 4, "report_to": "none", "save_strategy": "no"}
    quiet = {"use_cpu": True, "bf16": False, "disable_tqdm": True}
    return SFTConfig(str(folder), **{**defaults, **quiet, **changes})


def test_planner_solves_and_noise_makes_it_longer():
    clean, noisy = (demonstrate(20, noise)["messages"] for noise in (0.0, 0.8))
    assert sum(map(len, clean)) < sum(map(len, noisy))
    assert all(messages[-1]["content"] in ("Up", "Down", "Left", "Right") for messages in clean)
    assert len(clean) == 20 and demonstrate(20)["messages"] == clean  # the seed decides


class Cliff(CountingEnvironment):
    """A player that has no way on after some answers, and from the start where the task's seed is even."""

    answers = 0

    def reset(self, *, seed=None, options=None):
        self.answers = 2 * (seed % 2)
        return super().reset(seed=seed, options=options)

    def optimal_completions(self):
        return ["go"] * self.answers

    def random_completion(self, rng):
        return "random"

    def step(self, action):
        self.answers -= 1
        return super().step(action)


def test_nothing_is_imitated_where_the_player_has_no_way_on():
    environment = Cliff()
    with pytest.warns(UserWarning, match=r"has no way to its goal in \d+ of 10 episodes: they are left out"):
        found = make_demonstrations(environment, reference_player(environment), 10, 0.0, seed=0)
    said = [[message["content"] for message in row if message["role"] == "assistant"] for row in found["messages"]]
    assert 0 < len(said) < 10 and said == [["go", "go"]] * len(said)
    with pytest.raises(ValueError, match="no way to its goal in any of 3 episodes"):
        make_demonstrations(environment, list, 3, 0.0, seed=0)


def test_demonstrations_follow_the_contract_of_episodes():
    environment = Cliff()
    environment.step = lambda action: ("seen", "1", False, False, {})
    with pytest.raises(TypeError, match="returned the reward '1'"):
        make_demonstrations(environment, reference_player(environment), 4, 0.0, seed=0)


def test_environment_without_a_player_is_refused():
    with pytest.raises(ValueError, match="CountingEnvironment has no player to imitate"):
        reference_player(CountingEnvironment())


@pytest.mark.parametrize("context", ["last", "window:2"])
def test_rows_hold_what_the_actor_reads_in_this_context(tiny_tokenizer, context):
    conversations = demonstrate(2, noise=0.5)
    rows = rows_in_context(conversations, context)
    chat, number = Chat(tiny_tokenizer, context=context), 0
    for row in conversations:
        prompt = chat.start(row["messages"][0]["content"])
        for answer, reply in zip(row["messages"][1::2], [*row["messages"][2::2], None], strict=True):
            assert rows[number]["completion"] == [answer]
            assert chat._render(rows[number]["prompt"]).text == prompt.text
            ids = tuple(tiny_tokenizer(answer["content"] + "<|end|>").input_ids)
            number += 1
            if reply is not None:
                prompt = chat.extend(prompt, ids, reply["content"])
    assert number == len(rows)
    # control: the whole conversation is one row
    assert len(rows_in_context(conversations, "full")) == 2


def test_system_message_is_in_every_row():
    messages = [{"role": "system", "content": "s"}, *demonstrate(1)["messages"][0]]
    rows = rows_in_context([{"messages": messages}], "last")
    assert all([message["role"] for message in row["prompt"]] == ["system", "user"] for row in rows)


def test_episodes_of_a_file_are_read_but_for_those_that_missed_their_goal(tmp_path):
    def episode(stop_reason, answer):
        turn = make_turn((1,), (2,))
        object.__setattr__(turn, "observation", "#P")
        object.__setattr__(turn, "completion", answer)
        item = make_trajectory([turn], stop_reason)
        object.__setattr__(item, "metrics", {"solved": float(stop_reason is StopReason.SOLVED)})
        return item

    save_trajectories(
        [episode(StopReason.SOLVED, "Up"), episode(StopReason.TASK_BUDGET, "Down")], tmp_path / "played.parquet"
    )
    read = read_demonstrations(str(tmp_path / "played.parquet"))
    assert read["messages"] == [[{"role": "user", "content": "#P"}, {"role": "assistant", "content": "Up"}]]
    chats = [[{"role": "user", "content": "#"}, {"role": "assistant", "content": word}] for word in ("Up", "Left")]
    missed = [("success", [None, False]), ("success", [1, 0]), ("success", [0.5, 0.0]), ("solved", [True, False])]
    for column, values in missed:
        Dataset.from_dict({"messages": chats, column: values}).to_parquet(str(tmp_path / "chats.parquet"))
        assert read_demonstrations(str(tmp_path / "chats.parquet"))["messages"] == chats[:1], column


def test_prompt_of_the_task_stays_in_every_row_as_in_a_rollout(tmp_path, tiny_tokenizer):
    prompt = [{"role": "system", "content": "Up"}, {"role": "user", "content": "Down Left "}]
    turns = [make_turn((1,), (2,)), make_turn((3,), (4,))]
    for turn, observation in zip(turns, ("#P", "#_P"), strict=True):
        object.__setattr__(turn, "observation", observation)
        object.__setattr__(turn, "completion", "Up")
    item = make_trajectory(turns, StopReason.SOLVED)
    object.__setattr__(item, "task", {"seed": 0, "prompt": prompt})
    save_trajectories([item], tmp_path / "played.parquet")
    rows = rows_in_context(read_demonstrations(str(tmp_path / "played.parquet")), "last")
    chat = Chat(tiny_tokenizer, context="last")
    first = chat.start("#P", prompt)
    ids = tuple(tiny_tokenizer("Up<|end|>").input_ids)
    played = [first.text, chat.extend(first, ids, "#_P").text]
    assert [chat._render(row["prompt"]).text for row in rows] == played and "Down Left" in played[1]


@pytest.mark.parametrize(
    "message",
    [{"role": "tool", "content": "7"}, {"role": "assistant", "content": "", "tool_calls": [{"name": "add"}]}],
)
def test_conversation_with_tools_is_refused_in_a_shorter_context(message):
    messages = [{"role": "user", "content": "#"}, message, {"role": "assistant", "content": "Up"}]
    with pytest.raises(ValueError, match="holds the result of a tool, whose call would be missing"):
        rows_in_context([{"messages": messages}], "last")
    assert len(rows_in_context([{"messages": messages}], "full")) == 1


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"]}, "has the columns text. Conversations stand in a column `messages`"),
        ({"messages": [[{"role": "user", "content": "#"}]]}, "holds no conversation in which an assistant answers"),
        ({"messages": [[{"from": "user", "value": "#"}]]}, "row 0: `messages` is .* a list of messages with `role`"),
        ({"messages": [None, "Up"]}, "row 0: `messages` is None"),
        ({"messages": ["Up"]}, "row 0: `messages` is 'Up'"),
        ({"turns": [3]}, "has a column `turns`, but not as a run writes it"),
        ({"turns": [[{"a": 1}]]}, "has a column `turns`, but not as a run writes it"),
    ],
)
def test_file_without_conversations_is_refused(tmp_path, columns, message):
    Dataset.from_dict(columns).to_parquet(str(tmp_path / "other.parquet"))
    with pytest.raises(ValueError, match=message):
        read_demonstrations(str(tmp_path / "other.parquet"))
    with pytest.raises(ValueError, match=r"cannot be read .*neither a Parquet file here"):
        read_demonstrations(str(tmp_path / "none.parquet"))


def test_word_tokenizer_has_a_token_for_each_cell_word_and_number():
    texts = "## Ky .. >>\nYou see a wall 12 steps forward."
    rows = [{"messages": [{"role": "user", "content": texts}, {"role": "assistant", "content": "left forward"}]}]
    tokenizer = word_tokenizer(rows, 64)
    assert tokenizer.tokenize(texts) == [
        *("##", "Ky", "..", ">>", "You", "see", "a", "wall", "12", "steps", "forward", ".")
    ]
    assert tokenizer.decode(tokenizer("left forward").input_ids) == "left forward"
    assert tokenizer.unk_token_id not in tokenizer("7 3").input_ids  # numbers up to the largest that was seen
    assert tokenizer("13").input_ids == [tokenizer.unk_token_id]
    rows[0]["messages"][1]["content"] = "<answer>left</answer>"
    with pytest.raises(ValueError, match="which the environment would read otherwise"):
        word_tokenizer(rows, 64)


@pytest.mark.slow
@pytest.mark.parametrize("context", ["full", "last"])
def test_imitation_learns_the_answers_only_and_stops_when_asked(tmp_path, context):
    torch.manual_seed(0)
    conversations = demonstrate(30)
    tokenizer = word_tokenizer(conversations, 512)
    model = tiny_llama(tokenizer, hidden_size=32, num_hidden_layers=1)
    rows = rows_in_context(conversations, context)
    asked = []

    def stop(actor, step):
        asked.append(step)
        return step == 12

    args = sft(tmp_path, max_steps=20, learning_rate=1e-2, logging_steps=1, assistant_only_loss=context == "full")
    trained = imitate(model, tokenizer, rows, args, stop=stop, stop_steps=6)
    assert asked == [6, 12] and type(trained) is type(model)
    prompt = conversations[0]["messages"][0]["content"]
    with torch.no_grad():
        logits = trained(torch.tensor([Chat(tokenizer).start(prompt).ids])).logits[0, -1]
    written = tokenizer.convert_tokens_to_ids(["Up", "Down", "Left", "Right", "<|end|>"])
    # answers and their end are all that was imitated, not the signs of the boards, which are most of the vocabulary
    assert float(logits.softmax(-1)[written].sum()) > 0.8 and len(tokenizer) > 20
