"""Conversations with tools are those of TRL's GRPOTrainer, message by message and token by token, up to the end."""

import copy

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from tests.helpers.tools import (
    AnsweringGenerator,
    Ladder,
    Pit,
    add,
    answer_to,
    call,
    calling_actor,
    calling_tokenizer,
    wait,
)
from turnppo_hf import _trl
from turnppo_hf.environments.factory import open_environments
from turnppo_hf.rollout.chat import MAX_PARSED_LENGTH, MAX_PARSED_TAGS, Chat
from turnppo_hf.rollout.worker import EpisodePlan, Limits, RolloutWorker
from turnppo_hf.trajectory import StopReason

ASK = [{"role": "user", "content": "Go."}]
SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Go."}]
KWARGS = {"enable_thinking": False}
LADDER, ROUNDS = {"environment_factory": Ladder}, 3


def played_by_grpo(tmp_path, tokenizer, rows, answers, **arguments):
    """Every prompt that GRPOTrainer generates from, and what its reward functions see."""
    read, seen = [], {}

    def judge(prompts, completions, completion_ids, **columns):
        seen.update(copy.deepcopy({"prompts": prompts, "completions": completions, "completion_ids": completion_ids}))
        return [0.0] * len(prompts)

    def scripted(prompt_ids, *_, **__):
        read.extend(map(tuple, prompt_ids))
        return [answer_to(tokenizer, ids, answers) for ids in prompt_ids], None

    twice = [row for row in rows for _ in range(2)]  # the smallest group
    trainer = GRPOTrainer(
        model=calling_actor(tokenizer),
        reward_funcs=judge,
        args=GRPOConfig(
            str(tmp_path), per_device_train_batch_size=len(twice), num_generations=2, use_cpu=True, bf16=False,
            report_to="none", max_completion_length=1000, chat_template_kwargs=KWARGS,
            max_tool_calling_iterations=ROUNDS,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        **arguments,
    )  # fmt: skip
    trainer._generate_single_turn = scripted
    trainer.model.train()
    with torch.no_grad():
        trainer._generate_and_score_completions(twice)
    return read, {name: values[::2] for name, values in seen.items()}


def played_by_us(tokenizer, rows, answers, environment_factory=None, tools=()):
    """The generator, with every prompt, and the episodes as reward functions would see them."""
    pool, names, _ = open_environments(environment_factory, tools, needs_environment=False)
    chat = Chat(tokenizer, KWARGS)
    chat.offer_tools(pool.tools)
    generator = AnsweringGenerator(tokenizer, answers)

    limits = Limits(max_completion_length=1000, max_tool_calling_iterations=ROUNDS)
    worker = RolloutWorker(pool, generator, chat, limits)
    worker.start(EpisodePlan(row, row.get("environment") or names[0], seed=0) for row in rows)
    finished, _ = worker.play()
    worker.close()
    return generator, finished


CASES = {
    "synchronous": ([{"prompt": ASK}], [call("climb", rungs=1), call("climb", rungs=2), "High."], LADDER),
    "thoughts": (
        [{"prompt": SYSTEM}],
        ["<think>\nUp?\n</think>\n\nFirst." + call("climb", rungs=1), "Done."],
        LADDER,
    ),
    "asynchronous": ([{"prompt": ASK}], [call("look"), "Far."], LADDER),
    "parallel": (
        [{"prompt": ASK}],
        [f"{call('look')}\n{call('climb', rungs=1)}\n{call('add', a=1, b=1)}\n{call('look')}", "Far."],
        {**LADDER, "tools": [add]},
    ),
    "unknown": ([{"prompt": ASK}], [call("fly") + call("climb", rungs=1), "Oh."], LADDER),
    "erroring": (
        [{"prompt": ASK}],
        [call("climb", up=1), call("climb", rungs="x") + call("look", at=1), "Oh."],
        LADDER,
    ),
    "erroring later": (
        [{"prompt": ASK}],
        [call("wait", seconds="x") + call("add", a=1, b=2), "3"],
        {"tools": [add, wait]},
    ),
    "malformed": ([{"prompt": ASK}], ['<tool_call>\n{"name": "climb"\n</tool_call>'], LADDER),
    "no call": ([{"prompt": ASK}], ["No."], LADDER),
    "dict": (
        [{"prompt": ASK, "environment": "pit", "depth": 3}, {"prompt": SYSTEM, "environment": "ladder", "depth": 0}],
        [call("dig", much=True), call("climb", rungs=1), "Enough."],
        {"environment_factory": {"ladder": Ladder, "pit": Pit}, "tools": [add]},
    ),
    "tools only": (
        [{"prompt": ASK, "answer": "3"}],
        [call("add", a=1, b=2) + call("wait", seconds=0.0), "3"],
        {"tools": [add, wait]},
    ),
    "too many rounds": ([{"prompt": ASK}], [call("add", a=1, b=2)] * 9, {"tools": [add]}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("template", ["qwen3", "qwen2_5"])  # TRL replaces the first by a training variant
def test_model_reads_what_grpo_trainers_model_reads(tmp_path, tiny_tokenizer, case, template):
    rows, answers, arguments = CASES[case]
    tokenizer = calling_tokenizer(tiny_tokenizer, template)
    theirs, seen = played_by_grpo(tmp_path, copy.deepcopy(tokenizer), rows, answers, **arguments)
    generator, ended = played_by_us(tokenizer, rows, answers, **arguments)
    assert sorted(set(theirs)) == sorted(ids for _, ids in generator.prompts)
    assert [list(item.opening) for item in ended] == seen["prompts"]
    assert [list(item.messages) for item in ended] == seen["completions"]
    assert [_flat(item.trajectory.turns) for item in ended] == seen["completion_ids"]
    expected = StopReason.TURN_LIMIT if case == "too many rounds" else StopReason.TERMINATED
    assert all(item.trajectory.stop_reason is expected for item in ended)


def _flat(turns):
    return [*turns[-1].prompt_ids[len(turns[0].prompt_ids) :], *turns[-1].completion_ids]


def test_synchronous_tools_answer_first(tiny_tokenizer):
    tokenizer = calling_tokenizer(tiny_tokenizer)
    _, [item] = played_by_us(tokenizer, [{"prompt": ASK}], CASES["parallel"][1], **CASES["parallel"][2])
    replies = [message["content"] for message in item.messages if message["role"] == "tool"]
    assert replies == ["height 1", "2", "ground 1 below", "ground 1 below"]


def test_game_that_is_done_is_where_the_conversations_part(tmp_path, tiny_tokenizer):
    tokenizer = calling_tokenizer(tiny_tokenizer)
    rows, answers = [{"prompt": ASK}], [call("climb", rungs=2)] * 4
    theirs, seen = played_by_grpo(tmp_path, copy.deepcopy(tokenizer), rows, answers, **LADDER)
    generator, [item] = played_by_us(tokenizer, rows, answers, **LADDER)
    ours = [ids for _, ids in generator.prompts]
    assert len(ours) == 2 and ours == sorted(set(theirs), key=len)[:2] and len(set(theirs)) > 2
    assert list(item.messages) == seen["completions"][0][: len(item.messages)]
    assert item.messages[-1]["content"] == "height 4" and item.trajectory.stop_reason is StopReason.TERMINATED


@pytest.mark.parametrize("piece", ["<tool_call>", "</tool_call>", "a", "<|im_end|>", '<tool_call>{"name": '])
def test_response_beyond_what_is_parsed_is_text_without_calls(tiny_tokenizer, monkeypatch, piece):
    tokenizer = calling_tokenizer(tiny_tokenizer)
    chat = Chat(tokenizer)
    chat.offer_tools([add])
    prompt = chat.open(ASK, [add])
    parsed = []
    monkeypatch.setattr(
        _trl, "parse_response", lambda *a, **k: parsed.append(a) or {"role": "assistant", "content": ""}
    )
    pieces = MAX_PARSED_LENGTH + 1 if len(piece) == 1 else MAX_PARSED_TAGS + 1
    few = tokenizer(piece, add_special_tokens=False)["input_ids"]
    answer = chat.parse(prompt, few * pieces)
    assert parsed == [] and "tool_calls" not in answer and answer["role"] == "assistant"
    chat.parse(prompt, few * (pieces - 1))
    assert len(parsed) == 1, "what is within the bounds is parsed"
