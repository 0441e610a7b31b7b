"""The transformers generator: exact log-probs, each token processed once, responses that do not depend on company."""

import math

import pytest
import torch

from tests.helpers.generators import END, PROMPTS, drain, logprobs_by_full_forward, make_model, play_turns
from turnppo_hf.generation.transformers_generator import TransformersGenerator, _inverse_cdf
from turnppo_hf.trajectory import GenerationError


def make_generator(model, **changes):
    return TransformersGenerator(model, **{"eos_token_ids": [END], "pad_token_id": 0, **changes})


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("mistral", {"sliding_window": 8}),
        ("gemma2", {"sliding_window": 8}),
        ("gemma3_text", {"sliding_window": 8}),
    ],
)
def test_sampling_logprobs_over_turns_equal_a_full_forward(kind, changes):
    model = make_model(kind, **changes)
    for prompt, completion in play_turns(make_generator(model, temperature=0.7)):
        expected = logprobs_by_full_forward(model, prompt, completion.completion_ids, 0.7)
        torch.testing.assert_close(torch.tensor(completion.sampling_logprobs), expected, atol=2e-5, rtol=1e-5)


def test_token_beyond_the_embedding_is_named_with_what_to_do():
    generator = make_generator(model := make_model())
    generator.submit(0, [1, model.config.vocab_size - 1], max_new_tokens=1, seed=0)
    with pytest.raises(GenerationError, match=r"the token \d+, and .* has \d+ rows.*resize_token_embeddings"):
        generator.submit(1, [1, model.config.vocab_size], max_new_tokens=1, seed=0)


def test_each_token_is_processed_once():
    generator = make_generator(make_model())
    played = play_turns(generator)
    last = {}
    for prompt, completion in played:
        last[prompt[0], prompt[1]] = len(prompt) + len(completion.completion_ids)
    # the last sampled token of an episode is never fed
    assert generator.tokens_processed == sum(last.values()) - len(last)


def test_episodes_that_begin_late_run_beside_the_first():
    model = make_model()
    alone = {}
    for number, prompt in PROMPTS.items():
        generator = make_generator(model, eos_token_ids=[])
        generator.submit(number, prompt, max_new_tokens=4 + number, seed=number)
        alone[number] = drain(generator, 1)[number].completion_ids
    generator = make_generator(model, eos_token_ids=[], max_parallel_episodes=len(PROMPTS) - 1)
    found = {}
    for number, prompt in PROMPTS.items():
        generator.submit(number, prompt, max_new_tokens=4 + number, seed=number)
        if number == min(PROMPTS):
            generator._admit()  # as where the other environments are still at their reset
            generator._decode()
    generator._admit()
    assert len(generator._running) == len(PROMPTS) - 1, "no more than are asked for"
    while len(found) < len(PROMPTS):
        for completion in generator.take_completions():
            found[completion.episode] = completion.completion_ids
            generator.release(completion.episode)
    assert found == alone


def test_rewritten_history_keeps_only_the_common_prefix():
    model = make_model()
    generator = make_generator(model)
    generator.submit(0, PROMPTS[3], max_new_tokens=4, seed=0)
    drain(generator, 1)
    before = generator.tokens_processed
    rewritten = [*PROMPTS[3][:5], 30, 31, 32]
    generator.submit(0, rewritten, max_new_tokens=4, seed=1)
    completion = drain(generator, 1)[0]
    expected = logprobs_by_full_forward(model, rewritten, completion.completion_ids)
    torch.testing.assert_close(torch.tensor(completion.sampling_logprobs), expected, atol=2e-5, rtol=1e-5)
    assert generator.tokens_processed - before == 3 + len(completion.completion_ids) - 1


def test_draws_follow_the_distribution():
    scores = torch.log_softmax(torch.tensor([[0.0, 1.0, 2.0, -float("inf")]]), dim=-1)
    uniforms = (torch.arange(3000, dtype=torch.float64) + 0.5) / 3000
    tokens = _inverse_cdf(scores.expand(3000, -1), uniforms)
    shares = torch.bincount(tokens, minlength=4) / 3000
    torch.testing.assert_close(shares, scores[0].exp(), atol=1e-3, rtol=0)


def test_collect_does_not_wait_for_the_longest():
    generator = make_generator(make_model(), eos_token_ids=[])
    for episode in range(4):
        generator.submit(episode, PROMPTS[0], max_new_tokens=50 if episode == 3 else 2, seed=episode)
    assert {completion.episode for completion in generator.take_completions()} == {0, 1, 2}
    assert [completion.episode for completion in generator.take_completions()] == [3]
    assert generator.take_completions() == []


def test_released_requests_are_not_answered():
    generator = make_generator(make_model(), eos_token_ids=[], max_parallel_episodes=2)
    for episode in range(4):
        generator.submit(episode, PROMPTS[0], max_new_tokens=2 if episode == 0 else 5, seed=episode)
    assert {completion.episode for completion in generator.take_completions()} == {0}
    for episode in (1, 3):  # one is running, one waits for a slot
        generator.release(episode)
    assert set(drain(generator, 1)) == {2}
    assert generator.take_completions() == []


def test_training_mode_is_restored():
    model = make_model().train()
    generator = make_generator(model)
    generator.submit(0, PROMPTS[0], max_new_tokens=2, seed=0)
    generator.take_completions()
    assert model.training


def test_attention_that_takes_no_dense_mask_is_refused():
    model = make_model()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="'flash_attention_2' attention"):
        make_generator(model)


def test_min_p_changes_what_is_drawn_and_not_what_is_scored():
    model, share = make_model(), 0.3
    generator, plain = make_generator(model, min_p=share), make_generator(model)
    left_out = 0
    for number in range(8):
        for sampler in (generator, plain):
            sampler.submit(number, PROMPTS[3], max_new_tokens=6, seed=number)
        kept, full = drain(generator, 1)[number], drain(plain, 1)[number]
        generator.release(number)
        plain.release(number)
        scored = logprobs_by_full_forward(model, PROMPTS[3], kept.completion_ids)
        torch.testing.assert_close(torch.tensor(kept.sampling_logprobs), scored, atol=2e-5, rtol=1e-5)
        for completion, allowed in ((kept, True), (full, False)):
            ids = torch.tensor([[*PROMPTS[3], *completion.completion_ids]])
            with torch.no_grad():
                best = model(ids).logits[0, len(PROMPTS[3]) - 1 : -1].log_softmax(-1).amax(-1)
            unlikely = torch.tensor(completion.sampling_logprobs) < best + math.log(share) - 1e-4
            assert not (allowed and unlikely.any())
            left_out += int(unlikely.sum())
    assert left_out > 0
