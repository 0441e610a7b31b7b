"""FSDP2 on two processes: cut weights train as whole ones, and what is saved is whole, or goes on in shards."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from tests.helpers.distributed_run import run
from tests.helpers.fake_vllm import serving
from tests.helpers.launch import run_ranks, variables_of
from tests.trainer.test_two_processes import CASES, assert_same_training

pytestmark = pytest.mark.slow  # two processes

LONG = {"optim": "adamw_torch", "max_steps": 4, "micro_batches": 3, "failing": [6, 7]}
REF = {"beta": 0.1, "num_minibatches": 2, "max_steps": 4, "failing": [0, 1, 2, 3], "micro_batches": 2}
SHARED = {name: CASES[name] for name in ("two", "empty", "grpo", "family")}
OF_FIRST = [  # each with what else the first rank's weights reach: a reference, layers of both networks, fewer blocks
    {"name": "reference", **REF},
    {"name": "common", "critic": "shared"},
    {"name": "blocks", "critic_layers": 1},
]
LAUNCH = [
    *({"name": name, **case} for name, case in SHARED.items()),
    {"name": "long", **LONG, "save_strategy": "steps", "save_steps": 2},
    {"name": "resumed", **LONG, "resume": "long/checkpoint-2"},
    *OF_FIRST,
]
SERVER = {"name": "server", "use_vllm": True, "vllm_mode": "server"}


@pytest.fixture(scope="module")
def server():
    with serving(max_model_len=256) as server:
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory, server):
    folder = tmp_path_factory.mktemp("fsdp")
    cases = json.dumps([*LAUNCH, {**SERVER, "vllm_server_base_url": server.url}])
    run_ranks("distributed_run.py", folder, cases, timeout=300, **variables_of("fsdp2", mixed_precision="no"))
    return folder


@pytest.fixture(scope="module")
def cut(folder):
    return {case["name"]: load_file(folder / f"{case['name']}.safetensors") for case in LAUNCH}


@pytest.fixture(scope="module")
def loaded_by_each(tmp_path_factory):
    folder = tmp_path_factory.mktemp("each")
    launch = variables_of("fsdp2", mixed_precision="no", fsdp_cpu_ram_efficient_loading="false")
    run_ranks("distributed_run.py", folder, json.dumps(OF_FIRST), timeout=300, **launch)
    return {case["name"]: load_file(folder / f"{case['name']}.safetensors") for case in OF_FIRST}


@pytest.mark.parametrize("case", [case["name"] for case in OF_FIRST])
def test_networks_that_the_first_rank_alone_loads_train_as_those_that_each_rank_loads(cut, loaded_by_each, case):
    first, each = cut[case], loaded_by_each[case]
    assert first["loaded"].tolist() == [1.0, 0.0] and each["loaded"].tolist() == [1.0, 1.0]
    assert 0 < float(first["filled"]) < 0.35  # a block at a time, of the two or three that there are
    assert any(name.startswith("gradient.") for name in first)
    assert all(torch.equal(first[name], each[name]) for name in each if name not in ("loaded", "filled"))
    assert first.keys() == each.keys()


@pytest.mark.parametrize("case", SHARED)
def test_cut_networks_take_the_step_of_whole_ones(cut, tmp_path, case):
    assert cut[case]["cut"]  # every parameter is a DTensor
    assert_same_training(cut[case], run(tmp_path, case, **SHARED[case], use_cpu=True))


def test_rank_without_episodes_keeps_up_with_the_others(cut):
    assert {name.split(".")[1] for name in cut["reference"] if name.startswith("gradient.")} == set("0123")


def test_what_is_saved_is_whole_and_plain_transformers_loads_it(cut, folder):
    for network, kind, part in (
        ("actor", AutoModelForCausalLM, ""),
        ("critic", AutoModelForTokenClassification, "critic"),
    ):
        for saved, case in (
            (folder / "long", "long"),
            (folder / "long" / "checkpoint-4", "long"),
            (folder / "family", "family"),
        ):
            loaded = dict(kind.from_pretrained(saved / part).named_parameters())
            gathered = {
                name.removeprefix(f"weight.{network}."): value
                for name, value in cut[case].items()
                if name.startswith(f"weight.{network}.")
            }
            assert loaded.keys() == gathered.keys()
            assert all(torch.equal(loaded[name], gathered[name]) for name in loaded)


def test_run_resumed_from_shards_goes_on_as_if_it_had_not_stopped(cut):
    weights = [name for name in cut["long"] if name.startswith("weight.")]
    assert weights and all(torch.equal(cut["long"][name], cut["resumed"][name]) for name in weights)
    # the second half only was made again
    assert {name.split(".")[1] for name in cut["resumed"] if name.startswith("gradient.")} == {"2", "3"}


def test_server_gets_whole_weights_before_each_batch_and_evaluation(folder, server):
    recorded = load_file(folder / "server.safetensors")
    assert recorded["cut"] and len(server.weights) == 3
    first, last = server.weights[0], server.weights[-1]
    assert last and first.keys() == last.keys()
    assert all(torch.equal(value, recorded[f"weight.actor.{name}"]) for name, value in last.items())
    assert any(not torch.equal(value, first[name]) for name, value in last.items())
