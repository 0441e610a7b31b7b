"""Two ranks whose log entries differ go back together, or not at all: those of the first rank are judged."""

import json

import pytest
from safetensors.torch import load_file

from tests.helpers.launch import run_ranks

pytestmark = pytest.mark.slow  # two processes

FIELDS = {"collapse_action": "rollback", "save_strategy": "steps", "save_steps": 5, "max_steps": 16}
FIELDS |= {"learning_rate": 1e-5, "optim": "adamw_torch"}
CASES = {
    "first": {**FIELDS, "poison": {"rank": 0, "step": 10, "what": "log"}},
    "second": {**FIELDS, "poison": {"rank": 1, "step": 10, "what": "log"}},
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    cases = json.dumps([{"name": name, **case} for name, case in CASES.items()])
    run_ranks("distributed_run.py", folder, cases, timeout=600)
    return {name: load_file(folder / f"{name}.safetensors") for name in CASES}


def test_sign_of_the_first_rank_sends_all_ranks_back(found):
    assert found["first"]["log.15.collapse/back_to_step"].item() == 10
    assert found["first"]["log.16.collapse/rollbacks"].item() == 1
    assert found["first"]["ranks_agree"]  # on weights and on how often they went back


def test_sign_of_another_rank_alone_is_none(found):
    assert not any("collapse" in name for name in found["second"])
    assert found["second"]["ranks_agree"]
