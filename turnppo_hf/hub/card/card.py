"""An agent's folder in; its card, pictures, evaluation results and the package as a wheel beside it out."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml

from turnppo_hf.distribution import DISTRIBUTION, declared
from turnppo_hf.evaluation.summary import Summary
from turnppo_hf.hub.agent_record import AgentRecord
from turnppo_hf.hub.card import text as card_text
from turnppo_hf.hub.card.merge import TEMPLATE, merge_cards, read_front_matter, texts_of
from turnppo_hf.hub.card.pictures import draw_pictures, picture_facts
from turnppo_hf.hub.client import read_published
from turnppo_hf.hub.files import CHECKPOINT_FILE, read_json, read_text
from turnppo_hf.hub.run_record import RunRecord, read_run
from turnppo_hf.hub.wheel import build_wheel
from turnppo_hf.redaction import redact, redact_text

README = "README.md"
EVAL_RESULTS_FILE = ".eval_results/turnppo.yaml"
WHEELS = "wheels"
_PARTS = (README, EVAL_RESULTS_FILE)  # of a release that a later one looks at

logger = logging.getLogger(__name__)

_TAGS = ("trl", "turn-ppo", "turnppo-hf", "reinforcement-learning", "agent")


@dataclass(frozen=True)
class Published:
    """What an earlier release shows. `Published("# Agent", [{"dataset": {"id": "alice/eps"}, "value": 0.7}])`."""

    card: str | None = None
    results: Sequence[Mapping[str, Any]] = ()  # the release's own evaluation, as the Hub's format has it

    @classmethod
    def read(cls, repo_id: str, *, token: str | None = None, revision: str | None = None) -> Published:
        """
        Read card and evaluation of a repository; nothing where there is none.

        Raises:
            `PushError`: they cannot be read, so that a push might overwrite them.
        """
        where = {"token": token, "revision": revision}
        card = read_published(repo_id, README, **where)
        return cls(card, parse_results(None if card is None else read_published(repo_id, EVAL_RESULTS_FILE, **where)))

    @classmethod
    def of(cls, folder: Path) -> Published:
        """Read card and evaluation that an earlier release left in a folder."""
        texts = [read_text(file, str(file)) if file.exists() else None for file in map(folder.joinpath, _PARTS)]
        return cls(texts[0], parse_results(texts[1]))

    @property
    def dataset(self) -> str | None:
        """The episodes that `turnppo push --episodes` published with the release."""
        named = {str(entry["dataset"]["id"]) for entry in self.results}
        shown = texts_of(read_front_matter(self.card or "")[0], "datasets")
        return next((name for name in named if name in shown), None)

    def is_of_other_figures(self, run: RunRecord) -> bool:
        """Whether its evaluation is not the run's, or not known to be: that of other weights, or of other episodes."""
        values = sorted(entry["value"] for entry in self.results)
        return not values or values != sorted(_metrics(run.results.after).values())

    def adopt_into(self, folder: Path, run: RunRecord, dataset: str | None = None) -> None:
        """
        Keep what its users wrote, and the dataset of its episodes where they are the run's, in a folder's new release.

        Args:
            folder (`Path`): Holds the release.
            run (`RunRecord`): What was read of it.
            dataset (`str`, *optional*): The new release's own dataset, in place of that.
        """
        named = self.dataset
        keeps = dataset is None and named is not None and not self.is_of_other_figures(run)
        if keeps:
            _write_results(folder, run, str(named))
        if self.card is not None:
            card = folder / README
            text = card.read_text(encoding="utf-8")
            merged = merge_cards(self.card, text, without=None if keeps else named)
            card.write_text(merged, encoding="utf-8")


def parse_results(text: str | None) -> list[Mapping[str, Any]]:
    """Read a file of `.eval_results`; entries that are not of the Hub's format are left out."""
    try:
        entries = yaml.safe_load(text or "")
    except (yaml.YAMLError, ValueError):  # PyYAML raises the latter for a date that is none
        entries = None
    return [entry for entry in entries if _is_result(entry)] if isinstance(entries, list) else []


def _is_result(entry: Any) -> bool:
    place = entry.get("dataset") if isinstance(entry, dict) else None
    return isinstance(place, dict) and "id" in place and isinstance(entry.get("value"), int | float)


