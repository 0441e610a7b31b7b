"""The parameter groups of both networks, and an optimizer that forgets one of them."""

import pytest
import torch

from tests.helpers.tiny import tiny_actor_critic
from turnppo_hf.trainer.optimizer import check_optimizer, parameter_groups


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
