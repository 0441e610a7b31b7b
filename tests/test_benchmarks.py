"""The page of the benchmarks holds what the commands measured; `make bench-smoke` shows that they work."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "benchmarks"


def load_report() -> Any:
    spec = importlib.util.spec_from_file_location("benchmarks_report", FOLDER / "report.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_made_from_the_results() -> None:
    report = load_report()
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == report.page(report.read())


def test_page_says_where_a_figure_is_missed() -> None:
    report = load_report()
    results = json.loads(json.dumps(report.read()))
    results["gae"]["turn_gae_ms"]["median"] = 1.5
    assert "Turn GAE under 1 ms: **no**." in report.page(results)


def test_make_runs_every_command_that_has_figures() -> None:
    smoke = (FOLDER.parent / "Makefile").read_text(encoding="utf-8").partition("bench-smoke:\n")[2]
    named = re.search(r"for name in ([a-z ]+);", smoke)
    assert named is not None
    with_figures = {file.stem.partition("_")[0] for file in (FOLDER / "results").glob("*.json")}
    assert set(named.group(1).split()) == with_figures
    assert "make bench-smoke" in (FOLDER.parent / ".ci" / "run").read_text(encoding="utf-8")


def test_page_of_accelerators_is_made_from_the_results() -> None:
    spec = importlib.util.spec_from_file_location("benchmarks_gpu_page", FOLDER / "gpu_page.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (FOLDER.parent / "docs" / "gpu.md").read_text(encoding="utf-8") == module.page()
