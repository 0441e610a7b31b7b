"""vLLM in the trainer's process: weights of every kind of policy, the self-check, rules for responses, training."""

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.conftest import EMBEDDED
from tests.helpers.generators import drain, make_model, perturb_adapter, quantized_with_lora, with_lora
from tests.trainer.test_turn_ppo_trainer import train_logs
from turnppo_hf.generation.self_check import check_engine, logprob_gaps
from turnppo_hf.generation.vllm_generator import VLLMGenerator
from turnppo_hf.generation.weight_transfer import engine_weights, load_into_worker
from turnppo_hf.models.actor_critic import ActorCritic
from turnppo_hf.trajectory import GenerationError

pytest.importorskip("vllm", reason="needs vLLM, which has an environment of its own: see .ci/run")

from turnppo_hf.generation.vllm_colocate import ColocatedEngine

FLOAT32_GAP = 1e-4  # nats; the bound that the issue of rounding is held to


def start(model, tokenizer, **changes):
    return ColocatedEngine(model, tokenizer, dtype=torch.float32, **{"max_parallel_requests": 8, **changes})


def make_untied(**changes):
    return make_model(hidden_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=32, **changes)


def perturb(model, size=0.3):
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * size * weight.std().nan_to_num(1.0))


def peft_weights(policy):
    peft = pytest.importorskip("peft")
    return peft.get_peft_model_state_dict(policy, save_embedding_layers=False)


def wrapped(model):
    """As a trainer holds it: in data parallelism, beside a critic."""
    return torch.nn.DataParallel(ActorCritic(model, None))


POLICIES = {
    "tied": lambda: AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32),
    "untied": make_untied,
    "qwen2": lambda: make_untied(kind="qwen2"),  # has biases
    "lora": lambda: with_lora(make_untied()),
    "lora of a tied model": lambda: with_lora(AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)),
    "lora of ranks": lambda: with_lora(make_untied(), rank_pattern={"q_proj": 9}, use_rslora=True),
    "lora, whole modules": lambda: with_lora(make_untied(), modules_to_save=["lm_head"]),
    "dora": lambda: with_lora(make_untied(), use_dora=True),
    "lora, wrapped": lambda: wrapped(with_lora(make_untied())),
    "wrapped": lambda: wrapped(make_untied()),
}


@pytest.mark.parametrize("kind", POLICIES)
def test_weights_changed_change_the_outputs_and_logprobs_match(kind, tiny_tokenizer):
    policy = POLICIES[kind]()
    scorer = policy.module.actor if "wrapped" in kind else policy
    engine = start(policy, tiny_tokenizer)
    alone = {"lora", "lora of a tied model", "lora of ranks", "lora, wrapped"}
    assert (engine.engine.vllm_config.lora_config is not None) is (kind in alone)
    assert float(logprob_gaps(engine, scorer).mean()) > 0.1  # it starts with weights of its own
    engine.sync()
    assert float(logprob_gaps(engine, scorer).max()) < FLOAT32_GAP
    for update in range(10):
        perturb(policy, size=0.1)
        if update == 0:
            assert float(logprob_gaps(engine, scorer).mean()) > 1e-3  # control: without a sync the gap is seen
        engine.sync()
    assert float(logprob_gaps(engine, scorer).max()) < FLOAT32_GAP
    check_engine(engine, scorer)


def test_adapter_alone_is_sent_after_the_base_and_one_is_kept(tiny_tokenizer, monkeypatch):
    sent = []

    def record(worker, weights):
        weights = [(name, weight.clone()) for name, weight in weights]
        sent.append(dict(weights))
        load_into_worker(worker, weights)

    monkeypatch.setattr("turnppo_hf.generation.vllm_colocate.load_into_worker", record)
    policy = with_lora(make_untied())
    engine = start(policy, tiny_tokenizer)
    for _ in range(3):
        perturb_adapter(policy)
        engine.sync()
    base = policy.get_base_model()
    assert [set(weights) for weights in sent] == [{name for name, _ in make_untied().named_parameters()}]
    assert torch.equal(sent[0]["model.layers.0.mlp.down_proj.weight"], base.model.layers[0].mlp.down_proj.weight)
    [folder] = Path(engine._adapters.name).iterdir()  # those before are gone
    assert folder.name == "policy-3" and engine.engine.list_loras() == {3}
    weights = load_file(folder / "adapter_model.safetensors")
    expected = peft_weights(policy)
    assert weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in weights)
    assert float(logprob_gaps(engine, policy).max()) < FLOAT32_GAP
    engine.sleeps, engine.engine.sleep, engine.engine.wake_up = True, lambda **_: None, lambda **_: None
    engine.rest()  # gives the base back as well
    engine.sync()
    assert len(sent) == 2


