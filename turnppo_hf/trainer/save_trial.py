"""Networks and settings in, nothing out: what a training will save is saved and read before its first step."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from turnppo_hf.hub.agent_record import AgentRecord
from turnppo_hf.hub.files import CRITIC_FOLDER
from turnppo_hf.models.actor_critic import ActorCritic
from turnppo_hf.models.adapters import is_adapted
from turnppo_hf.models.checkpoint import load_networks
from turnppo_hf.trainer.checkpoints import CheckpointError, on_first_rank
from turnppo_hf.trainer.distributed import Sharding
from turnppo_hf.trainer.ending import randomness_kept
from turnppo_hf.trainer.hub_push import HubPusher
from turnppo_hf.trainer.saving import save_run
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig

_FOLDER = "_saving-checkpoint-trial"  # what an interrupted write is called, so that the next run removes it
_WHOLE_BYTES = 64 * 2**20  # of networks that are saved whole; of larger ones all but the weights

logger = logging.get_logger(__name__)


def try_saving(
    args: TurnPPOConfig,
    networks: ActorCritic,
    tokenizer: PreTrainedTokenizerBase,
    record: AgentRecord,
    sharding: Sharding,
    hub: HubPusher,
) -> None:
    """
    Save what the training will save, read it, and ask the Hub whether it may be pushed; every rank calls it.

    Small networks are saved whole and their weights compared. Of larger ones, which would fill the disk twice, all but
    the weights is saved, and the shapes that the saved configuration asks for are compared.

    Args:
        args ([`TurnPPOConfig`]): The configuration.
        networks ([`~turnppo_hf.models.actor_critic.ActorCritic`]): Unwrapped.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The actor's.
        record (`AgentRecord`): Of the run.
        sharding (`Sharding`): How the launch cuts networks.
        hub ([`HubPusher`]): Asked where `push_to_hub` is set.

    Raises:
        [`~turnppo_hf.trainer.checkpoints.CheckpointError`]: on every rank, something cannot be saved or read.
        [`~turnppo_hf.hub.exceptions.PushError`]: on the first rank, no push could ever succeed.
    """
    for name, network in networks.networks.items():
        _settle_generation(name, network)
    if args.save_strategy == "no" and not args.push_to_hub:  # what ends such a run early is saved all the same
        return
    folder = Path(str(args.output_dir)) / _FOLDER

    def attempt() -> None:
        try:
            with randomness_kept():
                _save_and_read(folder, args, networks, tokenizer, record, sharding)
        except Exception as error:  # each tokenizer and model saves and loads in its own way
            text = str(error).strip().split("\n")[0]
            raise CheckpointError(
                f"What the training will save cannot be saved and read again ({type(error).__name__}: {text}), so its "
                "first checkpoint would end the run. Correct the model's or the tokenizer's files, or take others."
            ) from error

    try:
        on_first_rank(args, attempt)
        if args.push_to_hub and args.process_index == 0:
            hub.rehearse(folder)
    finally:
        if args.process_index == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _settle_generation(name: str, network: PreTrainedModel) -> None:
    """
    Make generation settings ones that can be saved: several models ship with a temperature and without sampling.

    Raises:
        `CheckpointError`: they cannot be saved in any way.
    """
    settings = getattr(network, "generation_config", None)
    if settings is None:
        return
    try:
        settings.validate(strict=True)
        return
    except ValueError as error:
        reason = next((line for line in str(error).split("\n") if line.startswith("- ")), str(error))
    was_sampling, settings.do_sample = settings.do_sample, True
    try:
        settings.validate(strict=True)
    except ValueError:
        settings.do_sample = was_sampling
        raise CheckpointError(
            f"The {name}'s `generation_config` cannot be saved ({reason.removeprefix('- ')[:200]}), so the first "
            "checkpoint would end the run. Correct it on the model, or set `model.generation_config = "
            "GenerationConfig()`."
        ) from None
    logger.warning(
        "The %s's `generation_config` sets how to sample without `do_sample`, which cannot be saved. `do_sample` is "
        "True in what is saved; training does not use it.",
        name,
    )


def _save_and_read(
    folder: Path,
    args: TurnPPOConfig,
    networks: ActorCritic,
    tokenizer: PreTrainedTokenizerBase,
    record: AgentRecord,
    sharding: Sharding,
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    parts = list(networks.networks.values())
    size = sum(item.numel() * item.element_size() for part in parts for item in part.parameters())
    is_quantized = any(getattr(part, "is_quantized", False) for part in parts)
    if size > _WHOLE_BYTES or sharding.is_split or is_quantized:
        with sharding.making_whole():  # of the others, no rank is here
            _save_and_read_settings(folder, networks, tokenizer, record)
        return
    save_run(str(folder), networks, tokenizer, record, args, sharding)
    read = copy.deepcopy(networks)
    trained = [(name, item) for name, item in read.named_parameters() if item.requires_grad]
    with torch.no_grad():
        for _, item in trained:
            item.zero_()
    load_networks(read, str(folder))
    expected = dict(networks.named_parameters())
    for name, item in trained:
        if not torch.equal(item, expected[name]):
            raise ValueError(f"the weights {name!r} are read as others than they were")


def _save_and_read_settings(
    folder: Path, networks: ActorCritic, tokenizer: PreTrainedTokenizerBase, record: AgentRecord
) -> None:
    tokenizer.save_pretrained(folder)
    record.save(folder)
    of_actor = {id(item) for item in networks.actor.parameters()}
    for name, network in networks.networks.items():
        part = folder / CRITIC_FOLDER if name == "critic" else folder
        part.mkdir(exist_ok=True)
        if is_adapted(network):
            for config in network.peft_config.values():
                config.save_pretrained(str(part))
            continue
        network.config.save_pretrained(part)
        if getattr(network, "generation_config", None) is not None:
            network.generation_config.save_pretrained(part)
        if getattr(network, "is_quantized", False):
            continue
        with torch.device("meta"):
            again = type(network)(AutoConfig.from_pretrained(part))
        state = network.state_dict(keep_vars=True)
        shapes = {key: tuple(getattr(value, "ds_shape", value.shape)) for key, value in state.items()}  # ZeRO-3's: cut
        asked = {key: tuple(value.shape) for key, value in again.state_dict().items()}
        if name == "critic" and of_actor & {id(item) for item in network.parameters()}:
            # on the actor's layers, which may be adapted or quantized, it saves what is its own
            own = {key for key, item in network.named_parameters() if id(item) not in of_actor}
            shapes, asked = ({key: table[key] for key in own & table.keys()} for table in (shapes, asked))
        for key, shape in asked.items():
            if shape != shapes.get(key):
                raise ValueError(f"the saved configuration asks for {key!r} {shape}, not {shapes.get(key)}")
