"""The short form of `benchmarks/reliability.py`, and the figures of its page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.damage import DAMAGES

# what a run of another seed ends with; four short evaluation episodes may come out the same
NUMBERS = {"actor of the last step", "critic of the last step", "optimizer", "log"}
ROOT = Path(__file__).parents[1]


@pytest.mark.slow  # some fifteen short trainings
def test_killed_and_damaged_runs_end_as_the_uninterrupted_one() -> None:
    command = [sys.executable, "benchmarks/reliability.py", "--smoke", "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert all(count["equal"] == count["trials"] == 1 for count in found["kills"].values())
    assert found["damages"] == {name: "resumed from the one before, bit-equal" for name in DAMAGES}
    assert set(found["differs with another seed"]) >= NUMBERS


def test_page_has_the_figures_that_were_kept() -> None:
    page = " ".join((ROOT / "docs" / "reliability.md").read_text(encoding="utf-8").split())
    kept = json.loads((ROOT / "benchmarks" / "results" / "reliability.json").read_text(encoding="utf-8"))
    for processes, count in kept["kills"].items():
        moments = count["moments"]
        row = [processes, count["trials"], moments["at a random moment"], moments["in a write"]]
        row += [moments.get("after the end", 0), count["resumed"], count["started_anew"], count["equal"]]
        assert f"| {' | '.join(map(str, row))} |" in page
    assert set(kept["damages"]) == set(DAMAGES)
    for name, outcome in kept["damages"].items():
        assert f"| {name} | {outcome} |" in page
    assert set(kept["differs with another seed"]) >= NUMBERS
