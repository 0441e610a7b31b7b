"""The page of the study and the README's rows of it hold what the committed results give."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest

from turnppo_hf.cli.main import main
from turnppo_hf.evaluation.study.plan import read_study
from turnppo_hf.evaluation.study.report import cells_of, claims_table
from turnppo_hf.evaluation.study.result import read_results

ROOT = Path(__file__).parents[1]
STUDY = "trainer_configs/studies/doorkey.yaml"
NAMES = {
    "turn_ppo": "**Turn-PPO**",
    "token_ppo": "token PPO, no discounts",
    "token_ppo_tuned": "token PPO, tuned",
    "grpo": "GRPO, groups of 8",
    "gigpo": "GiGPO, groups of 8",
}


def headline_rows() -> list[str]:
    """The README's table: each method with 16 turns, its seeds, and the verdict on Turn-PPO's claim against it."""
    study = read_study(ROOT / STUDY)
    results = read_results(study.results)
    verdicts = {row[1]: row for row in claims_table(study.blocks, results).rows}
    block = study.block("headline")
    cells, rows = cells_of(block, results), []
    for method, name in NAMES.items():
        scores = [run.score for run in cells[("turns", "16"), ("method", method)]]
        words, planned = ["", ""], len(block.seeds)
        if len(scores) < planned:
            name += f" ({len(scores)} of {planned} seeds)"
        if method != "turn_ppo":
            *_, difference, p, verdict = verdicts[f"headline: turn_ppo against {method}, turns 16"]
            words = [f"{difference}, p = {p}", verdict.strip("*")]
        rows.append(
            f"| {name} | {fmean(scores):.2f} | {' '.join(f'{score:.2f}' for score in scores)} | {' | '.join(words)} |"
        )
    return rows


@pytest.mark.slow
def test_page_of_the_study_is_what_the_results_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason='needs matplotlib: pip install -e ".[report]"')
    monkeypatch.chdir(ROOT)
    assert main(["report", STUDY, "--output", str(tmp_path / "evidence.md")]) == 0
    made = (tmp_path / "evidence.md").read_text(encoding="utf-8").replace(str(tmp_path), "docs")
    assert made == (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    pictures = {path.name for path in (tmp_path / "evidence").iterdir()}
    assert pictures == {path.name for path in (ROOT / "docs" / "evidence").iterdir()}


def test_readme_states_the_headline() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for row in headline_rows():
        assert row in text
    study = read_study(ROOT / STUDY)
    results = read_results(study.results)
    grid = {frozenset(cell): runs for cell, runs in cells_of(study.block("tuning"), results).items()}
    at_the_configs_rate = [runs for cell, runs in grid.items() if {("method", "turn_ppo"), ("rate", "3e-4")} <= cell]
    means = sorted(f"{fmean(run.score for run in runs):.2f}" for runs in at_the_configs_rate)
    assert f"cells of the grid have {means[0]} to {means[-1]} (two seeds each)" in " ".join(text.split())
    runs = [run for run in results if run.block == "headline" and run.cell["turns"] == "16"]
    assert {f"(success {run.start:.2f})" for run in runs} == {"(success 0.26)"} and "(success 0.26)" in text
    episodes = {run.episodes_per_step * run.settings["max_steps"] for run in runs}
    assert [f"{number:,.0f} episodes each" in text for number in episodes] == [True]
