"""Front matter of a README: read, checked as far as we know the Hub's rules, and turned into tags."""

from __future__ import annotations

import re
from typing import Any

import yaml

COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
TEXTS = ("pipeline_tag", "library_name", "title", "emoji", "app_file", "short_description", "new_version")
TEXTS_OR_LISTS = ("language", "license", "base_model", "datasets", "metrics", "tags", "task_categories", "models")
FENCE = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)


def front_matter(readme: str) -> dict[str, Any]:
    """The card's data; empty where there is none or where it cannot be read."""
    found = FENCE.match(readme)
    try:
        data = yaml.safe_load(found.group(1)) if found else {}
    except yaml.YAMLError:
        return {}
    return data if isinstance(data, dict) else {}


def check(readme: str, repo_type: str) -> tuple[list[str], list[str]]:
    """What the Hub says about a README: errors, with which it refuses a commit, and warnings."""
    found = FENCE.match(readme)
    if found is None or not found.group(1).strip():
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        data = yaml.safe_load(found.group(1))
    except yaml.YAMLError as error:
        return [f"YAML metadata cannot be parsed: {error}"], []
    if not isinstance(data, dict):
        return ["YAML metadata must be a mapping"], []
    errors = [f'"{key}" must be a string' for key in TEXTS if not isinstance(data.get(key, ""), str)]
    for key in TEXTS_OR_LISTS:
        values = data.get(key, "")
        values = values if isinstance(values, list) else [values]
        if not all(isinstance(value, str) for value in values):
            errors.append(f'"{key}" must be a string or a list of strings')
    errors += check_index(data.get("model-index", []))
    if repo_type == "space":
        errors += [
            f'"{key}" must be one of {sorted(COLORS)}'
            for key in ("colorFrom", "colorTo")
            if data.get(key, "red") not in COLORS
        ]
        if len(str(data.get("short_description", ""))) > 60:
            errors.append('"short_description" length must be less than or equal to 60 characters long')
    return errors, []


def check_index(index: Any) -> list[str]:
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []
    for number, model in enumerate(index):
        place = f'"model-index[{number}]'
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            errors.append(f'{place}.name" is required')
            continue
        for position, result in enumerate(model.get("results") or []):
            for key in ("task", "dataset", "metrics"):
                if not isinstance(result, dict) or not result.get(key):
                    errors.append(f'{place}.results[{position}].{key}" is required')
    return errors


def listed(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else [str(value)] if value else []


def tags(card: dict[str, Any], repo_type: str) -> list[str]:
    """The tags the Hub shows: the card's own, and those that follow from its other fields."""
    found = [*listed(card.get("library_name")), *listed(card.get("tags"))]
    found += [f"base_model:{name}" for name in listed(card.get("base_model"))]
    found += [f"dataset:{name}" for name in listed(card.get("datasets"))]
    found += [f"license:{name}" for name in listed(card.get("license"))]
    found += [f"task_categories:{name}" for name in listed(card.get("task_categories"))]
    return list(dict.fromkeys([*found, *([repo_type] if repo_type == "space" else []), "region:us"]))


def evaluation_results(files: dict[str, bytes]) -> list[dict[str, Any]]:
    """The entries of `.eval_results/*.yaml`; what cannot be read is listed as an error, as on the Hub."""
    results: list[dict[str, Any]] = []
    for path, content in files.items():
        if path.startswith(".eval_results/") and path.endswith((".yaml", ".yml")):
            try:
                entries = yaml.safe_load(content)
                if not all(entry["dataset"]["id"] and entry["dataset"]["task_id"] for entry in entries):
                    raise ValueError("dataset.id and dataset.task_id are required")
            except (yaml.YAMLError, TypeError, KeyError, ValueError) as error:
                results.append({"filename": path, "error": str(error)})
                continue
            for entry in entries:
                date = {"date": str(entry["date"])} if "date" in entry else {}
                results.append({"filename": path, "data": entry | date})
    return results
