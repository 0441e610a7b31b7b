"""A run's record in, the pictures of its card out, and what each of them shows in words."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from turnppo_hf.evaluation.calibration import known_returns
from turnppo_hf.evaluation.learning_curve import ALGORITHM_NAMES, draw_learning_curve
from turnppo_hf.evaluation.pictures.calibration import critic_calibration
from turnppo_hf.evaluation.pictures.theme import ThemeName
from turnppo_hf.evaluation.replay import replay, shown_episode
from turnppo_hf.hub.agent_record import turn_discounts
from turnppo_hf.hub.card import text as card_text
from turnppo_hf.hub.run_record import RunRecord

_REPLAY = {"light": "replay.webp", "dark": "replay-dark.webp"}
_CURVE, _CALIBRATION = "assets/learning_curve-{}.png", "assets/calibration-{}.png"
_THEMES: tuple[ThemeName, ...] = ("light", "dark")

logger = logging.getLogger(__name__)


def draw_pictures(run: RunRecord, folder: Path) -> None:
    """
    Draw learning curve, calibration of the critic and a replay, as far as the run recorded what they show.

    Pictures of an agent without recorded episodes, such as one from the Hub, stay as they are. Without matplotlib none
    is drawn, with a warning: a push must not fail for a picture.
    """
    discount, _ = turn_discounts(run.record)
    metrics, episode = _metrics(run.results), shown_episode(run.episodes)
    is_judged = known_returns(run.episodes, discount) is not None
    try:
        for theme in _THEMES:
            if metrics:
                curves = _curves(run, metrics[0])
                draw_learning_curve(curves, folder / _CURVE.format(theme), metrics[0], theme=theme)
            if is_judged:
                critic_calibration(run.episodes, folder / _CALIBRATION.format(theme), gamma=discount, theme=theme)
            if episode is not None:
                replay(episode, folder / _REPLAY[theme], theme=theme)
    except ImportError as error:
        logger.warning('The card gets no pictures: %s They come with pip install "turnppo-hf[report]".', error)


def picture_facts(run: RunRecord, folder: Path) -> dict[str, Any]:
    """Return what the card's template says about the pictures that are there."""

    def is_drawn(name: str) -> bool:
        return all((folder / name.format(theme)).exists() for theme in _THEMES)

    critic = run.results.get("critic") or {}
    share = critic.get("explained_variance")
    facts: dict[str, Any] = {
        "replay": run.results.get("shown_episode", "")
        if all((folder / name).exists() for name in _REPLAY.values())
        else "",
        "has_curve": bool(_metrics(run.results)) and is_drawn(_CURVE),
        "has_calibration": share is not None,
        "is_calibration_drawn": is_drawn(_CALIBRATION),
    }
    if facts["has_curve"]:
        facts["curve_alt"] = _curve_in_words(run)
    if share is not None:
        facts["calibration"] = (
            f"Before each of {critic['turns']} turns of the held-out episodes the critic said a value; the return "
            f"that followed (format penalties included, discount {critic['discount']:g} per turn) is known. The "
            f"critic explains **{card_text.percent(share)}** of the variance of these returns (0 % is as good as a "
            "constant)."
        )
        facts["calibration_alt"] = (
            "Critic's value before each turn against the return that followed: it explains "
            f"{card_text.percent(share)} of the variance over {critic['turns']} turns"
        )
    return facts


def _curves(run: RunRecord, metric: str) -> dict[str, Any]:
    """Name the runs of the learning curve: the agent's own by its algorithm, further seeds of it by their seed."""
    own = ALGORITHM_NAMES[run.algorithm] if run.algorithm else run.name
    curves = {own: run.results}
    for other in run.comparison:
        if metric in _metrics(other):
            name = ALGORITHM_NAMES[other["algorithm"]]
            curves[name if name not in curves else f"{name}, seed {other['seed']}"] = other
    return curves


def _metrics(results: Mapping[str, Any]) -> list[str]:
    """What a run's curve can be drawn of: what all of its points have, with an interval."""
    points = results.get("learning_curve", ())
    needed = {"success": ("success_rate", "success_low"), "return": ("mean_return", "return_error")}
    return [
        metric
        for metric, keys in needed.items()
        if points and all(point.get(key) is not None for point in points for key in keys)
    ]


def _curve_in_words(run: RunRecord) -> str:
    metric = _metrics(run.results)[0]
    key = {"success": "success_rate", "return": "mean_return"}[metric]
    points = run.results["learning_curve"]
    return (
        f"Held-out {metric} over training: {points[0][key]:.2f} at step {points[0]['step']}, {points[-1][key]:.2f} at "
        f"step {points[-1]['step']}"
    )
