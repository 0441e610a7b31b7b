"""One rank with numbers that are not finite: all ranks skip the step, however the launch shares the networks."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.launch import run_ranks, variables_of

pytestmark = pytest.mark.slow  # two processes
HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
needs_deepspeed = pytest.mark.skipif(not HAS_DEEPSPEED, reason="needs DeepSpeed: pip install turnppo-hf[deepspeed]")
LAUNCHES = ["whole", "fsdp2", *(pytest.param(name, marks=needs_deepspeed) for name in ("zero2", "zero3"))]

ADAM = {"optim": "adamw_torch", "lr_scheduler_type": "linear"}
CASES = [
    {"name": "one", **ADAM, "max_steps": 1},
    {"name": "gradient", **ADAM, "max_steps": 2, "poison": {"rank": 1, "step": 1, "what": "gradient"}},
    {"name": "samples", **ADAM, "max_steps": 2, "poison": {"rank": 1, "step": 1, "what": "samples"}},
    {"name": "goes_on", **ADAM, "max_steps": 3, "poison": {"rank": 1, "step": 1, "what": "gradient"}},
]


@pytest.fixture(scope="module", params=LAUNCHES)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    variables = {} if request.param == "whole" else variables_of(request.param, mixed_precision="no")
    run_ranks(
        "distributed_run.py", folder, json.dumps(CASES), timeout=600, **variables,
        **({"DS_ACCELERATOR": "cpu"} if "zero" in request.param else {}),
    )  # fmt: skip
    return folder


def test_step_of_one_broken_rank_moves_no_rank(folder):
    found = {case["name"]: load_file(folder / f"{case['name']}.safetensors") for case in CASES}
    weights = [name for name in found["one"] if name.startswith("weight.")]
    assert {name.split(".")[1] for name in weights} == {"actor", "critic"}
    for case in ("gradient", "samples"):
        assert [found[case][f"log.{step}.updates/skipped"].item() for step in (1, 2)] == [0, 1]
        assert all(torch.equal(found[case][name], found["one"][name]) for name in weights), case
    last = found["goes_on"]
    assert [last[f"log.{step}.updates/skipped"].item() for step in (1, 2, 3)] == [0, 1, 0]
    assert all(last[name].isfinite().all() for name in weights)
    assert any(not torch.equal(last[name], found["one"][name]) for name in weights)  # the control: a step moves
