"""An agent's folder in; its card, pictures, evaluation results and the package as a wheel beside it out."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml

from turnppo_hf.hub.card import text as card_text
from turnppo_hf.hub.card.merge import TEMPLATE, merge_cards
from turnppo_hf.hub.card.pictures import draw_pictures, picture_facts
from turnppo_hf.hub.files import read_json
from turnppo_hf.hub.run_record import RunRecord, read_run
from turnppo_hf.hub.wheel import DISTRIBUTION, build_wheel

README = "README.md"
EVAL_RESULTS_FILE = ".eval_results/turnppo.yaml"
WHEELS = "wheels"

logger = logging.getLogger(__name__)

_TAGS = ("trl", "turn-ppo", "turnppo-hf", "reinforcement-learning", "agent")


def prepare_release(
    folder: str | Path,
    repo_id: str | None = None,
    *,
    title: str | None = None,
    dataset: str | None = None,
    tags: Sequence[str] | None = None,
    published: str | None = None,
) -> None:
    """
    Write what a release has besides networks and records: card, pictures, evaluation results, and a wheel.

    Args:
        folder (`str` or `Path`): Holds the agent.
        repo_id (`str`, *optional*): Where it goes; commands in the card name it.
        title (`str`, *optional*): Of the card; by default the repository's name.
        dataset (`str`, *optional*): Dataset of its trajectories on the Hub.
        tags (`Sequence[str]`, *optional*): Further ones.
        published (`str`, *optional*): The card that the repository shows now; its user's sections are kept, as those
            of the folder's card are.

    Raises:
        `ReleaseError`: the folder holds no agent, or a damaged file.
    """
    path = Path(folder)
    run = read_run(path)
    _forget_places(path, run.record)
    draw_pictures(run, path)
    build_wheel(path / WHEELS)
    if "after" in run.results:
        results = path / EVAL_RESULTS_FILE
        results.parent.mkdir(exist_ok=True)
        after, name = run.results["after"], dataset or f"{repo_id or run.name}-episodes"
        entries = eval_results(after, run, name, card_text.seeds_and_temperature(run))
        results.write_text(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False), encoding="utf-8")
    text = _render(run, path, repo_id, title=title, dataset=dataset, tags=tags)
    old = [(path / README).read_text(encoding="utf-8")] if (path / README).exists() else []
    for card in (*old, *([published] if published else [])):
        text = merge_cards(card, text)
    (path / README).write_text(text, encoding="utf-8")


def _forget_places(folder: Path, record: Mapping[str, Any]) -> None:
    """Shorten the paths of this machine in what is published, and name those that stay: the agent needs them."""
    state = folder / "trainer_state.json"
    if state.exists():
        content = read_json(state)
        best = content.get("best_model_checkpoint")
        if isinstance(best, str) and Path(best).name != best:
            state.write_text(json.dumps({**content, "best_model_checkpoint": Path(best).name}, indent=2) + "\n")
    for kwargs in (record.get("environment_kwargs", {}), record.get("evaluation", {}).get("environment_kwargs", {})):
        for name, value in kwargs.items():
            if isinstance(value, str) and Path(value).is_absolute():
                logger.warning(
                    "The environment's argument `%s` is %r, a path of this machine. It is published with the agent, "
                    "and others do not have it. Train with a dataset's id or a relative path to avoid that.",
                    name,
                    value,
                )


def render_card(
    folder: Path,
    repo_id: str | None = None,
    *,
    title: str | None = None,
    dataset: str | None = None,
    tags: Sequence[str] | None = None,
) -> str:
    """Return the card of an agent, written from its record alone; the arguments are those of `prepare_release`."""
    return _render(read_run(folder), folder, repo_id, title=title, dataset=dataset, tags=tags)


def _render(
    run: RunRecord,
    folder: Path,
    repo_id: str | None,
    *,
    title: str | None,
    dataset: str | None,
    tags: Sequence[str] | None,
) -> str:
    repo = repo_id or run.name
    text = _template().render(
        **_facts(run, folder),
        card_data=_front_matter(run, repo, dataset, tags).to_yaml(),
        repo=repo,
        title=title or repo.rpartition("/")[2],
        reproduce=card_text.reproduce(run, repo),
        version=metadata.version(DISTRIBUTION),
    )
    return re.sub(r"\n{3,}", "\n\n", text)


def eval_results(row: Mapping[str, Any], run: RunRecord, dataset: str, protocol: str) -> list[EvalResultEntry]:
    """
    Say the result of one evaluation in the Hub's format of `.eval_results`.

    Args:
        row (`Mapping`): A player's summary, as in `results.json`.
        run (`RunRecord`): Of the agent that was evaluated.
        dataset (`str`): Id of the dataset that stands for the task.
        protocol (`str`): How it was played, such as "seeds 5 to 12, temperature 0".
    """
    task = card_text.environment_name(run).lower()
    values = {"success_rate": row.get("success_rate"), "mean_return": row.get("mean_return")}
    notes = f"{row['episodes']} episodes, {protocol}, {DISTRIBUTION} {metadata.version(DISTRIBUTION)}"
    return [
        EvalResultEntry(dataset_id=dataset, task_id=f"{task}_{metric}", value=value, notes=notes)
        for metric, value in values.items()
        if value is not None
    ]


def _front_matter(run: RunRecord, repo: str, dataset: str | None, tags: Sequence[str] | None) -> ModelCardData:
    name = card_text.environment_name(run)
    base = str(run.record.get("base_model") or "")
    on_hub = base if re.fullmatch(r"[\w.-]+/[\w.-]+", base) else None
    row = run.results.get("after", {})
    metrics = {"success_rate": row.get("success_rate"), "mean_return": row.get("mean_return")}
    scores = [
        EvalResult(
            task_type="reinforcement-learning",
            task_name="reinforcement-learning",
            dataset_type=name.lower(),
            dataset_name=f"{run.record.get('environment')}, {row['episodes']} held-out episodes",
            metric_type=metric,
            metric_name=metric,
            metric_value=round(value, 4),
        )
        for metric, value in metrics.items()
        if value is not None
    ]
    found: dict[str, Any] = {
        "library_name": "peft" if run.is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "base_model": on_hub,
        "base_model_relation": ("adapter" if run.is_adapter else "finetune") if on_hub else None,
        "datasets": [dataset] if dataset else None,
        "tags": list(dict.fromkeys([*_TAGS, name.lower(), *(tags or ())])),
        "metrics": [metric for metric, value in metrics.items() if value is not None] or None,
        "eval_results": scores or None,
        "model_name": repo.rpartition("/")[2] if scores else None,
    }
    if run.emissions_g is not None:
        found["co2_eq_emissions"] = {"emissions": run.emissions_g, "source": "CodeCarbon"}
    return ModelCardData(**{key: value for key, value in found.items() if value is not None})


def _facts(run: RunRecord, folder: Path) -> dict[str, Any]:
    example = run.record.get("example", {})
    evaluation = run.record.get("evaluation", {})
    temperature = evaluation.get("temperature", 0)
    messages = example.get("messages") or [{"role": "user", "content": ""}]
    template_kwargs = run.record.get("chat_template_kwargs", {})
    return {
        "claim": card_text.claim(run),
        "messages": json.dumps(messages, ensure_ascii=False),
        "template_kwargs": "".join(f", {name}={value!r}" for name, value in template_kwargs.items()),
        "max_new_tokens": run.record.get("limits", {}).get("max_turn_length") or 512,
        "sampling_arguments": _sampling_arguments(temperature, run.record.get("sampling", {})),
        "is_playable": run.is_playable,
        "first_seed": evaluation.get("seed", 0),
        "has_critic": "critic" in run.sizes,
        "results_table": card_text.results_table(run),
        "protocol": card_text.protocol(run),
        "training_evaluation": card_text.training_evaluation(run),
        "environment_table": card_text.environment_table(run),
        "example_prompt": card_text.fenced(example["prompt"]) if "prompt" in example else "",
        "training_table": card_text.training_table(run),
        "limitations": card_text.limitations(run),
        "carbon": card_text.carbon(run),
        **picture_facts(run, folder),
    }


def _sampling_arguments(temperature: float, sampling: Mapping[str, Any]) -> str:
    """Arguments of transformers' `generate` that draw as the evaluation did; its own default is top-k 50."""
    if temperature == 0:
        return "do_sample=False"
    top_k, top_p = sampling.get("top_k", 0), sampling.get("top_p", 1.0)
    return f"do_sample=True, temperature={temperature:g}, top_k={top_k}, top_p={top_p:g}"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent), trim_blocks=True, keep_trailing_newline=True
    )
    return environment.get_template(TEMPLATE.name)
