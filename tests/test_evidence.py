"""The page of the study and the README's rows of it hold what the committed results give."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean

import pytest

from turnppo_hf.cli.main import main
from turnppo_hf.evaluation.study.finished import FinishedRuns
from turnppo_hf.evaluation.study.plan import Study
from turnppo_hf.evaluation.study.report import cells_of, cells_table, claims_table, judge_claim, levels_of
from turnppo_hf.evaluation.study.result import StudyResult, weights_digest
from turnppo_hf.evaluation.study.study_file import read_study

ROOT = Path(__file__).parents[1]
STUDY = "trainer_configs/studies/doorkey.yaml"
NAMES = {
    "turn_ppo": "**Turn-PPO**",
    "token_ppo": "token PPO, no discounts",
    "token_ppo_tuned": "token PPO, tuned",
    "grpo": "GRPO, groups of 8",
    "gigpo": "GiGPO, groups of 8",
}
ONE_RATE = {**{key: NAMES[key] for key in ("turn_ppo", "grpo", "gigpo")}, "token_ppo": "token PPO, tuned"}
NAMED_ONCE = {
    "grpo": "GRPO",
    "token_ppo_tuned": "token PPO, tuned",
    "gigpo": "GiGPO",
    "token_ppo": "token PPO, no discounts",
}
RATES = ("3e-4", "1e-3")
# field -> value -> block and name of the runs that have it
COMPARED = {
    "importance_sampling_level": {
        "turn": ("variants", "as_is"),
        "token": ("variants", "token_ratio"),
        "turn_geometric": ("variants", "geometric_ratio"),
    },
    "loss_aggregation": {
        "turns": ("variants", "as_is"),
        "trajectory_tokens": ("factors", "trajectory_tokens"),
        "batch_tokens": ("factors", "batch_tokens"),
    },
    "critic_layers": {"all three": ("variants", "as_is"), "2": ("variants", "critic_layers_2")},
}
TOLD = ("docs/turn_ppo.md", "docs/studies.md")


def results_of(study: Study) -> list[StudyResult]:
    """What counts of the committed results, and nothing is left out."""
    finished = FinishedRuns(study)
    assert finished.left_out() == []
    return finished.planned()


def headline_rows() -> list[str]:
    """The README's table: each method with 16 turns, its seeds, and the verdict on Turn-PPO's claim against it."""
    study = read_study(ROOT / STUDY)
    results = results_of(study)
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
            words = [f"{difference}, p = {p}", verdict.bold]
        rows.append(
            f"| {name} | {fmean(scores):.2f} | {' '.join(f'{score:.2f}' for score in scores)} | {' | '.join(words)} |"
        )
    return rows


def level_rows() -> list[str]:
    """The README's other table: the mean of each method by turns, and its number of seeds."""
    study = read_study(ROOT / STUDY)
    levels = next(found for found in levels_of(study.blocks, results_of(study)) if "headline" in found.blocks)
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


def test_kept_starts_are_those_of_the_runs() -> None:
    study = read_study(ROOT / STUDY)
    for folder in (study.results / "starts").iterdir():
        runs = [run for run in results_of(study) if Path(str(run.settings["model"])).name == folder.name]
        assert {run.start_digest for run in runs} == {weights_digest(folder)}


def rate_rows() -> list[str]:
    """The table of docs/studies.md: the mean of each method by turns and learning rate, and its number of seeds."""
    study = read_study(ROOT / STUDY)
    cells = cells_of(study.block("rates"), results_of(study))
    rows = []
    for method, name in ONE_RATE.items():
        found = []
        for turns in ("4", "16", "50"):
            for rate in RATES:
                runs = cells.get((("turns", turns), ("method_and_rate", f"{method}_{rate}")), [])
                scores = [run.score for run in runs if run.score is not None]
                found.append(f"{fmean(scores):.2f} ({len(scores)})" if scores else "-")
        rows.append(f"| {name} | {' | '.join(found)} |")
    return rows


