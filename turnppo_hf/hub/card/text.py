"""A run's record in, the sentences and tables of its card out; each figure is one that was recorded."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from turnppo_hf.distribution import DISTRIBUTION
from turnppo_hf.evaluation.results import ComparedRun, RunResults
from turnppo_hf.evaluation.summary import Summary
from turnppo_hf.hub.run_record import RunRecord
from turnppo_hf.ppo.algorithms import ALGORITHMS

# key of training_config.json -> its name in the card
_HYPERPARAMETERS = {
    "gamma": "discount per turn, gamma",
    "lam": "GAE's lambda per turn",
    "token_gamma": "discount per token",
    "token_lam": "GAE's lambda per token",
    "learning_rate": "actor's learning rate",
    "lr_scheduler_type": "schedule",
    "critic_layers": "critic's blocks, the actor's first",
    "critic_lr_multiplier": "critic's learning rate / actor's",
    "critic_warmup_steps": "critic warm-up steps",
    "generation_batch_size": "episodes per rollout batch",
    "num_generations": "episodes per task",
    "num_minibatches": "minibatches",
    "num_iterations": "passes over a batch",
    "importance_sampling_level": "ratio per",
    "loss_aggregation": "loss aggregation",
    "whiten_advantages": "advantages whitened over",
    "epsilon": "clip range",
    "epsilon_high": "clip range above 1",
    "cliprange_value": "value clip range",
    "entropy_coef": "entropy bonus",
    "beta": "KL coefficient",
    "max_grad_norm": "gradient clip, each network",
    "weight_decay": "weight decay",
    "temperature": "sampling temperature",
    "bf16": "bf16 autocast",
    "seed": "seed",
}
_DISCOUNTS = ("gamma", "lam", "token_gamma", "token_lam")
_CRITIC_KEYS = ("critic_layers", "critic_lr_multiplier", "critic_warmup_steps", "cliprange_value")


def environment_name(run: RunRecord) -> str:
    """The environment's name without namespace and version, such as `Sokoban`."""
    identifier = run.record.environment or run.record.environment_name or "a custom environment"
    return identifier.rpartition("/")[2].rpartition("-v")[0] or identifier


def claim(run: RunRecord) -> str:
    """What was trained, and what came out, in two sentences."""
    adapter = " of an adapter" if run.is_adapter else ""
    millions = " and ".join(f"{_count(size)} parameters ({name}{adapter})" for name, size in run.sizes.items())
    kind = f"{run.model_type} " if run.model_type else ""
    base, method = run.record.base_model, run.record.method
    origin = f", starting from {_linked(base)}" if base else ""
    how = f", trained with {method.summary}" if method else ""
    article = "An" if (kind or "agent").startswith(tuple("aeiouAEIOU")) else "A"
    trained = f"{article} {kind}agent of {millions} for {environment_name(run)}{origin}{how}."
    before, after = run.results.before, run.results.after
    if after is None:
        return trained
    if after.success_rate is not None and after.success_low is not None and after.success_high is not None:
        start = None if before is None else before.success_rate
        since = "" if start is None else f"; before training it was {percent(start)}"
        return (
            f"{trained} On {after.episodes} held-out episodes it succeeds in **{percent(after.success_rate)}** "
            f"(95 % interval {percent(after.success_low)} to {percent(after.success_high)}){since}."
        )
    since = "" if before is None else f"; before training it was {before.mean_return:.2f}"
    return (
        f"{trained} On {after.episodes} held-out episodes its mean return is **{after.mean_return:.2f}** ± "
        f"{_error(after)} (standard error){since}."
    )


def results_table(run: RunRecord) -> str:
    """The agent beside its start, the runs it is compared with, and reference players of the same episodes."""
    results = run.results
    if results.after is None:
        return ""
    method = f" ({run.record.method.title})" if run.record.method else ""
    rows = [
        ("before training", "", results.before),
        (f"**this agent{method}**", _steps(results), results.after),
        *((_name_of(other), _steps(other), other.after) for other in run.comparison),
        ("random player", "", results.random),
        ("scripted player", "", results.expert),
        ("optimal player", "", results.optimal),
    ]
    lines = [
        (name, steps, str(row.episodes), _success(row), f"{row.mean_return:.2f} ± {_error(row)}")
        for name, steps, row in rows
        if row is not None
    ]
    header = ("player", "trained for", "episodes", "success (95 % interval)", "mean return ± standard error")
    return _table(header, lines)


def seeds_and_temperature(run: RunRecord) -> str:
    """How the held-out episodes were chosen and played."""
    held_out = run.results.held_out
    how = f"sampled at temperature {held_out.temperature:g}" if held_out.temperature else "greedy"
    if held_out.tasks is not None or held_out.seed is None or held_out.episodes is None:
        return f"the recorded tasks, {how}"
    return f"seeds {held_out.seed} to {held_out.seed + held_out.episodes - 1}, {how}"


def protocol(run: RunRecord) -> str:
    """How the figures of the table were made."""
    commands = "; ".join(f"`{other.command}`" for other in run.comparison if other.command)
    compared = f" The runs beside it: {commands}." if commands else ""
    return (
        f"Held-out episodes, {seeds_and_temperature(run)}, one training run (seed {run.results.seed}); "
        "intervals are over episodes, not over training seeds. Success has Wilson intervals, the return leaves format "
        f"penalties out.{compared}"
    )


def training_evaluation(run: RunRecord) -> str:
    """The last evaluation during training, where no held-out result was recorded."""
    points = [item for item in run.log_history if "eval_reward" in item and item["step"] <= (run.steps or 0)]
    if run.results.after is not None or not points:
        return ""
    last = points[-1]
    success = f"success {last['eval_success']:.3f}, " if last.get("eval_success") == last.get("eval_success") else ""
    return (
        f"The last evaluation during training (step {last['step']}): {success if 'eval_success' in last else ''}mean "
        f"return {last['eval_reward']:.2f}."
    )


