"""Two processes push what one would: each save and the end once, by the first, networks or adapters whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load, load_file

from tests.fake_hub.fixture import Hub
from tests.helpers.launch import run_ranks, variables_of

pytestmark = pytest.mark.slow  # two processes

LORA = {"critic": "lora", "lora": {"r": 2, "target_modules": ["q_proj", "v_proj"]}}
PUSHING = {"push_to_hub": True, "hub_always_push": True, "save_strategy": "steps", "save_steps": 1}


@pytest.mark.parametrize("launch", ["whole", "fsdp2"])
@pytest.mark.parametrize("case", ["networks", "adapters"])
def test_each_save_is_pushed_once_and_whole(hub: Hub, tmp_path: Path, launch: str, case: str) -> None:
    variables = {} if launch == "whole" else variables_of(launch, mixed_precision="no")
    fields = {"hub_model_id": f"alice/{case}", **PUSHING, **(LORA if case == "adapters" else {})}
    run_ranks("distributed_run.py", tmp_path, json.dumps([{"name": case, **fields}]), **hub.variables, **variables)
    # the repository's own, one of each of two saves, and one at the end; each asks once that the repository exists
    titles = [commit.title for commit in hub.commits(f"alice/{case}")]
    assert titles[-1] == "initial commit" and len(titles) == 4
    assert len(hub.requests("POST /api/models/.*/commit/")) == 3
    assert len(hub.requests("POST /api/repos/create")) == 4
    files = hub.files(f"alice/{case}")
    name = "adapter_model.safetensors" if case == "adapters" else "model.safetensors"
    trained = load_file(tmp_path / f"{case}.safetensors")
    for path, network in ((name, "actor"), (f"critic/{name}", "critic")):
        pushed, saved = load(files[path]), load_file(tmp_path / case / path)
        assert pushed.keys() == saved.keys()
        assert all(torch.equal(pushed[key], saved[key]) for key in saved)
        sizes = {tensor.numel() for tensor in pushed.values()}
        weights = [weight for key, weight in trained.items() if key.startswith(f"weight.{network}.")]
        assert weights and sizes <= {weight.numel() for weight in weights}  # none is a rank's part
    if case == "adapters":
        plain = AutoPeftModelForCausalLM.from_pretrained(tmp_path / case, dtype=torch.float32)
        key = next(key for key in trained if key.startswith("weight.actor.") and "lora_B" in key)
        mine = dict(plain.named_parameters())[key.removeprefix("weight.actor.")]
        assert torch.equal(mine, trained[key]) and mine.abs().max() > 0
