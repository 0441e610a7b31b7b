"""A model's name in; the folder it lies in, downloaded where it has to be, and its networks out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from turnppo_hf.hub.client import fetch
from turnppo_hf.hub.exceptions import ReleaseError
from turnppo_hf.hub.files import CRITIC_FOLDER, EMBEDDED_MODELS, check_is_model, read_json
from turnppo_hf.models.adapters import ADAPTER_CONFIG, load_adapted
from turnppo_hf.models.critic_layers import first_layers


def find_model(model: str, *, revision: str | None = None, **download: Any) -> Path:
    """
    Return the folder of a model: the embedded one, a local one, or a snapshot from the Hub.

    Args:
        model (`str`): Name, folder or repository.
        revision (`str`, *optional*): Branch, tag or commit of a repository.
        download: Passed to [`~turnppo_hf.hub.client.fetch`].

    Raises:
        `ReleaseError`: there is none, or a revision of what lies on this machine is asked for.
    """
    if revision is not None and (model in EMBEDDED_MODELS or Path(model).is_dir()):
        raise ReleaseError(
            f"A revision ({revision!r}) names a commit on the Hub, and {model!r} lies on this machine, so it would "
            "have no effect. Leave it out."
        )
    if model in EMBEDDED_MODELS:
        return Path(str(files("turnppo_hf") / "models" / EMBEDDED_MODELS[model]))
    folder = Path(model)
    if folder.is_dir():
        check_is_model(folder, model)
        return folder
    try:
        return fetch(model, revision=revision, **download)
    except ReleaseError as error:
        raise ReleaseError(
            f"{error} {model!r} is no folder here either. Name the folder of a run, a model id on the Hub, or one of "
            f"{', '.join(EMBEDDED_MODELS)} in the package."
        ) from error


def load_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerBase:
    """
    Load the tokenizer of an agent.

    Args:
        folder (`Path`): Checked by [`~turnppo_hf.hub.files.check_folder`].
        name (`str`): What the user named, for the message.

    Raises:
        `ReleaseError`: there is none, or it cannot be read.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # whatever transformers and its formats raise
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ReleaseError(
            f"{name!r} has no tokenizer that can be read ({reason}). Name the folder that a run saved, not the "
            f"`{CRITIC_FOLDER}` in it, or save the tokenizer beside the model."
        ) from error
    return tokenizer


def load_agent_networks(folder: Path, dtype: Any, **download: Any) -> tuple[PreTrainedModel, PreTrainedModel | None]:
    """
    Load actor and critic, in evaluation mode, from safetensors only; either may be an adapter on a base model.

    Args:
        folder (`Path`): Checked by [`~turnppo_hf.hub.files.check_folder`].
        dtype (`torch.dtype` or `"auto"`): Of both.
        download: `token`, `cache_dir`, `force_download` and `local_files_only`, for an adapter's base model.

    Returns:
        `tuple`: the actor, and the critic or `None`.

    Raises:
        `ReleaseError`: they, or the base model of adapters, cannot be loaded.
    """
    loading = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False, **download}
    try:
        actor = _load_network(AutoModelForCausalLM, folder, loading)
        critic = _load_critic(folder, loading)
    except ReleaseError:
        raise
    except Exception as error:  # whatever transformers and its formats raise where files do not fit together
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ReleaseError(
            f"{str(folder)!r} cannot be loaded ({reason}). Its configuration and its weights do not fit together, or "
            "a file is damaged. Download or save it again."
        ) from error
    return actor.eval(), None if critic is None else critic.eval()


def _load_network(kind: Any, folder: Path, loading: Mapping[str, Any]) -> PreTrainedModel:
    """Load a network, and refuse one with missing weights, which would be random numbers."""
    if (folder / ADAPTER_CONFIG).exists():
        return load_adapted(folder, partial(_load_base, partial(kind.from_pretrained, **loading)))
    network, info = kind.from_pretrained(folder, output_loading_info=True, **loading)
    missing = sorted(info["missing_keys"])
    if missing:
        raise ReleaseError(
            f"{str(folder)!r} lacks {len(missing)} of its weights, such as {missing[0]!r}; they would be random "
            "numbers. Download or save it again."
        )
    return network


def _load_base(load: Callable[[str], Any], base: str) -> Any:
    try:
        return load(base)
    except (OSError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ReleaseError(
            f"The base model {base!r} of the adapters cannot be loaded ({reason}). It is read from the Hub or the "
            "cache, in safetensors, and no code of it is run. Give a `token` that may read it, or download it first."
        ) from error


def _load_critic(folder: Path, loading: Mapping[str, Any]) -> PreTrainedModel | None:
    part = folder / CRITIC_FOLDER
    if not part.is_dir():
        return None
    if not (part / ADAPTER_CONFIG).exists():
        return _load_network(AutoModelForTokenClassification, part, loading)
    blocks = read_json(part / ADAPTER_CONFIG).get("layer_replication") or [[0, None]]
    layers = blocks[0][1] if len(blocks) == 1 and blocks[0][0] == 0 else None
    load = partial(_load_critic_base, layers=layers, loading=loading)
    critic: PreTrainedModel = load_adapted(part, partial(_load_base, load))
    return critic


def _load_critic_base(base: str, layers: int | None, loading: Mapping[str, Any]) -> PreTrainedModel:
    # transformers would look for the base model's configuration in a folder `critic` of the base, with two labels
    of_config = {name: value for name, value in loading.items() if name not in ("dtype", "use_safetensors")}
    config = AutoConfig.from_pretrained(base, num_labels=1, **of_config)
    if layers is not None:  # PEFT takes the blocks, and leaves the lists of the configuration as long as they were
        config = first_layers(config, layers)
    config.classifier_dropout = 0.0
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would warn of a head without weights, which the adapter brings
    try:
        backbone: PreTrainedModel = AutoModelForTokenClassification.from_pretrained(base, config=config, **loading)
    finally:
        logging.set_verbosity(verbosity)
    return backbone
