"""`turnppo imitate`: an actor that another command trains on, a target that stops it, and mistakes that are named."""

from __future__ import annotations

import json
from functools import partial

import pytest
import yaml

from turnppo_hf import TurnPPOAgent
from turnppo_hf.cli.imitate import build_parser, run_imitation
from turnppo_hf.cli.main import main
from turnppo_hf.cli.train_arguments import parse_words
from turnppo_hf.environments import make_environment
from turnppo_hf.evaluation.summary import summarize
from turnppo_hf.hub.agent_record import AgentRecord

SOKOBAN = {"size": 5, "max_actions_per_turn": 1, "max_turns": 8, "max_actions": 8, "action_format": "bare"}


def config(tmp_path, **changes):
    """A short imitation of Sokoban's solver, by the packaged tokenizer unless `changes` say otherwise."""
    settings = {
        "model": "tiny",
        "environment": "sokoban",
        "environment_kwargs": {**SOKOBAN, "split": "train"},
        "eval_environment_kwargs": {"split": "test"},
        "context": "last",
        "num_episodes": 12,
        "eval_episodes": 4,
        "success_steps": 2,
        "max_turn_length": 4,
        "output_dir": str(tmp_path / "actor"),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "use_cpu": True,
        "bf16": False,
        **changes,
    }
    file = tmp_path / "imitate.yaml"
    file.write_text(yaml.safe_dump({name: value for name, value in settings.items() if value is not None}))
    return str(file)


@pytest.mark.slow
def test_actor_is_saved_with_its_context_and_trained_on(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["imitate", config(tmp_path, model="new", new_model={"hidden_size": 32})]) == 0
    printed = capsys.readouterr().out
    assert [f"step {step:>5}: success" in printed for step in (0, 2, 4)] == [True] * 3
    record = AgentRecord.from_folder(tmp_path / "actor")
    assert (record.context, record.environment) == ("last", "turnppo_hf/Sokoban-v0")
    assert record.limits["max_turn_length"] == 4 and record.evaluation.environment_kwargs["split"] == "test"
    agent = TurnPPOAgent.from_pretrained(tmp_path / "actor", device="cpu")
    assert len(agent.play(seed=1).turns) > 0
    train = {
        "model": str(tmp_path / "actor"),
        "environment": "sokoban",
        "environment_kwargs": SOKOBAN,
        "context": "last",
        "max_steps": 1,
        "generation_batch_size": 4,
        "eval_episodes": 2,
        "max_turn_length": 4,
        "output_dir": "run",
        "use_cpu": True,
    }
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(train))
    assert main(["train", "train.yaml"]) == 0
    assert json.loads((tmp_path / "run" / "turnppo.json").read_text())["context"] == "last"


@pytest.mark.slow
def test_rules_that_the_context_leaves_out_are_warned_of(tmp_path):
    file = config(tmp_path, environment_kwargs={"size": 5, "split": "train"}, max_turn_length=64, max_steps=1)
    with pytest.warns(UserWarning, match="`context` is 'last', but Sokoban writes its rules into the first"):
        assert main(["imitate", file, "--num_episodes", "4", "--eval_episodes", "1"]) == 0


@pytest.mark.slow
def test_last_evaluation_is_of_the_actor_that_is_saved(tmp_path, capsys):
    """Also where the last step is none that is judged for the target."""
    settings = {"max_steps": 5, "eval_episodes": 16, "learning_rate": 0.01}
    (asked, training), _ = parse_words([config(tmp_path, **settings)], build_parser())
    done = run_imitation(asked, training)
    assert [step for step, _ in done.points] == [0, 2, 4, 5]
    agent = TurnPPOAgent.from_pretrained(tmp_path / "actor", device="cpu")
    environment = partial(make_environment, "sokoban", **SOKOBAN, split="test")
    episodes = agent.play_tasks(environment, [{"seed": 1_000_000 + number} for number in range(16)], temperature=1.0)
    assert summarize(episodes).mean_return == done.points[-1][1].mean_return
    assert "cut by a limit" not in capsys.readouterr().out


@pytest.mark.slow
def test_held_out_episodes_that_a_limit_of_tokens_cuts_are_told(tmp_path, capsys):
    """They count as missed, though the actor might have gone on; ten tokens hold one answer and no second board."""
    file = config(tmp_path, context="full", max_completion_length=10, target_success=0.0)
    assert main(["imitate", file]) == 0
    assert ", cut by a limit of tokens " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("target", "steps"), [(0.0, [0]), (1.0, [0, 2, 4])])
