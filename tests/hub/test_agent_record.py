"""`turnppo.json` as a typed record: what is written is what was read, and a wrong value is named."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest

from turnppo_hf.environments import make_environment
from turnppo_hf.evaluation.results import HeldOut, Package
from turnppo_hf.hub.agent_record import RECORD_FILE, SCHEMA_VERSION, AgentRecord, Example, resolve_environment
from turnppo_hf.hub.exceptions import ReleaseError
from turnppo_hf.models.pretrained import EMBEDDED_MODELS, find_model

FULL = AgentRecord(
    package=Package(name="turnppo-hf", version="0.1.0", commit="abc+"),
    limits={"max_turns": None, "max_turn_length": 8, "max_completion_length": 512},
    chat_template_kwargs={},
    context="window:3",
    sampling={"temperature": 1.0, "top_p": 0.9, "top_k": 5},
    algorithm="turn_ppo",
    gamma=0.99,
    lam=0.9,
    value_position="last prompt token of each turn",
    base_model="org/base",
    seed=42,
    environment=None,
    environment_kwargs={},
    environment_name="lift",
    tools=("push", "pull"),
    evaluation=HeldOut(episodes=4, seed=5, temperature=0.0, tasks=({"seed": 5, "level": "#"},)),
    example=Example(messages=({"role": "user", "content": "#"},), prompt="<|user|>#"),
    extra={"mine": [1]},
)


@pytest.mark.parametrize("name", EMBEDDED_MODELS)
def test_packaged_records_are_written_as_they_were_read(name):
    content = json.loads((find_model(name) / RECORD_FILE).read_text())
    assert AgentRecord.from_dict(content).to_dict() == content


@pytest.mark.parametrize("record", [FULL, AgentRecord()])
def test_record_that_is_saved_is_the_record_that_is_read(record, tmp_path):
    record.save(tmp_path)
    assert AgentRecord.from_folder(tmp_path) == record
    assert json.loads((tmp_path / RECORD_FILE).read_text())["environment"] is None


def test_fields_that_were_not_recorded_have_no_key():
    assert AgentRecord(environment="Guess-v0").to_dict() == {
        "schema_version": SCHEMA_VERSION,
        "environment": "Guess-v0",
    }
    assert set(FULL.to_dict()) == {
        *(field.name for field in dataclasses.fields(AgentRecord)),
        *("schema_version", "mine"),
    } - {"token_gamma", "token_lam", "environment_version", "action_grammar", "data", "extra"}


def test_record_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FULL.gamma = 1.0


def test_a_file_of_an_older_version_is_read():
    assert AgentRecord.from_dict({"environment": "Guess-v0"}).environment == "Guess-v0"  # no schema_version at all


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"schema_version": 2}, "`schema_version` is 2, it must be at most 1"),
        ({"schema_version": True}, "`schema_version` is True, it must be an integer"),
        ({"gamma": None}, "`gamma` is None, it must be a number"),
        ({"limits": [1]}, "`limits` is [1], it must be an object"),
        ({"tools": ["a", 1]}, "`tools` is ['a', 1], it must be a list of strings"),
        ({"example": {"messages": "hi"}}, "`example.messages` is 'hi', it must be a list of objects"),
        ({"package": {"commit": 5}}, "`package.commit` is 5, it must be a string"),
        ({"evaluation": {"seed": 1.5}}, "`evaluation.seed` is 1.5, it must be an integer"),
        ({"seed": "42"}, "`seed` is '42', it must be an integer"),
    ],
)
def test_wrong_value_is_one_sentence_of_field_value_and_what_is_expected(content, sentence, tmp_path):
    (tmp_path / RECORD_FILE).write_text(json.dumps(content))
    with pytest.raises(ReleaseError, match=re.escape(sentence)) as caught:
        AgentRecord.from_folder(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / RECORD_FILE)) and str(caught.value).count("`") == 2


@pytest.mark.parametrize(
    ("record", "discounts"),
    [
        (AgentRecord(), (1.0, 1.0)),
        (AgentRecord(gamma=0.9, lam=0.5), (0.9, 0.5)),
        (AgentRecord(algorithm="turn_ppo", gamma=0.0, lam=0.0), (0.0, 0.0)),
        (AgentRecord(algorithm="token_ppo", gamma=0.9, token_gamma=0.9), (1.0, 1.0)),
        (AgentRecord(algorithm="grpo"), (1.0, 1.0)),
    ],
)
def test_turn_discounts_are_those_of_turn_ppo_only(record, discounts):
    assert record.turn_discounts == discounts


def test_held_out_arguments_lie_on_top_of_those_of_training():
    record = AgentRecord(
        environment_kwargs={"size": 5, "split": "train"}, evaluation=HeldOut(environment_kwargs={"split": "test"})
    )
    assert record.held_out_kwargs == {"size": 5, "split": "test"}
    assert (FULL.top_p, FULL.top_k, AgentRecord().top_p, AgentRecord().top_k) == (0.9, 5, 1.0, 0)


def test_environment_is_the_given_one_or_the_trusted_one_of_the_record():
    trusted = {"model": "agent", "is_local": False}
    record = AgentRecord(environment="turnppo_hf/Sokoban-v0", environment_kwargs={"size": 5})
    assert resolve_environment(record, None, {}, **trusted)[1].keywords == {"size": 5}
    assert resolve_environment(FULL, make_environment, {"name": "sokoban"}, **trusted)[0] == "make_environment"
    with pytest.raises(ReleaseError, match=r"conversations with tools \(push, pull\)"):
        resolve_environment(FULL, None, {}, **trusted)


def test_record_is_read_without_torch():
    script = (
        "import sys, turnppo_hf.hub.agent_record, turnppo_hf.evaluation.results, turnppo_hf.ppo.algorithms\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
