"""Episodes are shown in short: one that reached its goal and one that did not, whatever they hold."""

from turnppo_hf.evaluation.example import Example, examples_of
from turnppo_hf.trajectory import StopReason, Trajectory, Turn


def episode(stop: StopReason, texts: list[str], value: float | None = None) -> Trajectory:
    turns = [
        Turn((1,), (2,), (-0.1,), f"seen {number}\n", text, text, 0.5, -0.1, "stop", value=value)
        for number, text in enumerate(texts)
    ]
    return Trajectory({}, "made-up", 0, tuple(turns), stop)


def test_first_solved_and_first_other_episode_are_shown() -> None:
    lost, won = episode(StopReason.TASK_BUDGET, ["left"]), episode(StopReason.SOLVED, ["up", "down"], value=0.25)
    failed = episode(StopReason.ERROR, [])
    assert examples_of([failed, lost, won, episode(StopReason.SOLVED, ["other"])]) == (
        Example("solved", 1.0, 2, "seen 0", ("up", "down"), (0.25, 0.25)),
        Example("task_budget", 0.5, 1, "seen 0", ("left",)),
    )
    assert examples_of([failed]) == examples_of([]) == ()


def test_secret_is_masked_before_a_text_is_cut(monkeypatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "q9X7abcDEFghi123456789zz")
    (example,) = examples_of([episode(StopReason.SOLVED, ["x" * 70 + " q9X7abcDEFghi123456789zz"])])
    assert "q9X7" not in example.responses[0] and example.responses[0].startswith("x" * 70)


def test_long_episodes_and_texts_are_cut() -> None:
    (example,) = examples_of([episode(StopReason.SOLVED, ["word " * 100] * 60, value=0.0)])
    assert example.turns == 60 and len(example.responses) == len(example.values) == 50
    assert {len(response) for response in example.responses} == {80} and example.responses[0].endswith("...")