def default_rows() -> list[str]:
    """The table of docs/paper_index.md: values of the fields that the paper leaves open, each against the study's."""
    study = read_study(ROOT / STUDY)
    results, rows = results_of(study), []
    for field, values in COMPARED.items():
        scores = {}
        for value, (block, name) in values.items():
            axis = list(study.block(block).axes)[-1]
            runs = cells_of(study.block(block), results)[("base", "turn_ppo_tuned"), (axis, name)]
            scores[value] = {run.seed: run.score for run in runs if run.score is not None}
        first, *_ = scores.values()
        for value, found in scores.items():
            seeds = sorted(found)
            against = "-"
            if found is not first:
                apart = [found[seed] - first[seed] for seed in seeds]
                against = f"{fmean(apart):+.3f} ({min(apart):+.3f} to {max(apart):+.3f})"
            each = " ".join(f"{found[seed]:.2f}" for seed in seeds)
            rows.append(f"| `{field}` | {value} | {fmean(found.values()):.3f} | {each} | {against} |")
    return rows


def verdicts_at_one_rate() -> str:
    """The README's sentence about the claims that Turn-PPO learns more at one rate for both methods."""
    study = read_study(ROOT / STUDY)
    block, results = study.block("rates"), results_of(study)
    claims = [claim for claim in block.claims if not claim.more_than_at and claim.measure == "score"]
    found = [judge_claim(block, claim, results).verdict for claim in claims]
    counts = [found.count(verdict) for verdict in ("holds", "does not hold", "not decided")]
    words = f"{counts[0]} hold, {counts[1]} do not, {counts[2]} are not decided"
    return f"Of {len(found)} claims that it learns more at one rate {words}"


def choice_rows() -> list[str]:
    """The table of docs/studies.md of what the paper says of its own choices."""
    study = read_study(ROOT / STUDY)
    rows = claims_table([study.block("paper")], results_of(study)).rows
    return [
        f"| {claim} | {seeds} | {found}, p = {p} | **{verdict.bold}** |" for claim, _, seeds, found, p, verdict in rows
    ]


def lead_with_32_turns() -> str:
    """The sentence of docs/studies.md about the row that has too few seeds for a claim."""
    study = read_study(ROOT / STUDY)
    cells = cells_of(study.block("horizons"), results_of(study))
    scores = {method: [run.score or 0.0 for run in cells[("turns", "32"), ("method", method)]] for method in NAMES}
    ours, seeds = scores.pop("turn_ppo"), len(study.block("horizons").seeds)
    ahead = [sum(a > b for a, b in zip(ours, others, strict=True)) for others in scores.values()]
    leads = [fmean(ours) - fmean(others) for others in scores.values()]
    assert len(ours) == seeds and min(ahead) == max(ahead)  # the page names one number for all
    return (
        f"With 32 turns it ends above each of the others in {min(ahead)} of {seeds} seeds, by {min(leads):.2f} to "
        f"{max(leads):.2f} in the mean"
    )


def lead_with_50_turns() -> str:
    """The README's sentence about the row at 50 turns: the lead over each method, and whether it grows."""
    study = read_study(ROOT / STUDY)
    block, results = study.block("headline"), results_of(study)
    claims = {(claim.than, bool(claim.more_than_at)): claim for claim in block.claims if claim.at["turns"] == "50"}
    leads, growths = [], []
    for than, name in NAMED_ONCE.items():
        lead, growth = (judge_claim(block, claims[than, grows], results) for grows in (False, True))
        growths.append(growth.verdict)
        interval = f"({lead.low:+.3f} to {lead.high:+.3f}), p = {lead.p_value:.3f}: {lead.verdict}"
        leads.append(f"over {name} {lead.difference:+.3f} {interval}")
    assert "holds" not in growths  # the page says that none grows
    return f"With 50 turns it leads {'; '.join(leads)}; no claim that one grew from 16 turns holds"


