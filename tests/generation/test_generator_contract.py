"""What every generator promises, asked of the training weights and of vLLM alike."""

import importlib.util
import threading
from typing import ClassVar

import pytest
import torch

from tests.helpers.generators import (
    END,
    PROMPTS,
    VOCABULARY,
    drain,
    logprobs_by_full_forward,
    make_model,
    play_turns,
)
from turnppo_hf.generation.transformers_generator import TransformersGenerator
from turnppo_hf.generation.vllm_generator import VLLMGenerator

GAP = 2e-5  # nats; float32 on both sides


class Sampler:
    """A model and generators of one kind on it; vLLM's engines are started once per temperature and kept."""

    engines: ClassVar = {}

    def __init__(self, kind, tokenizer):
        self.kind, self.tokenizer = kind, tokenizer
        # vLLM's CPU attention takes heads of 32 and more
        self.model = make_model(hidden_size=64, num_attention_heads=2, num_key_value_heads=1, head_dim=32)

    def generator(self, eos_token_ids=(END,), temperature=1.0, max_parallel_episodes=8, **changes):
        settings = {"eos_token_ids": list(eos_token_ids), "temperature": temperature, **changes}
        if self.kind == "transformers":
            return TransformersGenerator(
                self.model, pad_token_id=0, max_parallel_episodes=max_parallel_episodes, **settings
            )
        from turnppo_hf.generation.vllm_colocate import ColocatedEngine

        key = temperature in (0.0, 1.0), max_parallel_episodes
        if key not in self.engines:
            self.engines[key] = ColocatedEngine(
                self.model, self.tokenizer, dtype=torch.float32, raw_logprobs=key[0], max_parallel_requests=key[1]
            )
        self.engines[key].model = self.model
        generator = VLLMGenerator(self.engines[key], **settings)
        generator.sync()
        return generator


@pytest.fixture(params=["transformers", "vllm"])
def sampler(request, tiny_tokenizer):
    if request.param == "vllm" and importlib.util.find_spec("vllm") is None:
        pytest.skip("needs vLLM, which has an environment of its own: see .ci/run")
    return Sampler(request.param, tiny_tokenizer)


def scored_gap(model, prompt, completion, temperature=1.0):
    expected = logprobs_by_full_forward(model, prompt, completion.completion_ids, temperature)
    return float((torch.tensor(completion.sampling_logprobs) - expected).abs().max())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampling_logprobs_over_turns_equal_a_full_forward(sampler, temperature):
    generator = sampler.generator(temperature=temperature)
    assert generator.exact
    for prompt, completion in play_turns(generator):
        assert scored_gap(sampler.model, prompt, completion, temperature) < GAP
        assert scored_gap(sampler.model, prompt, completion, 0.85) > 10 * GAP  # control: another temperature is seen


def test_response_does_not_depend_on_company(sampler):
    together = {tuple(p): c.completion_ids for p, c in play_turns(sampler.generator(), turns=1)}
    for episode, prompt in PROMPTS.items():
        alone = sampler.generator()
        alone.submit(episode, prompt, max_new_tokens=6, seed=episode)
        assert drain(alone, 1)[episode].completion_ids == together[tuple(prompt)]


def test_seed_beyond_63_bits_is_taken_and_another_seed_gives_another_response(sampler):
    responses = set()
    for seed in (0, 1, 2, 2**64 - 1):
        generator = sampler.generator()
        generator.submit(0, PROMPTS[0], max_new_tokens=6, seed=seed)
        responses.add(drain(generator, 1)[0].completion_ids)
    assert len(responses) > 1


def test_sync_after_an_update_gives_the_new_weights_responses_and_logprobs(sampler):
    generator = sampler.generator()
    prompt = PROMPTS[3] * 4  # longer than a block of vLLM's prefix cache
    generator.submit(0, prompt, max_new_tokens=4, seed=0)
    before = drain(generator, 1)[0]
    with torch.no_grad():
        for parameter in sampler.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    assert scored_gap(sampler.model, prompt, before) > 100 * GAP  # control: the old weights are told from the new
    generator.sync()
    generator.submit(0, prompt, max_new_tokens=4, seed=0)
    after = drain(generator, 1)[0]
    assert scored_gap(sampler.model, prompt, after) < GAP
    assert after.sampling_logprobs != before.sampling_logprobs


