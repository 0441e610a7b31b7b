"""`turnppo train`: a YAML file and flags in; a trained agent, evaluated before and after, and `results.json` out."""

from __future__ import annotations

import argparse
import json
import math
import re
import signal
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import gymnasium
from accelerate.utils import gather_object
from transformers import AutoConfig

from turnppo_hf.agent import TurnPPOAgent
from turnppo_hf.cli.common import hide_loading_bars, warn_of_seen_levels
from turnppo_hf.cli.train_arguments import RunConfig, RunConfigError, TaskArguments, build_parser, parse_run
from turnppo_hf.environments import make_environment
from turnppo_hf.evaluation.calibration import judge_critic
from turnppo_hf.evaluation.example import examples_of
from turnppo_hf.evaluation.outcome import wilson_interval
from turnppo_hf.evaluation.replay import describe_replay, shown_episode
from turnppo_hf.evaluation.results import RESULTS_FILE, HeldOut, LearningPoint, RunResults
from turnppo_hf.evaluation.summary import Summary, comparison_table, describe_openings, reference_players, summarize
from turnppo_hf.hub.files import CRITIC_FOLDER, EMBEDDED_MODELS
from turnppo_hf.hub.run_record import EPISODES_FILE, TRAIN_CONFIG, package_version
from turnppo_hf.models.adapters import ADAPTER_CONFIG, is_adapted, number_in, trained
from turnppo_hf.models.critic_layers import depth_of
from turnppo_hf.models.pretrained import find_model
from turnppo_hf.ppo.algorithms import ALGORITHMS
from turnppo_hf.redaction import redact, redact_text
from turnppo_hf.rollout.parquet import save_trajectories
from turnppo_hf.trainer.interruptions import interruptible
from turnppo_hf.trainer.progress import faults_of
from turnppo_hf.trainer.rollout_batch import check_failures
from turnppo_hf.trainer.run_end import Score, describe_end, describe_learning
from turnppo_hf.trainer.schedule_free import judged_weights
from turnppo_hf.trainer.threads import describe_threads, take_worth
from turnppo_hf.trainer.turn_ppo_trainer import TurnPPOTrainer
from turnppo_hf.trajectory import Trajectory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take every word as it is: `run` reads the words with TRL's parser, `--help` among them."""
    parser.prefix_chars = "\0"  # so that no word is a flag here
    parser.add_argument("words", nargs="*")


def run(arguments: argparse.Namespace) -> int:
    """Train as the file and the flags ask for, or print the help of their fields."""
    if {"-h", "--help"} & set(arguments.words):
        build_parser().print_help()
        raise SystemExit(0)  # as argparse does
    asked = parse_run(arguments.words)
    hide_loading_bars()
    try:
        with interruptible(exits=True):
            run_training(asked, owns_threads=arguments.owns_torch)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


@dataclass(frozen=True)
class Tasks:
    """What is trained on and what is held out."""

    train: list[dict[str, Any]]  # rows; `seed` resets the environment, other columns are the reset's options
    held_out: list[dict[str, Any]]
    held_out_kwargs: dict[str, Any]  # arguments of the held-out environment


def choose_tasks(task: TaskArguments) -> Tasks:
    """
    Lay out training and held-out tasks.

    Raises:
        `RunConfigError`: the dataset cannot be read, or has no split `train`.
    """
    assert isinstance(task.environment_kwargs, dict) and isinstance(task.eval_environment_kwargs, dict)
    train: list[dict[str, Any]] = [{"seed": seed} for seed in range(task.num_tasks)]
    seeds = range(task.eval_seed_start, task.eval_seed_start + task.eval_episodes)
    held_out: list[dict[str, Any]] = [{"seed": seed} for seed in seeds]
    if task.dataset is not None:
        splits = _load_splits(task.dataset)
        train = _rows(splits["train"])
        if "test" in splits:
            held_out = _rows(splits["test"])[: task.eval_episodes]
    held_out_kwargs = {**task.environment_kwargs, **task.eval_environment_kwargs}
    if task.dataset is None:  # else its rows are the tasks
        warn_of_seen_levels(task.environment, task.environment_kwargs, held_out_kwargs)
    return Tasks(train, held_out, held_out_kwargs)


