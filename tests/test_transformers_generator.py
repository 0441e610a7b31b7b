"""The transformers generator: exact log-probs, each token processed once, responses that do not depend on company."""

import copy

import pytest
import torch

from tests.tiny import tiny_actor
from turnppo_hf.generation.transformers_generator import TransformersGenerator, _inverse_cdf

VOCABULARY, END = 40, 39


def make_model(kind="llama", **changes):
    model = tiny_actor(kind, vocab_size=VOCABULARY, eos_token_id=END, **changes).eval()
    if kind != "gemma2":  # its soft-capping needs the eager form
        model.set_attn_implementation("sdpa")
    for parameter in model.parameters():  # far from uniform, so that a wrong position or cache is seen
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def make_generator(model, **changes):
    return TransformersGenerator(model, **{"eos_token_ids": [END], "pad_token_id": 0, **changes})


def drain(generator, count):
    done = {}
    while len(done) < count:
        done |= {completion.episode: completion for completion in generator.collect()}
    return done


def logprobs_by_full_forward(model, prompt, completion, temperature=1.0):
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0] / temperature
    rows = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
    return rows[torch.arange(len(completion)), torch.tensor(completion)]


PROMPTS = {0: [5, 6, 7], 1: [8] * 9, 2: [4, 4], 3: [9, 3, 2, 1, 5, 6, 7, 8, 9, 10, 11, 12]}


def play_turns(generator, turns=3, max_new_tokens=6):
    """Three turns of four ragged episodes: returns every (prompt, completion)."""
    prompts, played = dict(PROMPTS), []
    for turn in range(turns):
        for episode, prompt in prompts.items():
            generator.submit(episode, prompt, max_new_tokens=max_new_tokens, seed=100 * turn + episode)
        for episode, completion in drain(generator, len(prompts)).items():
            played.append((list(prompts[episode]), completion))
            observation = [20 + episode] * (1 + episode + turn)
            prompts[episode] = [*prompts[episode], *completion.completion_ids, *observation]
    return played


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


def test_each_token_is_processed_once():
    generator = make_generator(make_model())
    played = play_turns(generator)
    last = {}
    for prompt, completion in played:
        last[prompt[0], prompt[1]] = len(prompt) + len(completion.completion_ids)
    # the last sampled token of an episode is never fed
    assert generator.tokens_processed == sum(last.values()) - len(last)


def test_response_does_not_depend_on_company():
    model = make_model()
    together = {tuple(p): c.completion_ids for p, c in play_turns(make_generator(model), turns=1)}
    for episode, prompt in PROMPTS.items():
        alone = make_generator(model)
        alone.submit(episode, prompt, max_new_tokens=6, seed=episode)
        assert drain(alone, 1)[episode].completion_ids == together[tuple(prompt)]


def test_other_seed_gives_another_response():
    model = make_model()
    responses = set()
    for seed in range(4):
        generator = make_generator(model)
        generator.submit(0, PROMPTS[0], max_new_tokens=6, seed=seed)
        responses.add(drain(generator, 1)[0].completion_ids)
    assert len(responses) > 1


def test_reset_after_a_weight_update_gives_the_new_weights_logprobs():
    model = make_model()
    generator = make_generator(model)
    generator.submit(0, PROMPTS[3], max_new_tokens=4, seed=0)
    first = drain(generator, 1)[0]
    following = [*PROMPTS[3], *first.completion_ids, 7, 7]
    stale = copy.copy(generator)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    gaps = []
    for candidate in (generator, stale):
        if candidate is generator:
            saved = {name: copy.deepcopy(value) for name, value in vars(stale).items() if name != "model"}
            vars(stale).update(saved)
            candidate.reset()
        candidate.submit(0, following, max_new_tokens=4, seed=1)
        completion = drain(candidate, 1)[0]
        expected = logprobs_by_full_forward(model, following, completion.completion_ids)
        gaps.append(float((torch.tensor(completion.sampling_logprobs) - expected).abs().max()))
    assert gaps[0] < 2e-5
    assert gaps[1] > 1e-3  # control: a cache of the old weights is seen


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


def test_same_prompt_again_is_answered_again():
    generator = make_generator(make_model())
    answers = []
    for _ in range(2):
        generator.submit(0, PROMPTS[1], max_new_tokens=3, seed=5)
        answers.append(drain(generator, 1)[0])
    assert answers[0].completion_ids == answers[1].completion_ids


