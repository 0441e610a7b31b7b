"""Two processes make the step that one makes: whitening, denominators and gradients are those of the whole batch."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.distributed_run import run
from tests.helpers.launch import run_ranks

pytestmark = pytest.mark.slow  # two processes

UPDATES = {"failing": [0, 1, 2, 3], "num_minibatches": 2, "max_steps": 4}
FILTERED = {"algorithm": "grpo", "generation_batch_size": 16, "temperature": 2.0}
CASES = {
    "whole": {},
    "two": {"micro_batches": 2, "gradient_checkpointing": True},
    "five": {"micro_batches": 5},
    "unequal": {"failing": [1, 2], "micro_batches": 2},  # unequal shares in the first batch
    "empty": {"failing": [0, 1, 2, 3], "micro_batches": 5},  # the first rank has nothing in the first batch
    "grpo": {"algorithm": "grpo"},
    "gigpo": {"algorithm": "gigpo", "failing": [1]},
    "tokens": {"token_advantage_coef": 1.0, "token_lam": 0.9, "off_policy_credit": "turn_vtrace", "failing": [1, 2]},
    "valued": {"task_sampling": "value", "generation_batch_size": 4, "learning_rate": 0.01},
    "unfiltered": FILTERED,
    "filtered": {**FILTERED, "filter_groups": 8},
    "lora": {"critic": "lora", "lora": {"r": 2, "target_modules": ["q_proj", "v_proj"]}, "beta": 0.1},
    "shared": {"critic": "shared", "critic_trunk_gradient": 0.5},
    # a critic of a class of this package, with half of the actor's blocks
    "family": {"family": "olmo2", "critic_layers": 2},
    "streamed": {"stream": True, "num_generations": 2, "save_strategy": "steps", "save_steps": 1},
    "resumed": {"stream": True, "num_generations": 2, "resume": "streamed/checkpoint-1"},
    "updates": {**UPDATES, "save_strategy": "steps", "save_steps": 1},
    "continued": {**UPDATES, "resume": "updates/checkpoint-3"},  # in the middle of a rollout batch
}
# ranks cut minibatches of their own shares, and replace groups by further tasks of their own
SEVERAL_ONLY = {"resumed", "updates", "continued", "unfiltered", "filtered"}


def distance(mine, expected, step, network):
    """Of a network's gradient from another, relative to its norm."""
    names = {name for name in expected if name.startswith(f"gradient.{step}.{network}.")}
    assert names and names == {name for name in mine if name.startswith(f"gradient.{step}.{network}.")}
    norm = torch.stack([expected[name].norm() for name in names]).norm()
    assert norm > 0.1
    return float(torch.stack([(mine[name] - expected[name]).norm() for name in names]).norm() / norm)


def assert_same_training(mine, expected):
    """Gradients of both networks, whitening, losses, norms, scores and weights are the same but for rounding."""
    assert mine["played"].tolist() == expected["played"].tolist()
    networks = {name.split(".")[2] for name in expected if name.startswith("gradient.0.")}
    assert networks == {name.split(".")[1] for name in expected if name.startswith("weight.")}
    for network in networks:
        assert distance(mine, expected, 0, network) < 1e-6
        assert distance(mine, expected, 1, network) < 4e-6  # of weights that differ by the first step's rounding
    for name in expected:
        if name.startswith("log."):
            assert mine[name].item() == pytest.approx(expected[name].item(), rel=1e-5, abs=1e-6), name
        elif name.startswith("weight."):
            torch.testing.assert_close(mine[name], expected[name], atol=1e-7, rtol=1e-5)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    fields = {"use_cpu": True}
    return {name: run(folder, name, **case, **fields) for name, case in CASES.items() if name not in SEVERAL_ONLY}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    run_ranks(
        "distributed_run.py", folder, json.dumps([{"name": name, **case} for name, case in CASES.items()]), timeout=300
    )
    return {name: load_file(folder / f"{name}.safetensors") for name in CASES}


@pytest.mark.parametrize("case", ["two", "five"])
def test_micro_batches_change_no_gradient(one, case):
    assert_same_training(one[case], one["whole"])


@pytest.mark.parametrize("case", [name for name in CASES if name not in SEVERAL_ONLY])
def test_two_processes_take_the_step_of_one(one, two, case):
    assert not two[case]["cut"]
    assert_same_training(two[case], one[case])


@pytest.mark.parametrize(("whole", "resumed"), [("streamed", "resumed"), ("updates", "continued")])
def test_run_of_two_processes_goes_on_where_it_stopped(two, whole, resumed):
    weights = [name for name in two[whole] if name.startswith("weight.")]
    assert weights and all(torch.equal(two[whole][name], two[resumed][name]) for name in weights)


def test_rank_without_episodes_takes_part_in_every_update_of_a_batch(two):
    weights = [value for name, value in two["updates"].items() if name.startswith("weight.")]
    assert all(bool(value.isfinite().all()) for value in weights)
    assert {name.split(".")[1] for name in two["updates"] if name.startswith("gradient.")} == set("0123")


def test_ranks_hold_the_same_weights_after_every_case(two):
    assert all(bool(found["ranks_agree"]) for found in two.values())


def test_tasks_are_drawn_by_value_alike_on_every_rank(one, two):
    for found in (one["valued"], two["valued"]):
        assert [name for name in found if "decided_share" in name] == [
            "log.1.tasks/decided_share",
            "log.2.tasks/decided_share",
        ]


def test_each_rank_replaces_its_groups_of_equal_returns(two):
    shares = {
        name: [two[name][f"log.{step}.groups/equal_share"].item() for step in (1, 2)]
        for name in CASES
        if "filtered" in name
    }
    assert max(shares["unfiltered"]) > 0.0 and shares["filtered"] == [0.0, 0.0]
    assert sum(two["filtered"][f"log.{step}.groups/replaced"].item() for step in (1, 2)) >= 2
    assert two["filtered"]["played"].tolist() == [16, 16]
    assert distance(two["filtered"], two["unfiltered"], 1, "actor") > 1e-3  # the control: it trains on others