def lead_over_grpo_at_one_rate() -> str:
    """What the README says of the lead over GRPO with 50 turns where both have Turn-PPO's rate."""
    study = read_study(ROOT / STUDY)
    block, results = study.block("rates"), results_of(study)
    (claim,) = [
        claim
        for claim in block.claims
        if (claim.better, claim.than, claim.at["turns"]) == ("turn_ppo_1e-3", "grpo_1e-3", "50")
        and not claim.more_than_at
    ]
    lead = judge_claim(block, claim, results)
    assert lead.pairs == len(block.seeds)
    interval = f"({lead.low:+.3f} to {lead.high:+.3f}), p = {lead.p_value:.3f}: {lead.verdict}"
    return f"with GRPO at 1e-3, too, {lead.difference:+.3f} {interval}"


def told_of_50_turns() -> list[str]:
    """What docs/studies.md says of the methods that have all seeds at 50 turns."""
    study = read_study(ROOT / STUDY)
    cells = cells_of(study.block("headline"), results_of(study))
    ours, theirs = (cells[("turns", "50"), ("method", method)] for method in ("turn_ppo", "grpo"))
    pairs = [(mine.score or 0.0, its.score or 0.0) for mine, its in zip(ours, theirs, strict=True)]
    leads = [mine - its for mine, its in pairs]
    lowest = min(range(len(pairs)), key=lambda number: pairs[number][1])
    rest = [lead for number, lead in enumerate(leads) if number != lowest]
    minutes = [fmean(run.cpu_s for run in runs) / 60 for runs in (theirs, ours)]
    means = [fmean(scores) for scores in zip(*pairs, strict=True)]
    tuned = [run.score or 0.0 for run in cells[("turns", "50"), ("method", "token_ppo_tuned")]]
    behind = sum(mine > other for (mine, _), other in zip(pairs, tuned, strict=True))
    rates = cells_of(study.block("rates"), results_of(study))
    faster = [run.score or 0.0 for run in rates[("turns", "50"), ("method_and_rate", "grpo_1e-3")]]
    ahead = sum(mine > other for (mine, _), other in zip(pairs, faster, strict=True))
    return [
        f"At 1e-3, too, GRPO ends at {fmean(faster):.3f}, behind Turn-PPO in {ahead} of {len(faster)} seeds",
        f"Token PPO, tuned, ends at {fmean(tuned):.3f}, behind Turn-PPO in {behind} of {len(tuned)} seeds",
        f"Turn-PPO ends at {means[0]:.3f} in the mean, GRPO at {means[1]:.3f}; in {sum(lead > 0 for lead in leads)} "
        f"of {len(leads)} seeds Turn-PPO is ahead and in {leads.count(0.0)} they are equal",
        f"Without the seed where GRPO ends at {pairs[lowest][1]:.2f} the lead is {fmean(rest):.3f} in place of "
        f"{fmean(leads):.3f}",
        f"needs {minutes[0]:.1f} CPU minutes a run against {minutes[1]:.1f} for the same episodes",
    ]


def runs_below_their_start() -> str:
    """The README's sentence about runs that ended worse than they began."""
    runs = {run.settings_hash: run for run in results_of(read_study(ROOT / STUDY))}.values()
    below = [run for run in runs if run.score is not None and run.start is not None and run.score < run.start]
    names = ", ".join(sorted({list(run.cell.values())[-1] for run in below}))
    start = "its start" if len(below) == 1 else "their starts"
    return f"Of {len(runs)} different runs {len(below)} ended below {start} (`{names}` at 1e-3)"


def test_runs_below_their_start_had_the_rate_that_is_told() -> None:
    below = [run for run in results_of(read_study(ROOT / STUDY)) if run.score < run.start]
    assert {run.settings["learning_rate"] for run in below} == {0.001}


def verdicts_that_a_lead_grows(name: str) -> set[str]:
    study = read_study(ROOT / STUDY)
    block, results = study.block(name), results_of(study)
    return {judge_claim(block, claim, results).verdict for claim in block.claims if claim.more_than_at}


