"""A run's record in, the sentences and tables of its card out; each figure is one that was recorded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from turnppo_hf.evaluation.learning_curve import ALGORITHM_NAMES
from turnppo_hf.hub.run_record import RunRecord
from turnppo_hf.hub.wheel import DISTRIBUTION

_METHODS = {
    "turn_ppo": "turn-level PPO (Turn-PPO: one advantage and one clipped ratio per turn, a critic, GAE over turns)",
    "token_ppo": "token-level PPO (an advantage and a clipped ratio per token, a critic, GAE over tokens)",
    "grpo": "GRPO (one advantage per episode, relative to its group; no critic)",
    "rloo": "RLOO (one advantage per episode, against the rest of its group; no critic)",
}
# key of training_config.json -> its name in the card
_HYPERPARAMETERS = {
    "gamma": "discount per turn, gamma",
    "lam": "GAE's lambda per turn",
    "token_gamma": "discount per token",
    "token_lam": "GAE's lambda per token",
    "learning_rate": "actor's learning rate",
    "lr_scheduler_type": "schedule",
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
_ONLY_FOR = {"token_ppo": ("token_gamma", "token_lam"), "turn_ppo": ("gamma", "lam")}
_CRITIC_KEYS = ("critic_lr_multiplier", "critic_warmup_steps", "cliprange_value")


def environment_name(run: RunRecord) -> str:
    """The environment's name without namespace and version, such as `Sokoban`."""
    identifier = run.record.get("environment") or run.record.get("environment_name") or "a custom environment"
    return str(identifier).rpartition("/")[2].rpartition("-v")[0] or str(identifier)


def claim(run: RunRecord) -> str:
    """What was trained, and what came out, in two sentences."""
    adapter = " of an adapter" if run.is_adapter else ""
    millions = " and ".join(f"{_count(size)} parameters ({name}{adapter})" for name, size in run.sizes.items())
    kind = f"{run.model_type} " if run.model_type else ""
    base = run.record.get("base_model")
    origin = f", starting from {_linked(base)}" if base else ""
    method = f", trained with {_METHODS[run.algorithm]}" if run.algorithm else ""
    article = "An" if (kind or "agent").startswith(tuple("aeiouAEIOU")) else "A"
    trained = f"{article} {kind}agent of {millions} for {environment_name(run)}{origin}{method}."
    before, after = run.results.get("before", {}), run.results.get("after")
    if not after:
        return trained
    success, start = after.get("success_rate"), before.get("success_rate")
    if success is not None:
        since = "" if start is None else f"; before training it was {percent(start)}"
        return (
            f"{trained} On {after['episodes']} held-out episodes it succeeds in **{percent(success)}** "
            f"(95 % interval {percent(after['success_low'])} to {percent(after['success_high'])}){since}."
        )
    since = f"; before training it was {before['mean_return']:.2f}" if "mean_return" in before else ""
    return (
        f"{trained} On {after['episodes']} held-out episodes its mean return is **{after['mean_return']:.2f}** ± "
        f"{_error(after)} (standard error){since}."
    )


def results_table(run: RunRecord) -> str:
    """The agent beside its start, the runs it is compared with, and reference players of the same episodes."""
    results = run.results
    if "after" not in results:
        return ""
    names = {"before": "before training", "random": "random player", "expert": "scripted player"}
    names["optimal"] = "optimal player"
    rows = [(names["before"], "", results.get("before"))]
    method = f" ({ALGORITHM_NAMES[run.algorithm]})" if run.algorithm else ""
    rows.append((f"**this agent{method}**", _steps(results), results["after"]))
    for other in run.comparison:
        seed = f", seed {other['seed']}" if "seed" in other else ""
        rows.append((ALGORITHM_NAMES[other["algorithm"]] + seed, _steps(other), other.get("after")))
    rows += [(names[player], "", results.get(player)) for player in ("random", "expert", "optimal")]
    lines = [
        (name, steps, str(row["episodes"]), _success(row), f"{row['mean_return']:.2f} ± {_error(row)}")
        for name, steps, row in rows
        if row
    ]
    header = ("player", "trained for", "episodes", "success (95 % interval)", "mean return ± standard error")
    return _table(header, lines)


def seeds_and_temperature(run: RunRecord) -> str:
    """How the held-out episodes were chosen and played."""
    held_out = run.results.get("held_out", {})
    temperature = held_out.get("temperature", 0)
    how = "greedy" if temperature == 0 else f"sampled at temperature {temperature:g}"
    if "tasks" in held_out or "seed" not in held_out:
        return f"the recorded tasks, {how}"
    return f"seeds {held_out['seed']} to {held_out['seed'] + held_out['episodes'] - 1}, {how}"


