"""The packaged shopper plays and trains, and everything that a run writes says that its shop is generated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from turnppo_hf.agent import TurnPPOAgent
from turnppo_hf.cli.main import main
from turnppo_hf.environments import make_environment
from turnppo_hf.environments.factory import open_environments
from turnppo_hf.evaluation.summary import summarize
from turnppo_hf.models.pretrained import find_model
from turnppo_hf.trainer.metrics import rollout_metrics

pytestmark = pytest.mark.slow  # a run of training

CONFIG = Path(__file__).parents[3] / "trainer_configs" / "webshop_cpu.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two small steps of the config."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    values = {
        **yaml.safe_load(CONFIG.read_text()),
        "output_dir": str(folder),
        "generation_batch_size": 8,
        "eval_episodes": 8,
        "max_steps": 2,
        "logging_steps": 1,
        "eval_steps": 1,
        "save_steps": 2,
    }
    config = folder.parent / "run.yaml"
    config.write_text(yaml.safe_dump(values))
    assert main(["train", str(config)]) == 0
    return folder


def test_every_record_of_a_run_says_that_the_shop_is_synthetic(run: Path) -> None:
    results, record = (json.loads((run / name).read_text()) for name in ("results.json", "turnppo.json"))
    assert results["data"] == record["data"]
    assert record["data"].startswith("SYNTHETIC catalogue, not WebShop's products: ")
    assert {"before", "after", "random", "expert"} <= set(results)
    state = json.loads((run / "checkpoint-2" / "trainer_state.json").read_text())
    logs = [entry for entry in state["log_history"] if "reward" in entry or "eval_reward" in entry]
    assert len(logs) >= 4
    assert all(entry.get("synthetic", entry.get("eval_synthetic")) == 1 for entry in logs)


def test_run_says_before_it_starts_that_the_shop_is_synthetic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"max_steps": 1, "generation_batch_size": 2, "eval_episodes": 2, "eval_strategy": "no", "max_turns": 1}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    assert main(["train", str(CONFIG), "--output_dir", str(tmp_path), *words]) == 0
    described = capsys.readouterr().out.split("Held out")[0]
    assert "data        SYNTHETIC catalogue" in described


def test_sokoban_has_no_data_to_speak_of() -> None:
    pool, _, record = open_environments("turnppo_hf/Sokoban-v0")
    assert "data" not in record
    pool.close()


def play(count: int, **kwargs: Any) -> list[Any]:
    agent = TurnPPOAgent.from_pretrained("tiny-webshop", device="cpu")
    record = {**agent.record.environment_kwargs, "split": "test", **kwargs}
    tasks = [{"seed": 1_000_000 + number} for number in range(count)]
    return agent.play_tasks(lambda: make_environment("turnppo_hf/WebShop-v0", **record), tasks, temperature=1.0)


def test_packaged_shopper_buys_and_leaves_room_to_learn() -> None:
    trajectories = play(48)
    summary = summarize(trajectories)
    assert 0.1 < summary.mean_return < 0.5  # chance earns 0.03, the script that it imitates 1
    assert summary.invalid_turns < 0.6
    assert rollout_metrics(trajectories)["synthetic"] == 1
    assert max(len(turn.prompt_ids) + len(turn.completion_ids) for item in trajectories for turn in item.turns) < 2048


def test_packaged_shopper_is_recorded_with_its_environment() -> None:
    record = json.loads((find_model("tiny-webshop") / "turnppo.json").read_text())
    config = yaml.safe_load(CONFIG.read_text())
    kwargs = {name: value for name, value in config["environment_kwargs"].items() if name != "split"}
    assert record["environment"] == config["environment"]
    assert record["environment_kwargs"] == kwargs
    for name in ("max_turn_length", "max_completion_length"):
        assert record["limits"][name] == config[name]


def test_trajectories_of_other_environments_log_no_such_share() -> None:
    agent = TurnPPOAgent.from_pretrained("tiny", device="cpu")
    kwargs = agent.record.environment_kwargs
    played = agent.play_tasks(lambda: make_environment("turnppo_hf/Sokoban-v0", **kwargs), [{"seed": 1}])
    assert "synthetic" not in rollout_metrics(played)
