"""Optimizers with two kinds of weights: gradients are computed at one, the other is judged, saved and resumed from."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from turnppo_hf.trainer.schedule_free import judged_weights


class Averaged(torch.optim.SGD):
    """
    Plain descent whose result is the mean of all iterates, with schedule-free optimizers' `train` and `eval`.

    As in theirs, a group's `train_mode` tells which weights are in place, and is part of the state.
    """

    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, lr=lr)
        for group in self.param_groups:
            group["train_mode"] = False

    def _swap(self, trains: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] is not trains:
                group["train_mode"] = trains
                for item in group["params"]:
                    if "other" in self.state[item]:
                        here = item.detach().clone()
                        item.data.copy_(self.state[item]["other"])
                        self.state[item]["other"] = here

    def train(self) -> None:
        self._swap(True)

    def eval(self) -> None:
        self._swap(False)

    def step(self, closure: Any = None) -> None:
        assert all(group["train_mode"] for group in self.param_groups), "it steps the weights that it returns"
        before = {item: item.detach().clone() for group in self.param_groups for item in group["params"]}
        super().step(closure)
        for item, old in before.items():
            mean = self.state[item].get("other", old)
            self.state[item]["other"] = (mean + item.detach()) / 2


@pytest.fixture
def train(make_trainer: Any, tiny_actor: Any) -> Any:
    """Train with `Averaged` and return the trainer; sampled and judged weights are noted on the way."""

    def run(resume: bool = False, **settings: Any) -> Any:
        rows = Dataset.from_dict({"seed": range(4)})
        model = copy.deepcopy(tiny_actor)  # each run starts at the same weights
        trainer = make_trainer(model=model, use_cpu=True, eval_dataset=rows, **settings)
        trainer.optimizer = Averaged([{"params": list(trainer.model.parameters())}], lr=0.5)
        trainer.create_scheduler(num_training_steps=10)
        notes = trainer.notes = {"rollout": [], "evaluation": []}
        plays = trainer.collector._play

        def note(worker: Any, plans: Any, enough: int, label: str, *rest: Any) -> Any:
            notes[label].append(trainer.optimizer.param_groups[0]["train_mode"])
            return plays(worker, plans, enough, label, *rest)

        trainer.collector._play = note
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def weights(model: Any) -> list[torch.Tensor]:
    return [item.detach().clone() for item in model.parameters()]


def test_rollouts_use_the_weights_of_gradients_and_evaluations_those_it_returns(train: Any) -> None:
    trainer = train(max_steps=3, eval_strategy="steps", eval_steps=1)
    assert trainer.notes == {"rollout": [True] * 3, "evaluation": [False] * 3}
    assert not trainer.optimizer.param_groups[0]["train_mode"]  # whoever looks now sees what it returns


def test_what_is_saved_are_the_weights_that_it_returns(train: Any, tmp_path: Path) -> None:
    trainer = train(max_steps=2, save_strategy="steps", save_steps=2)
    trainer.save_model(str(tmp_path / "final"))
    for folder in ("run/checkpoint-2", "final"):
        saved = weights(AutoModelForCausalLM.from_pretrained(tmp_path / folder))
        assert all(a.equal(b) for a, b in zip(saved, weights(trainer.model.actor), strict=True))
    trainer.optimizer.train()
    assert not all(a.equal(b) for a, b in zip(saved, weights(trainer.model.actor), strict=True))  # the control


@pytest.mark.slow
def test_resumed_training_goes_on_where_the_whole_one_does(train: Any, tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 2}
    whole = weights(train(max_steps=4, **settings).model)
    train(max_steps=2, overwrite_output_dir=True, **settings)
    resumed = weights(train(resume=True, max_steps=4, **settings).model)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole, resumed, strict=True))


def test_other_optimizers_and_none_are_left_alone() -> None:
    with judged_weights(None), judged_weights(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)):
        pass