def test_greedy_equals_transformers_generate():
    model = make_model()
    generator = make_generator(model, temperature=0.0)
    generator.submit(0, PROMPTS[1], max_new_tokens=8, seed=0)
    ours = drain(generator, 1)[0].completion_ids
    theirs = model.generate(torch.tensor([PROMPTS[1]]), max_new_tokens=8, do_sample=False, eos_token_id=END)
    assert list(ours) == theirs[0, len(PROMPTS[1]) :].tolist()


@pytest.mark.parametrize("settings", [{"top_k": 1}, {"top_p": 1e-4}])
def test_truncated_sampling_changes_what_is_drawn_not_what_is_scored(settings):
    model = make_model()
    generator = make_generator(model, **settings)
    generator.submit(0, PROMPTS[1], max_new_tokens=5, seed=0)
    completion = drain(generator, 1)[0]
    greedy = make_generator(model, temperature=0.0)
    greedy.submit(0, PROMPTS[1], max_new_tokens=5, seed=0)
    assert completion.completion_ids == drain(greedy, 1)[0].completion_ids
    expected = logprobs_by_full_forward(model, PROMPTS[1], completion.completion_ids)
    torch.testing.assert_close(torch.tensor(completion.sampling_logprobs), expected, atol=2e-5, rtol=1e-5)
    assert float(expected.max()) < -1e-3  # control: renormalised log-probs would all be 0


def test_draws_follow_the_distribution():
    scores = torch.log_softmax(torch.tensor([[0.0, 1.0, 2.0, -float("inf")]]), dim=-1)
    uniforms = (torch.arange(3000, dtype=torch.float64) + 0.5) / 3000
    tokens = _inverse_cdf(scores.expand(3000, -1), uniforms)
    shares = torch.bincount(tokens, minlength=4) / 3000
    torch.testing.assert_close(shares, scores[0].exp(), atol=1e-3, rtol=0)


def test_finish_reason_tells_a_stop_from_a_cut():
    model = make_model()
    generator = make_generator(model, eos_token_ids=range(VOCABULARY))
    generator.submit(0, PROMPTS[0], max_new_tokens=5, seed=0)
    stopped = drain(generator, 1)[0]
    assert (stopped.finish_reason, len(stopped.completion_ids)) == ("stop", 1)
    cut = make_generator(model, eos_token_ids=[])
    cut.submit(0, PROMPTS[0], max_new_tokens=5, seed=0)
    completion = drain(cut, 1)[0]
    assert (completion.finish_reason, len(completion.completion_ids)) == ("length", 5)


def test_more_episodes_than_slots_queue_until_one_is_released():
    model = make_model()
    generator = make_generator(model, eos_token_ids=[], max_parallel_episodes=2)
    for episode, prompt in PROMPTS.items():
        generator.submit(episode, prompt, max_new_tokens=4, seed=episode)
    done = {}
    while len(done) < 4:
        for completion in generator.collect():
            done[completion.episode] = completion.completion_ids
            generator.release(completion.episode)
    wide = make_generator(model, eos_token_ids=[])
    for episode, prompt in PROMPTS.items():
        wide.submit(episode, prompt, max_new_tokens=4, seed=episode)
    assert done == {episode: completion.completion_ids for episode, completion in drain(wide, 4).items()}


def test_collect_does_not_wait_for_the_longest():
    generator = make_generator(make_model(), eos_token_ids=[])
    for episode in range(4):
        generator.submit(episode, PROMPTS[0], max_new_tokens=50 if episode == 3 else 2, seed=episode)
    assert {completion.episode for completion in generator.collect()} == {0, 1, 2}
    assert [completion.episode for completion in generator.collect()] == [3]
    assert generator.collect() == []


def test_training_mode_is_restored():
    model = make_model().train()
    generator = make_generator(model)
    generator.submit(0, PROMPTS[0], max_new_tokens=2, seed=0)
    generator.collect()
    assert model.training


def test_model_without_attention_layers_is_refused():
    model = make_model()
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(ValueError, match="linear_attention"):
        make_generator(model)


def test_attention_that_takes_no_dense_mask_is_refused():
    model = make_model()
    model.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ValueError, match="'flash_attention_2' attention"):
        make_generator(model)
