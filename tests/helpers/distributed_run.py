"""Train the tiny actor for some steps, case by case, and write what every step did: by one process or by several."""

import contextlib
import hashlib
import json
import math
import sys
import time
from functools import partial
from pathlib import Path

import torch
from accelerate.utils import gather_object
from datasets import Dataset, IterableDataset
from peft import LoraConfig
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor
from transformers import AutoTokenizer, TrainerCallback
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from tests.helpers.families import family_actor
from tests.helpers.scripted import CountingEnvironment
from turnppo_hf import TurnPPOConfig, TurnPPOTrainer
from turnppo_hf.models.adapters import number_in
from turnppo_hf.ppo.batch import TurnBatch
from turnppo_hf.trainer import collector
from turnppo_hf.trainer.distributed import Sharding, asks_for, leave_together, whole, whole_gradient
from turnppo_hf.trainer.first_rank_weights import FirstRanksWeights
from turnppo_hf.trainer.replacement import Replacements
from turnppo_hf.trajectory import StopReason

LOGGED = (
    *("loss", "advantages/mean", "advantages/std", "grad_norm/actor", "grad_norm/critic", "updates/skipped"),
    *("groups/equal_share", "groups/replaced", "tasks/decided_share", "collapse/rollbacks", "collapse/back_to_step"),
)
EMBEDDED = Path(__file__).parents[2] / "turnppo_hf" / "models" / "sokoban_tiny"


class Ragged(CountingEnvironment):
    """Fails for the seeds given, so that ranks hold unequal shares or none."""

    failing: frozenset[int] = frozenset()

    def reset(self, *, seed=None, options=None):
        if seed in self.failing:
            raise RuntimeError("not this one")
        return super().reset(seed=seed, options=options)


class Recorder(TrainerCallback):
    """Keeps each step's gradients, as the optimizer gets them."""

    def __init__(self):
        self.tensors, self.trainer = {}, None

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if self.trainer.sharding.skips_step:  # there is no gradient, and ZeRO-2's ranks do not agree on how to say so
            return
        for name, parameter in self.trainer.model.named_parameters():
            gradient = whole_gradient(parameter)
            if gradient is not None:
                self.tensors[f"gradient.{state.global_step}.{name}"] = gradient.detach().clone()


def seeds():
    """The tasks that a run without a dataset makes itself, one at a time."""
    for seed in range(1000):
        yield {"seed": seed}


def actor_of(family, tokenizer):
    """A random actor that answers as the embedded one's tokenizer reads; the same on every rank."""
    unset_hf_deepspeed_config()  # an earlier case's, which would have it made in ZeRO-3's partitions
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    return family_actor(family, vocab_size=len(tokenizer), max_position_embeddings=2048, **ids)


def watch_loading():
    """Return a list that gets this rank's share of weights that it holds before they are sharded."""
    shares, sharded = [], Sharding.cut

    def cut(sharding, networks, whole_on):
        Sharding.cut = sharded
        held = [parameter.numel() * (not parameter.is_meta) for parameter in networks.parameters()]
        shares.append(sum(held) / sum(parameter.numel() for parameter in networks.parameters()))
        return sharded(sharding, networks, whole_on)

    Sharding.cut = cut
    return shares


@contextlib.contextmanager
def watch_filling():
    """Yield a list that gets how many numbers each call fills that no call before has filled."""
    counts, fill = [], FirstRanksWeights.fill

    def watched(weights, part):
        counts.append(sum(parameter.numel() for parameter in part.parameters() if parameter in weights._holders))
        fill(weights, part)

    FirstRanksWeights.fill = watched
    try:
        yield counts
    finally:
        FirstRanksWeights.fill = fill


def in_chunks(number):
    return lambda batch, _: list(torch.arange(len(batch)).chunk(number)) if len(batch) else []


def break_step(trainer, rank, step, what):
    """
    Make a loss or a sampled log-prob NaN, on one rank and in one optimizer step, counted from 0, or the entries of a
    collapse of what this rank logs in the five steps from that one on.
    """
    backward, collect, look = trainer.sharding.backward, trainer.collector.collect, trainer.collapse.look

    def broken_look(entry, number, control):
        if trainer.args.process_index == rank and what == "log" and step < number <= step + 5:
            entry = {**entry, "reward_std": 0.0, "penalty_std": 0.0, "success": 0.0}
        return look(entry, number, control)

    def broken_backward(loss):
        here = trainer.args.process_index == rank and trainer.state.global_step == step and what == "gradient"
        backward(loss * math.nan if here else loss)

    def broken_collect(rows, batch_number):
        mine, everyone = collect(rows, batch_number)
        if trainer.args.process_index == rank and batch_number == step and what == "samples":
            turn = mine[0].turns[0]
            object.__setattr__(turn, "sampling_logprobs", (math.nan, *turn.sampling_logprobs[1:]))
        return mine, everyone

    trainer.sharding.backward, trainer.collector.collect = broken_backward, broken_collect
    trainer.collapse.look = broken_look


