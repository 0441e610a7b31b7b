"""Every field of TrainingArguments and of GRPOConfig acts here, is refused by name, or asks for nothing; a walk."""

from __future__ import annotations

import importlib
import inspect
import json
import os
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments
from transformers.integrations import integration_utils
from transformers.trainer_callback import ExportableState
from trl import GRPOConfig

from tests.helpers.inherited_fields import ACTS, ELSEWHERE, HANDED_ON, HARMLESS, callbacks
from tests.helpers.tiny import tiny_actor
from turnppo_hf import TurnPPOConfig
from turnppo_hf.cli.main import main
from turnppo_hf.trainer.inherited_fields import LACKING, OTHER_NAMES, REFUSED

ROOT = Path(__file__).parents[2]
INHERITED = {item.name: item for item in fields(TrainingArguments)}
OF_GRPO = {item.name for item in fields(GRPOConfig)} - set(INHERITED)
OURS = {item.name for item in fields(TurnPPOConfig)}

# a value of each refused field that someone may set
SET: dict[str, Any] = {
    "accelerator_config": {"dispatch_batches": True},
    "ddp_bucket_cap_mb": 25,
    "include_for_metrics": ["inputs"],
    "include_num_input_tokens_seen": "all",
    "label_names": ["labels"],
    "label_smoothing_factor": 0.1,
    "liger_kernel_config": {"rope": True},
    "neftune_noise_alpha": 5.0,
    "optim_target_modules": "all-linear",
    "parallelism_config": "cp",
    "torch_compile_backend": "eager",
    "torch_compile_mode": "default",
    "torch_empty_cache_steps": 2,
    "train_sampling_strategy": "group_by_length",
}


def config(**values: Any) -> TurnPPOConfig:
    return TurnPPOConfig("unused", use_cpu=True, **values)


def test_every_field_is_classified_once() -> None:
    kinds = [set(table) for table in (ACTS, ELSEWHERE, HANDED_ON, HARMLESS, REFUSED)]
    known = set().union(*kinds)
    # a name may belong to a version of transformers that is not the one installed
    assert set(INHERITED) <= known
    assert sum(map(len, kinds)) == len(known), "a field is in two tables"
    assert OF_GRPO - OURS <= set(LACKING) and not set(LACKING) & OURS
    assert set(SET) <= set(REFUSED)


def test_a_new_field_of_transformers_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INHERITED, "new_field", None)
    with pytest.raises(AssertionError):
        test_every_field_is_classified_once()


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_field_is_named_with_the_reason(name: str) -> None:
    if name not in INHERITED:
        pytest.skip("not a field of this version of transformers")
    with pytest.raises(ValueError) as caught:
        config(**{name: SET.get(name, True)})
    why, instead = REFUSED[name]
    assert str(caught.value) == f"`{name}` is {SET.get(name, True)!r}, but {why}. {instead}."


def test_values_that_ask_for_what_happens_anyway_are_taken() -> None:
    made = config(accelerator_config={}, neftune_noise_alpha=0, include_num_input_tokens_seen=False)
    again = TurnPPOConfig(**{item.name: getattr(made, item.name) for item in fields(made) if item.init})
    assert again.to_dict() == made.to_dict()
    saved = json.loads(made.to_json_string())  # training_config.json
    assert TurnPPOConfig(**saved).to_dict() == made.to_dict()


@pytest.mark.parametrize("name", sorted(LACKING))
def test_field_of_grpo_that_is_lacking_is_named_with_what_to_use(name: str) -> None:
    why, instead = LACKING[name]
    with pytest.raises(TypeError) as caught:
        config(**{name: 1})
    assert str(caught.value) == f"TurnPPOConfig lacks GRPOConfig's `{name}`: {why}. {instead}."
    named = {word for word in instead.split("`") if word.isidentifier()}
    assert named <= OURS | {"trajectories"}, "it names a field that is not there"


def test_name_of_another_library_comes_with_the_one_here() -> None:
    assert set(OTHER_NAMES.values()) <= OURS and not set(OTHER_NAMES) & OURS
    with pytest.raises(TypeError, match=r"`ppo_epochs` is no field.*no effect.*Set `num_iterations`"):
        config(ppo_epochs=4)


