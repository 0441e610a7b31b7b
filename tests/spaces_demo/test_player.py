"""What the demo Space shows: episodes as the page draws them, levels and their judgement, the shop, the endpoints."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import endpoints
import numpy as np
import pytest
from compare import BEST, MY_LEVEL, compare, contestants, score_game
from levels import MAX_SIDE, LevelError, checked_seed, judge_level, level_of_seed, world_arguments
from live import limits_of, live_agents, load_agent, new_world, play_live, world_of
from player import episode_view, plan_view, read_replays, realised_returns, td_errors
from shop import shop_page
from wishes import chosen_wish, wishes

from turnppo_hf.environments import make_environment
from turnppo_hf.environments.sokoban.rules import SokobanState
from turnppo_hf.environments.sokoban.solver import best_plan
from turnppo_hf.evaluation.pictures.theme import THEMES
from turnppo_hf.models.pretrained import find_model
from turnppo_hf.trajectory import StopReason, Trajectory, Turn

SPACE = Path(__file__).parents[2] / "spaces_demo"
LEVEL = "#####\n#.$@#\n#   #\n#   #\n#####"
FAR = "########\n#      #\n# $    #\n#      #\n#      #\n#    @.#\n########"  # more moves than the tiny agent has
CORNERED = "#####\n#$ @#\n#   #\n# . #\n#####"


def own_agent(model: str, folder: Path, **world: Any) -> str:
    """Copy a packaged agent into a folder, with other arguments of its environment; return its name on the page."""
    shutil.copytree(find_model(model), folder, ignore=shutil.ignore_patterns("trajectories", "assets"))
    record = json.loads((folder / "turnppo.json").read_text("utf-8"))
    for part in (record, record.get("evaluation", record)):
        part["environment_kwargs"] = {**part["environment_kwargs"], **world}
    (folder / "turnppo.json").write_text(json.dumps(record), "utf-8")
    return folder.name


def played(**changes: Any) -> Trajectory:
    observations = ("#####\n#OXP#\n#####\n12", "#####\n#OXP#\n#####\n11")
    turns = (
        Turn((1,), (2,), (0.0,), observations[0], "Up", "Up", -0.1, 0.0, "stop", value=4.0, advantage=1.0),
        Turn((1,), (2,), (0.0,), observations[1], "Left", "Left", 10.9, -0.1, "stop", value=6.0, advantage=4.8),
    )
    fields: dict[str, Any] = {"stop_reason": StopReason.SOLVED, **changes}
    return Trajectory({"seed": 3}, "turnppo_hf/Sokoban-v0", 3, turns, **fields)


def test_td_errors_of_an_episode_are_reward_plus_next_value_minus_value() -> None:
    # -0.1 + 0.5 * 6 - 4 = -1.1; the penalty counts and nothing follows: 10.9 - 0.1 - 6 = 4.8
    assert td_errors(played(), 0.5) == pytest.approx([-1.1, 4.8])


def test_td_errors_after_a_cut_and_while_playing_are_unknown() -> None:
    assert td_errors(played(stop_reason=StopReason.TURN_LIMIT), 0.5)[1] is None
    assert td_errors(played(), 0.5, is_running=True)[1] is None


def test_returns_of_an_episode_are_discounted_and_unknown_after_a_cut() -> None:
    assert realised_returns(played(), 0.5) == pytest.approx([-0.1 + 0.5 * 10.8, 10.8])
    assert realised_returns(played(stop_reason=StopReason.TIME_LIMIT), 0.5) == [None, None]


def test_recorded_advantages_are_the_sums_of_the_shown_td_errors() -> None:
    files = [json.loads(path.read_text("utf-8")) for path in sorted((SPACE / "replays").glob("*_ppo_episodes.json"))]
    assert len(files) == 2
    for recorded in files:
        for item in recorded["episodes"]:
            trajectory = Trajectory.from_dict(item["trajectory"])
            following = 0.0
            for turn, error in zip(
                trajectory.turns[::-1], td_errors(trajectory, recorded["gamma"])[::-1], strict=True
            ):
                following = error + recorded["gamma"] * recorded["lam"] * following
                assert turn.advantage == pytest.approx(following, abs=1e-3)
            wrong = td_errors(trajectory, 0.5)[0]
            assert len(trajectory.turns) == 1 or wrong != pytest.approx(td_errors(trajectory, recorded["gamma"])[0])


def test_episode_view_holds_every_position_and_the_ending() -> None:
    view = episode_view(played(), agent="Turn-PPO", gamma=0.99)
    assert [len(turn["boards"]) for turn in view["turns"]] == [2, 2]
    assert view["turns"][1]["boards"][-1] == ["#####", "#√P_#", "#####"]
    assert (view["solved"], view["ending"], view["has_critic"]) == (True, "Solved", True)
    assert Trajectory.from_dict(json.loads(json.dumps(view["record"]))) == played()


def test_running_view_shows_no_ending_and_no_return() -> None:
    view = episode_view(played(), agent="Turn-PPO", is_running=True)
    assert (view["solved"], view["record"], view["turns"][0]["return"]) == (False, None, None)


def test_plan_view_of_the_best_play_ends_solved() -> None:
    state = SokobanState.from_text(LEVEL)
    view = plan_view(state, best_plan(state, 12), 2, "Best play")
    assert view["solved"]
    assert view["total"] == pytest.approx(10.9)


def test_recorded_episodes_are_read_and_labelled() -> None:
    replays = read_replays()
    assert {replay.agent for replay in replays.values()} >= {"Turn-PPO", "token PPO", "GRPO"}
    shop = [replay.view for replay in replays.values() if replay.group == "WebShop"]
    assert shop and all("synthetic" in view["note"] for view in shop)
    assert any(not replay.view["solved"] for replay in replays.values() if replay.agent == "Turn-PPO")


def test_recorded_levels_are_the_same_for_every_agent() -> None:
    levels: dict[str, set[str]] = {}
    for replay in read_replays().values():
        if replay.group == "Sokoban":
            levels.setdefault(replay.task, set()).add(replay.view["level"])
    assert len(levels) > 3
    assert all(len(texts) == 1 for texts in levels.values())


@pytest.mark.slow
def test_replays_are_shown_without_torch() -> None:
    pytest.importorskip("gradio", reason='needs Gradio: pip install "turnppo-hf[space]"')
    check = (
        "import sys; sys.path.insert(0, {!r}); import app; page = app.build(); app.choose_episode('turn_ppo-1');"
        "assert 'torch' not in sys.modules; app.load_agent('before training'); assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", check.format(str(SPACE))], check=True)


def test_colors_of_the_page_are_those_of_the_pictures() -> None:
    style = (SPACE / "assets" / "space.css").read_text("utf-8")
    for name, block in (("light", ":root"), ("dark", ".dark")):
        (found,) = re.findall(rf"^{re.escape(block)} {{(.*?)^}}", style, re.DOTALL | re.MULTILINE)
        colors = dict(re.findall(r"--([\w-]+): (#\w+);", found))
        theme = THEMES[name]
        for key in ("paper", "card", "line", "ink", "floor", "wall", "mortar", "box", "player"):
            assert colors[key] == getattr(theme, key)
        assert [colors[f"series-{number}"] for number in range(4)] == list(theme.series[:4])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LEVEL, "Solvable in 1 move."),
        (CORNERED, "The box in row 2 and column 2 stands in a corner"),
        ("#####\n#@$ #\n#####", "boxes and targets are 1 and 0"),
        ("#####\n# $.#\n#####", "0 players"),
        ("#####\n#@*##\n#####", "Every box stands on a target already"),
        ("hello", "the symbol 'h' in row 1 and column 1"),
        ("", "0 players"),
        ("#" * 9, f"takes {MAX_SIDE} by {MAX_SIDE} at most"),
        ("########\n#@ $$$$#\n#  ....#\n########", "3 at most"),
        ("######\n#@ #.#\n# $# #\n#    #\n######", "cannot be pushed to any target"),
        ("########\n#@     #\n# $    #\n#      #\n#      #\n#     .#\n########", "moves, but an episode has 4"),
    ],
)
def test_level_judged_says_what_is_wrong(text: str, said: str) -> None:
    report = judge_level(text, 4)
    assert said in report.message
    assert report.is_playable is (text == LEVEL)


def test_level_whose_player_is_walled_off_is_refused_by_the_search() -> None:
    assert "tried every order of pushes" in judge_level("#######\n#@# $.#\n#######", 50).message
    assert judge_level("#######\n#@  $.#\n#######", 50).is_playable


def test_level_of_a_seed_is_the_evaluations() -> None:
    world = make_environment("turnppo_hf/Sokoban-v0", **{**world_arguments(), "split": "test"})
    _, info = world.reset(seed=1_000_007)
    assert level_of_seed(1_000_007) == info["level"]


@pytest.mark.parametrize("seed", [-1, 2**31, 1.5, "x", None, float("nan"), float("inf"), "9" * 500])
def test_seed_that_is_none_is_refused(seed: Any) -> None:
    with pytest.raises(LevelError, match="whole number"):
        checked_seed(seed)


def test_live_episode_ends_as_the_agent_plays_it_alone() -> None:
    views = list(play_live("Turn-PPO", 1_000_001, {"level": level_of_seed(1_000_001)}))
    alone = load_agent("Turn-PPO").play(seed=1_000_001, options={"level": level_of_seed(1_000_001)})
    assert views[-1]["record"] == alone.to_dict()
    assert len(views) == len(alone.turns) + 2
    assert views[0]["turns"][0]["is_waiting"]
    shown = [turn["value"] for turn in views[-2]["turns"][:-1]]
    assert shown == pytest.approx([turn.value for turn in alone.turns], abs=1e-4)


def test_live_episode_that_nobody_watches_is_stopped() -> None:
    playing = play_live("before training", 1_000_001)
    next(playing)
    playing.close()  # returns when the thread that plays has ended


def test_shopper_plays_a_wish_and_its_pages_are_data() -> None:
    text, number = wishes("shopper before training")[0]
    *_, view = play_live("shopper before training", 5, {"goal": number})
    assert view["turns"][0]["page"]["wish"] == text
    assert view["last_page"] is not None
    assert "synthetic" in view["note"]


def test_shop_page_of_a_purchase_names_score_and_terms() -> None:
    shop = make_environment("turnppo_hf/WebShop-v0", data="synthetic").unwrapped
    shop.reset(seed=1)
    places = [shop_page(shop.session)["place"]]
    for _ in range(10):
        *_, is_over, _, _ = shop.step(shop.expert_completions()[0])
        places.append(shop_page(shop.session)["place"])
        if is_over:
            break
    page = shop_page(shop.session)
    assert {"start", "search_results", "item_page", "done"} <= set(places)
    assert page["score"] == 1.0
    assert json.loads(json.dumps(page)) == page


def test_agent_of_a_visitors_name_is_not_loaded() -> None:
    for name in ("../../etc", "someone/agent", "tiny"):
        with pytest.raises(ValueError, match="Only the page's owner may add one"):
            load_agent(name)


def test_agent_repository_of_the_owner_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENT_REPO", "owner/agent")
    monkeypatch.setenv("AGENT_REVISION", "v1")
    first = next(iter(live_agents().values()))
    assert (first.name, first.model, first.revision) == ("agent", "owner/agent", "v1")
    for repo, name in (("runs/Turn-PPO", "runs/Turn-PPO"), ("me/GRPO", "me/GRPO"), ("GRPO", "GRPO (yours)")):
        monkeypatch.setenv("AGENT_REPO", repo)  # not shown under the name of another
        first = next(iter(live_agents().values()))
        assert (first.name, first.model) == (name, repo) and live_agents()["Turn-PPO"].model == "tiny-trained"
    monkeypatch.setenv("AGENT_REPO", "owner/agent")
    assert world_of("before training") == "Sokoban"


def test_compare_takes_recordings_and_plays_where_there_is_none() -> None:
    pair, scores, note = compare("Turn-PPO", "GRPO", "Level 1", "")
    assert pair["left"]["level"] == pair["right"]["level"]
    assert [row["name"] for row in scores] == ["Turn-PPO", "GRPO"] and note["text"] == ""
    pair, _, _ = compare("before training", BEST, MY_LEVEL, LEVEL)
    assert pair["left"]["level"] == pair["right"]["level"] == LEVEL
    pair, _, note = compare("token PPO", BEST, MY_LEVEL, LEVEL)
    assert pair["left"] is None and "token PPO can only be seen" in note["text"]
    assert BEST in contestants()


def test_game_is_scored_by_the_rules_and_not_by_the_browser() -> None:
    rows, pair = score_game({"level": LEVEL, "moves": ["Left"]}, "before training")
    assert (rows[0]["solved"], rows[0]["total"]) == (True, pytest.approx(10.9))
    assert pair["right"]["solved"]
    rows, _ = score_game({"level": LEVEL, "moves": ["Right"]}, "before training")
    assert (rows[0]["solved"], rows[0]["total"]) == (False, pytest.approx(-0.1))


@pytest.mark.parametrize("moves", [["Jump"], ["Up"] * 13, "Up", [["Up"]], None, [1]])
def test_game_with_other_moves_is_refused(moves: Any) -> None:
    with pytest.raises(ValueError, match="The moves must be"):
        score_game({"level": LEVEL, "moves": moves}, "before training")


def test_endpoints_play_the_environment_itself() -> None:
    start = endpoints.reset(seed=1_000_001)
    rng = np.random.default_rng(0)
    world = new_world("Turn-PPO")
    world.reset(seed=0, options={"level": start["level"]})
    answers: list[str] = []
    while True:
        answer = world.random_completion(rng)
        observation, reward, terminated, truncated, info = world.step(answer)
        told = endpoints.step(start["level"], answers, answer)
        assert (told["observation"], told["reward"]) == (observation, reward)
        assert (told["terminated"], told["truncated"], told["solved"]) == (terminated, truncated, info["solved"])
        answers.append(answer)
        if terminated or truncated:
            break
    with pytest.raises(ValueError, match="takes no step"):
        endpoints.step(start["level"], answers, "Up")
    assert len(endpoints.values(start["level"], answers)) == len(answers)
    assert len(endpoints.values(start["level"], answers[:1])) == 2


def test_endpoint_play_returns_a_trajectory() -> None:
    trajectory = Trajectory.from_dict(endpoints.play(level=LEVEL))
    assert trajectory.turns[0].value is not None


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"level": LEVEL, "answers": ["Up"] * 99, "answer": "Up"}, "at most 6 "),
        ({"level": LEVEL, "answers": "Up", "answer": "Up"}, "must be a list"),
        ({"level": LEVEL, "answers": [], "answer": "x" * 9000}, "at most 8192 characters"),
        ({"level": "/etc/pw", "answers": [], "answer": "Up"}, "XSB"),
    ],
)
def test_endpoint_step_with_bad_input_says_what_to_do(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        endpoints.step(**arguments)


def test_endpoints_are_of_the_world_of_the_owners_agent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = own_agent("tiny-trained", tmp_path / "own_tags", action_format="tags", max_turns=10, max_actions=20)
    monkeypatch.setenv("AGENT_REPO", str(tmp_path / name))
    start, trajectory = endpoints.reset(seed=1_000_004), Trajectory.from_dict(endpoints.play(seed=1_000_004))
    assert (start["max_turns"], start["actions_left"]) == (10, 20) and "<answer>" in start["grammar"]
    assert start["observation"] == trajectory.turns[0].observation
    assert endpoints.values(start["level"], []) == pytest.approx([trajectory.turns[0].value], abs=1e-4)
    answers: list[str] = []
    for turn in trajectory.turns:
        told = endpoints.step(start["level"], answers, turn.completion)
        assert (told["reward"], told["penalty"], told["action"]) == (turn.reward, turn.penalty, turn.action)
        answers.append(turn.completion)
    told = endpoints.step(start["level"], [], "<answer>Up</answer>")
    assert (told["action"], told["penalty"], told["actions_left"]) == ("Up", 0.0, 18)
    tiny = {"agent": "Turn-PPO"}
    assert endpoints.reset(seed=1_000_004, **tiny)["max_turns"] == 6
    assert endpoints.step(start["level"], [], "<answer>Up</answer>", **tiny)["penalty"] < 0
    assert endpoints.values(start["level"], [], **tiny) != endpoints.values(start["level"], [])
    with pytest.raises(ValueError, match="does not play Sokoban"):
        endpoints.reset(agent="shopper before training")


def test_limits_are_those_of_the_agent_that_plays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = own_agent("tiny-trained", tmp_path / "own_long", max_turns=20, max_actions=30)
    assert not endpoints.judge(FAR)["is_playable"]
    monkeypatch.setenv("AGENT_REPO", str(tmp_path / name))
    assert endpoints.judge(FAR)["is_playable"] and not endpoints.judge(FAR, "Turn-PPO")["is_playable"]
    assert limits_of(name).max_actions == 30 and limits_of("Turn-PPO").max_actions == 12
    rows, pair = score_game({"level": FAR, "moves": ["Up"] * 13}, name)
    assert pair["right"]["solved"] and [row["name"] for row in rows] == ["you", name, BEST]
    pair, _, _ = compare(name, BEST, MY_LEVEL, FAR)
    assert pair["right"]["solved"]
    pair, _, _ = compare("before training", BEST, MY_LEVEL, FAR)
    assert not pair["right"]["solved"]  # the best play has as much room as the player beside it


def test_wish_of_the_owners_shopper_is_of_its_own_shop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = own_agent("tiny-webshop", tmp_path / "own_shop", num_products=60)
    monkeypatch.setenv("AGENT_REPO", str(tmp_path / name))
    assert world_of(name) == "WebShop" and wishes(name) != wishes("shopper before training")
    for number, (text, _) in enumerate(wishes(name)[:3]):
        view = next(play_live(name, 5, {"goal": chosen_wish(name, number)}))
        assert view["turns"][0]["page"]["wish"] == text
    with pytest.raises(ValueError, match="no wish number"):
        chosen_wish(name, len(wishes(name)))


def test_agent_whose_world_cannot_be_built_leaves_the_page_to_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = own_agent("tiny-webshop", tmp_path / "own_elsewhere", data=str(tmp_path / "nowhere"))
    monkeypatch.setenv("AGENT_REPO", str(tmp_path / name))
    assert world_of(name) == "other"
    assert endpoints.reset(seed=1_000_004)["max_turns"] == 6
    with pytest.raises(ValueError, match="nowhere"):
        next(play_live(name, 5))


@pytest.mark.slow
def test_live_tab_opens_with_what_the_first_agent_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    app = pytest.importorskip("app", reason='needs Gradio: pip install "turnppo-hf[space]"')

    def parts() -> tuple[list[bool], list[list[Any]]]:
        """Whether the columns of level and wish are shown, and the menu of wishes."""
        with app.gr.Blocks() as page:
            app.live_tab(app.gr.State(""))
        found = page.get_config_file()["components"]
        columns = [item["props"]["visible"] for item in found if item["type"] == "column"]
        (menu,) = [item["props"] for item in found if item["props"].get("elem_id") == "live-wish"]
        return [columns[0], columns[-1]], [list(choice) for choice in menu["choices"]]

    assert parts() == ([True, False], [])
    name = own_agent("tiny-webshop", tmp_path / "own_first", num_products=60)
    monkeypatch.setenv("AGENT_REPO", str(tmp_path / name))
    assert parts() == ([False, True], [[text, number] for number, (text, _) in enumerate(wishes(name))])