def settings_of(algorithm):
    """What a case has where it does not say otherwise."""
    return {
        "num_generations": None if "ppo" in algorithm else 2,
        "max_steps": 2,
        "generation_batch_size": 8,
        "optim": "sgd",
        "learning_rate": 1e-3,
        "max_turn_length": 4,
        "max_turns": 2,
        "shuffle_dataset": False,
        "max_failed_share": 0.9,
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
    }


def run(
    folder,
    name,
    *,
    failing=(),
    micro_batches=None,
    algorithm="turn_ppo",
    resume=None,
    stream=False,
    lora=None,
    family=None,
    poison=None,
    **fields,
):
    """Train one case, with plain SGD where it does not say otherwise, and return what was recorded on the way."""
    Ragged.failing = frozenset(failing)
    # ranks hold unequal shares only where nothing takes the place of what failed
    collector.Replacements = partial(Replacements, rounds=0)
    cut = TurnBatch.micro_batches
    if micro_batches:
        TurnBatch.micro_batches = in_chunks(micro_batches)
    settings = settings_of(algorithm)
    if fields.get("use_vllm"):
        collector.check_engine = lambda *_, **__: None  # the fake server computes nothing
    recorder, tokenizer = Recorder(), AutoTokenizer.from_pretrained(EMBEDDED)
    loaded = watch_loading()
    with watch_filling() as filled:
        trainer = TurnPPOTrainer(
            model=str(EMBEDDED) if family is None else actor_of(family, tokenizer),
            args=TurnPPOConfig(str(folder / name), algorithm=algorithm, **{**settings, **fields}),
            processing_class=tokenizer,
            callbacks=[recorder],
            environment_factory=Ragged,
            peft_config=LoraConfig(**lora) if lora else None,
            train_dataset=IterableDataset.from_generator(seeds) if stream else None,
        )
    recorder.trainer = trainer
    if poison is not None:
        break_step(trainer, **poison)
    trainer.train(resume_from_checkpoint=None if resume is None else str(folder / resume))
    TurnBatch.micro_batches, collector.Replacements = cut, Replacements
    tensors = recorder.tensors
    for path, parameter in trainer.model.named_parameters():
        with whole(parameter) as full:
            tensors[f"weight.{path}"] = full.detach().clone()
    digest = hashlib.sha256()
    for key in sorted(tensors):
        if key.startswith("weight."):
            digest.update(tensors[key].numpy().tobytes())
    of_ranks = gather_object([(digest.hexdigest(), trainer.collapse.num_rollbacks)])
    tensors["ranks_agree"] = torch.tensor(len(set(of_ranks)) == 1)
    tensors["loaded"] = torch.tensor([share for item in gather_object([loaded]) for share in item])
    total = sum(number_in(parameter) for parameter in trainer.model.parameters())
    tensors["filled"] = torch.tensor(max(filled, default=0) / total)
    tensors["cut"] = torch.tensor(all(isinstance(p, DTensor) for p in trainer.model.parameters()))
    played = [item for item in trainer._last_trajectories if item.stop_reason is not StopReason.ERROR]
    tensors["played"] = torch.tensor([len(trainer._last_trajectories), len(played)])
    for entry in trainer.state.log_history:
        for key in LOGGED:
            if key in entry:
                tensors[f"log.{entry['step']}.{key}"] = torch.tensor(entry[key], dtype=torch.float64)
    trainer.save_model()
    scores = trainer.evaluate(Dataset.from_dict({"seed": range(100, 105)}))
    tensors["log.eval"] = torch.tensor(scores["eval_reward"], dtype=torch.float64)
    if trainer.accelerator.is_main_process:
        save_file(tensors, folder / f"{name}.safetensors")
    return tensors


def main(folder: Path, cases: str) -> None:
    """Train each case of a JSON list; the launch says over how many processes, and how they share the networks."""
    for case in json.loads(cases):
        run(folder, **case)


def gloo_threads():
    """The names of this process's threads that abort it where they outlive the interpreter."""
    names = []
    for task in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # it has just ended
            names.append(task.read_text().strip())
    return [name for name in names if "gloo" in name]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
    leave_together()
    if not (asks_for("FSDP") or asks_for("DEEPSPEED")):  # these keep the group for as long as the process lives
        for _ in range(100):  # a thread that was joined is listed for a moment
            if not (left := gloo_threads()):
                break
            time.sleep(0.1)
        assert not left, left