def prepare_release(
    folder: str | Path,
    repo_id: str | None = None,
    *,
    title: str | None = None,
    dataset: str | None = None,
    tags: Sequence[str] | None = None,
    published: Published | None = None,
) -> RunRecord:
    """
    Write what a release has besides networks and records: card, pictures, evaluation results, and a wheel.

    Args:
        folder (`str` or `Path`): Holds the agent.
        repo_id (`str`, *optional*): Where it goes; commands in the card name it.
        title (`str`, *optional*): Of the card; by default the repository's name.
        dataset (`str`, *optional*): Dataset of its trajectories on the Hub.
        tags (`Sequence[str]`, *optional*): Further ones.
        published (`Published`, *optional*): What the repository shows now. The sections that its user wrote are kept,
            as those of the folder's card are, and so is the dataset of episodes, where the figures stay.

    Returns:
        `RunRecord`: what was read of the agent.

    Raises:
        `ReleaseError`: the folder holds no agent, or a damaged file.
    """
    path = Path(folder)
    run = read_run(path)
    earlier = [Published.of(path), *([published] if published else [])]
    if not (path / CHECKPOINT_FILE).exists():  # whose files are sealed: a run goes on from them
        _forget_places(path)
    _warn_of_places(run.record)
    draw_pictures(run, path)
    build_wheel(path / WHEELS)
    _write_results(path, run, dataset or f"{repo_id or run.name}-episodes")
    text = _render(run, path, repo_id, title=title, dataset=dataset, tags=tags)
    (path / README).write_text(text, encoding="utf-8")
    for release in earlier:
        release.adopt_into(path, run, dataset)
    return run


def _write_results(folder: Path, run: RunRecord, dataset: str) -> None:
    """Write the run's evaluation after training, where there is one, as the Hub reads it."""
    if run.results.after is None:
        return
    results = folder / EVAL_RESULTS_FILE
    results.parent.mkdir(exist_ok=True)
    entries = eval_results(run.results.after, run, dataset, card_text.seeds_and_temperature(run))
    results.write_text(yaml.safe_dump(redact(eval_result_entries_to_yaml(entries)), sort_keys=False), encoding="utf-8")


def _forget_places(folder: Path) -> None:
    """Shorten the paths of this machine in what the trainer logged, and mask secrets."""
    state = folder / "trainer_state.json"
    if state.exists():
        content = read_json(state)
        shared = redact(content)  # callbacks write into it what they like
        if isinstance(best := shared.get("best_model_checkpoint"), str):
            shared["best_model_checkpoint"] = Path(best).name
        if shared != content:
            state.write_text(json.dumps(shared, indent=2) + "\n")


def _warn_of_places(record: AgentRecord) -> None:
    """Warn of paths of this machine that the agent needs."""
    for kwargs in (record.environment_kwargs, record.evaluation.environment_kwargs):
        for name, value in (kwargs or {}).items():
            if isinstance(value, str) and Path(value).is_absolute():
                logger.warning(
                    "The environment's argument `%s` is %r, a path of this machine. It is published with the agent, "
                    "and others do not have it. Train with a dataset's id or a relative path to avoid that.",
                    name,
                    value,
                )


def render_card(folder: Path, repo_id: str | None = None) -> str:
    """Return the card of an agent, written from its record alone."""
    return _render(read_run(folder), folder, repo_id)


def _render(
    run: RunRecord,
    folder: Path,
    repo_id: str | None,
    *,
    title: str | None = None,
    dataset: str | None = None,
    tags: Sequence[str] | None = None,
) -> str:
    repo = repo_id or run.name
    text = _template().render(
        **_facts(run, folder),
        card_data=_front_matter(run, repo, dataset, tags).to_yaml(),
        repo=repo,
        title=title or repo.rpartition("/")[2],
        reproduce=card_text.reproduce(run, repo),
        version=declared().version,
    )
    return redact_text(re.sub(r"\n{3,}", "\n\n", text))