def test_lacking_field_in_a_file_and_as_a_flag_is_named_as_in_python(tmp_path: Path, capsys: Any) -> None:
    why, _ = LACKING["loss_type"]
    text = "model: tiny\nenvironment: turnppo_hf/Sokoban-v0\n"
    (file := tmp_path / "run.yaml").write_text(f"{text}loss_type: dapo\n")
    assert main(["train", str(file)]) == 2 and why in capsys.readouterr().err
    file.write_text(text)
    assert main(["train", str(file), "--loss-type", "dapo"]) == 2 and why in capsys.readouterr().err


@pytest.mark.parametrize(
    "optimizer", ["galore_adamw", "galore_adafactor_layerwise", "apollo_adamw", "lomo", "adalomo"]
)
def test_optimizers_of_layers_are_refused(optimizer: str) -> None:
    with pytest.raises(ValueError, match=f"`optim` is '{optimizer}', which is made of a model's layers"):
        config(optim=optimizer)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"optim": "adamw_torhc"}, "Did you mean 'adamw_torch'"),
        ({"optim": "adamw_torch_npu_fused"}, "cannot be used"),
        ({"optim_args": "a"}, "no list of arguments"),
        ({"optim_args": "beta=0.9"}, "reads none of it"),
        ({"log_level": "x"}, "`log_level` must be one of"),
        ({"log_level_replica": "warn"}, "Did you mean 'warning'"),
        ({"lr_scheduler_type": "cosin"}, "Did you mean 'cosine'"),
        ({"eval_strategy": "step"}, "Did you mean 'steps'"),
        ({"save_strategy": "never"}, "`save_strategy` must be one of"),
        ({"logging_steps": float("inf")}, "`logging_steps` must be a finite number"),
        ({"logging_steps": float("nan")}, "`logging_steps` must be at least 0"),
        ({"warmup_steps": float("-inf")}, "finite number"),
        ({"save_steps": 0}, "`save_steps` must be positive"),
        ({"load_best_model_at_end": True}, "not every checkpoint has a score"),
        ({"max_steps": 10**30}, "`max_steps` must be between"),
        ({"adam_beta1": 1.5}, "`adam_beta1` must be between 0 and 1"),
        ({"weight_decay": -0.1}, "weights would grow"),
        ({"seed": -1}, "generators of 32 bits"),
        ({"min_p": 1.5}, "share of the likeliest"),
        ({"num_generations_eval": 4}, "would be the same one"),
        ({"temperature": float("inf")}, "finite number"),
    ],
)
def test_value_that_cannot_work_is_one_sentence(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match="`") as caught:
        config(**values)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"gamma": "0.9"}, {"gamma": None}, {"gamma": True}, {"max_turns": 2.5}, {"max_steps": "10"},
        {"use_cpu": "false"}, {"shuffle_dataset": 1}, {"learning_rate": "1e-6"}, {"logging_steps": [1]},
    ],
)  # fmt: skip
def test_value_of_another_type_is_one_sentence(values: dict[str, Any]) -> None:
    [(name, value)] = values.items()
    with pytest.raises(TypeError, match=f"`{name}` must be (a number|an integer|True or False), got ") as caught:
        TurnPPOConfig("unused", **values)
    assert repr(value) in str(caught.value)


def test_infinity_that_switches_a_limit_off_is_taken() -> None:
    made = config(max_grad_norm=float("inf"), epsilon_high=float("inf"), vtrace_rho_max=float("inf"))
    assert made.max_grad_norm == made.epsilon_high == made.vtrace_rho_max == float("inf")


@pytest.fixture
def observe(make_trainer: Callable[..., Any], tiny_tokenizer: Any) -> Callable[..., Any]:
    """Train for a moment with settings, and return what the table looks at."""

    def run(look: Callable[[Any], Any], settings: dict[str, Any], *, trains: bool = True) -> Any:
        actor = tiny_actor(
            vocab_size=len(tiny_tokenizer), tie_word_embeddings=True, eos_token_id=tiny_tokenizer.eos_token_id,
            pad_token_id=tiny_tokenizer.pad_token_id, bos_token_id=None,
        )  # fmt: skip
        rows = Dataset.from_dict({"seed": range(8)})
        base = {"model": actor, "generation_batch_size": 4, "train_dataset": rows, "eval_dataset": rows,
                "overwrite_output_dir": True, "use_cpu": True}  # fmt: skip
        trainer = make_trainer(**{**base, **settings})
        if trains:
            trainer.train()
        return look(trainer)

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ACTS))
def test_field_acts(name: str, observe: Callable[..., Any]) -> None:
    proof = ACTS[name]
    if name not in INHERITED:
        pytest.skip("not a field of this version of transformers")
    before = torch.are_deterministic_algorithms_enabled()
    try:
        seen = observe(proof.look, {**proof.given, name: proof.value}, trains=proof.trains)
        torch.use_deterministic_algorithms(before)
        without = observe(proof.look, proof.given, trains=proof.trains)
    finally:
        torch.use_deterministic_algorithms(before)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
    assert seen != without