def test_training_stops_at_the_target(tmp_path, capsys, target, steps):
    file = config(tmp_path, target_success=target, max_steps=4)
    (asked, training), _ = parse_words([file], build_parser())
    done = run_imitation(asked, training)
    assert [step for step, _ in done.points] == steps
    missed = "was not reached" in capsys.readouterr().out
    assert missed is (done.success < target)
    assert (tmp_path / "actor" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nois": 0.1}, "`nois` is no field. Did you mean `noise`? `turnppo imitate --help` lists all fields."),
        ({"noise": 2.0}, "`noise` must be between 0 and 1, got 2.0"),
        ({"episodes": "played.parquet", "noise": 0.1}, "read with `episodes: planner` alone"),
        ({"new_model": {"hidden_size": 32}}, "read with `model: new` alone"),
        ({"context": "window"}, "`context` must be full, last or window:k"),
        ({"num_episodes": 0}, "`num_episodes` must be at least 1"),
        ({"eval_temperature": -1.0}, "`eval_temperature` must be a finite number from 0 on"),
        ({"eval_seed_start": -5}, "`eval_seed_start` must be between 0 and 4294967295"),
        ({"episodes": "none.parquet"}, "`episodes` 'none.parquet' cannot be read"),
        ({"environment": "sokobann"}, "Did you mean 'turnppo_hf/Sokoban-v0'"),
        ({"environment": None}, "The run lacks its `environment`"),
        ({"max_steps": 0}, "`max_steps` is 0, and whole epochs would be trained"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be a finite number above 0"),
        ({"seed": -5}, "`seed` must be between 0 and 4294967295"),
        ({"output_dir": "/proc/actor"}, "`output_dir` /proc/actor cannot be written"),
        ({"model": "new", "new_model": {"hiden_size": 80}}, "sets 'hiden_size'"),
        ({"model": "new", "new_model": {"hiden_size": 80}}, "Did you mean 'hidden_size'?"),
        ({"model": "new", "new_model": {"vocab_size": 5}}, "the tokenizer decides it"),
        ({"model": "new", "new_model": {"hidden_size": 81}}, "makes no network"),
        ({"model": "new", "new_model": {"hidden_size": "big"}}, "makes no network"),
        ({"model": "new", "new_model": {"num_attention_heads": 3}}, "makes no network"),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, changes, message):
    assert main(["imitate", config(tmp_path, **changes)]) == 2
    assert message in capsys.readouterr().err


def test_flag_drops_what_the_file_says_of_another_value(tmp_path, capsys):
    assert main(["imitate", config(tmp_path, noise=0.3), "--episodes", "none.parquet"]) == 2
    assert "`episodes` 'none.parquet' cannot be read" in capsys.readouterr().err
    assert main(["imitate", config(tmp_path), "--episodes", "none.parquet", "--noise", "0.3"]) == 2
    assert "read with `episodes: planner` alone" in capsys.readouterr().err
    # the file's own value, on which nothing else depends
    for words in (["--episodes", "planner"], ["--episodes=planner"]):
        assert main(["imitate", config(tmp_path, noise=2.0), *words]) == 2
        assert "`noise` must be between 0 and 1, got 2.0" in capsys.readouterr().err
    file = config(tmp_path, model="new", new_model={"hidden_size": 32})
    assert main(["imitate", file, "--model", "tiny", "--episodes", "none.parquet"]) == 2
    assert "`episodes` 'none.parquet' cannot be read" in capsys.readouterr().err


def test_config_file_is_asked_for(capsys):
    assert main(["imitate"]) == 2
    assert "`turnppo imitate` needs a config file, such as trainer_configs/imitate/minigrid.yaml" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("left", ["critic/config.json", "checkpoint-5/model.safetensors", "config.json"])
def test_folder_of_another_agent_is_refused_before_anything_is_played(tmp_path, capsys, monkeypatch, left):
    monkeypatch.setattr("turnppo_hf.cli.imitate.load_conversations", None)
    file = tmp_path / "actor" / left
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    assert main(["imitate", config(tmp_path)]) == 2
    assert f"holds {left.partition('/')[0]} of another agent" in capsys.readouterr().err
    assert file.read_text() == "{}"


@pytest.mark.slow
def test_earlier_imitation_is_written_over_and_a_trained_agent_is_not(tmp_path, capsys):
    file = config(tmp_path, max_steps=1)
    assert main(["imitate", file]) == main(["imitate", file, "--max_steps", "2"]) == 0
    record = tmp_path / "actor" / "turnppo.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "algorithm": "grpo"}))
    assert main(["imitate", file]) == 2
    assert "of another agent" in capsys.readouterr().err
