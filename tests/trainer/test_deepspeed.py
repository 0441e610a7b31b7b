"""DeepSpeed's ZeRO on two CPU processes: shares of gradients, or of weights as well, train as whole networks."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from tests.helpers.distributed_run import run
from tests.helpers.launch import run_ranks, variables_of
from tests.trainer.test_fsdp import LONG, OF_FIRST, SHARED
from tests.trainer.test_two_processes import CASES, assert_same_training

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed: pip install turnppo-hf[deepspeed]"
)
# minibatches are cut by each rank, so one process's are others
FIRST = [{key: value for key, value in case.items() if key != "num_minibatches"} for case in OF_FIRST]
LAUNCH = [
    *({"name": name, **CASES[name]} for name in SHARED),
    {"name": "long", **LONG, "save_strategy": "steps", "save_steps": 2},
    {"name": "resumed", **LONG, "resume": "long/checkpoint-2"},
    *FIRST,
]


@pytest.fixture(scope="module", params=["zero2", "zero3"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    variables = {**variables_of(request.param, mixed_precision="no"), "DS_ACCELERATOR": "cpu"}
    run_ranks("distributed_run.py", folder, json.dumps(LAUNCH), timeout=600, **variables)
    return folder


def recorded(folder, case):
    return load_file(folder / f"{case}.safetensors")


@pytest.mark.parametrize("case", SHARED)
def test_shares_take_the_step_of_whole_networks(folder, tmp_path, case):
    assert_same_training(recorded(folder, case), run(tmp_path, case, **SHARED[case], use_cpu=True))


@pytest.mark.parametrize("case", FIRST, ids=lambda case: case["name"])
def test_under_zero3_the_first_rank_alone_loads_for_the_others(folder, tmp_path, case):
    found, is_cut = recorded(folder, case["name"]), folder.name.startswith("zero3")
    assert found["loaded"].tolist() == ([1.0, 0.0] if is_cut else [1.0, 1.0])
    if is_cut and case["name"] != "reference":  # which is whole
        assert 0 < float(found["filled"]) < 0.35  # a block at a time, of the two or three that there are
    assert_same_training(recorded(folder, case["name"]), run(tmp_path, **case, use_cpu=True))


def test_what_is_saved_is_whole_and_plain_transformers_loads_it(folder):
    weights = recorded(folder, "long")
    for network, kind, part in (
        ("actor", AutoModelForCausalLM, ""),
        ("critic", AutoModelForTokenClassification, "critic"),
    ):
        for saved in (folder / "long", folder / "long" / "checkpoint-4"):
            loaded = dict(kind.from_pretrained(saved / part).named_parameters())
            assert loaded
            assert all(torch.equal(value, weights[f"weight.{network}.{name}"]) for name, value in loaded.items())


def test_resumed_run_goes_on_as_if_it_had_not_stopped(folder):
    long, resumed = recorded(folder, "long"), recorded(folder, "resumed")
    weights = [name for name in long if name.startswith("weight.")]
    assert weights and all(torch.equal(long[name], resumed[name]) for name in weights)
