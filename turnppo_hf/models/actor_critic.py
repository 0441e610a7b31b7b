"""Actor and critic as one module: a forward gives log-probs and entropies at sampled tokens, or values everywhere."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForTokenClassification, PreTrainedModel

from turnppo_hf._trl import disable_dropout_in_model
from turnppo_hf.models.adapters import share_weights, unadapted
from turnppo_hf.models.critic_layers import depth_of, first_layers
from turnppo_hf.models.packed_rows import PackedRows, is_shared_out, runs_packed
from turnppo_hf.models.token_classifier import backbone_of, head_of
from turnppo_hf.ppo.batch import TurnBatch

# Entries of the table of sampled tokens x vocabulary that exist at a time, 128 MiB in float32.
_MAX_LOGITS = 2**25
# settings of models that change logits after the head: these keep their own forward's
_RESCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier")
_EMBEDDINGS = ("get_input_embeddings", "get_output_embeddings")
# what scripts ask of a model: the actor's, where the pair has none of its own
_OF_THE_ACTOR = frozenset(
    (
        *_EMBEDDINGS,
        *("device", "dtype", "generate", "generation_config", "can_generate", "save_pretrained", "push_to_hub"),
        *("num_parameters", "get_memory_footprint", "warnings_issued", "chat_template", "model_tags", "get_decoder"),
        *("peft_config", "active_adapter", "active_adapters", "disable_adapter", "get_base_model"),
        *("print_trainable_parameters", "get_nb_trainable_parameters"),
    )
)


class ActorCritic(nn.Module):
    """
    The module that is prepared, optimised and saved as one.

    To scripts it is the actor: `device`, `generate`, `save_pretrained` and the like are the actor's, and so is a
    forward over a model's inputs.

    Args:
        actor ([`~transformers.PreTrainedModel`]): Causal language model.
        critic ([`~transformers.PreTrainedModel`], *optional*): Token classifier with one label; absent for baselines
            without a critic.
        trunk_gradient (`float`, *optional*): Where the critic is a head on the actor's own trunk, the share of its
            gradient that enters the trunk.
    """

    _keys_to_ignore_on_save = None
    shows_embeddings = True  # not under FSDP2, where accelerate would shard the actor's as those of the pair

    def __init__(
        self, actor: PreTrainedModel, critic: PreTrainedModel | None, trunk_gradient: float | None = None
    ) -> None:
        super().__init__()
        # rows of a batch have new lengths in every step, and cuDNN's attention builds a plan for every new shape; the
        # backward pass recomputes with what is set then, so a context around the forward would not do
        torch.backends.cuda.enable_cudnn_sdp(False)
        self.trunk_gradient = trunk_gradient
        self.actor = actor
        self.critic = critic
        self.config = actor.config
        self.name_or_path = actor.name_or_path
        # what is gathered at a time: a block of layers, and of what is left a network, so that it runs by itself, too;
        # where both hold some of it, the pair
        mine = {id(parameter) for parameter in actor.parameters()}
        in_common = critic is not None and any(id(parameter) in mine for parameter in critic.parameters())
        self._no_split_modules = [
            name
            for network in self.networks.values()
            for name in (
                *(getattr(network, "_no_split_modules", None) or ()),
                *(() if in_common else (type(network).__name__,)),
            )
        ]

    def __getattr__(self, name: str) -> Any:
        """Look up on the actor what scripts ask of a model and the pair does not have."""
        try:
            return super().__getattr__(name)
        except AttributeError as error:
            actor = self.__dict__.get("_modules", {}).get("actor")
            hides = name in _EMBEDDINGS and not self.shows_embeddings
            if name in _OF_THE_ACTOR and actor is not None and not hides:
                return getattr(actor, name)
            if not name.startswith("_") and actor is not None and hasattr(actor, name):
                raise AttributeError(
                    f"`trainer.model` is an actor and a critic, and {name!r} belongs to one of them, so it is unclear "
                    f"which one is meant. Use `trainer.model.actor.{name}` or `trainer.model.critic.{name}`."
                ) from error
            raise

    def forward(
        self,
        mode: str | None = None,
        batch: TurnBatch | None = None,
        temperature: float = 1.0,
        *,
        entropy_gradient: bool = False,
        **inputs: Any,
    ) -> Any:
        """
        Run one network over a batch.

        Args:
            mode (`str`, *optional*): `"actor"` or `"critic"`. Without it, the actor's own forward over `inputs`.
            batch (`TurnBatch`, *optional*): `R` rows of `T` tokens.
            temperature (`float`, *optional*, defaults to `1.0`): Scales the actor's logits as in sampling.
            entropy_gradient (`bool`, *optional*, defaults to `False`): See `sampled_logprobs`.
            inputs (`Any`): Of the actor, such as `input_ids`.

        Returns:
            `"actor"`: `(logprobs, entropies)`, both `(R, T)` float32 and 0.0 where nothing was sampled.
            `"critic"`: values `(R, T)` float32; index `t` is V of the state that ends *with* the token at `t`.
        """
        if batch is None:
            return self.actor(**inputs)
        if mode == "actor":
            return sampled_logprobs(self.actor, batch, temperature, entropy_gradient=entropy_gradient)
        assert self.critic is not None
        critic, trunk_gradient = self.critic, self.trunk_gradient

        def value(input_ids: torch.Tensor, _: torch.Tensor, **inputs: Any) -> torch.Tensor:
            if trunk_gradient is None:
                with _unrounded_head(critic):
                    return critic(input_ids=input_ids, use_cache=False, **inputs).logits[..., 0].float()
            with torch.no_grad() if trunk_gradient == 0.0 else nullcontext():
                hidden = critic.base_model(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state
            if hidden.requires_grad:
                hidden.register_hook(lambda gradient: gradient * trunk_gradient)
            with _unrounded_head(critic):
                return head_of(critic)(hidden)[..., 0].float()

        return over_rows(critic, batch, value)

    @property
    def networks(self) -> dict[str, PreTrainedModel]:
        """The networks by name, in the order of a step."""
        return {"actor": self.actor} if self.critic is None else {"critic": self.critic, "actor": self.actor}

    @property
    def parameter_sets(self) -> dict[str, list[nn.Parameter]]:
        """Parameters by network, each once: what both hold, a frozen base or a trunk, is the actor's."""
        sets: dict[str, list[nn.Parameter]] = {name: [] for name in self.networks}
        for path, parameter in self.named_parameters():
            sets[path.partition(".")[0]].append(parameter)
        return sets

    @property
    def is_activation_checkpointing(self) -> bool:
        """Whether any network recomputes its activations."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    is_gradient_checkpointing = is_activation_checkpointing  # transformers before 5.23 and PEFT ask by this name

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Do the same under the name that transformers has before 5.23."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Switch activation checkpointing on in both networks."""
        name = "activation" if hasattr(PreTrainedModel, "activation_checkpointing_enable") else "gradient"
        given = {f"{name}_checkpointing_kwargs": activation_checkpointing_kwargs, **kwargs}
        for network in self.networks.values():
            getattr(network, f"{name}_checkpointing_enable")(**given)
            # recomputed blocks need an input with a gradient, which frozen embeddings do not give
            if not all(parameter.requires_grad for parameter in network.get_input_embeddings().parameters()):
                network.enable_input_require_grads()


