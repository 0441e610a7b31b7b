"""Configuration: what the trainer's fields accept, and how a YAML file and flags become them."""

from __future__ import annotations

import copy
import inspect
import pickle
import re
import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from turnppo_hf import TurnPPOConfig
from turnppo_hf.cli.train_arguments import RunConfigError, parse_run
from turnppo_hf.trainer.turn_ppo_config import describe_fields

RUN: dict[str, Any] = {"model": "tiny", "environment": "turnppo_hf/Sokoban-v0", "use_cpu": True}


@pytest.fixture
def write(tmp_path: Path):
    """Write a config file, given as text or as what deviates from RUN, and return its path."""

    def write_file(content: str | None = None, **values: Any) -> str:
        path = tmp_path / "run.yaml"
        merged = {"output_dir": str(tmp_path / "run"), **RUN, **values}
        path.write_text(yaml.safe_dump(merged) if content is None else content)
        return str(path)

    return write_file


def config(**values: Any) -> TurnPPOConfig:
    return TurnPPOConfig("unused", use_cpu=True, **values)


def test_defaults_are_the_papers() -> None:
    made = config()
    assert (made.gamma, made.lam, made.learning_rate, made.critic_lr_multiplier) == (0.99, 0.9, 1e-6, 10.0)
    assert (made.algorithm, made.importance_sampling_level, made.whiten_advantages) == ("turn_ppo", "turn", "turns")
    assert (made.loss_aggregation, made.num_generations, made.epsilon_high) == ("trajectory_tokens", 1, 0.2)


def test_cpu_trains_in_float32_without_checkpointing() -> None:
    made = config()
    assert made.bf16 is False
    assert not made.gradient_checkpointing


@pytest.mark.parametrize(
    ("algorithm", "level", "whitening", "generations", "uses_critic"),
    [
        ("turn_ppo", "turn", "turns", 1, True),
        ("token_ppo", "token", "tokens", 1, True),
        ("grpo", "token", "none", 8, False),
        ("rloo", "token", "none", 8, False),
        ("gigpo", "token", "none", 8, False),
    ],
)
def test_algorithm_sets_what_belongs_to_it(
    algorithm: str, level: str, whitening: str, generations: int, uses_critic: bool
) -> None:
    made = config(algorithm=algorithm, generation_batch_size=16)
    assert (made.importance_sampling_level, made.whiten_advantages) == (level, whitening)
    assert (made.num_generations, made.uses_critic) == (generations, uses_critic)


def test_explicit_choice_wins_over_the_algorithms_default() -> None:
    made = config(algorithm="turn_ppo", importance_sampling_level="token", whiten_advantages="none", num_generations=2)
    assert (made.importance_sampling_level, made.whiten_advantages, made.num_generations) == ("token", "none", 2)