def test_readme_states_the_headline() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for row in [*headline_rows(), *level_rows()]:
        assert row in text
    studies = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    for row in [*rate_rows(), *choice_rows()]:
        assert row in studies
    for sentence in told_of_50_turns():
        assert sentence in " ".join(studies.split())
    for row in default_rows():
        assert row in (ROOT / "docs" / "paper_index.md").read_text(encoding="utf-8")
    assert verdicts_at_one_rate() in " ".join(text.split())
    assert runs_below_their_start() in " ".join(text.split())
    assert lead_with_32_turns() in " ".join(studies.split())
    assert lead_over_grpo_at_one_rate() in " ".join(text.split())
    assert lead_with_50_turns() in " ".join(text.split())
    assert verdicts_that_a_lead_grows("rates") == {"not decided", "does not hold"}
    assert "o claim that a lead grows from 4 to 16 turns holds at one rate" in " ".join(text.split())
    assert "holds" in verdicts_that_a_lead_grows("headline")
    study = read_study(ROOT / STUDY)
    results = results_of(study)
    runs = [run for run in results if run.block == "headline" and run.cell["turns"] == "16"]
    assert {f"(success {run.start:.2f})" for run in runs} == {"(success 0.26)"} and "(success 0.26)" in text
    episodes = {run.episodes_per_step * run.settings["max_steps"] for run in runs}
    assert [f"{number:,.0f} episodes each" in text for number in episodes] == [True]


def test_pages_state_what_the_rate_does_with_four_turns() -> None:
    study = read_study(ROOT / STUDY)
    results = results_of(study)
    block = study.block("rates")
    scores, spreads = {}, {}
    for rate in RATES:
        cell = (("turns", "4"), ("method_and_rate", f"turn_ppo_{rate}"))
        runs = cells_of(block, results)[cell]
        table = cells_table(block, {cell: runs})
        row = dict(zip(table.header, table.rows[0], strict=True))
        scores[rate] = f"{fmean(run.score for run in runs if run.score is not None):.2f}"
        spreads[rate] = f"{float(row['std of log-ratio']):.2f}"
    pages = {name: " ".join((ROOT / name).read_text(encoding="utf-8").split()) for name in TOLD}
    told = (
        f"1e-3 gives a `log_ratio/std` of {spreads['1e-3']} and a success of {scores['1e-3']} with 4 turns, 3e-4 "
        f"gives {spreads['3e-4']} and {scores['3e-4']}"
    )
    assert told in pages["docs/turn_ppo.md"]
    assert f"costs Turn-PPO the lead ({scores['1e-3']})" in pages["docs/studies.md"]
    assert f"brings it back ({scores['3e-4']})" in pages["docs/studies.md"]
    runs = [run for run in results if run.block == "rates" and "_ppo_" in run.cell["method_and_rate"]]
    gamma = {"turn_ppo": ("gamma", "lam"), "token_ppo": ("token_gamma", "token_lam")}
    discounts = {
        run.cell["method_and_rate"]: tuple(run.settings[name] for name in gamma[run.settings["algorithm"]])
        for run in runs
    }
    means = {}
    for name, at in (("tuning", {"method": "turn_ppo", "rate": "1e-3"}), ("paper", {"base": "turn_ppo_tuned"})):
        for cell, found in cells_of(study.block(name), results).items():
            if dict(cell).items() >= at.items():
                means[name, cell[-1][1]] = f"{fmean(run.score for run in found if run.score is not None):.2f}"
    told = (
        f"two seeds of the grid had it the other way round ({means['tuning', '0.99/0.95']} with, "
        f"{means['tuning', '1/1']} without, against {means['paper', 'as_is']} and {means['paper', 'no_discounts']} "
        "over eight)"
    )
    assert told in pages["docs/studies.md"]
    assert discounts == {
        **{"turn_ppo_3e-4": (1.0, 1.0), "turn_ppo_1e-3": (0.99, 0.95)},
        **{"token_ppo_3e-4": (0.99, 0.9), "token_ppo_1e-3": (0.99, 0.95)},
    }
    assert (
        "Turn-PPO has discounts of 1 at 3e-4, of 0.99 and 0.95 at 1e-3, token PPO of 0.99 and 0.9, and 0.99 and 0.95"
        in pages["docs/studies.md"]
    )