def sampled_logprobs(
    model: nn.Module, batch: TurnBatch, temperature: float = 1.0, *, entropy_gradient: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Score the sampled tokens of a batch; the head runs at these positions only.

    Where their table of logits would be large, a part of it exists at a time and the backward pass makes each part
    anew.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: log-probs and entropies in nats, `(R, T)` float32, 0.0 where
        `completion_mask` is 0. Both are of the full distribution at `temperature`. Without `entropy_gradient` the
        entropies are constants, which saves a table of sampled tokens x vocabulary in the backward pass.
    """

    def score(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        distribution = torch.log_softmax(logits.float() / temperature, dim=-1)  # (tokens, V)
        chosen = distribution.gather(-1, tokens[:, None])[:, 0]
        with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
            # a token that the model rules out has a log-prob of -inf and adds nothing, where 0 * -inf would be NaN
            finite = distribution.clamp(min=torch.finfo(torch.float32).min)
            probabilities = distribution.exp()
            terms = probabilities * finite if torch.is_grad_enabled() else probabilities.mul_(finite)  # no third table
            entropies = -terms.sum(-1)
        return torch.stack([chosen, entropies])  # (2, tokens)

    def forward(input_ids: torch.Tensor, sampled: torch.Tensor, **inputs: Any) -> torch.Tensor:
        predicting = sampled.roll(-1, dims=1)  # the position before a token predicts it
        predicting[:, -1] = False
        tokens = input_ids[sampled]
        with _head_only_at(model, predicting, tokens, score) as scored:
            logits = model(input_ids=input_ids, use_cache=False, **inputs).logits
        if scored and logits is not scored[0]:  # the model changes its logits in a way that no setting names
            with _head_only_at(model, predicting) as scored:
                logits = model(input_ids=input_ids, use_cache=False, **inputs).logits
        chosen, entropies = scored[0].T if scored else score(logits, tokens)
        zeros = chosen.new_zeros(sampled.shape)
        return torch.stack([zeros.masked_scatter(sampled, chosen), zeros.masked_scatter(sampled, entropies)])

    logprobs, entropies = over_rows(model, batch, forward)
    return logprobs, entropies


def over_rows(model: nn.Module, batch: TurnBatch, forward: Callable[..., torch.Tensor]) -> torch.Tensor:
    """
    Run a causal network over a batch: all rows as one without padding where that saves much and computes the same,
    else rows of similar length together where that saves much padding.

    Padded rows get no attention mask: padding is on the right, where no real token sees it.

    Args:
        model (`nn.Module`): The network. One that is shared out over ranks takes all rows at once, since every rank
            must call it equally often.
        batch (`TurnBatch`): `R` rows of `T` tokens.
        forward (`Callable`): Takes `input_ids` and `completion_mask` of `r` rows cut to `t` tokens, and further inputs
            of the network by name, and returns tables `(..., r, t)`.

    Returns:
        `torch.Tensor` of shape `(..., R, T)`: 0 beyond a row's group, or beyond its last token.
    """
    if runs_packed(model, batch):
        packed = PackedRows(batch.attention_mask)
        with packed.inputs_of(model) as inputs:
            row = forward(packed.take(batch.input_ids), packed.take(batch.completion_mask).bool(), **inputs)
        return packed.give(row)
    groups = [] if is_shared_out(model) else batch.rows_by_length()
    if len(groups) < 2:
        return forward(batch.input_ids, batch.completion_mask.bool())
    parts = []
    for rows, width in groups:
        table = forward(batch.input_ids[rows, :width], batch.completion_mask[rows, :width].bool())
        parts.append(nn.functional.pad(table, (0, batch.input_ids.shape[1] - width)))
    return torch.cat(parts, dim=-2)[..., torch.cat([rows for rows, _ in groups]).argsort(), :]


def positions_of(model: nn.Module, batch: TurnBatch) -> int:
    """
    Count the positions, padding included, that `over_rows` computes.

    Args:
        model (`nn.Module`): A network, or an [`ActorCritic`], wrapped or not, of which the actor counts.
        batch (`TurnBatch`): Its rows.
    """
    network = next((module.actor for module in model.modules() if isinstance(module, ActorCritic)), model)
    if runs_packed(network, batch):
        return int(batch.attention_mask.sum())
    return batch.input_ids.numel() if is_shared_out(network) else batch.num_positions


@contextmanager
def _head_only_at(
    model: nn.Module,
    positions: torch.Tensor,
    tokens: torch.Tensor | None = None,
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> Iterator[list[torch.Tensor]]:
    """
    Compute the language-model head at these positions only.

    From transformers 5.23 on `logits_to_keep` takes a boolean mask of shape `(B, T)`, which selects the same positions
    (`slice_logits_to_keep`); once that is the lowest version supported, the mask replaces the selection here.

    The model's own forward still applies whatever it does to logits (soft-capping, scaling), element by element, which
    calling the head by hand would leave out. Given `tokens` and `score`, a head whose table would be large gives the
    scores `(tokens, 2)` in place of logits, part by part; the list that the context gives then holds them.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    plain, made = head.forward, list[torch.Tensor]()
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    per_part = max(_MAX_LOGITS // config.vocab_size, 1)
    rescales = any(getattr(config, name, None) not in (None, 1.0) for name in _RESCALED_LOGITS)
    # ZeRO's third stage hands a module its weights for the forward only, not for making a part anew
    at_once = rescales or any(hasattr(parameter, "ds_id") for parameter in head.parameters())

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        if tokens is None or score is None or len(tokens) <= per_part or at_once:
            return plain(hidden[positions])

        def score_part(states: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
            return score(plain(states), part).T

        parts = zip(hidden[positions].split(per_part), tokens.split(per_part), strict=True)
        made.append(torch.cat([checkpoint(score_part, *part, use_reentrant=False) for part in parts]))
        return made[0]

    with _forward_of(head, forward):
        yield made


@contextmanager
def _unrounded_head(critic: nn.Module) -> Iterator[None]:
    """Compute a critic's head in the dtype of its weights: autocast would round values, which advantages subtract."""
    head = head_of(unadapted(critic))
    plain = head.forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        dtype = next(head.parameters()).dtype  # here, since FSDP2 may cast weights for the forward alone
        with torch.autocast(hidden.device.type, enabled=False):
            return plain(hidden.to(dtype) if dtype.is_floating_point else hidden)

    with _forward_of(head, forward):
        yield


@contextmanager
def _forward_of(module: nn.Module, forward: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Let a module compute something else for a while."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:  # of accelerate's hooks, for example
            module.forward = before


def critic_from_actor(actor: PreTrainedModel, kind: str = "separate", layers: int | None = None) -> PreTrainedModel:
    """
    Build a critic on the actor's backbone.

    Dropout is off, since a noisy baseline adds variance to every advantage, and the head is zero, so that the first
    advantages are plain returns.

    Args:
        actor ([`~transformers.PreTrainedModel`]): Causal language model, with adapters of PEFT or not.
        kind (`str`, *optional*, defaults to `"separate"`): `"separate"`: on a copy of the backbone, without adapters.
            `"lora"`: on the same layers in memory, without adapters. `"shared"`: on the actor's backbone itself.
        layers (`int`, *optional*): The first blocks that it has, before the final norm; all by default.

    Raises:
        `ValueError`: this architecture has no backbone that a head can stand on, or not as many blocks.
    """
    plain = unadapted(actor)
    config = copy.deepcopy(plain.config) if layers is None else first_layers(plain.config, layers)
    config.num_labels = 1
    config.dtype = actor.dtype  # else a file would be read in the dtype of the actor's
    critic = _skeleton(config, plain)
    _stand_on(critic, plain, kind, layers)
    head = head_of(critic).to_empty(device=actor.device)
    if kind == "separate" and plain is actor:
        critic.requires_grad_(True).to(actor.dtype)
    else:
        head.float()
        head.register_forward_pre_hook(lambda module, inputs: (inputs[0].to(module.weight.dtype),))
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
    disable_dropout(critic)
    return critic


def _skeleton(config: Any, actor: PreTrainedModel) -> PreTrainedModel:
    """Build a critic without memory, whose backbone has the modules of the actor's, or the first of them."""
    try:
        with torch.device("meta"):
            critic = AutoModelForTokenClassification.from_config(config)
        _, backbone = backbone_of(actor)
    except Exception as error:  # whatever the constructors of hundreds of architectures raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(
            f"No critic can be built on {config.model_type!r} ({reason}). Pass a `value_model`: any token classifier "
            "with one label that reads the actor's tokens; or take an algorithm without a critic "
            '(algorithm="grpo", "rloo" or "gigpo").'
        ) from error
    if type(critic.base_model) is not type(backbone):
        raise ValueError(
            f"The actor's backbone is a {type(backbone).__name__}, but {type(critic).__name__}, which its "
            f"configuration ({config.model_type!r}) leads to, has a {type(critic.base_model).__name__}, so its "
            "weights cannot be copied. Load the actor with AutoModelForCausalLM, or pass a `value_model`."
        )
    return critic


def _stand_on(critic: PreTrainedModel, actor: PreTrainedModel, kind: str, layers: int | None) -> None:
    """Give a critic without memory the actor's layers."""
    critic.name_or_path = actor.name_or_path  # the base that its adapter names
    _, backbone = backbone_of(actor)
    mine, whole = critic.base_model, len(list(backbone.parameters()))
    if kind == "shared":
        setattr(critic, critic.base_model_prefix, backbone)
    else:
        share_weights(mine, backbone)
    tensors = dict((*mine.named_parameters(), *mine.named_buffers()))
    is_left = kind != "shared" and actor.device.type != "meta"  # else the actor has no memory either
    without = next((name for name, tensor in tensors.items() if is_left and tensor.is_meta), None)
    is_whole = len(list(mine.parameters())) >= whole
    if without is not None or (layers is not None and layers < depth_of(actor.config) and is_whole):
        why = f"they have {without!r}, which the whole has not" if without else "its configuration does not set it"
        raise ValueError(
            f"`critic_layers` is {layers}, but the first blocks of {type(backbone).__name__} cannot be taken alone: "
            f"{why}. Leave `critic_layers` out."
        )
    if kind == "separate":
        setattr(critic, critic.base_model_prefix, copy.deepcopy(mine))


def disable_dropout(model: nn.Module) -> None:
    """Switch off dropout layers, and the rates that modules such as attention keep as plain numbers."""
    disable_dropout_in_model(model)
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
