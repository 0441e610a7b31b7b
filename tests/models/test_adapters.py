"""Agents whose networks are LoRA adapters on one base model, as `save_pretrained` of PEFT leaves them."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import AutoModelForCausalLM

from tests.test_agent import RECORD
from turnppo_hf import TurnPPOAgent
from turnppo_hf.hub.exceptions import ReleaseError
from turnppo_hf.models.actor_critic import critic_from_actor


def with_adapter(model, task, seed):
    """LoRA of rank 2 whose second factor is not zero, so that it changes what the model says."""
    torch.manual_seed(seed)
    settings = LoraConfig(task_type=task, r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    return get_peft_model(model, settings).eval()


@pytest.fixture
def networks(tmp_path, embedded_actor, tiny_tokenizer):
    """A folder with adapters of actor and critic, and the networks that were saved into it."""
    base = tmp_path / "base"
    embedded_actor.save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    folder = tmp_path / "agent"
    load = AutoModelForCausalLM.from_pretrained
    actor = with_adapter(load(base), TaskType.CAUSAL_LM, seed=1)
    backbone = critic_from_actor(load(base))
    backbone.name_or_path = str(base)
    critic = with_adapter(backbone, TaskType.TOKEN_CLS, seed=2)
    torch.nn.init.normal_(critic.base_model.model.score.modules_to_save["default"].weight)
    actor.save_pretrained(folder)
    critic.save_pretrained(folder / "critic")
    tiny_tokenizer.save_pretrained(folder)
    (folder / "turnppo.json").write_text(json.dumps({"schema_version": 1, **RECORD}))
    return folder, actor, critic


@torch.no_grad()
def test_agent_of_adapters_says_what_the_saved_networks_say(networks):
    folder, actor, critic = networks
    agent = TurnPPOAgent.from_pretrained(folder, device="cpu")
    ids = torch.arange(5, 25)[None]
    for loaded, saved in ((agent.actor, actor), (agent.critic, critic)):
        assert torch.equal(loaded(input_ids=ids).logits, saved(input_ids=ids).logits)
    plain = actor.disable_adapter
    with plain():
        assert not torch.equal(agent.actor(input_ids=ids).logits, actor(input_ids=ids).logits)
    trajectory = agent.play(seed=3)
    assert agent.values(trajectory) == [turn.value for turn in trajectory.turns]


@pytest.mark.slow
def test_agent_of_adapters_is_saved_and_pushed_as_adapters(networks, tmp_path, hub):
    folder, _, _ = networks
    agent = TurnPPOAgent.from_pretrained(folder, device="cpu")
    agent.push_to_hub("alice/lora")
    files = hub.files("alice/lora")
    assert {"adapter_model.safetensors", "critic/adapter_model.safetensors", "turnppo.json"} <= set(files)
    assert "config.json" not in files and "model.safetensors" not in files and "critic/README.md" not in files
    assert "library_name: peft" in files["README.md"].decode()
    again = TurnPPOAgent.from_pretrained("alice/lora", device="cpu")
    assert again.play(seed=3) == agent.play(seed=3)
    assert isinstance(again.critic, PeftModel)


def test_critic_adapter_of_another_base_is_refused(networks, tmp_path):
    folder, _, _ = networks
    settings = folder / "critic" / "adapter_config.json"
    content = json.loads(settings.read_text())
    settings.write_text(json.dumps({**content, "base_model_name_or_path": "other/base"}))
    with pytest.raises(ReleaseError, match=r"a critic on 'other/base'.*save both on one base"):
        TurnPPOAgent.from_pretrained(folder)


def test_adapters_of_a_base_that_is_not_here_say_so(networks, tmp_path):
    folder, _, _ = networks
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(ReleaseError, match=r"a folder that is not on this machine.*merge them"):
        TurnPPOAgent.from_pretrained(folder)