def run_training(run: RunConfig, *, owns_threads: bool = False) -> RunResults:
    """
    Train and evaluate.

    Args:
        run ([`RunConfig`]): The task and the trainer's configuration.
        owns_threads (`bool`, *optional*, defaults to `False`): Whether nobody can have set PyTorch's number of
            threads in this process, so that a small model may take fewer.

    Returns:
        [`RunResults`]: what `results.json` in the output folder holds; on every rank.
    """
    tasks = choose_tasks(run.task)
    held_out_environment = partial(make_environment, run.task.environment, **tasks.held_out_kwargs)
    start = time.perf_counter()
    trainer = make_trainer(run, tasks, held_out_environment)
    if owns_threads:
        take_worth(run.training, trainer.model.actor)
    trainer.clock.start = start
    trainer.ending.resume_with = f"{run.typed} --resume_from_checkpoint true"
    with trainer.opened(run.training.resume_from_checkpoint) as checkpoint:
        return _train_and_judge(run, tasks, trainer, held_out_environment, checkpoint)


def _train_and_judge(
    run: RunConfig,
    tasks: Tasks,
    trainer: TurnPPOTrainer,
    held_out_environment: Callable[[], gymnasium.Env],
    checkpoint: str | None,
) -> RunResults:
    args = run.training
    is_main = args.process_index == 0
    if is_main:
        print(describe_run(run, tasks, trainer), flush=True)
        if checkpoint is not None:
            print(f"  {'resumed':<12}{checkpoint}", flush=True)

    play = partial(_play_held_out, trainer, held_out_environment, tasks.held_out)
    check_failures(untrained := play(), args.max_failed_share)
    before, references = summarize(untrained), {}
    if is_main:
        references = reference_players(held_out_environment, tasks.held_out, max_turns=args.max_turns)
        table = f"{comparison_table({'before': before, **references})}\n{describe_openings(untrained)}"
        print(f"\nHeld out, before training\n{table}", flush=True)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model(args.output_dir, _internal_call=True)  # else it would push, before the results are there
    trainer.accelerator.wait_for_everyone()
    episodes = play()

    duration = trainer.clock.read()
    results = replace(_results(run, tasks, trainer, before, episodes, references), duration_s=duration)
    if is_main:
        folder = Path(args.output_dir)
        results.save(folder)
        (folder / TRAIN_CONFIG).write_text(run.again(), encoding="utf-8")
        save_trajectories(episodes, folder / EPISODES_FILE)
        trainer.save_state()
        table = f"{comparison_table(results.players)}\n{describe_openings(episodes)}"
        print(f"\nHeld out, before and after {trainer.state.global_step} steps\n{table}")
        print(
            f"trained in {duration.training:.0f} s, {duration.total:.0f} s with both evaluations; model and "
            f"{RESULTS_FILE} in {args.output_dir}"
        )
        if args.log_format != "dict":
            print(_describe_end(run, trainer, before, summarize(episodes)))
    if args.push_to_hub:
        trainer.push_to_hub()
        if is_main:
            print(f"pushed to {trainer.hub_model_id}")
    return results


def _describe_end(run: RunConfig, trainer: TurnPPOTrainer, before: Summary, after: Summary) -> str:
    """Return whether the agent learned, what looks wrong in the log, and the command that comes next."""
    first, last = Score.of_summary(before), Score.of_summary(after)
    if first.name != last.name:  # nothing was solved before, and the environment does not report success
        first, last = Score.of_return(before), Score.of_return(after)
    faults = faults_of(trainer)
    if last.low > first.high or (faults and last.high >= first.low):  # more of what looks wrong teaches nothing
        name = f" --environment {run.task.environment}" if ":" in run.task.environment else ""
        following = f"turnppo play {run.training.output_dir}{name}"  # no record names a module to import
    elif last.high < first.low:
        following = f"turnppo report {run.training.output_dir}"
    else:
        following = _longer(run, trainer)
    return describe_end(describe_learning("the held-out tasks", first, last), faults, following)


def _longer(run: RunConfig, trainer: TurnPPOTrainer) -> str:
    """Return the command that trains twice as long, from the newest checkpoint where there is one."""
    typed = re.sub(r" --(max_steps|resume_from_checkpoint)[ =]\S+", "", run.typed)
    command = re.sub(r" --overwrite_output_dir([ =](?i:true|false|yes|no|[tfyn01])(?=\s|$))?", "", typed)
    place = "--overwrite_output_dir true" if trainer.ending.saved_at is None else "--resume_from_checkpoint true"
    return f"{command} --max_steps {2 * trainer.state.max_steps} {place}"


