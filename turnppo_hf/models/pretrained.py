"""A model's name in; the folder it lies in, downloaded where it has to be, and its networks out."""

from __future__ import annotations

from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification, PreTrainedModel
from transformers.utils import logging

from turnppo_hf.hub.client import fetch
from turnppo_hf.hub.exceptions import ReleaseError
from turnppo_hf.hub.files import CRITIC_FOLDER, check_is_model, read_json
from turnppo_hf.models.adapters import ADAPTER_CONFIG, load_adapted
from turnppo_hf.models.critic_layers import first_layers

# name -> folder in turnppo_hf/models
EMBEDDED_MODELS = {"tiny": "sokoban_tiny", "tiny-webshop": "webshop_tiny", "tiny-trained": "sokoban_turnppo"}


def find_model(model: str, **download: Any) -> Path:
    """
    Return the folder of a model: the embedded one, a local one, or a snapshot from the Hub.

    Args:
        model (`str`): Name, folder or repository.
        download: Passed to [`~turnppo_hf.hub.client.fetch`].

    Raises:
        `ReleaseError`: there is none.
    """
    if model in EMBEDDED_MODELS:
        return Path(str(files("turnppo_hf") / "models" / EMBEDDED_MODELS[model]))
    folder = Path(model)
    if folder.is_dir():
        check_is_model(folder, model)
        return folder
    try:
        return fetch(model, **download)
    except ReleaseError as error:
        raise ReleaseError(
            f"{error} {model!r} is no folder here either. Name the folder of a run, a model id on the Hub, or one of "
            f"{', '.join(EMBEDDED_MODELS)} in the package."
        ) from error


def load_agent_networks(folder: Path, dtype: Any) -> tuple[PreTrainedModel, PreTrainedModel | None]:
    """
    Load actor and critic, in evaluation mode, from safetensors only; either may be an adapter on a base model.

    Args:
        folder (`Path`): Checked by [`~turnppo_hf.hub.files.check_folder`].
        dtype (`torch.dtype` or `"auto"`): Of both.

    Returns:
        `tuple`: the actor, and the critic or `None`.
    """
    try:
        actor = _load_network(AutoModelForCausalLM, folder, dtype)
        critic = _load_critic(folder, dtype)
    except ReleaseError:
        raise
    except Exception as error:  # whatever transformers and its formats raise where files do not fit together
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ReleaseError(
            f"{str(folder)!r} cannot be loaded ({reason}). Its configuration and its weights do not fit together, or "
            "a file is damaged. Download or save it again."
        ) from error
    return actor.eval(), None if critic is None else critic.eval()


def _load_network(kind: Any, folder: Path, dtype: Any) -> PreTrainedModel:
    """Load a network, and refuse one with missing weights, which would be random numbers."""
    if (folder / ADAPTER_CONFIG).exists():
        return load_adapted(folder, partial(kind.from_pretrained, dtype=dtype, use_safetensors=True))
    network, info = kind.from_pretrained(folder, dtype=dtype, use_safetensors=True, output_loading_info=True)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ReleaseError(
            f"{str(folder)!r} lacks {len(missing)} of its weights, such as {missing[0]!r}; they would be random "
            "numbers. Download or save it again."
        )
    return network


def _load_critic(folder: Path, dtype: Any) -> PreTrainedModel | None:
    part = folder / CRITIC_FOLDER
    if not part.is_dir():
        return None
    if not (part / ADAPTER_CONFIG).exists():
        return _load_network(AutoModelForTokenClassification, part, dtype)
    blocks = read_json(part / ADAPTER_CONFIG).get("layer_replication") or [[0, None]]
    layers = blocks[0][1] if len(blocks) == 1 and blocks[0][0] == 0 else None
    critic: PreTrainedModel = load_adapted(part, partial(_load_critic_base, dtype=dtype, layers=layers))
    return critic


def _load_critic_base(base: str, dtype: Any, layers: int | None) -> PreTrainedModel:
    # transformers would look for the base model's configuration in a folder `critic` of the base, with two labels
    config = AutoConfig.from_pretrained(base, num_labels=1)
    if layers is not None:  # PEFT takes the blocks, and leaves the lists of the configuration as long as they were
        config = first_layers(config, layers)
    config.classifier_dropout = 0.0
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would warn of a head without weights, which the adapter brings
    try:
        backbone: PreTrainedModel = AutoModelForTokenClassification.from_pretrained(
            base, config=config, dtype=dtype, use_safetensors=True
        )
    finally:
        logging.set_verbosity(verbosity)
    return backbone