def test_the_walk_itself_notices_a_field_that_does_nothing(observe: Callable[..., Any]) -> None:
    look = ACTS["learning_rate"].look
    assert observe(look, {"per_device_eval_batch_size": 3}) == observe(look, {})  # a harmless one


@pytest.mark.parametrize("name", sorted(ELSEWHERE))
def test_field_that_is_proved_elsewhere_stands_in_that_test(name: str) -> None:
    text = (ROOT / ELSEWHERE[name]).read_text("utf-8")
    assert name in text, f"{ELSEWHERE[name]} does not set it"


@pytest.mark.parametrize("name", sorted(HANDED_ON))
def test_field_that_is_handed_on_is_read_there(name: str) -> None:
    if name not in INHERITED:
        pytest.skip("not a field of this version of transformers")
    text = inspect.getsource(importlib.import_module(HANDED_ON[name]))
    assert f"args.{name}" in text or f"self.{name}" in text


@pytest.mark.parametrize(("here", "name"), [("should_log", "log_on_each_node"), ("should_save", "save_on_each_node")])
def test_first_process_of_a_further_node_follows_its_field(here: str, name: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(TurnPPOConfig, "process_index", property(lambda self: 8))
    monkeypatch.setattr(TurnPPOConfig, "local_process_index", property(lambda self: 0))
    found = [getattr(config(**{name: value}), here) for value in (True, False)]
    assert found == [True, False]


def test_log_level_of_further_processes_is_their_own(monkeypatch: Any) -> None:
    made = config(log_level="info", log_level_replica="error")
    first = made.get_process_log_level()
    monkeypatch.setattr(TurnPPOConfig, "should_log", property(lambda self: False))
    assert (first, made.get_process_log_level()) == (20, 40)


def test_use_cpu_leaves_an_accelerator_alone(monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert not config().bf16 and config().device.type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the card may have TF32")
def test_tf32_reaches_torch_or_is_refused() -> None:
    with pytest.raises(ValueError, match="tf32"):
        config(tf32=True)
    assert config(tf32=False).tf32 is False


def test_optim_args_reach_the_optimizer(make_trainer: Any) -> None:
    pytest.importorskip("bitsandbytes")
    values = "beta1=0.5,beta2=0.6,beta3=0.7,alpha=2.0"
    optimizer = make_trainer(optim="ademamix", optim_args=values).create_optimizer()
    assert optimizer.defaults["betas"] == (0.5, 0.6, 0.7)


def test_report_to_adds_the_trackers_callback(make_trainer: Any, monkeypatch: Any) -> None:
    class Tracker(TrainerCallback):
        pass

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    assert "Tracker" in callbacks(make_trainer(report_to="tensorboard")) and "Tracker" not in callbacks(make_trainer())


class Remembers(TrainerCallback, ExportableState):
    """Has a number that a checkpoint keeps."""

    def __init__(self, number: int = 0) -> None:
        self.number = number

    def state(self) -> dict[str, Any]:
        return {"args": {"number": self.number}, "attributes": {}}


@pytest.mark.slow
@pytest.mark.parametrize("restores", [True, False])
def test_states_of_callbacks_come_back_where_asked(restores: bool, make_trainer: Any) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1, "use_cpu": True}
    trainer = make_trainer(max_steps=1, **saving)
    trainer.add_callback(Remembers(7))
    trainer.train()
    again = make_trainer(max_steps=2, restore_callback_states_from_checkpoint=restores, **saving)
    again.add_callback(Remembers(1))
    again.train(resume_from_checkpoint=True)
    [found] = [item.number for item in again.callback_handler.callbacks if isinstance(item, Remembers)]
    assert found == (7 if restores else 1)
