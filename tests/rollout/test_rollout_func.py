"""A `rollout_func` of TRL: its lists become turns, and what cannot be read is refused."""

from __future__ import annotations

import pytest

from turnppo_hf.rollout.chat import Chat
from turnppo_hf.rollout.rollout_func import play_with
from turnppo_hf.rollout.worker import EpisodePlan
from turnppo_hf.trajectory import StopReason


def play(tokenizer, output, count=1, prompt="Go."):
    episodes = [
        EpisodePlan({"prompt": prompt, "answer": "x"}, "prompts", seed=0, group=number) for number in range(count)
    ]
    return play_with(lambda prompts: output, episodes, Chat(tokenizer))


def output_of(tokenizer, **changes):
    end = tokenizer.eos_token_id
    fields = {
        "prompt_ids": [[5, 6]],
        "completion_ids": [[7, end, 8, 9, 10, end]],
        "logprobs": [[-0.1, -0.2, 0.0, 0.0, -0.3, -0.4]],
        "env_mask": [[1, 1, 0, 0, 1, 1]],
    }
    return {**fields, **changes}


def test_turns_are_the_runs_of_sampled_tokens(tiny_tokenizer):
    end = tiny_tokenizer.eos_token_id
    [item] = play(tiny_tokenizer, output_of(tiny_tokenizer, score=[3], note="all"))
    first, second = item.trajectory.turns
    assert (first.prompt_ids, first.completion_ids, first.sampling_logprobs) == ((5, 6), (7, end), (-0.1, -0.2))
    assert second.prompt_ids == (5, 6, 7, end, 8, 9) and second.completion_ids == (10, end)
    assert second.sampling_logprobs == (-0.3, -0.4) and second.observation == tiny_tokenizer.decode([8, 9])
    assert item.trajectory.stop_reason is StopReason.TERMINATED
    assert item.columns == {"score": 3, "note": "all"} and item.opening == ({"role": "user", "content": "Go."},)
    assert item.messages == ({"role": "assistant", "content": tiny_tokenizer.decode([7, 8, 9, 10])},)


def test_without_a_mask_everything_was_sampled(tiny_tokenizer):
    output = output_of(tiny_tokenizer, completion_ids=[[7, 8]], logprobs=[[-0.1, -0.2]])
    del output["env_mask"]
    [item] = play(tiny_tokenizer, output)
    [turn] = item.trajectory.turns
    assert turn.completion_ids == (7, 8) and turn.finish_reason == "length"  # no end of turn
    assert item.trajectory.stop_reason is StopReason.CUT_RESPONSE


def test_prompts_are_a_copy_of_the_datasets(tiny_tokenizer):
    prompt = [{"role": "user", "content": "Go."}]

    def rollout(prompts):
        assert prompts == [prompt]
        prompts[0].append("changed")
        return output_of(tiny_tokenizer)

    play_with(rollout, [EpisodePlan({"prompt": prompt}, "prompts", seed=0)], Chat(tiny_tokenizer))
    assert prompt == [{"role": "user", "content": "Go."}]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logprobs": None}, "returned no logprobs"),
        ({"prompt_ids": [[5], [6]]}, "returned `prompt_ids` for another number"),
        ({"env_mask": [[1], [1]]}, "returned `env_mask` for another number"),
        ({"logprobs": [[-0.1]]}, "6 completion_ids, 1 logprobs and an env_mask of 6 with 4 sampled"),
        ({"env_mask": [[0] * 6]}, "with 0 sampled tokens"),
    ],
)
def test_output_that_cannot_be_read_is_refused(tiny_tokenizer, changes, message):
    with pytest.raises(ValueError, match=message):
        play(tiny_tokenizer, output_of(tiny_tokenizer, **changes))