def test_batch_size_defaults_to_trls_product_and_counts_updates() -> None:
    made = config(per_device_train_batch_size=4, gradient_accumulation_steps=3, num_minibatches=2, num_iterations=5)
    assert made.generation_batch_size == 4 * 3 * 2
    assert (made.updates_per_batch, made.tasks_per_batch) == (10, 24)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("gamma", -0.1, "between 0 and 1"),
        ("gamma", float("nan"), "between 0 and 1"),
        ("lam", 1.5, "between 0 and 1"),
        ("token_lam", 2, "between 0 and 1"),
        ("gigpo_gamma", 1.1, "between 0 and 1"),
        ("gigpo_omega", -1.0, "reward what did worse"),
        ("token_advantage_coef", -0.5, "reward what did worse"),
        ("vtrace_rho_max", 0.0, "no turn would get credit"),
        ("vtrace_c_max", 0.0, "no later turn"),
        ("off_policy_credit", "vtrace", "none, turn_vtrace"),
        ("max_turns", 0, "no turn would be sampled"),
        ("max_turn_length", 0, "no token would be sampled"),
        ("max_completion_length", 0, "no token would be sampled"),
        ("epsilon", 0, "above 0 and at most 1"),
        ("critic_lr_multiplier", 0, "positive"),
        ("temperature", 0, "no gradient"),
        ("top_p", 1.5, "share of probability"),
        ("num_minibatches", 0, "no update"),
        ("max_failed_share", 1.5, "between 0 and 1"),
        ("algorithm", "ppo", "turn_ppo, token_ppo, grpo, rloo, gigpo"),
        ("loss_aggregation", "mean", "trajectory_tokens"),
        ("importance_sampling_level", "sequence", "turn_geometric"),
        ("kl_estimator", "k4", "k1, k2, k3"),
        ("critic", "twin", "separate"),
        ("vllm_mode", "remote", "colocate, server"),
        ("vllm_gpu_memory_utilization", 1.5, "share of memory"),
        ("vllm_max_model_length", 1, "no prompt and response"),
        ("vllm_server_port", 70000, "TCP port"),
        ("vllm_server_timeout", 0, "no answer would be waited for"),
        ("vllm_importance_sampling_clip_max", 0.5, "weighed down"),
        ("vllm_importance_sampling_mode", "sequence_mask", "turn_truncate, token_truncate"),
        ("oversampling_factor", 0.5, "never be full"),
        ("oversampling_rest", "forget", "continue, drop"),
        ("chat_template_kwargs", "enable_thinking=false", "arguments by their names"),
        ("model_init_kwargs", ["dtype"], "arguments by their names"),
        ("reward_weights", "a", "finite numbers"),
        ("reward_weights", [1.0, float("nan")], "finite numbers"),
    ],
)
def test_value_out_of_range_is_named_with_the_reason(field: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        config(**{field: value})
    assert f"`{field}`" in str(caught.value)
    assert str(value) in str(caught.value)


@pytest.mark.parametrize(
    ("idle", "words", "mended"),
    [
        (
            {"token_advantage_coef": 1.0, "importance_sampling_level": "token"},
            "only the spread of the values is left",
            {"token_lam": 0.9},
        ),
        ({"beta": 0.1, "kl_estimator": "k1"}, "whose expected gradient is 0", {"kl_estimator": "k2"}),
    ],
)
def test_part_of_the_loss_that_restrains_nothing_is_warned_of(idle: dict, words: str, mended: dict) -> None:
    with pytest.warns(UserWarning, match=words):
        config(**idle)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config(**idle | mended)


def test_sizes_of_a_batch_that_contradict_each_other_are_warned_of() -> None:
    with pytest.warns(UserWarning, match=r"`generation_batch_size` is 64, so `gradient_accumulation_steps` \(8\).*32"):
        made = config(generation_batch_size=64, per_device_train_batch_size=4, gradient_accumulation_steps=8)
    assert made.generation_batch_size == 64


def test_warmup_as_long_as_the_run_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="the actor stays as it is"):
        config(critic_warmup_steps=4, max_steps=4)


def test_boundaries_of_the_ranges_are_accepted() -> None:
    made = config(gamma=0.0, lam=1.0, max_turns=1, top_p=1.0, epsilon=1.0, max_failed_share=0.0)
    assert (made.gamma, made.lam, made.max_turns) == (0.0, 1.0, 1)