def make_trainer(run: RunConfig, tasks: Tasks, held_out_environment: Callable[[], gymnasium.Env]) -> TurnPPOTrainer:
    """Build the trainer of a run, with the held-out tasks as its evaluation and in the record of what it saves."""
    task, args = run.task, run.training
    assert isinstance(task.environment_kwargs, dict)
    folder = find_model(task.model)
    is_adapter = (folder / ADAPTER_CONFIG).exists()
    held_out_name = f"{task.environment} (held out)"
    trainer = TurnPPOTrainer(
        model=str(folder) if task.model in EMBEDDED_MODELS or is_adapter else task.model,
        args=args,
        train_dataset=datasets.Dataset.from_list(tasks.train),
        eval_dataset=datasets.Dataset.from_list([{**row, "environment": held_out_name} for row in tasks.held_out]),
        environment_factory={
            task.environment: partial(make_environment, task.environment, **task.environment_kwargs),
            held_out_name: held_out_environment,
        },
        value_model=_known_critic(run, folder, is_adapter=is_adapter),
        **run.adapter_configs(),
    )
    trainer.held_out = _held_out(run, tasks)
    return trainer


def _known_critic(run: RunConfig, folder: Path, *, is_adapter: bool) -> str | None:
    """Name the critic that came with the model, where the run can go on with it."""
    critic = folder / CRITIC_FOLDER
    if not run.training.uses_critic or not critic.is_dir():
        return None
    if is_adapter:
        return str(critic)
    if run.training.critic == "separate" and not run.adapters.use_peft:
        blocks = depth_of(AutoConfig.from_pretrained(critic))
        if run.training.critic_layers in (None, blocks):
            return str(critic)
        warnings.warn(
            f"{run.task.model} comes with a critic of {blocks} blocks, and `critic_layers` is "
            f"{run.training.critic_layers}: it is left out, and the critic starts with a head of zero. Leave "
            "`critic_layers` out to keep it.",
            stacklevel=2,
        )
        return None
    warnings.warn(
        f"{run.task.model} comes with a critic of its own weights, which a critic on the actor's weights cannot go on "
        "with: it starts with a head of zero. Train whole networks (`critic: separate`) to keep it.",
        stacklevel=2,
    )
    return None


def _results(
    run: RunConfig,
    tasks: Tasks,
    trainer: TurnPPOTrainer,
    before: Summary,
    episodes: Sequence[Trajectory],
    references: Mapping[str, Summary],
) -> RunResults:
    """Return what `results.json` holds, but for the times."""
    assert isinstance(run.task.environment_kwargs, dict)
    record, shown, after = trainer.make_record(), shown_episode(episodes), summarize(episodes)
    at_once = len(tasks.held_out) * (run.training.num_generations_eval or 1)
    curve = _learning_curve(trainer.state.log_history, before, after, trainer.state.global_step, at_once)
    return RunResults(
        config=Path(run.path).name if Path(run.path).is_absolute() else run.path,
        command=run.command,
        package=package_version(),
        model=run.task.model,
        algorithm=run.training.algorithm,
        environment=run.task.environment,
        environment_kwargs=run.task.environment_kwargs,
        data=record.data,
        seed=run.training.seed,
        train_tasks=len(tasks.train),
        held_out=record.evaluation,
        before=before,
        after=after,
        random=references.get("random"),
        expert=references.get("expert"),
        optimal=references.get("optimal"),
        critic=judge_critic(episodes, record.turn_discounts[0]),
        examples=examples_of(episodes),
        shown_episode=None if shown is None else describe_replay(shown),
        learning_curve=curve,
    )


def describe_run(run: RunConfig, tasks: Tasks, trainer: TurnPPOTrainer) -> str:
    """Return what will run, one line an aspect."""
    task, args = run.task, run.training
    networks = ", ".join(
        f"{name} {sum(number_in(parameter) for parameter in network.parameters()) / 1e6:.2f} M parameters"
        + (f" ({trained(network.parameters()) / 1e6:.3f} M trained)" if is_adapted(trainer.model.actor) else "")
        for name, network in trainer.model.networks.items()
    )
    batches = math.ceil(args.max_steps / args.updates_per_batch) if args.max_steps > 0 else args.num_train_epochs
    unit = "rollout batches" if args.max_steps > 0 else "epochs"
    discounts = [getattr(args, name) for name in ALGORITHMS[args.algorithm].discounts]
    details = "gamma {:g}, lam {:g}, ".format(*discounts) if discounts else f"{args.num_generations} episodes a task, "
    device = args.device.type
    data = trainer.make_record().data
    lines = {
        "model": f"{task.model} ({type(trainer.model.actor).__name__}): {networks}",
        "environment": f"{task.environment} {json.dumps(redact(task.environment_kwargs))}",
        **({"data": data} if data else {}),
        "algorithm": f"{args.algorithm}: {details}ratio per {args.importance_sampling_level}, "
        f"learning rate {args.learning_rate:g}"
        + (f" (critic {args.learning_rate * args.critic_lr_multiplier:g})" if args.uses_critic else ""),
        "episodes": f"{args.generation_batch_size} in each of {batches:g} {unit} on {len(tasks.train)} tasks, "
        f"{args.updates_per_batch} updates a batch",
        "held out": f"{len(tasks.held_out)} episodes {json.dumps(redact(task.eval_environment_kwargs))}",
        "device": f"{args.world_size} x {device}, {'bf16' if args.bf16 else 'float32'}"
        + (f", {describe_threads(args, trainer.model.actor)}" if device == "cpu" else ""),
        **({"sampling": f"vLLM, {args.vllm_mode}"} if args.use_vllm else {}),
        "output": args.output_dir,
    }
    page = [f"turnppo train {run.path}", *(f"  {name:<12}{text}" for name, text in lines.items())]
    return redact_text("\n".join(page))


