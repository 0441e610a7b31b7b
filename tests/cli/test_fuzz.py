"""Random config files and flags are refused in one line, or mean what they say: benchmarks/config_fuzz.py."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

import turnppo_hf.cli.train as command

FILE = Path(__file__).parents[2] / "benchmarks" / "config_fuzz.py"
CASES = 60


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("config_fuzz", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "config_fuzz", module)  # its dataclass looks itself up
    spec.loader.exec_module(module)
    monkeypatch.setattr(command, "run_training", command.run_training)  # each case replaces it
    return module


def test_random_configs_and_flags_are_refused_in_one_line_or_mean_what_they_say(fuzz: Any) -> None:
    counts, wrong = fuzz.run_cases(CASES, seed=7)
    assert wrong == [] and counts["accepted"] > 0 and counts["refused"] > 0


@pytest.mark.parametrize(
    ("status", "output", "found"),
    [
        (2, "turnppo: error: `gamma` is wrong, and more.\n", "refused"),
        (2, "turnppo: error: `gamma`\nis wrong\n", "refused in 2 lines"),
        (0, "", "status 0, 0 runs"),
        (None, "", "traceback of KeyError"),
    ],
)
def test_the_oracle_notices_what_is_wrong(
    fuzz: Any, monkeypatch: Any, tmp_path: Path, status: int | None, output: str, found: str
) -> None:
    def end(_: Any) -> int:
        print(output, file=sys.stderr, end="")
        if status is None:
            raise KeyError("x")
        return status

    monkeypatch.setattr(fuzz, "turnppo", end)
    assert fuzz.judge(fuzz.Case("", (), {}), tmp_path / "run.yaml").startswith(found)


def test_the_oracle_notices_a_value_that_is_another_one(fuzz: Any, tmp_path: Path) -> None:
    case = fuzz.Case("model: tiny\nenvironment: turnppo_hf/Sokoban-v0\nuse_cpu: true\n", ("--gamma", "0.5"), {})
    assert fuzz.judge(case, tmp_path / "run.yaml") == "accepted"
    accepted: list[Any] = []
    command.run_training = accepted.append  # type: ignore[assignment]
    assert fuzz.turnppo(["train", str(tmp_path / "run.yaml")]) == 0
    assert fuzz.compare(case, accepted[0]) == "`gamma` was given as '0.5' and is 0.99"
