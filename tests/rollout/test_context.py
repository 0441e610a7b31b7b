"""`context`: what a prompt keeps of earlier turns, rows that split there, and credit that does not change with it."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.scripted import ScriptedEnvironment, ScriptedGenerator
from tests.helpers.tiny import config_for
from turnppo_hf import TurnPPOAgent
from turnppo_hf.hub.agent_record import AgentRecord
from turnppo_hf.hub.exceptions import ReleaseError
from turnppo_hf.models.actor_critic import ActorCritic, critic_from_actor
from turnppo_hf.models.checkpoint import save_networks
from turnppo_hf.ppo.batch import stack
from turnppo_hf.ppo.credit import critic_credit
from turnppo_hf.rollout.chat import Chat
from turnppo_hf.rollout.context import read_context, visible_messages
from turnppo_hf.rollout.worker import EnvironmentPool, EpisodePlan, Limits, collect_trajectories
from turnppo_hf.trajectory import StopReason

SYSTEM = {"role": "system", "content": "Be brief."}
GOAL = {"role": "user", "content": "Find the key. "}
ANSWERS = ["Up", "Down", "Left", "Right"]
SOKOBAN = {"size": 5, "max_actions_per_turn": 1, "max_turns": 12, "max_actions": 12, "action_format": "bare"}


def play(tokenizer, context, turns=4, limits=None, prompt=(), answers=ANSWERS):
    """An episode whose turn n shows `#n`, is answered by a text of its own and has the reward n."""
    replies = [(f"#{turn + 1}", float(turn), turn == turns - 1, False, {}) for turn in range(turns)]
    environment = ScriptedEnvironment(replies, "#0")
    plan = EpisodePlan({"seed": 1, "prompt": list(prompt)}, "e", seed=1)
    generator = ScriptedGenerator(tokenizer, list(answers))
    chat = Chat(tokenizer, context=context)
    [trajectory] = collect_trajectories(
        [plan], EnvironmentPool({"e": lambda: environment}), generator, chat, limits or Limits()
    )
    return trajectory


def prompts(tokenizer, trajectory):
    return [tokenizer.decode(turn.prompt_ids) for turn in trajectory.turns]


@pytest.mark.parametrize(("context", "newest"), [("full", None), ("last", 1), ("window:1", 1), ("window:12", 12)])
def test_contexts_are_read(context, newest):
    assert read_context(context) == newest


@pytest.mark.parametrize(
    "context", ["window", "window:0", "window:-1", "window: 2", "Last", "", "window:1.5", 3, None]
)
def test_other_contexts_are_refused_where_they_are_set(context):
    with pytest.raises(ValueError, match=r"`context` must be full, last or window:k.*got .*window:4"):
        config_for(context=context)


def test_last_keeps_system_message_prompt_column_and_newest_observation(tiny_tokenizer):
    episode = play(tiny_tokenizer, "last", prompt=[SYSTEM, GOAL])
    head = "<|system|>Be brief.<|end|><|user|>Find the key. "
    assert prompts(tiny_tokenizer, episode) == [f"{head}#{turn}<|end|><|assistant|>" for turn in range(4)]
    # without a message of the user in the column, the observation is one of its own
    episode = play(tiny_tokenizer, "last", prompt=[SYSTEM])
    assert prompts(tiny_tokenizer, episode)[2] == "<|system|>Be brief.<|end|><|user|>#2<|end|><|assistant|>"
    # control: the whole conversation holds every earlier turn
    assert "#0<|end|><|assistant|>Up<|end|>" in prompts(tiny_tokenizer, play(tiny_tokenizer, "full"))[3]


def test_window_keeps_the_newest_observations_and_the_responses_between(tiny_tokenizer):
    windowed = play(tiny_tokenizer, "window:2", prompt=[GOAL])
    assert prompts(tiny_tokenizer, windowed)[3] == (
        "<|user|>Find the key. #2<|end|><|assistant|>Left<|end|><|user|>#3<|end|><|assistant|>"
    )
    whole = play(tiny_tokenizer, "full", prompt=[GOAL])
    assert windowed.turns[:2] == whole.turns[:2], "nothing is left out of the first two prompts"
    assert play(tiny_tokenizer, "window:4").turns == play(tiny_tokenizer, "full").turns
    assert play(tiny_tokenizer, "window:1") == play(tiny_tokenizer, "last")


def test_conversation_is_kept_whole_for_what_reads_it_later(tiny_tokenizer):
    chat = Chat(tiny_tokenizer, context="last")
    prompt = chat.extend(chat.start("#0", [GOAL]), tuple(tiny_tokenizer("Up").input_ids), "#1")
    assert [message["content"] for message in prompt.messages] == ["Find the key. #0", "Up", "#1"]
    assert visible_messages(prompt.messages, [GOAL], 1) == [{"role": "user", "content": "Find the key. #1"}]


def test_rows_split_where_a_prompt_leaves_a_turn_out(tiny_tokenizer):
    rows = {context: len(stack([play(tiny_tokenizer, context)]).input_ids) for context in ("full", "window:2", "last")}
    assert rows == {"full": 1, "window:2": 3, "last": 4}  # the first two turns of the window share one


def test_completion_length_counts_one_row(tiny_tokenizer):
    whole = play(tiny_tokenizer, "full", turns=8)
    first, last = whole.turns[0], whole.turns[-1]
    row = len(first.completion_ids)
    limits = Limits(max_completion_length=row + 1)
    assert len(last.prompt_ids) > len(first.prompt_ids) + limits.max_completion_length
    episode = play(tiny_tokenizer, "last", turns=8, limits=limits)
    assert episode.stop_reason is StopReason.TERMINATED and len(episode.turns) == 8
    # control: the whole conversation is longer
    assert play(tiny_tokenizer, "full", turns=8, limits=limits).stop_reason is StopReason.OVERLONG
    # and a row that is too long is cut, whatever was left out before
    limits = Limits(max_completion_length=row - 1)
    assert play(tiny_tokenizer, "last", turns=8, limits=limits).stop_reason is StopReason.CUT_RESPONSE


def credit_of(trajectory, decision, swapped=False):
    """Advantages of the decisions, where the value of a state depends on its turn alone."""
    batch = stack([trajectory])
    number = batch.turn_mask.cumsum(1) * batch.turn_mask
    values = torch.sin(number.float() * 1.7)
    values = values.flip(1) if swapped else values
    given = values if decision == "turn" else batch.pack_tokens(batch.to_tokens(values))
    credit = critic_credit(batch, given, torch.zeros(1), decision=decision, gamma=0.9, lam=0.8)
    return credit.advantages


@pytest.mark.parametrize("decision", ["turn", "token"])
def test_credit_is_equal_in_both_layouts(tiny_tokenizer, decision):
    whole, split = (play(tiny_tokenizer, context) for context in ("full", "last"))
    assert len(stack([whole]).input_ids) == 1 and len(stack([split]).input_ids) == 4
    assert torch.equal(credit_of(whole, decision), credit_of(split, decision))
    # control: credit does depend on which turn has which value
    assert not torch.allclose(credit_of(whole, decision), credit_of(split, decision, swapped=True))


@pytest.fixture
def agent(tmp_path, embedded_actor, tiny_tokenizer):
    """The packaged actor as one that reads the newest board only."""
    critic = critic_from_actor(embedded_actor)
    torch.nn.init.normal_(critic.score.weight, generator=torch.Generator().manual_seed(0))
    record = AgentRecord(environment="turnppo_hf/Sokoban-v0", environment_kwargs=SOKOBAN, context="last")
    save_networks(ActorCritic(embedded_actor, critic), tiny_tokenizer, record, str(tmp_path / "agent"))
    return TurnPPOAgent.from_pretrained(tmp_path / "agent", device="cpu")


def test_agent_plays_acts_and_judges_in_its_recorded_context(agent):
    episode = agent.play(seed=5, temperature=0.0)
    shortest, *_, longest = sorted(len(turn.prompt_ids) for turn in episode.turns)
    assert len(episode.turns) > 3 and longest - shortest <= 1  # the digits of the actions left
    history = []
    for turn in episode.turns:
        history.append({"role": "user", "content": turn.observation})
        assert agent.act(history, temperature=0.0) == turn.completion
        history.append({"role": "assistant", "content": turn.completion})
    assert agent.values(history[:-1]) == pytest.approx([turn.value for turn in episode.turns], abs=1e-5)
    # control: the whole conversation is judged otherwise
    agent.chat = Chat(agent.chat.tokenizer)
    assert agent.values(history[:-1])[1:] != pytest.approx([turn.value for turn in episode.turns][1:], abs=1e-3)


def test_record_of_another_context_is_refused():
    with pytest.raises(ReleaseError, match="`context` is 'some', it must be full, last or window:k"):
        AgentRecord.from_dict({"context": "some"})


def test_training_reads_the_context_and_records_it(make_trainer):
    trainer = make_trainer(context="last")
    trainer.train()
    assert trainer.make_record().context == "last"
    played = [item for item in trainer._last_trajectories if len(item.turns) > 1]
    assert played, "some episodes have several turns"
    for episode in played:
        assert all(len(turn.prompt_ids) <= len(episode.turns[0].prompt_ids) + 3 for turn in episode.turns)
        assert not set(str(trainer.chat.tokenizer.decode(episode.turns[1].prompt_ids)).split("<|user|>")[2:])


def test_context_that_tools_or_a_rollout_function_would_not_follow_is_refused(tiny_tokenizer, make_trainer):
    with pytest.raises(ValueError, match=r"result of a tool answers a call of the turn before.*\"full\""):
        Chat(tiny_tokenizer, context="window:2").offer_tools([])
    from turnppo_hf.trainer.arguments import check_arguments

    args = config_for(context="last")
    with pytest.raises(ValueError, match="`rollout_func` chooses itself what the model reads"):
        check_arguments(print, args, [{"prompt": "a"}], None, None, print, None)
