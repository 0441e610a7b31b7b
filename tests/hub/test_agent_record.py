"""`turnppo.json` as a typed record: what is written is what was read, and a wrong value is named."""

import dataclasses
import json
import re
import subprocess
import sys

import gymnasium
import pytest

from turnppo_hf.environments import make_environment
from turnppo_hf.evaluation.results import HeldOut, Package
from turnppo_hf.hub.agent_record import RECORD_FILE, SCHEMA_VERSION, AgentRecord, Example, resolve_environment
from turnppo_hf.hub.exceptions import ReleaseError
from turnppo_hf.hub.files import EMBEDDED_MODELS
from turnppo_hf.models.pretrained import find_model

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
    } - {"token_gamma", "token_lam", "bootstrap_truncated", "environment_version", "action_grammar", "data", "extra"}


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
        ({"gamma": 1.5}, "`gamma` is 1.5, it must be a number from 0 to 1"),
        ({"token_lam": -3}, "`token_lam` is -3, it must be a number from 0 to 1"),
        ({"sampling": {"top_p": 7.5}}, "`sampling.top_p` is 7.5, it must be above 0 and at most 1"),
        ({"sampling": {"top_k": 1.5}}, "`sampling.top_k` is 1.5, it must be a whole number"),
        ({"sampling": {"topp": 0.1}}, "`sampling.topp` is 0.1, it must be absent: known are temperature, top_p"),
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


@pytest.mark.parametrize("seed", [-5, True, "3", None])
def test_recorded_task_without_a_seed_is_refused(seed):
    with pytest.raises(ReleaseError, match=r"`evaluation\.tasks` is .* a `seed`, an integer from 0 on"):
        AgentRecord.from_dict({"evaluation": {"tasks": [{"seed": seed}]}})


def test_module_that_registers_the_recorded_environment_leaves_its_arguments():
    gymnasium.register("test_ns/Small-v0", lambda **kwargs: make_environment("sokoban", **kwargs))
    try:
        record = AgentRecord(environment="test_ns/Small-v0", environment_kwargs={"size": 5})
        name, factory = resolve_environment(
            record, "tests:test_ns/Small-v0", {"max_turns": 3}, model="agent", is_local=True
        )
        assert (name, factory.keywords) == ("tests:test_ns/Small-v0", {"size": 5, "max_turns": 3})
        assert record.is_of(name) and not record.is_of("sokoban") and not AgentRecord().is_of("sokoban")
    finally:
        del gymnasium.registry["test_ns/Small-v0"]


@pytest.mark.parametrize(
    ("environment", "kwargs"),
    [
        ("openenv/Server-v0", {"server": "http://127.0.0.1:9"}),
        ("turnppo_hf/TextWorld-v0", {"folder": "/etc"}),
        ("turnppo_hf/Sokoban-v0", {"levels": "/etc"}),
    ],
)
def test_record_of_a_stranger_opens_nothing_on_this_machine(environment, kwargs):
    record = AgentRecord(environment=environment, environment_kwargs=kwargs)
    with pytest.raises(ReleaseError, match=f"The agent's record asks for {next(iter(kwargs))}"):
        resolve_environment(record, None, {}, model="x", is_local=False)


def test_what_may_change_a_score_is_warned_of():
    record = AgentRecord(environment="turnppo_hf/Sokoban-v0", environment_version="99", context="last")
    with pytest.warns(UserWarning) as warned:
        resolve_environment(record, None, {}, model="x", is_local=True)
    said = [str(item.message) for item in warned]
    assert any("trained in version 99 of turnppo_hf/Sokoban-v0, and this is version" in text for text in said)
    assert any("writes its rules into the first observation alone" in text for text in said)
