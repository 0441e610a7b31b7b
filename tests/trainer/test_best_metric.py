"""The best checkpoint is chosen by a metric that evaluations have, or the run is refused before it begins."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from turnppo_hf import TurnPPOConfig, TurnPPOTrainer

EACH_STEP = {"eval_strategy": "steps", "eval_steps": 1}
EVALUATING = {**EACH_STEP, "eval_dataset": Dataset.from_dict({"seed": [1, 2]})}
SAVING = {"save_strategy": "steps", "save_steps": 1}


def test_best_model_is_that_with_the_highest_reward_where_nothing_else_is_said(make_trainer: Any) -> None:
    trainer = make_trainer(**EVALUATING, **SAVING, load_best_model_at_end=True, max_steps=2)
    trainer.train()
    rewards = [entry["eval_reward"] for entry in trainer.state.log_history if "eval_reward" in entry]
    assert len(rewards) == 2 and trainer.state.best_metric == max(rewards)


def test_rate_that_waits_for_a_plateau_follows_the_reward(make_trainer: Any) -> None:
    trainer = make_trainer(
        **EVALUATING, lr_scheduler_type="reduce_lr_on_plateau", lr_scheduler_kwargs={"patience": 0}, max_steps=3
    )
    evaluate, scores = trainer.evaluate, iter([1.0, 0.0, -1.0])
    trainer.evaluate = lambda *args, **kwargs: {**evaluate(*args, **kwargs), "eval_reward": next(scores)}
    trainer.train()
    assert trainer.lr_scheduler.best == 1.0
    first, last = trainer.args.learning_rate, trainer.optimizer.param_groups[0]["lr"]
    assert last == pytest.approx(first / 100)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("loss", ""),
        ("eval_loss", ""),
        ("eval_sucess", "Did you mean 'success'"),
        ("accuracy", ""),
        ("reward/other", ""),
    ],
)
def test_metric_that_no_evaluation_has_is_refused_before_the_first_step(
    make_trainer: Any, name: str, nearest: str
) -> None:
    with pytest.raises(ValueError, match=rf"`metric_for_best_model` is '{name}', and no evaluation has it.*{nearest}"):
        make_trainer(**EVALUATING, **SAVING, load_best_model_at_end=True, metric_for_best_model=name)


@pytest.mark.parametrize("name", ["success", "eval_turns/mean", "stop/turn_limit"])
def test_metric_of_episodes_is_taken(make_trainer: Any, name: str) -> None:
    trainer = make_trainer(
        **EVALUATING, **SAVING, load_best_model_at_end=True, metric_for_best_model=name, max_steps=1
    )
    trainer.train()
    assert trainer.state.best_metric is not None


def test_metric_of_a_reward_function_or_of_the_user_s_own_evaluation_is_taken(
    tiny_actor: Any, tiny_tokenizer: Any, tmp_path: Any
) -> None:
    class Judged(TurnPPOTrainer):
        def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
            return {**super().evaluate(*args, **kwargs), "eval_exact": 1.0}

    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": "a"}]}] * 2)
    args = TurnPPOConfig(
        str(tmp_path), **EACH_STEP, **SAVING, use_cpu=True,
        load_best_model_at_end=True, metric_for_best_model="exact", generation_batch_size=2, report_to="none",
    )  # fmt: skip
    common = {"args": args, "train_dataset": rows, "eval_dataset": rows, "processing_class": tiny_tokenizer}
    TurnPPOTrainer(tiny_actor, reward_funcs=lambda completions, **_: [0.0] * len(completions), **common)
    with pytest.raises(ValueError, match="no evaluation has it"):
        TurnPPOTrainer(tiny_actor, environment_factory="turnppo_hf/Sokoban-v0", **common)
    Judged(tiny_actor, environment_factory="turnppo_hf/Sokoban-v0", **common)
