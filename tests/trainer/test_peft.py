"""Adapters of PEFT in training: what moves, what is shared in memory, what is saved; with each kind of critic."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, AutoPeftModelForTokenClassification, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.cli.test_publish import run_command
from tests.helpers import steps
from tests.helpers.scripted import CountingEnvironment
from tests.helpers.steps import assert_same_step, gradients_of, played, run_step
from tests.helpers.tiny import config_for, draw_trajectories, tiny_actor
from turnppo_hf import TurnPPOAgent, TurnPPOConfig, TurnPPOTrainer
from turnppo_hf.generation.weight_transfer import engine_weights
from turnppo_hf.models.actor_critic import ActorCritic, sampled_logprobs
from turnppo_hf.models.adapters import as_reference, check_mergeable
from turnppo_hf.ppo.batch import stack
from turnppo_hf.ppo.credit import whiten_credit
from turnppo_hf.trainer.networks import build_networks, load_actor, load_reference
from turnppo_hf.trainer.optimizer import parameter_groups
from turnppo_hf.trainer.update import Totals, Update

KINDS = ("separate", "lora", "shared")
IDS = torch.arange(5, 25)[None]
LORA: dict[str, Any] = {"r": 2, "target_modules": ["q_proj", "v_proj", "up_proj"], "task_type": "CAUSAL_LM"}


@pytest.fixture
def base(tmp_path: Path, tiny_actor: Any, tiny_tokenizer: Any) -> Path:
    """The folder of a base model, which adapters name."""
    tiny_actor.save_pretrained(tmp_path / "base")
    tiny_tokenizer.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def make(base: Path, tmp_path: Path) -> Any:
    """Build trainers with a LoRA actor."""

    def build(model: Any = None, folder: str = "run", peft: Any = LORA, **changes: Any) -> Any:
        parts = {name: changes.pop(name, None) for name in ("value_model", "eval_dataset")}
        settings = {"max_steps": 4, "generation_batch_size": 8, "learning_rate": 1e-2, "max_turn_length": 4}
        settings |= {"report_to": "none", "save_steps": 2, "disable_tqdm": True, "lr_scheduler_type": "constant"}
        return TurnPPOTrainer(
            model=str(base) if model is None else model,
            args=TurnPPOConfig(str(tmp_path / folder), **{**settings, "logging_steps": 1, **changes}),
            environment_factory=CountingEnvironment,
            peft_config=None if peft is None else LoraConfig(**peft),
            **parts,
        )

    return build


def networks_for(config: TurnPPOConfig, *, adapters: bool = True, moved: bool = True) -> ActorCritic:
    """Both networks as the trainer makes them, with adapters and a head that are not zero where `moved`."""
    torch.manual_seed(1)
    networks, _ = build_networks(tiny_actor(), None, config, LoraConfig(**LORA) if adapters else None)
    for name, parameter in networks.named_parameters():
        if moved and parameter.requires_grad and ("lora" in name or "score" in name):
            torch.nn.init.normal_(parameter, std=0.2)
    return networks


def step_with(monkeypatch: Any, networks: ActorCritic, config: TurnPPOConfig, **options: Any) -> Any:
    batch = stack(list(played(3)))
    monkeypatch.setattr(steps, "model", lambda: networks)
    return run_step(config, batch, **options)


def logits(network: Any) -> torch.Tensor:
    with torch.no_grad():
        return network.eval()(input_ids=IDS).logits


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_only_adapters_and_head_move_and_both_networks_reload_exactly(kind: str, make: Any, base: Path) -> None:
    trainer = make(critic=kind, beta=0.01)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    moved = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(before[name], parameter)}
    trained = {name for name in before if "lora_" in name or (name.startswith("critic") and "score" in name)}
    trained -= {name for name in before if "original_module" in name}
    assert moved == trained and all("lora_" in name for name in moved if name.startswith("actor."))
    assert any(name.startswith("critic") and "lora_A" in name for name in moved) is (kind != "shared")
    file = AutoModelForCausalLM.from_pretrained(base).state_dict()
    plain = {
        name.replace(".base_layer", ""): value
        for name, value in trainer.model.actor.get_base_model().state_dict().items()
    }
    assert all(torch.equal(value, plain[name]) for name, value in file.items())

    folder = Path(trainer.args.output_dir) / "checkpoint-4"
    assert not (folder / "model.safetensors").exists() and not (folder / "critic" / "model.safetensors").exists()
    agent = TurnPPOAgent.from_pretrained(folder, device="cpu")
    actor = AutoPeftModelForCausalLM.from_pretrained(folder)
    critic = AutoPeftModelForTokenClassification.from_pretrained(folder / "critic", num_labels=1)
    for loaded in (agent.actor, actor):
        assert torch.equal(logits(loaded), logits(trainer.model.actor))
    for loaded in (agent.critic, critic):
        assert torch.equal(logits(loaded), logits(trainer.model.critic))
    assert not torch.equal(logits(trainer.model.actor), logits(AutoModelForCausalLM.from_pretrained(base)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_resumed_run_equals_the_uninterrupted_one(kind: str, make: Any) -> None:
    whole = make(critic=kind, folder="whole", beta=0.01)
    whole.train()
    resumed = make(critic=kind, folder="resumed", beta=0.01)
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-2"))
    assert resumed.state.global_step == 4
    for (name, mine), other in zip(resumed.model.named_parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, other), name


@pytest.mark.slow
def test_whole_actor_with_a_head_on_its_trunk_is_saved_and_resumed(make: Any) -> None:
    whole = make(critic="shared", peft=None, critic_trunk_gradient=0.5, folder="whole")
    start = copy.deepcopy(whole.model.actor.state_dict())
    whole.train()
    assert not any(torch.equal(start[name], value) for name, value in whole.model.actor.state_dict().items())
    resumed = make(critic="shared", peft=None, critic_trunk_gradient=0.5, folder="resumed")
    resumed.train(resume_from_checkpoint=str(Path(whole.args.output_dir) / "checkpoint-2"))
    for mine, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    agent = TurnPPOAgent.from_pretrained(Path(whole.args.output_dir) / "checkpoint-4", device="cpu")
    assert torch.equal(logits(agent.critic), logits(whole.model.critic))


def test_second_adapter_stands_on_the_same_weights_and_touches_nothing_of_the_first() -> None:
    networks = networks_for(config_for(critic="lora"))
    frozen = [
        {p.data_ptr() for p in network.parameters() if not p.requires_grad} for network in networks.networks.values()
    ]
    head = sum(1 for name, _ in networks.critic.named_parameters() if "original_module" in name)
    assert len(frozen[0] - frozen[1]) == head  # the critic has nothing frozen of its own but PEFT's spare head
    before = logits(networks.actor), logits(networks.critic)
    for number, network in enumerate((networks.critic, networks.actor)):
        for name, parameter in network.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        other = networks.networks[("actor", "critic")[number]]
        assert torch.equal(logits(other), before[number])
        assert not torch.equal(logits(network), before[1 - number])
        before = logits(networks.actor), logits(networks.critic)


def test_separate_critic_of_an_adapted_actor_has_a_base_of_its_own() -> None:
    networks = networks_for(config_for())
    actor, critic = ({p.data_ptr() for p in network.parameters()} for network in (networks.actor, networks.critic))
    assert not actor & critic
    assert all(p.requires_grad is ("lora_" in n) for n, p in networks.critic.named_parameters() if "score" not in n)


@pytest.mark.parametrize(
    ("kind", "gradient", "adapters"), [*((k, 0.0, True) for k in KINDS), ("shared", 0.5, True), ("shared", 0.5, False)]
)
def test_micro_batches_change_no_gradient(kind: str, gradient: float, adapters: bool, monkeypatch: Any) -> None:
    config = config_for(critic=kind, critic_trunk_gradient=gradient, critic_warmup_steps=0)
    networks = networks_for(config, adapters=adapters)
    expected = step_with(monkeypatch, networks, config, groups=[list(range(6))])
    assert any("critic" in name for name in expected.gradients) and any("actor" in name for name in expected.gradients)
    assert all("lora_" in name or "score" in name for name in expected.gradients) is adapters
    for groups in ([[0, 1, 2], [3, 4, 5]], [[0], [1], [2], [3], [4, 5]]):
        assert_same_step(step_with(monkeypatch, networks, config, groups=groups), expected)


def test_trunk_gets_the_share_of_the_value_gradient_that_was_asked_for() -> None:
    found = {}
    for share in (None, 0.0, 0.5, 1.0):
        config = config_for(critic="shared", critic_trunk_gradient=share or 0.0)
        networks = networks_for(config)
        batch = stack(draw_trajectories(4))
        update, totals = Update(networks, config), Totals.of(batch)
        credit, _ = update.critic_pass(batch, None, None if share is None else totals)
        update.actor_pass(batch, whiten_credit(batch, credit, over="turns"), totals)
        found[share] = {name: g for name, g in gradients_of(networks).items() if name.startswith("actor.")}
    assert found[None] and found[None].keys() == found[1.0].keys()
    for name, without in found[None].items():
        assert torch.equal(found[0.0][name], without)
    added = {
        share: torch.cat([(found[share][n] - g).flatten() for n, g in found[None].items()]) for share in (0.5, 1.0)
    }
    assert added[1.0].norm() > 1e-3
    torch.testing.assert_close(added[0.5], added[1.0] / 2, rtol=1e-3, atol=1e-5)


def test_fresh_adapters_say_what_the_base_says_and_stay_at_the_reference() -> None:
    config = config_for(critic="lora", beta=0.1, num_iterations=1)
    networks = networks_for(config, moved=False)
    batch = stack(list(played(5)))
    base = tiny_actor()
    expected = sampled_logprobs(base, batch)[0]
    assert torch.equal(networks("actor", batch)[0], expected)
    reference = load_reference(networks.actor, config)
    assert reference is networks.actor
    for moved in (False, True):
        if moved:
            for name, parameter in networks.actor.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=0.3)
        update, totals = Update(networks, config, ref_model=reference), Totals.of(batch)
        credit, _ = update.critic_pass(batch, None, totals)
        sums = update.actor_pass(batch, whiten_credit(batch, credit, over="turns"), totals).sums
        assert (sums["log_ratio_squared"].item() == 0.0) and ((sums["ref_kl"].item() == 0.0) is not moved)
        assert torch.equal(update._ref_logprobs(batch), expected)
        assert all(p.requires_grad is ("lora_" in n) for n, p in networks.actor.named_parameters())


def test_reference_of_a_given_adapter_is_that_adapter() -> None:
    torch.manual_seed(2)
    given = get_peft_model(tiny_actor(), LoraConfig(**LORA, init_lora_weights=False))
    config, batch = config_for(beta=0.1), stack(list(played(5)))
    expected = sampled_logprobs(copy.deepcopy(given), batch)[0]
    actor = load_actor(given, config)
    assert torch.equal(sampled_logprobs(actor, batch)[0], expected)
    for name, parameter in actor.named_parameters():
        assert parameter.requires_grad is (".default." in name)
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    update = Update(ActorCritic(actor, None), config, ref_model=load_reference(actor, config))
    assert torch.equal(update._ref_logprobs(batch), expected)
    assert not torch.equal(sampled_logprobs(actor, batch)[0], expected)
    assert all(parameter.requires_grad is (".default." in name) for name, parameter in actor.named_parameters())


def test_each_parameter_is_clipped_and_stepped_with_one_network() -> None:
    for kind in KINDS:
        config = config_for(critic=kind)
        networks = networks_for(config)
        sets = networks.parameter_sets
        assert sum(map(len, sets.values())) == len(list(networks.parameters()))
        groups = parameter_groups(networks, set(), 1.0, 5.0, 0.0)
        trained = [{id(p) for p in sets[name] if p.requires_grad} for name in ("actor", "critic")]
        assert [{id(p) for p in group["params"]} for group in groups] == trained
        assert [group["lr"] for group in groups] == [1.0, 5.0]


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_activations_change_no_gradient(kind: str, monkeypatch: Any) -> None:
    config = config_for(critic=kind, critic_trunk_gradient=0.5 if kind == "shared" else 0.0, beta=0.1)
    networks = networks_for(config).train()
    expected = step_with(monkeypatch, networks, config)
    # reentrant recomputing gives no gradient at all where its input has none, as behind frozen embeddings
    networks.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    assert networks.is_gradient_checkpointing
    assert_same_step(step_with(monkeypatch, networks, config), expected)


def test_base_in_half_precision_is_frozen_without_a_warning_and_adapters_are_float32(recwarn: Any) -> None:
    for kind in KINDS:
        config = config_for(critic=kind)
        networks, _ = build_networks(tiny_actor().bfloat16(), None, config, LoraConfig(**LORA))
        assert {p.dtype for p in networks.parameters() if p.requires_grad} == {torch.float32}
        assert networks("critic", stack(list(played(5)))).dtype == torch.float32
    assert not [warning for warning in recwarn if "most updates are lost" in str(warning.message)]


def test_engine_gets_the_merged_actor_and_nothing_of_the_critic() -> None:
    networks = networks_for(config_for(critic="lora"))
    before = {name: value.clone() for name, value in networks.state_dict().items()}
    expected = copy.deepcopy(networks.actor).merge_and_unload().state_dict()
    with engine_weights(networks) as weights:
        sent = {name: weight.clone() for name, weight in weights}
    assert sent.keys() <= expected.keys() and len(sent) == len(dict(tiny_actor().named_parameters()))
    assert all(torch.equal(weight, expected[name]) for name, weight in sent.items())
    assert all(torch.equal(value, before[name]) for name, value in networks.state_dict().items())


def test_engine_gets_no_copy_that_the_reference_keeps_of_a_whole_module() -> None:
    given = get_peft_model(tiny_actor(), LoraConfig(**LORA, modules_to_save=["norm"]))
    networks = ActorCritic(load_actor(given, config_for(beta=0.1)), None)
    with torch.no_grad():
        for name, parameter in networks.named_parameters():
            parameter.add_(1.0 if "modules_to_save.default" in name else 0.0)
    with engine_weights(networks) as weights:
        sent = {name: weight.clone() for name, weight in weights}
    assert sent.keys() == dict(tiny_actor().named_parameters()).keys()
    assert torch.equal(sent["model.norm.weight"], torch.full_like(sent["model.norm.weight"], 2.0))


@pytest.mark.slow
def test_run_goes_on_from_a_saved_adapter_and_its_critic(make: Any) -> None:
    first = make(critic="lora", folder="first")
    first.train()
    saved = Path(first.args.output_dir) / "checkpoint-4"
    for kind in KINDS:
        again = make(model=str(saved), value_model=str(saved / "critic"), peft=None, critic=kind, folder=kind)
        assert torch.equal(logits(again.model.actor), logits(first.model.actor))
        if kind != "shared":
            assert torch.equal(logits(again.model.critic), logits(first.model.critic))
        before = logits(again.model.actor)
        again.train()
        assert not torch.equal(logits(again.model.actor), before)


@pytest.mark.slow
def test_merged_agent_is_saved_as_whole_networks(make: Any, tmp_path: Path) -> None:
    trainer = make(critic="lora")
    trainer.train()
    agent = TurnPPOAgent.from_pretrained(Path(trainer.args.output_dir) / "checkpoint-4", device="cpu")
    expected = logits(agent.actor), logits(agent.critic)
    agent.merge_and_unload().save_pretrained(tmp_path / "whole")
    agent.merge_and_unload().save_pretrained(agent.folder)  # over the adapters
    assert not list(agent.folder.rglob("adapter_*"))
    assert "library_name: peft" not in (agent.folder / "README.md").read_text()
    assert not isinstance(TurnPPOAgent.from_pretrained(agent.folder).actor, PeftModel)
    assert not list((tmp_path / "whole").rglob("adapter_*"))
    whole = TurnPPOAgent.from_pretrained(tmp_path / "whole", device="cpu")
    assert not isinstance(whole.actor, PeftModel)
    for mine, other in zip((whole.actor, whole.critic), expected, strict=True):
        torch.testing.assert_close(logits(mine), other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_merging_a_trainers_own_networks_adds_each_adapter_to_its_own_base_once(kind: str, make: Any) -> None:
    trainer = make(critic=kind)
    trainer.train()
    networks = trainer.model.eval()
    before = {name: value.clone() for name, value in networks.state_dict().items()}
    expected = logits(networks.actor), logits(networks.critic)
    whole = TurnPPOAgent(networks.actor, trainer.chat.tokenizer, networks.critic).merge_and_unload()
    for mine, other in zip((whole.actor, whole.critic), expected, strict=True):
        torch.testing.assert_close(logits(mine), other, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in networks.state_dict().items())


@pytest.mark.slow
def test_best_adapters_are_loaded_at_the_end(make: Any) -> None:
    trainer = make(
        critic="lora", eval_dataset=Dataset.from_list([{"seed": 0}]), eval_strategy="steps", eval_steps=2,
        load_best_model_at_end=True, metric_for_best_model="eval_reward", greater_is_better=True,
    )  # fmt: skip
    trainer.evaluate = lambda *_, **__: {"eval_reward": float(trainer.state.global_step == 2)}
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name == "checkpoint-2"
    agent = TurnPPOAgent.from_pretrained(best, device="cpu")
    last = TurnPPOAgent.from_pretrained(best.parent / "checkpoint-4", device="cpu")
    for name in ("actor", "critic"):
        mine = logits(getattr(trainer.model, name).eval())
        assert torch.equal(mine, logits(getattr(agent, name)))
        assert not torch.equal(mine, logits(getattr(last, name)))


@pytest.mark.parametrize(("algorithm", "kind"), [("turn_ppo", "lora"), ("token_ppo", "shared"), ("grpo", "separate")])
@pytest.mark.slow
def test_command_line_trains_evaluates_plays_and_pushes(algorithm: str, kind: str, tmp_path: Path, hub: Any) -> None:
    folder = tmp_path / "run"
    train = ["train", "trainer_configs/sokoban_cpu.yaml", "--use_peft", "true", "--critic", kind, "--max_steps", "2"]
    train += ["--lora_r", "2", "--lora_target_modules", "q_proj", "v_proj", "--algorithm", algorithm]
    train += ["--eval_episodes", "4", "--generation_batch_size", "16", "--eval_strategy", "no", "--beta", "0.01"]
    status, printed, _ = run_command(*train, "--output_dir", folder)
    assert status == 0 and "M trained" in printed
    for words in (["evaluate", folder, "--episodes", "4"], ["play", folder], ["push", folder, "alice/lora"]):
        status, printed, wrong = run_command(*words)
        assert status == 0, wrong
    files = hub.files("alice/lora")
    has_critic = algorithm != "grpo"
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    assert ("critic/adapter_model.safetensors" in files) is has_critic and "critic/model.safetensors" not in files
    assert "library_name: peft" in files["README.md"].decode()
    agent = TurnPPOAgent.from_pretrained("alice/lora", device="cpu")
    assert (agent.critic is not None) is has_critic and agent.play(seed=1, options=None).turns


@pytest.mark.slow
def test_wrong_combinations_say_what_to_do(make: Any, base: Path, monkeypatch: Any) -> None:
    adapted = get_peft_model(tiny_actor(), LoraConfig(**LORA))
    frozen = get_peft_model(tiny_actor(), LoraConfig(**LORA, inference_mode=True))
    named = get_peft_model(tiny_actor(), LoraConfig(**LORA), adapter_name="mine")
    for wrong, said in (
        ({"model": adapted}, r"`model` is a PeftModel.*Drop `peft_config`"),
        ({"model": frozen, "peft": None}, r"frozen, so nothing would be trained.*is_trainable=True"),
        ({"model": named, "peft": None}, r"active adapters mine.*'default'"),
        ({"critic": "lora", "peft": None}, r'"lora".*the actor has no adapter.*use_peft: true'),
        ({"critic": "lora", "value_model": str(base)}, r'`value_model` is set, but `critic` is "lora"'),
        ({"critic": "shared", "value_model": str(base)}, r'`value_model` is set, but `critic` is "shared"'),
        ({"value_model": str(base)}, r"`value_model` is set beside an actor of adapters"),
        ({"peft": {**LORA, "target_modules": ["no_such"]}}, r"does not fit LlamaForCausalLM: .*no_such.*all-linear"),
        ({"peft": {**LORA, "target_modules": ["lm_head"]}}, r"head only, so the critic would have no adapter"),
        ({"peft": {**LORA, "bias": "all"}}, r"`bias` of `peft_config` is 'all', which changes weights of the base"),
        ({"peft": {**LORA, "init_lora_weights": "pissa"}}, r"`init_lora_weights`.*'pissa'"),
        ({"algorithm": "grpo", "critic": "lora"}, r'"lora", but grpo has no critic'),
        ({"critic": "lora", "critic_trunk_gradient": 0.5}, r'Set critic="shared"'),
        ({"critic": "shared", "critic_trunk_gradient": 0.5, "critic_warmup_steps": 1}, r"the policy drifts"),
    ):
        with pytest.raises(ValueError, match=said):
            make(**wrong)
    with pytest.raises(TypeError, match=r"must be a configuration of PEFT, got dict"):
        load_actor(str(base), config_for(), {"r": 2})
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r'not installed.*pip install "turnppo-hf\[peft\]"'):
        load_actor(str(base), config_for(), object())


def test_flag_of_adapters_without_use_peft_says_so(tmp_path: Path) -> None:
    train = ["train", "trainer_configs/sokoban_cpu.yaml", "--output_dir", tmp_path / "run"]
    status, _, wrong = run_command(*train, "--lora_r", "4")
    assert status == 2 and "`lora_r` is set without `use_peft`" in wrong


@pytest.mark.slow
def test_checkpoint_of_other_adapters_is_refused(make: Any) -> None:
    make(max_steps=2, critic="lora").train()
    for changed in ({"r": 4}, {"target_modules": ["q_proj", "o_proj", "up_proj"]}):
        with pytest.raises(ValueError, match=r"other layers or sizes.*Set the `peft_config`"):
            make(critic="lora", peft={**LORA, **changed}).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("kind", ["IA3Config", "LoHaConfig", "embed_tokens"])
def test_reference_of_any_kind_of_adapter_is_the_one_given(kind: str) -> None:
    targets = ["q_proj", "v_proj"] if kind != "embed_tokens" else ["embed_tokens"]
    config = getattr(peft, kind if kind != "embed_tokens" else "LoraConfig")
    extra = {"feedforward_modules": []} if kind == "IA3Config" else {}
    given = get_peft_model(tiny_actor(), config(target_modules=targets, task_type="CAUSAL_LM", **extra))
    with torch.no_grad():
        for parameter in given.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    expected = logits(given)
    actor = load_actor(given, config_for(beta=0.1))
    with as_reference(actor):
        assert torch.equal(logits(actor), expected)


def test_adapter_of_tied_words_is_neither_merged_nor_sent(make: Any) -> None:
    target = {**LORA, "target_modules": ["q_proj", "embed_tokens"]}
    tied = get_peft_model(tiny_actor(tie_word_embeddings=True), LoraConfig(**target))
    with pytest.raises(ValueError, match=r"cannot be merged: the merged model would be another policy"):
        check_mergeable(tied)
    check_mergeable(get_peft_model(tiny_actor(tie_word_embeddings=True), LoraConfig(**LORA)))
    check_mergeable(get_peft_model(tiny_actor(tie_word_embeddings=False), LoraConfig(**target)))
    with pytest.raises(ValueError, match=r"cannot be merged"):
        load_actor(tied, config_for(use_vllm=True))


def test_config_that_was_loaded_for_inference_trains(make: Any) -> None:
    config = {**LORA, "inference_mode": True}
    trainer = make(peft=config, max_steps=1, save_strategy="no")
    before = [item.detach().clone() for item in trainer.model.actor.parameters() if item.requires_grad]
    assert before
    trainer.train()
    after = [item for item in trainer.model.actor.parameters() if item.requires_grad]
    assert any(not a.equal(b) for a, b in zip(before, after, strict=True))


def test_adapters_that_need_more_than_gradients_are_refused(base: Path) -> None:
    budget = peft.AdaLoraConfig(total_step=10, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match=r"AdaLoraConfig, whose budget.*Use peft\.LoraConfig"):
        load_actor(str(base), config_for(), budget)
    with pytest.raises(ValueError, match=r"AdaLoraConfig, whose budget"):
        load_actor(get_peft_model(tiny_actor(), budget), config_for())
    with pytest.raises(ValueError, match=r"'eva', which is computed from data"):
        load_actor(str(base), config_for(), LoraConfig(**{**LORA, "init_lora_weights": "eva"}))