def test_stale_cache_is_seen_where_only_the_weights_change(sampler):
    generator = sampler.generator()
    prompt = PROMPTS[3] * 4
    generator.submit(0, prompt, max_new_tokens=4, seed=0)
    first = drain(generator, 1)[0]
    with torch.no_grad():
        for parameter in sampler.model.parameters():
            parameter.mul_(1.1)
    longer = [*prompt, *first.completion_ids, 7, 7]
    if sampler.kind == "vllm":  # what `sync` does, without forgetting the prefix cache
        reset, generator.engine.engine.reset_prefix_cache = generator.engine.engine.reset_prefix_cache, lambda: None
        generator.sync()
        generator.engine.engine.reset_prefix_cache = reset
    generator.submit(0, longer, max_new_tokens=4, seed=1)
    assert scored_gap(sampler.model, longer, drain(generator, 1)[0]) > 1e-3


def test_same_prompt_again_is_answered_again(sampler):
    generator = sampler.generator()
    answers = []
    for _ in range(2):
        generator.submit(0, PROMPTS[1], max_new_tokens=3, seed=5)
        answers.append(drain(generator, 1)[0])
    assert answers[0].completion_ids == answers[1].completion_ids


def test_greedy_equals_transformers_generate(sampler):
    generator = sampler.generator(temperature=0.0)
    generator.submit(0, PROMPTS[1], max_new_tokens=8, seed=0)
    ours = drain(generator, 1)[0].completion_ids
    theirs = sampler.model.generate(torch.tensor([PROMPTS[1]]), max_new_tokens=8, do_sample=False, eos_token_id=END)
    assert list(ours) == theirs[0, len(PROMPTS[1]) :].tolist()


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_p": 1e-4}])
def test_truncated_sampling_changes_what_is_drawn_not_what_is_scored(sampler, settings):
    generator = sampler.generator(**settings)
    generator.submit(0, PROMPTS[1], max_new_tokens=5, seed=0)
    completion = drain(generator, 1)[0]
    greedy = sampler.generator(temperature=0.0)
    greedy.submit(0, PROMPTS[1], max_new_tokens=5, seed=0)
    assert completion.completion_ids == drain(greedy, 1)[0].completion_ids
    assert scored_gap(sampler.model, PROMPTS[1], completion) < GAP
    assert max(completion.sampling_logprobs) < -1e-3  # control: renormalised log-probs would all be 0


def test_finish_reason_tells_a_stop_from_a_cut(sampler):
    generator = sampler.generator(eos_token_ids=range(VOCABULARY))
    generator.submit(0, PROMPTS[0], max_new_tokens=5, seed=0)
    stopped = drain(generator, 1)[0]
    assert (stopped.finish_reason, len(stopped.completion_ids)) == ("stop", 1)
    cut = sampler.generator(eos_token_ids=[])
    cut.submit(0, PROMPTS[0], max_new_tokens=5, seed=0)
    completion = drain(cut, 1)[0]
    assert (completion.finish_reason, len(completion.completion_ids)) == ("length", 5)


def test_more_episodes_than_fit_queue(sampler):
    results = []
    for width in (2, 8):
        generator = sampler.generator(eos_token_ids=[], max_parallel_episodes=width)
        for episode, prompt in PROMPTS.items():
            generator.submit(episode, prompt, max_new_tokens=4, seed=episode)
        done = {}
        while len(done) < 4:
            for completion in generator.take_completions():
                done[completion.episode] = completion.completion_ids
                generator.release(completion.episode)
        results.append(done)
    assert results[0] == results[1]


def test_collect_does_not_wait_for_the_longest(sampler):
    generator = sampler.generator(eos_token_ids=[])
    for episode in range(4):
        generator.submit(episode, PROMPTS[0], max_new_tokens=50 if episode == 3 else 2, seed=episode)
    first = drain(generator, 1)
    assert 3 not in first
    assert set(first) | set(drain(generator, 4 - len(first))) == {0, 1, 2, 3}
    assert generator.take_completions() == []


def test_released_and_reset_episodes_are_not_answered(sampler):
    generator = sampler.generator(eos_token_ids=[])
    for episode in range(3):
        generator.submit(episode, PROMPTS[0], max_new_tokens=3, seed=episode)
    generator.reset()
    assert generator.take_completions() == []
    generator.sync()
    generator.submit(7, PROMPTS[0], max_new_tokens=3, seed=0)
    assert set(drain(generator, 1)) == {7}


def test_wake_ends_the_waiting_where_prompts_may_join(sampler):
    generator = sampler.generator(eos_token_ids=[])
    generator.submit(0, PROMPTS[0], max_new_tokens=30, seed=0)
    wake = threading.Event()
    wake.set()
    assert (generator.take_completions(wake) == []) == generator.continuous