def environment_table(run: RunRecord) -> str:
    """What is played, by which rules and limits."""
    record = run.record
    limits = {name: value for name, value in (record.limits or {}).items() if value is not None}
    rows = {
        "environment": _code(record.environment),
        "version": record.environment_version,
        "data": record.data,
        "arguments": _code(record.environment_kwargs),
        "arguments, held out": _code(record.evaluation.environment_kwargs),
        "action grammar": _code(record.action_grammar),
        "limits": ", ".join(f"{name} {value}" for name, value in limits.items()),
        "read of earlier turns": None if record.context == "full" else _code(record.context),
        "sampling in training": ", ".join(f"{name} {value:g}" for name, value in (record.sampling or {}).items()),
        "value is read at": record.value_position if "critic" in run.sizes else None,
    }
    return _table(("setting", "value"), [(name, str(value)) for name, value in rows.items() if value])


def training_table(run: RunRecord) -> str:
    """Hyper-parameters as they were resolved, without what belongs to the machine."""
    method = run.record.method
    foreign = {name for name in _DISCOUNTS if method is None or name not in method.discounts}
    if "critic" not in run.sizes:
        foreign |= set(_CRITIC_KEYS)
    rows = [
        (label, _value(run.training[key]))
        for key, label in _HYPERPARAMETERS.items()
        if key not in foreign and run.training.get(key) is not None
    ]
    if run.steps is not None:
        rows.append(("optimizer steps", str(run.steps)))
    if run.results.duration_s is not None:
        rows.append(("training time", f"{run.results.duration_s.training:.0f} s"))
    if method is not None:
        rows.insert(0, ("algorithm", method.title))
    return _table(("setting", "value"), rows) if rows else "How it was trained was not recorded."


def reproduce(run: RunRecord, repo: str) -> str:
    """The command that trains it again."""
    package = run.record.package
    commit = f", commit `{package.commit}`" if package.commit else ""
    version = f"{package.name or DISTRIBUTION} {package.version or ''}".strip() + commit
    if not run.training:
        return ""
    if not run.has_train_config:
        return f"Trained with {version}. Every argument is in `training_config.json`."
    typed = f" (the run itself: `{run.results.command}`)" if run.results.command else ""
    return (
        f"Trained with {version}{typed}. Again:\n\n```bash\nhf download {repo} train_config.yaml --local-dir agent\n"
        "turnppo train agent/train_config.yaml\n```\n\nEvery argument is in `training_config.json`. Threads and "
        "accelerators add in another order each time, so another run is another sample."
    )


def limitations(run: RunRecord) -> str:
    """What the record does not show."""
    name = environment_name(run)
    lines = [f"Evaluated on {name} with the arguments above only."]
    if "synthetic" in (run.record.data or "").lower():
        lines.append("The data is synthetic: its figures do not compare with those on the original's.")
    if run.results.after is not None:
        others = {other.seed for other in run.comparison if other.algorithm == run.record.algorithm}
        seeds = len(others | {run.results.seed})
        lines.append(f"{_number(seeds)} training {'seed' if seeds == 1 else 'seeds'}: the spread over seeds is wider.")
    if "critic" in run.sizes:
        lines.append(
            "The critic predicts the returns of this agent's own play, format penalties included and discounted; for "
            "the states of another policy its values are less accurate."
        )
    else:
        lines.append("It has no critic, so it gives no values of states.")
    return "\n".join(f"- {line}" for line in lines)


def carbon(run: RunRecord) -> str:
    """Emissions, where CodeCarbon measured them."""
    return "" if run.emissions_g is None else f"{run.emissions_g:.3g} g of CO2 equivalents, measured by CodeCarbon."


def percent(share: float) -> str:
    """Return a share in whole percent, without a minus before zero; what is not all is no 100 %, nor nothing 0 %."""
    if 0 < share < 0.005 or 0.995 <= share < 1:
        return "under 1 %" if share < 0.5 else "over 99 %"
    return f"{round(100 * share) + 0} %"


def fenced(text: str) -> str:
    """A text as a code block that it cannot leave, whatever it holds."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text.rstrip()}\n{fence}"


def _name_of(other: ComparedRun) -> str:
    title = "unknown algorithm" if other.algorithm is None else ALGORITHMS[other.algorithm].title
    return title if other.seed is None else f"{title}, seed {other.seed}"


def _steps(results: RunResults | ComparedRun) -> str:
    return f"{results.learning_curve[-1].step} steps" if results.learning_curve else ""


def _success(row: Summary) -> str:
    if row.success_rate is None:
        return "not defined"
    return f"{row.success_rate:.2f} ({row.success_low:.2f} to {row.success_high:.2f})"


def _error(row: Summary) -> str:
    return "-" if math.isnan(row.return_error) else f"{row.return_error:.2f}"


def _count(number: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= 0.9995 * size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _number(count: int) -> str:
    words = ("No", "One", "Two", "Three", "Four", "Five")
    return words[count] if count < len(words) else str(count)


def _linked(name: str) -> str:
    return f"[{name}](https://huggingface.co/{name})" if re.fullmatch(r"[\w.-]+/[\w.-]+", name) else f"`{name}`"


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _code(value: Any) -> str:
    if not value:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    fence = "``" if "`" in text else "`"
    return f"{fence}{text.replace('|', chr(92) + '|')}{fence}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("\n", " ") for cell in line) + " |" for line in lines)