@pytest.mark.parametrize(
    "values",
    [
        {"generation_batch_size": 10, "num_minibatches": 3},
        {"generation_batch_size": 10, "num_generations": 4},
        {"algorithm": "grpo", "num_generations": 1},
        {"algorithm": "gigpo", "num_generations": 1},
        {"algorithm": "turn_ppo", "num_generations": 2, "filter_groups": 1},
        {"algorithm": "grpo", "filter_groups": -1},
        {"algorithm": "grpo", "task_sampling": "value"},
        {"task_sampling": "hardest"},
        {"collapse_action": "panic"},
        {"collapse_action": "rollback", "save_strategy": "no"},
        {"collapse_action": "rollback", "save_only_model": True},
        {"algorithm": "token_ppo", "token_advantage_coef": 1.0},
        {"algorithm": "grpo", "token_advantage_coef": 1.0},
        {"importance_sampling_level": "turn", "token_advantage_coef": 1.0},
        {"algorithm": "token_ppo", "off_policy_credit": "turn_vtrace"},
        {"algorithm": "gigpo", "off_policy_credit": "turn_vtrace"},
        {"algorithm": "token_ppo", "importance_sampling_level": "turn"},
        {"algorithm": "token_ppo", "whiten_advantages": "turns"},
        {"generation_kwargs": {"stop": ["x"]}},
        {"vllm_structured_outputs_regex": "Up|Down"},
        {"use_vllm": True, "vllm_structured_outputs_regex": "a", "vllm_structured_outputs_choice": ["a"]},
        {"use_vllm": True, "vllm_mode": "server", "vllm_enable_sleep_mode": True},
        {"use_vllm": True, "vllm_importance_sampling_mode": "token_truncate"},
        {"algorithm": "grpo", "oversampling_factor": 1.5},
        {"algorithm": "grpo", "cliprange_value": 0.2},
        {"algorithm": "gigpo", "bootstrap_truncated": False},
        {"collapse_action": "stop", "logging_strategy": "no"},
        {"critic": "shared", "disable_dropout": False},
    ],
)
def test_values_that_contradict_each_other_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`"):
        config(**values)


def test_run_takes_yaml_then_flags(write) -> None:
    path = write(gamma=0.5, learning_rate="1e-4", environment_kwargs={"size": 5}, chat_template_kwargs={"a": 1})
    run = parse_run([path, "--gamma", "0.7", "--num-tasks=64", "--no_shuffle_dataset"])
    assert (run.path, run.training.gamma, run.training.learning_rate) == (path, 0.7, 1e-4)
    assert (run.task.environment_kwargs, run.task.num_tasks) == ({"size": 5}, 64)
    assert run.training.shuffle_dataset is False
    assert run.training.chat_template_kwargs == {"a": 1}


def test_recorded_run_has_the_batch_that_was_typed(write) -> None:
    run = parse_run([write(per_device_train_batch_size=4), "--gradient_accumulation_steps", "8"])
    again = parse_run([write(**run.settings)])
    assert again.training.generation_batch_size == run.training.generation_batch_size == 4 * 8


def test_run_takes_config_as_a_flag_and_json_on_the_command_line(write) -> None:
    run = parse_run(["--seed", "3", "--config", write(), "--environment_kwargs", '{"size": [5, 6]}'])
    assert (run.training.seed, run.task.environment_kwargs) == (3, {"size": [5, 6]})


@pytest.mark.parametrize("flags", [["--lambda", "0.8"], ["--lambda=0.8"], ["--lam", "0.8"]])
def test_lambda_is_another_name_of_lam_on_the_command_line(write, flags: list[str]) -> None:
    assert parse_run([write(lam=0.5), *flags]).training.lam == 0.8


def test_lambda_is_another_name_of_lam_in_yaml(write) -> None:
    assert parse_run([write(**{"lambda": 0.8})]).training.lam == 0.8
    with pytest.raises(RunConfigError, match="twice"):
        parse_run([write(**{"lambda": 0.8, "lam": 0.8})])


def test_env_block_sets_environment_variables(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURNPPO_TEST_VARIABLE", "before")
    parse_run([write(env={"TURNPPO_TEST_VARIABLE": 7})])
    import os

    assert os.environ["TURNPPO_TEST_VARIABLE"] == "7"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"critic_lr_multiplyer": 5}, "Did you mean `critic_lr_multiplier`"),
        ({"enviroment_kwargs": {}}, "Did you mean `environment_kwargs`"),
        ({"zzzz": 1}, "`zzzz` is no field"),
        ({"gamma": "high"}, "`gamma` must be a number, got 'high'"),
        ({"gamma": True}, "`gamma` must be a number, got True"),
        ({"gamma": None}, "`gamma` must be a number, got None"),
        ({"max_steps": 1.5}, "`max_steps` must be an integer"),
        ({"max_turns": [5]}, "`max_turns` must be an integer or null"),
        ({"eval_strategy": False}, "quote it"),
        ({"environment_kwargs": [5]}, "`environment_kwargs` must be a mapping"),
        ({"environment_kwargs": "{size: 5}"}, "is no JSON"),
        ({"environment_kwargs": "[5]"}, "JSON object"),
        ({"model": 3}, "`model` must be a string"),
        ({"env": 3}, "`env` must be a mapping"),
        ({"num_tasks": 0}, "no episode would be played"),
        ({"eval_seed_start": 10}, "levels seen in training"),
        ({"gamma": -1}, "`gamma` must be between 0 and 1"),
        ({"algorithm": "gpro"}, "`algorithm` must be one of"),
    ],
)
def test_mistake_in_yaml_is_one_sentence_with_the_value(write, values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_run([write(**values)])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--gama", "1"], "Did you mean `--gamma`"),
        (["--gama=1"], "Did you mean `--gamma`"),
        (["--gamma", "high"], "invalid float value: 'high'"),
        (["--gamma"], "expected one argument"),
        (["more"], "'more' belongs to no flag"),
        (["--environment_kwargs", "{"], "is no JSON"),
    ],
)
def test_mistake_in_a_flag_is_one_sentence_with_the_value(write, flags: list[str], words: str) -> None:
    with pytest.raises(RunConfigError) as caught:
        parse_run([write(), *flags])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [("- a\n- b\n", "must be a mapping"), ("", "must be a mapping"), ("a: [b\n", "is no YAML"), ("{}", "`model`")],
)
def test_file_that_holds_no_run_is_refused(write, content: str, words: str) -> None:
    with pytest.raises(RunConfigError) as caught:
        parse_run([write(content)])
    assert words in str(caught.value)


def test_missing_file_comes_with_the_nearest_name(write) -> None:
    path = write()
    with pytest.raises(RunConfigError, match=r"Did you mean .*run\.yaml"):
        parse_run([path.replace("run.yaml", "runs.yaml")])
    with pytest.raises(RunConfigError, match="needs a config file"):
        parse_run(["--gamma", "1"])


def test_held_out_seeds_may_overlap_where_the_environment_differs(write) -> None:
    assert parse_run([write(eval_seed_start=10, eval_environment_kwargs={"split": "test"})]).task.eval_seed_start == 10


def test_importance_weights_are_off_where_sampler_and_trainer_agree() -> None:
    assert not config(use_vllm=True).vllm_importance_sampling_correction
    assert config(use_vllm=True, bf16=True).vllm_importance_sampling_correction
    assert not config(bf16=True).vllm_importance_sampling_correction
    assert config(oversampling_factor=1.5).vllm_importance_sampling_correction  # the rest has older weights
    assert not config(oversampling_factor=1.5, oversampling_rest="drop").vllm_importance_sampling_correction
    assert config().vllm_importance_sampling_mode == "turn_truncate"
    assert config(algorithm="token_ppo").vllm_importance_sampling_mode == "token_truncate"


def test_help_of_every_field_is_its_text_in_the_docstring() -> None:
    documented = inspect.cleandoc(TurnPPOConfig.__doc__ or "")
    own = {item.name: item for item in fields(TurnPPOConfig) if item.name in vars(TurnPPOConfig)["__annotations__"]}
    own.pop("_VALID_DICT_FIELDS", None)
    assert len(own) > 60
    for name, item in own.items():
        (entry,) = re.findall(rf"^    {name} \(.*\):\n((?: {{8}}.*\n?)+)", documented, re.MULTILINE)
        assert item.metadata["help"] and item.metadata["help"] == " ".join(entry.split()), name


def test_help_of_a_field_without_a_text_stays_as_it_is() -> None:
    @describe_fields
    @dataclass
    class Described:
        """
        Two fields.

        Parameters:
            known (`int`):
                What it is,
                in two lines.
        """

        known: int = field(default=1, metadata={"aliases": ["--k"]})
        unknown: int = 2

    known, unknown = fields(Described)
    assert known.metadata == {"aliases": ["--k"], "help": "What it is, in two lines."}
    assert unknown.metadata == {}


def test_field_that_is_none_comes_with_the_nearest_one() -> None:
    with pytest.raises(TypeError, match=r"TurnPPOConfig has no field 'learning_rat'.*`?learning_rate`?.*no effect"):
        TurnPPOConfig("runs/x", learning_rat=1e-3)  # type: ignore[call-arg]
    config = TurnPPOConfig("runs/x", use_cpu=True, learning_rate=1e-3)
    assert copy.deepcopy(config).learning_rate == pickle.loads(pickle.dumps(config)).learning_rate == 1e-3


def test_arguments_of_another_class_are_refused() -> None:
    from trl import GRPOConfig

    from turnppo_hf.trainer.arguments import check_arguments

    other = GRPOConfig("runs/x", use_cpu=True, bf16=False)
    with pytest.raises(TypeError, match=r"`args` is a GRPOConfig, which lacks.*Pass a TurnPPOConfig"):
        check_arguments(None, other, None, None, None, None, None)  # type: ignore[arg-type]
