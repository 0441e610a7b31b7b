"""The page of the study and the README's rows of it hold what the committed results give."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest

from turnppo_hf.cli.main import main
from turnppo_hf.evaluation.study.plan import read_study
from turnppo_hf.evaluation.study.report import cells_of, cells_table, claims_table, levels_of
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
TOLD = ("README.md", "docs/turn_ppo.md", "docs/studies.md")


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


def level_rows() -> list[str]:
    """The README's other table: the mean of each method by turns, and its number of seeds."""
    study = read_study(ROOT / STUDY)
    levels = next(
        found for found in levels_of(study.blocks, read_results(study.results)) if "headline" in found.blocks
    )
    rows = []
    for turns in levels.values:
        found = [[run.score for run in levels.lines[method].get(turns, ())] for method in NAMES]
        cells = [f"{fmean(scores):.2f} ({len(scores)})" if scores else "-" for scores in found]
        rows.append(f"| {turns} | {' | '.join(cells)} |")
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
    for row in [*headline_rows(), *level_rows()]:
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


def test_pages_state_what_the_rate_does_with_four_turns() -> None:
    study = read_study(ROOT / STUDY)
    results = read_results(study.results)
    scores, spreads, seeds = {}, {}, {}
    for name in ("headline", "rates"):
        block = study.block(name)
        for cell, runs in cells_of(block, results).items():
            turns, line = (value for _, value in cell)
            if turns == "4":
                scores[line] = f"{fmean(run.score for run in runs if run.score is not None):.2f}"
                table = cells_table(block, {cell: runs})
                row = dict(zip(table.header, table.rows[0], strict=True))
                spreads[line], seeds[line] = f"{float(row['std of log-ratio']):.2f}", len(runs)
    pages = {name: " ".join((ROOT / name).read_text(encoding="utf-8").split()) for name in TOLD}
    assert (
        f"gives it {scores['turn_ppo']}, token PPO {scores['token_ppo_1e-3']}, GiGPO {scores['gigpo_1e-3']} and GRPO "
        f"{scores['grpo_1e-3']} (two seeds each of these three)"
    ) in pages["README.md"]
    assert {seeds[line] for line in ("token_ppo_1e-3", "gigpo_1e-3", "grpo_1e-3")} == {2}
    small = sorted(scores[line] for line in (*NAMES, "turn_ppo_3e-4") if line != "turn_ppo")
    assert f"with 3e-4 all have {small[0]} to {small[-1]}" in pages["README.md"]
    high, low = scores["turn_ppo"], scores["turn_ppo_3e-4"]
    told = (
        f"{spreads['turn_ppo']} and a success of {high} with 4 turns, 3e-4 gives {spreads['turn_ppo_3e-4']} and {low}"
    )
    assert told in pages["docs/turn_ppo.md"]
    assert f"costs Turn-PPO the lead ({high})" in pages["docs/studies.md"]
    assert f"brings it back ({low})" in pages["docs/studies.md"]