def _load_splits(name: str) -> Mapping[str, datasets.Dataset]:
    if Path(name).suffix in (".json", ".jsonl", ".parquet", ".csv") and not Path(name).exists():
        raise RunConfigError(
            f"`dataset` {name!r} looks like a file, and there is none here, so there are no tasks. Name a file with "
            "one JSON row a line, a folder that load_dataset reads, or a dataset on the Hub."
        )
    try:
        if Path(name).is_file():
            return datasets.load_dataset("json", data_files={"train": name})
        loaded = (
            datasets.load_from_disk(name) if Path(name, "dataset_dict.json").exists() else datasets.load_dataset(name)
        )
    except Exception as error:  # each storage and format has errors of its own
        reason = f"{type(error).__name__}: {error}" if str(error) else "it seems to be empty"
        raise RunConfigError(
            f"`dataset` {name!r} cannot be read ({reason}). Name a dataset on the Hub, a "
            "folder that load_dataset reads, or a file with one JSON row a line."
        ) from error
    if "train" not in loaded:
        raise RunConfigError(
            f"`dataset` {name!r} has no split `train`, only {', '.join(loaded)}: nothing to train on."
        )
    return loaded


def _rows(dataset: datasets.Dataset) -> list[dict[str, Any]]:
    return [{"seed": number, **row} for number, row in enumerate(dataset)]


def _play_held_out(
    trainer: TurnPPOTrainer, environment: Callable[[], gymnasium.Env], tasks: Sequence[Mapping[str, Any]]
) -> list[Trajectory]:
    """Play the held-out tasks with the trainer's networks as they are, shared out over the ranks, and score them."""
    args = trainer.args
    with judged_weights(trainer.optimizer), trainer.whole_networks(*trainer.model.networks) as networks:
        record = trainer.make_record()
        agent = TurnPPOAgent(networks.actor, trainer.processing_class, networks.critic, record)
        mine = agent.play_tasks(
            environment,
            tasks[args.process_index :: args.world_size],
            temperature=args.eval_temperature,
            max_parallel_episodes=args.max_parallel_episodes,
            environment_timeout_s=args.environment_timeout_s,
            name=str(record.environment),
        )
        scored = agent.score(mine)
    return [trajectory for share in gather_object([scored]) for trajectory in share]


def _held_out(run: RunConfig, tasks: Tasks) -> HeldOut:
    """Return what `turnppo evaluate` needs to play the same episodes again."""
    return HeldOut(
        environment_kwargs=tasks.held_out_kwargs,
        episodes=len(tasks.held_out),
        seed=tasks.held_out[0]["seed"],
        temperature=run.training.eval_temperature,
        # seeds alone do not make a dataset's tasks again
        tasks=None if run.task.dataset is None else tuple(tasks.held_out),
    )


def _learning_curve(
    history: Sequence[Mapping[str, Any]], before: Summary, after: Summary, last_step: int, episodes: int
) -> tuple[LearningPoint, ...]:
    """Success and return over steps: the evaluations of the run, with those before and after it at the ends."""
    between = [entry for entry in history if "eval_reward" in entry and 0 < entry["step"] < last_step]
    between = [entry for entry in between if entry["eval_episodes/failed"] < episodes]
    points = [LearningPoint.from_summary(0, before)]
    for entry in between:
        played = episodes - int(entry["eval_episodes/failed"])
        success = entry["eval_success"] if before.success_rate is not None else None
        low, high = wilson_interval(round(success * played), played) if success is not None else (None, None)
        points.append(
            LearningPoint(
                step=entry["step"],
                episodes=played,
                success_rate=success,
                success_low=low,
                success_high=high,
                mean_return=entry["eval_reward"],
                return_error=entry["eval_reward_std"] / math.sqrt(played - 1) if played > 1 else None,
            )
        )
    return (*points, LearningPoint.from_summary(last_step, after))
