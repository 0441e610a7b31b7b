"""A person at the terminal plays, and what an agent played is shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from tests.helpers.scripted import ScriptedEnvironment
from turnppo_hf.agent import TurnPPOAgent
from turnppo_hf.cli.main import main
from turnppo_hf.cli.play import play_by_hand, render_episode
from turnppo_hf.environments import full_id, make_environment
from turnppo_hf.environments.sokoban.environment import Sokoban
from turnppo_hf.trajectory import StopReason, Trajectory, Turn

SYNTHETIC = json.dumps({"data": "synthetic"})


def typing(*lines: str, last: type[BaseException] = EOFError) -> Callable[[str], str]:
    """What `input` does for somebody who types these lines and leaves."""
    rest: Iterator[str] = iter(lines)

    def read(_: str) -> str:
        for line in rest:
            return line
        raise last

    return read


def written(*lines: str, seed: int = 3, last: type[BaseException] = EOFError) -> list[str]:
    shown: list[str] = []
    environment = make_environment("webshop", data="synthetic", action_format="bare", max_turns=4)
    play_by_hand(environment, seed, typing(*lines, last=last), shown.append)
    return shown


def test_person_reads_what_the_model_reads_and_sees_the_score() -> None:
    environment = make_environment("webshop", data="synthetic", action_format="bare", max_turns=4)
    first, info = environment.reset(seed=3)
    asin = info["goal"]["asin"].lower()
    shown = written(f"search[{info['goal']['name']}]", f"click[{asin}]", "click[buy now]")
    assert shown[:2] == ["An answer: " + environment.unwrapped.action_grammar + ". Ctrl-D leaves.\n", first]
    assert "You have bought" in shown[-2]
    assert shown[-1].startswith(("over after 3 turns   return 0.", "solved after 3 turns   return 1"))


def test_person_is_told_what_was_not_understood() -> None:
    shown = written("open the door", "search[lamp]")
    assert shown[2] == "(not understood: nothing happened)"
    assert sum(text.startswith("(not understood") for text in shown) == 1
    assert "2 turns left" in shown[-2]
    assert shown[-1] == "left after 2 turns   return 0"


@pytest.mark.parametrize("how", [EOFError, KeyboardInterrupt])
def test_person_may_leave_at_once(how: type[BaseException]) -> None:
    assert written(last=how)[-1] == "left after 0 turns   return 0"


def test_turns_run_out() -> None:
    shown = written("a", "b", "c", "d", "never read")
    assert "out of turns" in shown[-2]
    assert shown[-1] == "over after 4 turns   return 0"


@pytest.mark.parametrize(
    ("opening", "reply", "words"),
    [
        ("hi", None, r"reset\(\) must return \(observation text, info\), got str"),
        ((None, {}), None, r"reset\(\) must return"),
        (("go", {}), ("on", 0.0, False, {}), r"step\(\) must return .* got a tuple of 4"),
        (("go", {}), ("on", "1", True, False, {}), "step.* returned the reward '1'"),
        (("go", {}), ("on", 1.0, "False", False, {}), "step.* returned terminated as 'False'"),
        (("go", {}), ("on", 1.0, True, False, {"solved": "False"}), r"info\[\"solved\"\] is 'False'"),
    ],
)
def test_person_plays_by_the_contract_that_an_agent_plays_by(opening: Any, reply: Any, words: str) -> None:
    environment = ScriptedEnvironment([])
    environment.reset = lambda **_: opening  # type: ignore[method-assign]
    environment.step = lambda _: reply  # type: ignore[method-assign]
    with pytest.raises(TypeError, match=words):
        play_by_hand(environment, 0, typing("Up"), [].append)


@pytest.mark.parametrize(
    ("ends", "solved", "words"),
    [((True, False), True, "solved"), ((True, False), None, "over"), ((False, True), True, "over")],
)
def test_episode_of_a_person_is_solved_where_an_agents_is(
    ends: tuple[bool, bool], solved: bool | None, words: str
) -> None:
    shown: list[str] = []
    environment = ScriptedEnvironment([("end", 1.5, *ends, {"solved": solved})])
    play_by_hand(environment, 0, typing("Up", "never read"), shown.append)
    assert shown[-2:] == ["end", f"{words} after 1 turn   return 1.5"]


def test_command_without_a_model_lets_a_person_play(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", typing("search[lamp]"))
    assert main(["play", "--environment", "webshop", "--environment_kwargs", SYNTHETIC, "--seed", "3"]) == 0
    text = capsys.readouterr().out
    assert text.partition("\n\n")[2].startswith("Wish: ")  # no tags for a person
    assert "Results for lamp, page 1" in text
    assert text.endswith("left after 1 turn   return 0\n")


def test_sokoban_can_be_played_by_hand_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("builtins.input", typing("Up", "sing"))
    assert main(["play", "--environment", "sokoban"]) == 0
    text = capsys.readouterr().out
    assert text.count("(not understood: nothing happened)") == 1
    assert "left after 2 turns" in text


def test_environment_of_others_is_played_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Odd(ScriptedEnvironment):
        action_format = "json"  # which is no argument

    gymnasium.register("odd/A-v0", lambda: Odd([("end", 1.0, True, False, {})]))
    monkeypatch.setattr("builtins.input", typing("Up"))
    try:
        assert main(["play", "--environment", "odd/A-v0"]) == 0
    finally:
        del gymnasium.registry["odd/A-v0"]
    assert capsys.readouterr().out.endswith("over after 1 turn   return 1\n")


def test_nothing_to_play_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["play"]) == 2
    assert "there is nothing to play" in capsys.readouterr().err
    assert main(["play", "--environment", "webshopp"]) == 2
    assert "Did you mean 'turnppo_hf/WebShop-v0'" in capsys.readouterr().err


def test_agent_is_watched(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["play", "tiny-webshop", "--seed", "1000001"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("turnppo_hf/WebShop-v0, seed 1000001")
    assert "response  search[" in text


def test_agent_plays_as_it_was_judged_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    generator = TurnPPOAgent._generator

    def noted(self: TurnPPOAgent, temperature: float, *arguments: Any) -> Any:
        asked.append(temperature)
        return generator(self, temperature, *arguments)

    monkeypatch.setattr(TurnPPOAgent, "_generator", noted)
    assert main(["play", "tiny-trained"]) == main(["play", "tiny-trained", "--temperature", "0"]) == 0
    assert asked == [TurnPPOAgent.from_pretrained("tiny-trained").record.evaluation.temperature, 0.0] == [1.0, 0.0]


def test_short_names_stand_for_ids() -> None:
    assert full_id("webshop") == "turnppo_hf/WebShop-v0"
    assert full_id("SokobanLarge") == "turnppo_hf/SokobanLarge-v0"
    assert full_id("CartPole-v1") == "CartPole-v1"


def test_world_is_prepared_and_played(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = tmp_path / "ten.world"
    source = str(shared_data / "webshop")
    assert main(["webshop", "prepare", source, "--output", str(world), "--num_products", "10"]) == 0
    text = capsys.readouterr().out
    assert "checksum" in text
    command = text.splitlines()[-1].split("play it with ")[1]
    monkeypatch.setattr("builtins.input", typing("search[a]"))
    kwargs = command.removeprefix("--environment_kwargs ").strip("'")
    assert main(["play", "--environment", "webshop", "--environment_kwargs", kwargs]) == 0
    assert "Results for a, page 1" in capsys.readouterr().out


def test_mistake_in_prepare_ends_with_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "items_shuffle.json").write_text("[{")
    for source in (tmp_path, tmp_path / "none"):
        assert main(["webshop", "prepare", str(source), "--output", str(tmp_path / "w.world")]) == 2
        captured = capsys.readouterr().err
        assert captured.startswith("turnppo: error: ")
        assert "Traceback" not in captured
    assert not (tmp_path / "w.world").exists()


def test_rendered_episode_tells_penalty_cut_and_failure() -> None:
    turn = Turn(
        prompt_ids=(1,), completion_ids=(2,), sampling_logprobs=(-1.0,), observation="a page", completion="click[",
        action="", reward=0.0, penalty=-0.1, finish_reason="length", value=0.25,
    )  # fmt: skip
    text = render_episode(
        Trajectory(task={}, environment="e", seed=1, turns=(turn,), stop_reason=StopReason.ERROR, error="it broke")
    )
    for words in ("critic's value 0.25", "(cut at its token limit)", "(none understood)", "format penalty -0.1",
                  "The environment failed: it broke", "after 1 turn   return 0"):  # fmt: skip
        assert words in text


def test_words_without_effect_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["play", "--environment", "sokoban", "--seed", "-1"]) == 2
    assert "--seed must be at least 0" in capsys.readouterr().err
    assert main(["play", "--environment", "sokoban", "--temperature", "1"]) == 2
    assert "no model is named: you play" in capsys.readouterr().err


def test_episode_that_failed_is_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr(Sokoban, "step", broken)
    assert main(["play", "tiny"]) == 1
    assert "The environment failed: RuntimeError: out of order" in capsys.readouterr().out
