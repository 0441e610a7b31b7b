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
    Dataset.from_dict({"messages": chats, "success": [None, False]}).to_parquet(str(tmp_path / "chats.parquet"))
    assert read_demonstrations(str(tmp_path / "chats.parquet"))["messages"] == chats[:1]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"]}, "has the columns text. Conversations stand in a column `messages`"),
        ({"messages": [[{"role": "user", "content": "#"}]]}, "holds no conversation in which an assistant answers"),
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
