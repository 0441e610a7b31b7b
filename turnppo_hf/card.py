"""An agent's folder in; its card, pictures, evaluation results and the package as a wheel beside it out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, ModelCardData, eval_result_entries_to_yaml

from turnppo_hf import card_text
from turnppo_hf.card_pictures import draw_pictures, picture_facts
from turnppo_hf.run_record import DISTRIBUTION, RunRecord, read_run
from turnppo_hf.wheel import build_wheel

README = "README.md"
EVAL_RESULTS_FILE = ".eval_results/turnppo.yaml"
WHEELS = "wheels"

_TAGS = ("trl", "turn-ppo", "turnppo-hf", "reinforcement-learning", "agent")
_HEADING = re.compile(r"^## +(.+?) *$", re.MULTILINE)
_KEEP = re.compile(r"<!--\s*keep: *true\s*-->")
_GENERATED_KEYS = ("library_name", "pipeline_tag", "base_model", "base_model_relation", "model-index", "metrics")
_FENCED = re.compile(r"^(`{3,})[^\n]*\n.*?^\1`*[ \t]*$", re.MULTILINE | re.DOTALL)


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
    draw_pictures(run, path)
    build_wheel(path / WHEELS)
    if "after" in run.results:
        results = path / EVAL_RESULTS_FILE
        results.parent.mkdir(exist_ok=True)
        entries = eval_results(run.results["after"], run, dataset or f"{repo_id or run.name}-episodes")
        results.write_text(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False), encoding="utf-8")
    text = render_card(path, repo_id, title=title, dataset=dataset, tags=tags)
    old = [(path / README).read_text(encoding="utf-8")] if (path / README).exists() else []
    for card in (*old, *([published] if published else [])):
        text = merge_cards(card, text)
    (path / README).write_text(text, encoding="utf-8")


def render_card(
    folder: Path,
    repo_id: str | None = None,
    *,
    title: str | None = None,
    dataset: str | None = None,
    tags: Sequence[str] | None = None,
) -> str:
    """Return the card of an agent, written from its record alone; the arguments are those of `prepare_release`."""
    run = read_run(folder)
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


def merge_cards(old: str, new: str) -> str:
    """
    Put the user's sections, and the user's keys of the front matter, of an old card into a new one.

    A section is the user's where its heading is none of the template's, where it holds `<!-- keep: true -->`, or where
    the old card is none of ours. It comes after the section that it followed.
    """
    old_data, new_data = ModelCard(old, ignore_metadata_errors=True), ModelCard(new)
    fresh, stale = new_data.data.to_dict(), old_data.data.to_dict()
    tags = dict.fromkeys([*fresh.get("tags", []), *(stale.get("tags") or [])])
    users = {name: value for name, value in stale.items() if name not in (*_GENERATED_KEYS, *fresh)}
    data = {**fresh, "tags": list(tags), **users}
    _, old_sections = _sections(old_data.text)
    opening, sections = _sections(new_data.text)
    is_ours = "Written by `turnppo card`" in old
    known = {heading for _, heading in _template_headings()}
    previous = None
    for heading, text in old_sections:
        if heading in known and is_ours and not _KEEP.search(text):
            previous = heading
            continue
        headings = [name for name, _ in sections]
        if heading in headings:
            sections[headings.index(heading)] = (heading, text)
        else:
            place = headings.index(previous) + 1 if previous in headings else len(headings)
            sections.insert(place, (heading, text))
        previous = heading
    front = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=10_000).strip()
    body = "\n\n".join([opening.strip(), *(text.strip() for _, text in sections)])
    return f"---\n{front}\n---\n{body}\n"


def eval_results(row: Mapping[str, Any], run: RunRecord, dataset: str, notes: str = "") -> list[EvalResultEntry]:
    """
    Say the result of one evaluation in the Hub's format of `.eval_results`.

    Args:
        row (`Mapping`): A player's summary, as in `results.json`.
        run (`RunRecord`): Of the agent that was evaluated.
        dataset (`str`): Id of the dataset that stands for the task.
        notes (`str`, *optional*): Added to the protocol.
    """
    held_out = run.results.get("held_out") or run.record.get("evaluation", {})
    protocol = (
        f"{row['episodes']} episodes from seed {held_out.get('seed')}, temperature "
        f"{held_out.get('temperature', 0):g}, {DISTRIBUTION} {metadata.version(DISTRIBUTION)}"
    )
    task = card_text.environment_name(run).lower()
    values = {"success_rate": row.get("success_rate"), "mean_return": row.get("mean_return")}
    return [
        EvalResultEntry(
            dataset_id=dataset, task_id=f"{task}_{metric}", value=value, notes=f"{protocol}. {notes}".strip()
        )
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
        "do_sample": temperature > 0,
        "temperature_argument": f", temperature={temperature:g}" if temperature > 0 else "",
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


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, keep_trailing_newline=True
    )
    return environment.get_template("model_card.md")


def _template_headings() -> list[tuple[int, str]]:
    text = (Path(__file__).parent / "model_card.md").read_text(encoding="utf-8")
    return [(match.start(), match.group(1)) for match in _HEADING.finditer(text)]


def _sections(text: str) -> tuple[str, list[tuple[str, str]]]:
    """Cut a card at its headings of the second level; those inside of code are none."""
    masked = _FENCED.sub(lambda block: re.sub(r"[^\n]", " ", block.group()), text)
    starts = [(match.start(), match.group(1)) for match in _HEADING.finditer(masked)]
    ends = [start for start, _ in starts[1:]] + [len(text)]
    opening = text[: starts[0][0]] if starts else text
    return opening, [(name, text[start:end]) for (start, name), end in zip(starts, ends, strict=True)]