def test_quantized_base_is_sampled_as_its_layers_compute(tiny_tokenizer):
    policy = quantized_with_lora()
    engine = start(policy, tiny_tokenizer)
    engine.sync()
    assert float(logprob_gaps(engine, policy).max()) < FLOAT32_GAP
    perturb_adapter(policy)
    assert float(logprob_gaps(engine, policy).mean()) > 1e-3  # control
    engine.sync()
    assert float(logprob_gaps(engine, policy).max()) < FLOAT32_GAP
    unpacked = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    assert float(logprob_gaps(engine, unpacked).mean()) > 1e-3  # it is not the base before it was packed


@pytest.mark.parametrize("kind", ["lora", "lora, whole modules", "dora"])
def test_adapters_are_merged_for_the_engine_and_the_policy_keeps_every_bit(kind):
    policy = POLICIES[kind]()
    before = copy.deepcopy(policy.state_dict())
    ids = torch.tensor([[1, 2, 3, 4]])
    expected = policy(ids).logits
    merged = {}
    with engine_weights(policy) as weights:
        for name, weight in weights:
            merged[name] = weight.clone()
            # of one layer at a time, and of none while its weights are read
            assert all(torch.equal(before[key], item) for key, item in policy.state_dict().items())
    assert all(torch.equal(before[name], weight) for name, weight in policy.state_dict().items())
    plain = make_untied()
    assert set(merged) == {name for name, _ in plain.named_parameters()}
    plain.load_state_dict(merged)
    torch.testing.assert_close(plain(ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_engine_that_did_not_get_the_weights_is_refused(tiny_tokenizer):
    model = make_untied()
    engine = start(model, tiny_tokenizer)
    engine.sync()
    check_engine(engine, model)
    perturb(model)
    message = r"log-probs differ from the trainer's by .* nats on average .*float32 explains 0\.0001.*`turnppo doctor`"
    with pytest.raises(GenerationError, match=message):
        check_engine(engine, model)


def test_tied_head_left_packed_is_found_by_the_check(tiny_tokenizer, embedded_actor, monkeypatch):
    engine = start(embedded_actor, tiny_tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr(
            "turnppo_hf.generation.vllm_colocate.load_into_worker",
            lambda worker, weights: worker.model_runner.reload_weights(weights_iterator=iter(weights)),
        )
        engine.sync()  # vLLM's own way
        with pytest.raises(GenerationError, match="differ from the trainer's"):
            check_engine(engine, embedded_actor)
    engine.sync()
    check_engine(engine, embedded_actor)


def test_active_model_runner_is_printed(tiny_tokenizer, capsys):
    engine = start(make_untied(), tiny_tokenizer)
    [runner] = engine.engine.collective_rpc(lambda worker: type(worker.model_runner).__module__)
    with capsys.disabled():
        print(f"\nvLLM's model runner: {runner}")  # 0.32 has a second one for GPUs
    assert runner.startswith("vllm.")


def test_start_leaves_random_numbers_and_threads_alone(tiny_tokenizer):
    model = make_untied()
    set_threads, threads = torch.set_num_threads, torch.get_num_threads()
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(5)
    expected = torch.rand(1), np.random.rand(), random.random()
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(5)
    start(model, tiny_tokenizer)
    assert (torch.rand(1), np.random.rand(), random.random()) == expected
    assert torch.set_num_threads is set_threads and torch.get_num_threads() == threads


def test_rules_and_stop_strings_shape_the_response(tiny_tokenizer, embedded_actor):
    engine = start(embedded_actor, tiny_tokenizer)
    prompt = tiny_tokenizer("<|user|>###<|end|><|assistant|>", add_special_tokens=False)["input_ids"]

    def answers(**changes):
        generator = VLLMGenerator.for_chat(engine, embedded_actor, tiny_tokenizer, **changes)
        generator.sync()
        for number in range(8):
            generator.submit(number, prompt, max_new_tokens=12, seed=number)
        done = drain(generator, 8)
        texts = [tiny_tokenizer.decode(done[number].completion_ids, skip_special_tokens=True) for number in range(8)]
        return generator, done, texts

    for rule in ({"choice": ["Left", "zzz"]}, {"regex": "Left|z{3}"}):
        generator, done, texts = answers(structured_outputs=rule)
        assert set(texts) <= {"Left", "zzz"} and not generator.exact
        assert all(completion.finish_reason == "stop" for completion in done.values())
    free, _, texts = answers()
    assert not set(texts) <= {"Left", "zzz"} and free.exact  # control
    _, done, texts = answers(
        structured_outputs={"regex": "[a-c]{6}"}, generation_kwargs={"stop": ["a"], "include_stop_str_in_output": True}
    )
    assert all("a" not in text[:-1] for text in texts)
    assert all(len(completion.sampling_logprobs) == len(completion.completion_ids) for completion in done.values())


def test_prompt_over_the_context_is_refused_with_the_field_to_raise(tiny_tokenizer):
    engine = start(make_untied(), tiny_tokenizer, max_context=64)
    generator = VLLMGenerator(engine, eos_token_ids=[])
    assert generator.max_context == 64
    with pytest.raises(ValueError, match=r"prompt of 60 tokens and a response of 5.*64.*`vllm_max_model_length`"):
        generator.submit(0, [1] * 60, max_new_tokens=5, seed=0)
    generator.submit(0, [1] * 60, max_new_tokens=4, seed=0)
    assert len(drain(generator, 1)[0].completion_ids) == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_context": 9999}, "`vllm_max_model_length` is 9999, but the model reads 256 tokens at most"),
        ({"sleep_between_batches": True}, "`vllm_enable_sleep_mode` is True, but vLLM's CPU build"),
        (
            {"block_size": 48},
            r"vLLM cannot be started for this model: .*48.*\. Nothing would be sampled\. Change what",
        ),
    ],
)
def test_setting_that_vllm_cannot_start_with_is_told_in_a_sentence(tiny_tokenizer, changes, message):
    with pytest.raises(ValueError, match=message):
        start(make_untied(), tiny_tokenizer, **changes)


@pytest.mark.parametrize("changes", [{}, {"num_minibatches": 2}, {"algorithm": "grpo", "num_generations": 4}])
def test_three_updates_of_the_tiny_agent_with_vllm(make_trainer, embedded_actor, changes):
    trainer = make_trainer(model=embedded_actor, use_vllm=True, max_steps=3, **changes)
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    for name, weight in trainer.model.named_parameters():
        assert not torch.equal(before[name], weight), name
    logs = train_logs(trainer)
    assert len(logs) == 3
    measured = [entry for entry in logs if "sampling/logprob_gap_max" in entry]
    assert measured and max(entry["sampling/logprob_gap_max"] for entry in measured) < FLOAT32_GAP
    assert all(entry["sampling/ratio_outside_share"] == 0.0 for entry in measured)
    assert logs[0]["clip_fraction"] == 0.0
    timing = {name for name in logs[0] if name.startswith("time/")}
    assert timing == {f"time/{part}_s" for part in ("rollout", "generate", "environment", "wait", "sync", "update")}


def test_evaluation_with_vllm_plays_the_trainers_weights_at_its_own_temperature(make_trainer, embedded_actor):
    from tests.trainer.test_turn_ppo_trainer import tasks

    scores = []
    for use_vllm in (False, True):
        trainer = make_trainer(
            model=copy.deepcopy(embedded_actor), use_vllm=use_vllm, eval_dataset=tasks(8), max_steps=1, temperature=1.3
        )
        scores.append(trainer.evaluate())
    assert scores[0] == scores[1]  # greedy