def protocol(run: RunRecord) -> str:
    """How the figures of the table were made."""
    others = [other for other in run.comparison if other.get("command")]
    commands = "; ".join(f"`{other['command']}`" for other in others)
    compared = f" The runs beside it: {commands}." if commands else ""
    return (
        f"Held-out episodes, {seeds_and_temperature(run)}, one training run (seed {run.results.get('seed')}); "
        "intervals are over episodes, not over training seeds. Success has Wilson intervals, the return leaves format "
        f"penalties out.{compared}"
    )


def training_evaluation(run: RunRecord) -> str:
    """The last evaluation during training, where no held-out result was recorded."""
    points = [item for item in run.log_history if "eval_reward" in item and item["step"] <= (run.steps or 0)]
    if run.results or not points:
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
    held_out = record.get("evaluation", {}).get("environment_kwargs")
    limits = {name: value for name, value in record.get("limits", {}).items() if value is not None}
    sampling = record.get("sampling", {})
    rows = {
        "environment": _code(record.get("environment")),
        "version": record.get("environment_version"),
        "data": record.get("data"),
        "arguments": _code(record.get("environment_kwargs")),
        "arguments, held out": _code(held_out),
        "action grammar": _code(record.get("action_grammar")),
        "limits": ", ".join(f"{name} {value}" for name, value in limits.items()),
        "sampling in training": ", ".join(f"{name} {value:g}" for name, value in sampling.items()),
        "value is read at": record.get("value_position") if "critic" in run.sizes else None,
    }
    return _table(("setting", "value"), [(name, str(value)) for name, value in rows.items() if value])


def training_table(run: RunRecord) -> str:
    """Hyper-parameters as they were resolved, without what belongs to the machine."""
    foreign = {name for algorithm, names in _ONLY_FOR.items() if algorithm != run.algorithm for name in names}
    if "critic" not in run.sizes:
        foreign |= set(_CRITIC_KEYS)
    rows = [
        (label, _value(run.training[key]))
        for key, label in _HYPERPARAMETERS.items()
        if key not in foreign and run.training.get(key) is not None
    ]
    steps = run.steps
    if steps is not None:
        rows.append(("optimizer steps", str(steps)))
    duration = run.results.get("duration_s", {}).get("training")
    if duration is not None:
        rows.append(("training time", f"{duration:.0f} s"))
    if run.algorithm:
        rows.insert(0, ("algorithm", ALGORITHM_NAMES[run.algorithm]))
    return _table(("setting", "value"), rows) if rows else "How it was trained was not recorded."


def reproduce(run: RunRecord, repo: str) -> str:
    """The command that trains it again."""
    package = run.record.get("package", {})
    commit = f", commit `{package['commit']}`" if "commit" in package else ""
    version = f"{package.get('name', DISTRIBUTION)} {package.get('version', '')}".strip() + commit
    if not run.training:
        return ""
    if not run.has_train_config:
        return f"Trained with {version}. Every argument is in `training_config.json`."
    typed = run.results.get("command")
    said = f" (the run itself: `{typed}`)" if typed else ""
    return (
        f"Trained with {version}{said}. Again:\n\n```bash\nhf download {repo} train_config.yaml --local-dir agent\n"
        "turnppo train agent/train_config.yaml\n```\n\nEvery argument is in `training_config.json`. Threads and "
        "accelerators add in another order each time, so another run is another sample."
    )


def limitations(run: RunRecord) -> str:
    """What the record does not show."""
    name = environment_name(run)
    lines = [f"Known from {name} with the arguments above only; elsewhere it was not tried."]
    if "synthetic" in str(run.record.get("data", "")).lower():
        lines.append("The data is synthetic: its figures do not compare with those on the original's.")
    if run.results:
        others = {other.get("seed") for other in run.comparison if other["algorithm"] == run.algorithm}
        seeds = len(others | {run.results.get("seed")})
        lines.append(f"{_number(seeds)} training {'seed' if seeds == 1 else 'seeds'}: the spread over seeds is wider.")
    if "critic" in run.sizes:
        lines.append(
            "The critic speaks of this agent's own play, format penalties included and discounted; of another "
            "policy's states it knows less."
        )
    else:
        lines.append("It has no critic, so it cannot say what it expects.")
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


def _steps(results: Mapping[str, Any]) -> str:
    curve: Sequence[Mapping[str, Any]] = results.get("learning_curve", ())
    return f"{curve[-1]['step']} steps" if curve else ""


def _success(row: Mapping[str, Any]) -> str:
    if row.get("success_rate") is None:
        return "not defined"
    return f"{row['success_rate']:.2f} ({row['success_low']:.2f} to {row['success_high']:.2f})"


def _error(row: Mapping[str, Any]) -> str:
    return "-" if row.get("return_error") is None else f"{row['return_error']:.2f}"


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
