"""Conversations with tools are those of TRL's GRPOTrainer, message by message and token by token, up to the end."""

import copy

import pytest
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from tests.scripted import ScriptedGenerator
from tests.tools import Ladder, Pit, add, call, calling_actor, calling_tokenizer, wait
from turnppo_hf.chat import Chat
from turnppo_hf.environment_factory import open_environments
from turnppo_hf.rollout import Episode, Limits, Rollout
from turnppo_hf.trajectory import StopReason

ASK = [{"role": "user", "content": "Go."}]
SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Go."}]


def played_by_grpo(tmp_path, tokenizer, rows, answers, **arguments):
    """Every prompt that GRPOTrainer generates from, and the completions that its reward functions see."""
    seen = {}

    def judge(prompts, completions, completion_ids, **columns):
        seen.update(copy.deepcopy({"prompts": prompts, "completions": completions, "completion_ids": completion_ids}))
        return [0.0] * len(prompts)

    rows = [row for row in rows for _ in range(2)]
    trainer = GRPOTrainer(
        model=calling_actor(tokenizer),
        reward_funcs=judge,
        args=GRPOConfig(
            str(tmp_path), per_device_train_batch_size=len(rows), num_generations=2, use_cpu=True, bf16=False,
            report_to="none", max_completion_length=1000, chat_template_kwargs=KWARGS, max_tool_calling_iterations=5,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        **arguments,
    )  # fmt: skip
    read, histories = [], {}

    def scripted(prompt_ids, images, fields, num_generations=1, **_):
        completions = []
        for ids in prompt_ids:
            first = histories.get(tuple(ids[: len(ids)]))
            number = first if first is not None else len(read)
            read.append(tuple(ids))
            text = answers_of(tokenizer, ids, answers) + tokenizer.eos_token
            completions.append(tokenizer(text, add_special_tokens=False)["input_ids"])
            assert number is not None
        return completions, None

    trainer._generate_single_turn = scripted
    trainer.model.train()
    with torch.no_grad():
        trainer._generate_and_score_completions(rows)
    return read, seen


def answers_of(tokenizer, ids, answers):
    """The next answer of a script: as many were given as assistant turns stand in the prompt."""
    turns = tokenizer.decode(ids).count("<|im_start|>assistant")
    return answers[min(turns, len(answers)) - 1]


KWARGS = {"enable_thinking": False}


class ByPrompt(ScriptedGenerator):
    def submit(self, episode, prompt_ids, *, max_new_tokens, seed):
        self.answers = {**dict.fromkeys(range(99), [""]), episode: [answers_of(self.tokenizer, prompt_ids, self.all)]}
        super().submit(episode, prompt_ids, max_new_tokens=max_new_tokens, seed=seed)


def played_by_us(tokenizer, rows, answers, environment_factory=None, tools=(), limits=None):
    pool, names, _ = open_environments(environment_factory, tools, needs_environment=False)
    chat = Chat(tokenizer, KWARGS)
    chat.offer_tools(pool.tools)
    generator = ByPrompt(tokenizer, {})
    generator.all = answers
    ended = []

    def keep(items):
        ended.extend(copy.deepcopy(items))
        return [item.trajectory for item in items]

    limits = limits or Limits(max_completion_length=1000, max_tool_calling_iterations=5)
    rollout = Rollout(pool, generator, chat, limits, score=keep)
    rollout.start(Episode(row, row.get("environment") or names[0], seed=0) for row in rows)
    rollout.collect()
    rollout.close()
    return generator, ended


CASES = {
    "sync": ([{"prompt": ASK}], [call("climb", rungs=1), call("climb", rungs=2), "High."], {"environment_factory": Ladder}),
    "thinking": (
        [{"prompt": SYSTEM}],
        ["<think>\nUp?\n</think>\n\nFirst." + call("climb", rungs=1), "Done."],
        {"environment_factory": Ladder},
    ),
    "async": ([{"prompt": ASK}], [call("look"), "Far."], {"environment_factory": Ladder}),
    "parallel, asynchronous last": (
        [{"prompt": ASK}],
        [f"{call('look')}\n{call('climb', rungs=1)}\n{call('look')}", "Far."],
        {"environment_factory": Ladder, "tools": [add]},
    ),
    "unknown tool": ([{"prompt": ASK}], [call("fly"), "Oh."], {"environment_factory": Ladder}),
    "wrong arguments": ([{"prompt": ASK}], [call("climb", up=1), call("climb", rungs="x"), "Oh."], {"environment_factory": Ladder}),
    "malformed call": ([{"prompt": ASK}], ['<tool_call>\n{"name": "climb"\n</tool_call>'], {"environment_factory": Ladder}),
    "text": ([{"prompt": ASK}], ["No."], {"environment_factory": Ladder}),
    "dict of factories": (
        [{"prompt": ASK, "environment": "pit", "depth": 3}, {"prompt": SYSTEM, "environment": "ladder", "depth": 0}],
        [call("dig", much=True), call("climb", rungs=1), "Enough."],
        {"environment_factory": {"ladder": Ladder, "pit": Pit}, "tools": [add]},
    ),
    "tools only": ([{"prompt": ASK, "answer": "3"}], [call("add", a=1, b=2) + call("wait", seconds=0.0), "3"], {"tools": [add, wait]}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("template", ["qwen3", "qwen2_5"])
def test_model_reads_what_grpo_trainers_model_reads(tmp_path, tiny_tokenizer, case, template):
    rows, answers, arguments = CASES[case]
    tokenizer = calling_tokenizer(tiny_tokenizer, template)
    theirs, seen = played_by_grpo(tmp_path, copy.deepcopy(tokenizer), rows, answers, **copy.copy(arguments))
    generator, ended = played_by_us(tokenizer, rows, answers, **arguments)
    ours = [ids for _, ids in generator.prompts]
    assert sorted(set(theirs)) == sorted(ours)
    for number, item in enumerate(ended):
        assert list(item.messages) == seen["completions"][2 * number]
        assert list(item.opening) == seen["prompts"][2 * number]
        first, last = item.trajectory.turns[0], item.trajectory.turns[-1]
        flat = [*last.prompt_ids[len(first.prompt_ids) :], *last.completion_ids]
        assert flat == seen["completion_ids"][2 * number]
        assert item.trajectory.stop_reason is StopReason.TERMINATED
