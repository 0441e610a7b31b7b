"""Results on a panel, made by hand."""

from __future__ import annotations

import random
from typing import Any

from turnppo_hf.evaluation.outcome import Outcome, summarize_outcomes
from turnppo_hf.evaluation.panels.results import PanelResults, protocol_of

CHECKSUM = "ab12" * 16


def outcomes(share: float, *, failed: int = 0, tasks: int = 40, seed: int = 0) -> tuple[Outcome, ...]:
    """Outcomes of which a share succeeded."""
    rng, made = random.Random(seed), []
    for number in range(tasks):
        if number < failed:
            made.append(Outcome(f"t-{number}", None, 0.0, 0.0, 0, 0, "error", "0" * 16, "no answer"))
            continue
        solved = (number - failed) < share * (tasks - failed)
        reward = 10.5 if solved else -1.0
        stop = "solved" if solved else "task_budget"
        made.append(Outcome(f"t-{number}", solved, reward, 0.0, rng.randint(1, 5), 0, stop, "0" * 16, None))
    return tuple(made)


def results(model: str, share: float, *, checksum: str = CHECKSUM, **changes: Any) -> PanelResults:
    """A player's results."""
    played = outcomes(share, **{name: changes.pop(name) for name in ("failed", "tasks") if name in changes})
    deviations = changes.pop("deviations", {})
    made = PanelResults(
        schema_version=1,
        model=model,
        panel="sokoban_6x6",
        panel_checksum=checksum,
        protocol_checksum=protocol_of(checksum, deviations),
        deviations=deviations,
        player={"kind": "agent", "batch_size": 8},
        made_with={"turnppo-hf": "0.1.0"},
        summary=summarize_outcomes(played),
        reference={"random": summarize_outcomes(outcomes(0.1, tasks=len(played))).to_dict()},
        outcomes=played,
    )
    return made if not changes else PanelResults(**{**vars(made), **changes})
