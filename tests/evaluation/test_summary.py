"""Evaluation: intervals by hand, summaries of known trajectories, references played on the same tasks."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest

from turnppo_hf.agent import TurnPPOAgent
from turnppo_hf.cli.play import render_episode
from turnppo_hf.environments import make_environment
from turnppo_hf.evaluation.outcome import wilson_interval
from turnppo_hf.evaluation.summary import (
    comparison_table,
    count_openings,
    describe_openings,
    reference_players,
    summarize,
)
from turnppo_hf.models.pretrained import find_model
from turnppo_hf.trajectory import StopReason, Trajectory, Turn

BARE = {"size": 5, "max_actions_per_turn": 2, "max_turns": 6, "max_actions": 12, "action_format": "bare"}


def turn(reward: float = 0.0, action: str = "Up", penalty: float = 0.0) -> Turn:
    return Turn((1,), (2,), (0.0,), "board", action or "?", action, reward, penalty, "stop")


def episode(*turns: Turn, stop: StopReason = StopReason.TASK_BUDGET, says_solved: bool = True) -> Trajectory:
    metrics = {"solved": float(stop is StopReason.SOLVED)} if says_solved else {}
    return Trajectory({"seed": 0}, "world", 0, turns, stop, metrics=metrics)


def sokoban() -> gymnasium.Env:
    return make_environment("turnppo_hf/Sokoban-v0", **BARE)


@pytest.fixture(scope="module")
def agent() -> TurnPPOAgent:
    return TurnPPOAgent.from_pretrained("tiny", device="cpu")


def test_wilson_interval_of_half_of_ten() -> None:
    # z = 1.959964: center (0.5 + z^2/20) / (1 + z^2/10) = 0.5; half width z sqrt(0.025 + z^2/400) / 1.384146 = 0.26341
    low, high = wilson_interval(5, 10)
    assert low == pytest.approx(0.23659, abs=1e-5)
    assert high == pytest.approx(0.76341, abs=1e-5)


def test_wilson_interval_of_none_and_all_stays_in_the_unit_interval() -> None:
    # none of n: high = z^2 / (n + z^2) = 3.841459 / 23.841459
    assert wilson_interval(0, 20) == (0.0, pytest.approx(0.161125, abs=1e-6))
    assert wilson_interval(20, 20) == (pytest.approx(1 - 0.161125, abs=1e-6), 1.0)


def test_wilson_interval_covers_the_true_share_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).binomial(100, 0.2, size=2000)
    covered = np.mean([low <= 0.2 <= high for low, high in (wilson_interval(int(draw), 100) for draw in draws)])
    assert 0.93 < covered < 0.97
    narrow = np.mean([low <= 0.2 <= high for low, high in (wilson_interval(int(d), 100, 0.8) for d in draws)])
    assert narrow < 0.85  # the control: another confidence is another interval


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (3, 2), (-1, 2)])
def test_wilson_interval_of_an_impossible_share_is_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(successes, trials)


def test_summary_counts_by_hand() -> None:
    summary = summarize(
        [
            episode(turn(1.0), turn(2.0), stop=StopReason.SOLVED),
            episode(turn(-1.0, action="", penalty=-0.1)),
            episode(turn(0.0), turn(1.0, penalty=-0.1), turn(0.0)),
        ]
    )
    assert (summary.episodes, summary.failed, summary.solved) == (3, 0, 1)
    assert summary.success_rate == pytest.approx(1 / 3)
    # returns 3, -1, 1: mean 1, sample deviation 2, standard error 2 / sqrt(3)
    assert (summary.mean_return, summary.return_error) == (1.0, pytest.approx(2 / math.sqrt(3)))
    assert summary.mean_penalty == pytest.approx(-0.2 / 3)
    assert (summary.mean_turns, summary.invalid_turns) == (2.0, pytest.approx(2 / 6))
    assert summary.stop_reasons == {"task_budget": 2, "solved": 1}


def test_failed_episodes_are_counted_and_enter_nothing_else() -> None:
    played = [episode(turn(1.0), stop=StopReason.SOLVED), episode(turn(3.0))]
    failed = replace(episode(turn(100.0), stop=StopReason.ERROR), error="ValueError: broken")
    with_failure, without = summarize([*played, failed]), summarize(played)
    assert with_failure == replace(without, failed=1)
    with pytest.raises(ValueError, match=r"None of 1 episodes.*broken"):
        summarize([failed])


def test_success_of_an_environment_that_never_says_solved_is_undefined() -> None:
    summary = summarize([episode(turn(1.0), says_solved=False)])
    assert (summary.solved, summary.success_rate, summary.success_low) == (None, None, None)
    assert "not defined" in comparison_table({"model": summary})


def test_summary_of_one_episode_is_valid_json() -> None:
    record = summarize([episode(turn(1.0))]).to_dict()
    assert record["return_error"] is None
    json.dumps(record, allow_nan=False)


def test_table_names_every_player_once_and_aligns() -> None:
    summary = summarize([episode(turn(1.0), stop=StopReason.SOLVED), episode(turn(0.0))])
    lines = comparison_table({"before": summary, "after": summary}).splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["before", "after"]
    assert "0.500 (0.095 to 0.905)" in lines[1]
    assert lines[1].index("0.500") == lines[0].index("success")


def test_episodes_that_began_alike_are_told_below_the_table() -> None:
    def opened(observation: str = "board", state: str | None = None, **task: Any) -> Trajectory:
        first = replace(turn(), observation=observation, state=state)
        return replace(episode(first, turn()), task={"seed": 0, **task})

    others = [opened("other"), opened(state="behind a door"), opened(prompt=[{"role": "user", "content": "Go."}])]
    assert count_openings([opened(), *others]) == 4 and describe_openings([opened(), *others]) == ""
    failed = replace(episode(stop=StopReason.ERROR), error="ValueError: broken")
    assert describe_openings([opened(), failed]) == ""
    told = describe_openings([opened(), opened(), opened("other"), failed])
    assert told.startswith("3 episodes with 2 distinct openings: where the same opening") and told.endswith("\n")
    assert describe_openings([opened()] * 2).startswith("2 episodes with 1 distinct opening:")


def test_optimal_player_solves_what_can_be_solved() -> None:
    tasks = [{"seed": seed} for seed in range(8)]
    optimal = reference_players(sokoban, tasks)["optimal"]
    assert optimal.success_rate == 1.0
    assert optimal.mean_return > 9


class Coin(gymnasium.Env):
    """Pays 1 for "heads", ends after two turns; it can play at random and knows no best play."""

    observation_space = gymnasium.spaces.Text(10)
    action_space = gymnasium.spaces.Text(10)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.turns = 0
        return "flip", {}

    def step(self, action):
        self.turns += 1
        return "flip", float(action == "heads"), False, self.turns == 2, {"truncation": "task_budget"}

    def random_completion(self, rng: np.random.Generator) -> str:
        return str(rng.choice(["heads", "tails"]))


def test_success_that_is_none_is_not_reported_for_reference_players_either() -> None:
    class Silent(Coin):
        def step(self, action):
            return "flip", 0.0, True, False, {"solved": None}

    assert reference_players(Silent, [{"seed": 0}])["random"].success_rate is None


def test_random_player_is_reproducible_and_only_offered_references_are_played() -> None:
    tasks = [{"seed": seed} for seed in range(50)]
    first, again, other = (reference_players(Coin, tasks, seed=seed) for seed in (0, 0, 1))
    assert list(first) == ["random"]
    assert first == again
    assert first != other
    assert 0.7 < first["random"].mean_return < 1.3
    assert first["random"].mean_turns == 2


def test_agent_plays_the_same_tasks_alike_alone_and_in_company(agent: TurnPPOAgent) -> None:
    tasks = [{"seed": seed} for seed in range(6)]
    together = agent.play_tasks(sokoban, tasks, temperature=1.0)
    alone = agent.play_tasks(sokoban, tasks[3:4], temperature=1.0)
    assert [item.completion for item in together[3].turns] == [item.completion for item in alone[0].turns]
    assert [trajectory.seed for trajectory in together] == list(range(6))
    hotter = agent.play_tasks(sokoban, tasks, temperature=3.0)
    assert [item.turns for item in hotter] != [item.turns for item in together]


def test_agent_follows_the_limits_of_its_record() -> None:
    agent = TurnPPOAgent.from_pretrained("tiny", device="cpu", record={"limits": {"max_turns": 1}})
    (trajectory,) = agent.play_tasks(sokoban, [{"seed": 0}])
    assert (len(trajectory.turns), trajectory.stop_reason) == (1, StopReason.TURN_LIMIT)


def test_agent_without_critic_leaves_values_open(agent: TurnPPOAgent) -> None:
    (trajectory,) = agent.play_tasks(sokoban, [{"seed": 0}])
    assert agent.score([trajectory])[0] == trajectory


def test_agent_reads_the_critic_at_the_last_prompt_token(agent: TurnPPOAgent) -> None:
    import torch

    from turnppo_hf.models.actor_critic import critic_from_actor

    critic = critic_from_actor(agent.actor)
    torch.nn.init.normal_(critic.score.weight, generator=torch.Generator().manual_seed(0))
    judged = TurnPPOAgent(agent.actor, agent.chat.tokenizer, critic)
    turns = judged.play(sokoban, seed=1).turns
    for item in turns:
        whole = torch.tensor([[*item.prompt_ids, *item.completion_ids]])
        expected = critic(input_ids=whole).logits[0, len(item.prompt_ids) - 1, 0]
        assert item.value == pytest.approx(float(expected.detach()), abs=1e-5)


@pytest.mark.parametrize("model", ["no/such/folder", "no-such-model", ""])
def test_missing_model_is_one_sentence(model: str) -> None:
    with pytest.raises(ValueError, match=r"no folder here|no config\.json"):
        find_model(model)


def test_episode_is_rendered_with_all_that_happened() -> None:
    trajectory = episode(
        replace(turn(-0.2), value=1.25, completion="<answer>Up</answer>"),
        replace(turn(0.0, action="", penalty=-0.1), finish_reason="length"),
    )
    text = render_episode(trajectory)
    for words in ("turn 1", "critic's value 1.25", "board", "<answer>Up</answer>", "action    Up", "reward    -0.2"):
        assert words in text
    for words in ("none understood", "format penalty -0.1", "cut at its token limit", "task_budget after 2 turns"):
        assert words in text
    assert "critic" not in render_episode(episode(turn()))


class Odd(Coin):
    """A coin whose random player fails on odd seeds, and which never ends with `endless`."""

    def __init__(self, endless: bool = False) -> None:
        super().__init__()
        self.endless = endless

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.odd = bool((seed or 0) % 2)
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated and not self.endless, truncated and not self.endless, info

    def random_completion(self, rng: np.random.Generator) -> str:
        if self.odd and not self.endless:
            raise RuntimeError("no idea")
        return super().random_completion(rng)


def test_reference_that_fails_fails_its_own_episode() -> None:
    with pytest.warns(UserWarning, match="2 of 4 episodes of the random player failed .*no idea"):
        found = reference_players(Odd, [{"seed": seed} for seed in range(4)])
    assert (found["random"].episodes, found["random"].failed) == (2, 2)
    with pytest.warns(UserWarning, match="3 of 3 episodes"):
        assert reference_players(Odd, [{"seed": 1}] * 3) == {}


class Script(Coin):
    """Replies with the rest of one `step`; its best player knows so many turns."""

    def __init__(self, *reply: Any, turns: int = 3) -> None:
        super().__init__()
        self.reply, self.left = reply, turns

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return ("flip", *self.reply)  # type: ignore[return-value]

    def optimal_completions(self) -> list[str]:
        self.left -= 1
        return ["heads"] * (self.left >= 0)


@pytest.mark.parametrize(
    ("ends", "info"),
    [
        ((True, False), {"solved": True}),
        ((True, True), {"solved": np.bool_(True)}),
        ((True, False), {"solved": None}),
        ((True, False), {}),
        ((False, True), {}),
        ((False, True), {"solved": True}),
        ((False, True), {"truncation": "task_budget", "solved": False}),
        ((False, True), {"truncation": "time_limit"}),
    ],
)
def test_reference_ends_as_a_models_episode_does(
    agent: TurnPPOAgent, ends: tuple[bool, bool], info: dict[str, Any]
) -> None:
    found = reference_players(lambda: Script(1.0, *ends, info), [{"seed": 0}])
    model = summarize(agent.play_tasks(lambda: Script(1.0, *ends, info), [{"seed": 0}]))
    for player in found.values():
        assert (player.stop_reasons, player.success_rate) == (model.stop_reasons, model.success_rate)
    assert list(found) == ["random", "optimal"]


@pytest.mark.parametrize(
    "reply", [("1", False, True, {}), (1.0, "no", True, {}), (1.0, False, True), (1.0, True, False, {"solved": "no"})]
)
def test_reference_counts_no_reply_that_a_model_could_not_get(reply: tuple[Any, ...]) -> None:
    with pytest.warns(UserWarning, match="1 of 1 episodes of the (random|optimal) player failed .*TypeError"):
        assert reference_players(lambda: Script(*reply), [{"seed": 0}]) == {}


@pytest.mark.parametrize("turns", [0, 2])
def test_player_without_a_way_on_reaches_no_limit(turns: int) -> None:
    with pytest.warns(UserWarning, match="The optimal player has no way on in 1 of 1 episodes"):
        found = reference_players(lambda: Script(1.0, False, False, {}, turns=turns), [{"seed": 0}], max_turns=3)
    assert found["optimal"].stop_reasons == {"terminated": 1} and found["optimal"].mean_turns == turns
    assert found["random"].stop_reasons == {"turn_limit": 1}


def test_references_have_the_turns_that_the_agent_has() -> None:
    tasks = [{"seed": seed} for seed in range(3)]
    assert reference_players(Coin, tasks, max_turns=1)["random"].mean_turns == 1
    endless = reference_players(lambda: Odd(endless=True), tasks[:1])
    assert endless["random"].mean_turns == 1000 and endless["random"].stop_reasons == {"turn_limit": 1}
