"""`agent_episodes`, loaded by `evaluate` from its folder without network."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from turnppo_hf.evaluation import AGENT_EPISODES
from turnppo_hf.evaluation.outcome import wilson_interval
from turnppo_hf.evaluation.summary import summarize
from turnppo_hf.trajectory import StopReason, Trajectory, Turn

RETURNS, SUCCESSES, TURNS = [10.5, -1.2, 9.0, -0.4], [True, False, True, False], [2, 6, 3, 6]


@pytest.fixture(scope="module")
def metric(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The metric, with a cache of modules that nothing was ever copied to."""
    caches = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_EVALUATE_OFFLINE", "1")
        patch.setenv("HF_MODULES_CACHE", str(caches / "modules"))
        patch.setenv("HF_METRICS_CACHE", str(caches / "metrics"))
        for name in [name for name in sys.modules if name.split(".")[0] == "evaluate"]:
            patch.delitem(sys.modules, name)  # another test's, which has read other variables
        evaluate = pytest.importorskip("evaluate")  # reads the variables when it is imported
        loaded = evaluate.load(AGENT_EPISODES)
    assert list((caches / "modules").rglob("agent_episodes.py"))
    return loaded


def test_metric_is_found_by_its_folder() -> None:
    assert (Path(AGENT_EPISODES) / "agent_episodes.py").is_file()


def test_each_module_that_the_metric_imports_has_its_line() -> None:
    # evaluate's parser takes `import a, b` for one distribution
    lines = (Path(AGENT_EPISODES) / "agent_episodes.py").read_text().splitlines()
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert len(imports) > 4
    assert not [line for line in imports if line.startswith("import ") and "," in line]


def test_numbers_are_the_packages_own(metric: Any) -> None:
    results = metric.compute(returns=RETURNS, successes=SUCCESSES, turns=TURNS)
    low, high = wilson_interval(2, 4)
    assert results == {
        "success_rate": 0.5,
        "success_low": low,
        "success_high": high,
        "mean_return": pytest.approx(4.475),
        "return_error": pytest.approx(statistics.stdev(RETURNS) / 2),
        "mean_turns": 4.25,
        "explained_variance": None,
    }
    json.dumps(results, allow_nan=False)


def test_numbers_equal_the_evaluation_of_the_same_episodes(metric: Any) -> None:
    def episode(reward: float, solved: bool, num_turns: int) -> Trajectory:
        turn = Turn((1,), (2,), (0.0,), "", "", "", reward / num_turns, 0.0, "stop")
        stop = StopReason.SOLVED if solved else StopReason.TASK_BUDGET
        return Trajectory({}, "g", 0, (turn,) * num_turns, stop, metrics={"solved": float(solved)})

    played = zip(RETURNS, SUCCESSES, TURNS, strict=True)
    summary = summarize([episode(*item) for item in played]).to_dict()
    results = metric.compute(returns=RETURNS, successes=SUCCESSES, turns=TURNS)
    del results["explained_variance"]
    assert {name: summary[name] for name in results} == pytest.approx(results)


def test_batches_add_up(metric: Any) -> None:
    whole = metric.compute(returns=RETURNS, successes=SUCCESSES, turns=TURNS)
    metric.add_batch(returns=RETURNS[:3], successes=SUCCESSES[:3], turns=np.array(TURNS[:3]))
    metric.add(returns=RETURNS[3], successes=np.bool_(SUCCESSES[3]), turns=TURNS[3])
    assert metric.compute() == whole


def test_explained_variance_is_over_all_turns(metric: Any) -> None:
    # returns 0, 2, 4 around 2: Var = 8/3; errors 0, 0, 1 around 1/3: Var = 2/9; 1 - 1/12
    turns = {"turn_values": [[0.0, 2.0], [3.0]], "turn_returns": [[0.0, 2.0], [4.0]]}
    results = metric.compute(returns=[2.0, 4.0], turns=[2, 1], **turns)
    assert results["explained_variance"] == pytest.approx(11 / 12)
    equal = metric.compute(returns=[2.0], turns=[1], turn_values=[[1.0]], turn_returns=[[2.0]])
    assert equal["explained_variance"] is None


@pytest.mark.parametrize("successes", [{}, {"successes": None}, {"successes": [None, None]}])
def test_success_may_be_undefined(metric: Any, successes: dict[str, Any]) -> None:
    results = metric.compute(returns=[0.5, 0.7], turns=[3, 4], **successes)
    assert [results[name] for name in ("success_rate", "success_low", "success_high")] == [None] * 3
    assert results["mean_return"] == pytest.approx(0.6)


def test_one_episode_has_no_error(metric: Any) -> None:
    results = metric.compute(returns=[1.0], turns=[1], successes=[True])
    assert results["return_error"] is None
    assert (results["success_low"], results["success_high"]) == wilson_interval(1, 1)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"returns": [1.0], "successes": [True]}, "`turns` is missing"),
        ({"successes": [True]}, "`returns` is missing"),
        ({"returns": [1.0, 2.0], "turns": [1]}, "`turns` holds 1 entries and `returns` 2"),
        ({"returns": [1.0], "turns": [1], "successes": [0.5]}, "0.5, which is neither"),
        ({"returns": [1.0], "turns": [1], "successes": ["False"]}, "'False', which is neither"),
        ({"returns": [1.0, 2.0], "turns": [1, 1], "successes": [True, None]}, "None for 1 of 2 episodes"),
        ({"returns": [1.0], "turns": [1], "turn_values": [[1.0]]}, "turn returns None"),
        ({"returns": [1.0], "turns": [2], "turn_values": [[1.0, 2.0]], "turn_returns": [[1.0]]}, "equally long"),
        ({"returns": [], "turns": []}, "no episode"),
        ({"predictions": [1], "references": [1], "returns": [1.0], "turns": [1]}, "inputs are missing"),
        ({"returns": ["much"], "turns": [1]}, "could not convert|expected format"),
    ],
)
def test_wrong_inputs_are_told(metric: Any, inputs: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        metric.compute(**inputs)
    # nothing of it is left behind
    assert metric.compute(returns=[1.0], turns=[1])["mean_return"] == 1.0


def test_answers_are_refused(metric: Any) -> None:
    with pytest.raises(ValueError, match="no predictions and references"):
        metric.add_batch(predictions=[1], references=[1], returns=[1.0], turns=[1])
    with pytest.raises(ValueError, match="no predictions and references"):
        metric.add(prediction=1, returns=1.0, turns=1)