def eval_results(summary: Summary, run: RunRecord, dataset: str, protocol: str) -> list[EvalResultEntry]:
    """
    Return the result of one evaluation in the Hub's format of `.eval_results`.

    Args:
        summary ([`Summary`]): The result.
        run (`RunRecord`): Of the agent that was evaluated.
        dataset (`str`): Id of the dataset that represents the task.
        protocol (`str`): How it was played, such as "seeds 5 to 12, temperature 0".
    """
    task = card_text.environment_name(run).lower()
    notes = f"{summary.episodes} episodes, {protocol}, {DISTRIBUTION} {declared().version}"
    return [
        EvalResultEntry(dataset_id=dataset, task_id=f"{task}_{metric}", value=value, notes=notes)
        for metric, value in _metrics(summary).items()
    ]


def _metrics(summary: Summary | None) -> dict[str, float]:
    """Name what is reported of an evaluation; the success only where it is defined."""
    if summary is None:
        return {}
    success = {} if summary.success_rate is None else {"success_rate": summary.success_rate}
    return {**success, "mean_return": summary.mean_return}


def _front_matter(run: RunRecord, repo: str, dataset: str | None, tags: Sequence[str] | None) -> ModelCardData:
    name = card_text.environment_name(run)
    base = run.record.base_model or ""
    on_hub = base if re.fullmatch(r"[\w.-]+/[\w.-]+", base) else None
    after = run.results.after
    scores = [
        EvalResult(
            task_type="reinforcement-learning",
            task_name="reinforcement-learning",
            dataset_type=name.lower(),
            dataset_name=f"{run.record.environment}, {after.episodes} held-out episodes",
            metric_type=metric,
            metric_name=metric,
            metric_value=round(value, 4),
        )
        for metric, value in _metrics(after).items()
        if after is not None
    ]
    found: dict[str, Any] = {
        "library_name": "peft" if run.is_adapter else "transformers",
        "pipeline_tag": "text-generation",
        "base_model": on_hub,
        "base_model_relation": ("adapter" if run.is_adapter else "finetune") if on_hub else None,
        "datasets": [dataset] if dataset else None,
        "tags": list(dict.fromkeys([*_TAGS, name.lower(), *(tags or ())])),
        "metrics": list(_metrics(after)) or None,
        "eval_results": scores or None,
        "model_name": repo.rpartition("/")[2] if scores else None,
    }
    if run.emissions_g is not None:
        found["co2_eq_emissions"] = {"emissions": run.emissions_g, "source": "CodeCarbon"}
    return ModelCardData(**{key: value for key, value in found.items() if value is not None})


def _facts(run: RunRecord, folder: Path) -> dict[str, Any]:
    record = run.record
    messages = record.example.messages or [{"role": "user", "content": "..."}]
    template_kwargs = record.chat_template_kwargs or {}
    return {
        "claim": card_text.claim(run),
        "messages": json.dumps(messages, ensure_ascii=False),
        "template_kwargs": "".join(f", {name}={value!r}" for name, value in template_kwargs.items()),
        "max_new_tokens": (record.limits or {}).get("max_turn_length") or 512,
        "sampling_arguments": _sampling_arguments(record),
        "is_playable": run.is_playable,
        "first_seed": record.evaluation.seed or 0,
        "has_critic": "critic" in run.sizes,
        "results_table": card_text.results_table(run),
        "protocol": card_text.protocol(run),
        "training_evaluation": card_text.training_evaluation(run),
        "environment_table": card_text.environment_table(run),
        "example_prompt": "" if record.example.prompt is None else card_text.fenced(record.example.prompt),
        "training_table": card_text.training_table(run),
        "limitations": card_text.limitations(run),
        "carbon": card_text.carbon(run),
        **picture_facts(run, folder),
    }


def _sampling_arguments(record: AgentRecord) -> str:
    """Arguments of transformers' `generate` that draw as the evaluation did; its own default is top-k 50."""
    temperature = record.evaluation.temperature
    if not temperature:
        return "do_sample=False"
    smallest = "" if record.min_p is None else f", min_p={record.min_p:g}"
    return f"do_sample=True, temperature={temperature:g}, top_k={record.top_k}, top_p={record.top_p:g}{smallest}"


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE.parent), trim_blocks=True, keep_trailing_newline=True
    )
    return environment.get_template(TEMPLATE.name)
