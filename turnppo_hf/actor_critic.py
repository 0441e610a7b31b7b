"""Actor and critic as one module: a forward gives log-probs and entropies at sampled tokens, or values everywhere."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForTokenClassification, PreTrainedModel

from turnppo_hf._trl import disable_dropout_in_model
from turnppo_hf.batch import TurnBatch


class ActorCritic(nn.Module):
    """
    The module that is prepared, optimised and saved as one.

    Args:
        actor ([`~transformers.PreTrainedModel`]): Causal language model.
        critic ([`~transformers.PreTrainedModel`], *optional*): Token classifier with one label; absent for baselines
            without a critic.
    """

    _keys_to_ignore_on_save = None

    def __init__(self, actor: PreTrainedModel, critic: PreTrainedModel | None) -> None:
        super().__init__()
        self.actor = actor
        self.critic = critic
        self.config = actor.config
        self.name_or_path = actor.name_or_path
        # what is gathered at a time: a block of layers, and of what is left a network, so that it runs by itself, too
        self._no_split_modules = [
            name
            for network in self.networks.values()
            for name in (*(getattr(network, "_no_split_modules", None) or ()), type(network).__name__)
        ]

    def forward(self, mode: str, batch: TurnBatch, temperature: float = 1.0, *, entropy_gradient: bool = False) -> Any:
        """
        Run one network over a batch.

        Args:
            mode (`str`): `"actor"` or `"critic"`.
            batch (`TurnBatch`): `R` rows of `T` tokens.
            temperature (`float`, *optional*, defaults to `1.0`): Scales the actor's logits as in sampling.
            entropy_gradient (`bool`, *optional*, defaults to `False`): See `sampled_logprobs`.

        Returns:
            `"actor"`: `(logprobs, entropies)`, both `(R, T)` float32 and 0.0 where nothing was sampled.
            `"critic"`: values `(R, T)` float32; index `t` is V of the state that ends *with* the token at `t`.
        """
        if mode == "actor":
            return sampled_logprobs(self.actor, batch, temperature, entropy_gradient=entropy_gradient)
        assert self.critic is not None
        output = self.critic(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
        return output.logits[..., 0].float()

    @property
    def networks(self) -> dict[str, PreTrainedModel]:
        """The networks by name, in the order of a step."""
        return {"actor": self.actor} if self.critic is None else {"critic": self.critic, "actor": self.actor}

    def parameter_groups(
        self, decays: set[str], learning_rate: float, critic_lr_multiplier: float, weight_decay: float
    ) -> list[dict[str, Any]]:
        """
        Split the trainable parameters by network and by whether they decay; the actor's groups come first.

        Args:
            decays (`set[str]`): Names of the parameters that decay.
            learning_rate (`float`): The actor's; the critic's is `critic_lr_multiplier` times it.
            critic_lr_multiplier (`float`): See `learning_rate`.
            weight_decay (`float`): Of the parameters in `decays`.
        """
        groups = []
        for name, rate in (("actor", learning_rate), ("critic", learning_rate * critic_lr_multiplier)):
            for decay in (True, False):
                parameters = [
                    parameter
                    for path, parameter in self.named_parameters()
                    if path.startswith(f"{name}.") and parameter.requires_grad and (path in decays) is decay
                ]
                if parameters:
                    groups.append({"params": parameters, "lr": rate, "weight_decay": weight_decay if decay else 0.0})
        return groups

    def check_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """
        Check that an optimizer moves both networks.

        Raises:
            `ValueError`: it lacks a trainable parameter.
        """
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        forgotten = [name for name, item in self.named_parameters() if item.requires_grad and id(item) not in known]
        if forgotten:
            raise ValueError(
                f"The optimizer passed in `optimizers` lacks {len(forgotten)} trainable parameters, such as "
                f"{forgotten[0]!r}, which would never move. Build it on `trainer.model`, or leave it to the trainer."
            )

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether any network recomputes its activations."""
        return any(network.is_gradient_checkpointing for network in self.networks.values())

    is_activation_checkpointing = is_gradient_checkpointing

    def gradient_checkpointing_enable(self, **kwargs: Any) -> None:
        """Switch activation checkpointing on in both networks."""
        for network in self.networks.values():
            network.gradient_checkpointing_enable(**kwargs)

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Do the same under the name that transformers 5.23 introduced."""
        for network in self.networks.values():
            network.activation_checkpointing_enable(**kwargs)


def sampled_logprobs(
    model: nn.Module, batch: TurnBatch, temperature: float = 1.0, *, entropy_gradient: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Score the sampled tokens of a batch; the head runs at these positions only.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: log-probs and entropies in nats, `(R, T)` float32, 0.0 where
        `completion_mask` is 0. Both are of the full distribution at `temperature`. Without `entropy_gradient` the
        entropies are constants, which saves a table of sampled tokens x vocabulary in the backward pass.
    """
    sampled = batch.completion_mask.bool()
    predicting = sampled.roll(-1, dims=1)  # the position before a token predicts it
    predicting[:, -1] = False
    with _head_only_at(model, predicting):
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    distribution = torch.log_softmax(logits.float() / temperature, dim=-1)  # (sampled tokens, V)
    chosen = distribution.gather(-1, batch.input_ids[sampled][:, None])[:, 0]
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy = -(distribution.exp() * distribution).sum(-1)
    zeros = distribution.new_zeros(sampled.shape)
    return zeros.masked_scatter(sampled, chosen), zeros.masked_scatter(sampled, entropy)


@contextmanager
def _head_only_at(model: nn.Module, positions: torch.Tensor) -> Iterator[None]:
    """
    Let the language-model head see only these positions.

    The model's own forward still applies whatever it does to logits (soft-capping, scaling), element by element, which
    calling the head by hand would leave out.
    """
    handle = model.get_output_embeddings().register_forward_pre_hook(  # type: ignore[operator]
        lambda _, inputs: (inputs[0][positions],)
    )
    try:
        yield
    finally:
        handle.remove()


def critic_from_actor(actor: PreTrainedModel) -> PreTrainedModel:
    """
    Build a critic on a copy of the actor's backbone.

    Dropout is off, since a noisy baseline adds variance to every advantage, and the head is zero, so that the first
    advantages are plain returns.

    Raises:
        `ValueError`: transformers has no token classifier for this architecture.
    """
    config = copy.deepcopy(actor.config)
    config.num_labels = 1
    config.dtype = actor.dtype  # else the copy would pass through the dtype of the file
    try:
        critic = AutoModelForTokenClassification.from_config(config)
    except ValueError as error:
        raise ValueError(
            f"transformers has no token classifier for {config.model_type!r}, which the critic is. Pass a "
            "`value_model`, or take an architecture that has one (Llama, Qwen2, Qwen3, Gemma, ...)."
        ) from error
    critic.base_model.load_state_dict(actor.base_model.state_dict())
    with torch.no_grad():
        for parameter in _head_of(critic).parameters():
            parameter.zero_()
    disable_dropout(critic)
    critic.to(dtype=actor.dtype, device=actor.device)
    return critic


def disable_dropout(model: nn.Module) -> None:
    """Switch off dropout layers, and the rates that modules such as attention keep as plain numbers."""
    disable_dropout_in_model(model)
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _head_of(critic: PreTrainedModel) -> nn.Module:
    heads = [module for name, module in critic.named_children() if name in ("score", "classifier")]
    assert len(heads) == 1, f"unknown token classification head in {type(critic).__name__}"
    return heads[0]
