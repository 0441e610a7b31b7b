"""What may be loaded: folders and repositories are checked before anything of them is read as code or weights."""

import json
import pickle
import shutil

import pytest
import torch

from turnppo_hf import TurnPPOAgent
from turnppo_hf.cli.main import main
from turnppo_hf.hub.agent_record import AgentRecord
from turnppo_hf.hub.exceptions import PushError, ReleaseError
from turnppo_hf.hub.files import check_critic, check_folder, check_names, is_private
from turnppo_hf.models import imitation

TINY = imitation.__file__.replace("imitation.py", "sokoban_tiny")


class Bomb:
    """Says that it was read: a pickle of it runs `pytest.fail` where it is loaded."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


@pytest.fixture
def folder(tmp_path):
    """A copy of the packaged actor that a test may spoil."""
    return shutil.copytree(TINY, tmp_path / "agent")


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_check_folder_accepts_what_the_package_holds(folder):
    check_folder(folder)
    assert TurnPPOAgent.from_pretrained(folder).record.environment == "turnppo_hf/Sokoban-v0"


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_folder_that_asks_for_remote_code_is_refused(folder, name):
    change(folder / name, auto_map={"AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('code of the repository was run')")
    with pytest.raises(ReleaseError, match=rf"asks in {name} for code of its own.*None was run.*trust_remote_code"):
        TurnPPOAgent.from_pretrained(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.ckpt", "weights.pkl"])
def test_folder_with_weights_in_a_pickle_is_refused(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ReleaseError, match=rf"{name}', a pickle, which can run code.*not read.*safetensors"):
        TurnPPOAgent.from_pretrained(folder)


def test_pickle_beside_safetensors_is_never_read(folder):
    for name in ("pytorch_model.bin", "training_args.bin"):
        (folder / name).write_bytes(pickle.dumps(Bomb()))
    assert TurnPPOAgent.from_pretrained(folder).actor is not None
    with pytest.raises(pytest.fail.Exception, match="a pickle was loaded"):
        pickle.loads((folder / "training_args.bin").read_bytes())


def test_critic_in_a_pickle_is_refused(folder):
    (folder / "critic").mkdir()
    (folder / "critic" / "config.json").write_text(json.dumps({"id2label": {"0": "V"}, "vocab_size": 111}))
    (folder / "critic" / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ReleaseError, match=r"no weights in safetensors for its critic"):
        TurnPPOAgent.from_pretrained(folder)


def test_folder_without_weights_says_so(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(ReleaseError, match=r"no weights in safetensors.*wait for its upload"):
        TurnPPOAgent.from_pretrained(folder)


def test_index_that_leaves_the_folder_is_refused(folder):
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": "../../secret.safetensors"}}))
    with pytest.raises(ReleaseError, match=r"weights that lie in '\.\./\.\./secret\.safetensors', outside"):
        check_folder(folder)
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors"}}))
    check_folder(folder)


@pytest.mark.parametrize("name", ["../evil.json", "/etc/passwd", "a/../../b.json", "..\\evil.json", "C:/evil.json"])
def test_names_that_leave_the_folder_are_refused(name):
    with pytest.raises(ReleaseError, match=r"outside of its own folder. Nothing was downloaded"):
        check_names(["config.json", name], "somebody/agent")


def test_names_of_a_usual_repository_are_accepted():
    check_names(["config.json", "model.safetensors", "training_args.bin", "runs/events.1:2", "a..b.json"], "x/y")


@pytest.mark.parametrize(
    ("critic", "message"),
    [
        ({"id2label": {"0": "a", "1": "b"}, "vocab_size": 10}, "has 2 labels and a vocabulary of 10"),
        ({"id2label": {"0": "a"}, "vocab_size": 11}, "vocabulary of 11.*actor's 10.*another base"),
        ({"vocab_size": 10}, "has 2 labels"),
    ],
)
def test_critic_of_another_base_is_refused(critic, message):
    with pytest.raises(ReleaseError, match=message):
        check_critic(critic, {"vocab_size": 10}, "The critic")


def test_critic_is_compared_with_the_text_part_of_a_multimodal_actor():
    check_critic({"id2label": {"0": "V"}, "vocab_size": 10}, {"text_config": {"vocab_size": 10}}, "The critic")


def test_critic_of_another_base_beside_an_actor_is_refused(folder, tiny_actor):
    from tests.helpers.tiny import tiny_actor as make_actor
    from turnppo_hf.models.actor_critic import critic_from_actor

    critic_from_actor(make_actor()).save_pretrained(folder / "critic")  # another vocabulary
    with pytest.raises(ReleaseError, match=r"The critic of .* has 1 labels and a vocabulary of 64"):
        TurnPPOAgent.from_pretrained(folder)
    critic_from_actor(tiny_actor).save_pretrained(folder / "critic")
    assert TurnPPOAgent.from_pretrained(folder).critic is not None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema_version", 99, "`schema_version` is 99, it must be at most 1 .*Upgrade"),
        ("schema_version", "newest", "`schema_version` is 'newest', it must be an integer"),
        ("environment", ["a"], "`environment` is \\['a'\\], it must be a string or null"),
        ("environment_kwargs", "size=5", "`environment_kwargs`"),
        ("limits", {"max_turns": "many"}, "`limits.max_turns` is 'many', it must be a positive integer or null"),
        ("limits", {"max_turns": 0}, "`limits.max_turns` is 0"),
        ("limits", {"max_turns": True}, "`limits.max_turns` is True"),
        ("limits", {"max_context": 5}, "`limits.max_context`.*the limits are max_turns"),
        ("evaluation", {"episodes": -1}, "`evaluation.episodes` is -1, it must be a number from 1 to 100000"),
        ("evaluation", {"temperature": "hot"}, "`evaluation.temperature`"),
        ("evaluation", {"tasks": "all"}, "a list of objects"),
        ("chat_template_kwargs", [1], "`chat_template_kwargs`"),
        ("sampling", 1, "`sampling` is 1"),
        ("gamma", "0.99", "`gamma` is '0.99'"),
        ("gamma", True, "`gamma` is True"),
        ("algorithm", "foo", "`algorithm` is 'foo', it must be one of turn_ppo"),
        ("package", "x", "`package` is 'x'"),
        ("base_model", ["x"], "`base_model`"),
        ("sampling", {"top_p": "x"}, "`sampling.top_p` is 'x'"),
        ("chat_template_kwargs", {"chat_template": "{% for a in b %}"}, "`chat_template_kwargs.chat_template`"),
        ("chat_template_kwargs", {"tokenize": True}, "`chat_template_kwargs.tokenize`"),
        ("evaluation", {"tasks": [{}]}, "`evaluation.tasks`.*a `seed`, an integer from 0"),
        ("evaluation", {"episodes": 10**8}, "`evaluation.episodes` is 100000000"),
        ("evaluation", {"temperature": float("nan")}, "`evaluation.temperature` is nan"),
    ],
)
def test_tampered_record_is_refused(folder, key, value, message):
    change(folder / "turnppo.json", **{key: value})
    with pytest.raises(ReleaseError, match=message):
        TurnPPOAgent.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\xff\xfe", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_record_that_is_no_json_object_is_refused(folder, text):
    (folder / "turnppo.json").write_text(text, encoding="latin-1")
    with pytest.raises(ReleaseError, match=r"turnppo\.json (cannot be read as JSON|holds list)"):
        AgentRecord.from_folder(folder)


def test_record_with_keys_of_its_own_is_read(folder):
    change(folder / "turnppo.json", mine=[1], limits={"max_turns": None})
    assert AgentRecord.from_folder(folder).extra["mine"] == [1]


def test_environment_of_a_record_never_imports_a_module(folder, monkeypatch):
    change(folder / "turnppo.json", environment="antigravity:Sokoban-v0")
    agent = TurnPPOAgent.from_pretrained(folder)
    with pytest.raises(ReleaseError, match=r"would import the module 'antigravity'.*yourself if you trust it"):
        agent.play()
    assert agent.environment("sokoban")[0] == "turnppo_hf/Sokoban-v0"


@pytest.mark.parametrize(
    ("environment", "message"),
    [("turnppo_hf/Sokobn-v0", "Did you mean 'turnppo_hf/Sokoban-v0'"), (None, "does not name the environment")],
)
def test_unknown_environment_of_a_record_says_what_to_do(folder, environment, message):
    change(folder / "turnppo.json", environment=environment)
    with pytest.raises(ValueError, match=message):
        TurnPPOAgent.from_pretrained(folder).play()


def test_environment_that_a_module_of_the_user_registers_is_asked_for_by_both_names(folder, capsys):
    change(folder / "turnppo.json", environment="Lift-v0")
    assert main(["play", str(folder)]) == 2
    assert "name both: --environment MODULE:Lift-v0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    [
        "training_args.bin",
        "checkpoint-4/model.safetensors",
        "optimizer.pt",
        "rng_state.pth",
        "_push-4/config.json",
        "trajectories/held_out.parquet",
        "rollout_0_of_1.safetensors",
        "critic/pytorch_model.bin",
        ".git/config",
    ],
)
def test_private_files_are_known(name):
    assert is_private(name)


@pytest.mark.parametrize("name", ["model.safetensors", "critic/model.safetensors", "README.md", "assets/a.png"])
def test_public_files_are_known(name):
    assert not is_private(name)


def test_weights_are_loaded_in_float32_on_cpu(folder):
    assert TurnPPOAgent.from_pretrained(folder, device="cpu").actor.dtype == torch.float32


def test_push_error_survives_a_pickle():
    error = pickle.loads(pickle.dumps(PushError("no", is_transient=True)))
    assert str(error) == "no" and error.is_transient


@pytest.mark.parametrize("part", ["", "critic"])
@pytest.mark.parametrize("spoil", ["missing", "layers", "truncated"])
def test_network_with_missing_weights_is_refused_and_not_made_up(folder, tiny_actor, part, spoil):
    from safetensors.torch import load_file, save_file

    from turnppo_hf.models.actor_critic import critic_from_actor

    critic_from_actor(tiny_actor).save_pretrained(folder / "critic")
    weights = folder / part / "model.safetensors"
    if spoil == "missing":
        tensors = load_file(weights)
        tensors.pop(next(name for name in tensors if "norm" in name))
        save_file(tensors, weights, metadata={"format": "pt"})
    elif spoil == "layers":
        change(folder / part / "config.json", num_hidden_layers=9, layer_types=None)
    else:
        weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(ReleaseError, match=r"lacks \d+ of its weights|cannot be loaded"):
        TurnPPOAgent.from_pretrained(folder)


def test_data_that_a_strangers_record_names_is_not_read(folder, hub):
    change(folder / "turnppo.json", environment="turnppo_hf/WebShop-v0", environment_kwargs={"data": "bob/private"})
    agent = TurnPPOAgent.from_pretrained(folder)
    agent.is_local = False
    before = len(hub.log)
    with pytest.raises(ReleaseError, match=r"asks for data 'bob/private'.*Name it yourself"):
        agent.play()
    assert len(hub.log) == before
    assert agent.environment(data="synthetic")[0] == "turnppo_hf/WebShop-v0"
