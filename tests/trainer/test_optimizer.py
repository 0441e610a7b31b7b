"""The parameter groups of both networks, and an optimizer that forgets one of them."""

import pytest
import torch
from transformers import TrainerCallback

from tests.helpers.tiny import tiny_actor_critic
from turnppo_hf.trainer.optimizer import check_optimizer, groups_of, learning_rates, parameter_groups


def test_parameter_groups_hold_every_trainable_parameter_once_at_its_networks_rate():
    model = tiny_actor_critic()
    model.actor.get_input_embeddings().weight.requires_grad_(False)
    decays = {name for name, _ in model.named_parameters() if "norm" not in name}
    groups = parameter_groups(model, decays, learning_rate=1e-6, critic_lr_multiplier=10.0, weight_decay=0.1)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert group["lr"] == pytest.approx(1e-6 if name.startswith("actor.") else 1e-5)
            assert group["weight_decay"] == (0.1 if name in decays else 0.0)
    assert names[id(groups[0]["params"][0])].startswith("actor.")


def test_optimizer_without_the_critic_is_refused_and_one_with_both_is_not():
    model = tiny_actor_critic()
    check_optimizer(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="trainable parameters, such as 'critic"):
        check_optimizer(model, torch.optim.SGD(model.actor.parameters(), lr=0.1))


def test_rates_are_those_of_each_network_in_whatever_order_its_groups_stand():
    model = tiny_actor_critic()
    model.actor.get_input_embeddings().weight.requires_grad_(False)
    for names in (("actor", "critic"), ("critic", "actor")):
        groups = [
            {"params": list(model.networks[name].parameters()), "lr": {"actor": 0.1, "critic": 0.5}[name]}
            for name in names
        ]
        optimizer = torch.optim.SGD(groups)
        found = groups_of(model, optimizer)
        assert learning_rates(found, optimizer) == {"learning_rate": 0.1, "learning_rate_critic": 0.5}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    both = learning_rates(groups_of(model, optimizer), optimizer)
    assert both == {"learning_rate": 0.2, "learning_rate_critic": 0.2}


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup"])
def test_logged_rates_are_those_that_the_step_had(make_trainer, schedule):
    used = []

    class Looks(TrainerCallback):
        def on_pre_optimizer_step(self, *_, optimizer, **__):
            used.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[-1]["lr"]))

    trainer = make_trainer(max_steps=4, warmup_steps=2, lr_scheduler_type=schedule, critic_lr_multiplier=7.0)
    trainer.add_callback(Looks())
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "policy_loss" in entry]
    assert [(entry["learning_rate"], entry["learning_rate_critic"]) for entry in logs] == used
    assert [7.0 * actor for actor, _ in used] == pytest.approx([critic for _, critic in used])
    assert len(set(used)) > 1
