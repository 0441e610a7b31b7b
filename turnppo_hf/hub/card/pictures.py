"""A run's record in, the pictures of its card out, and what each of them shows in words."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from turnppo_hf.evaluation.calibration import known_returns
from turnppo_hf.evaluation.learning_curve import Metric, draw_learning_curve, drawable_metrics, mean_and_interval
from turnppo_hf.evaluation.pictures.calibration import critic_calibration
from turnppo_hf.evaluation.pictures.theme import ThemeName
from turnppo_hf.evaluation.replay import replay, shown_episode
from turnppo_hf.evaluation.results import LearningPoint
from turnppo_hf.hub.card import text as card_text
from turnppo_hf.hub.run_record import RunRecord
from turnppo_hf.ppo.algorithms import ALGORITHMS

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
    discount, _ = run.record.turn_discounts
    metrics, episode = drawable_metrics(run.results.learning_curve or ()), shown_episode(run.episodes)
    is_judged = known_returns(run.episodes, discount) is not None
    try:
        for theme in _THEMES:
            if metrics:
                curves = _curves(run, metrics[0])
                draw_learning_curve(curves, run.results, folder / _CURVE.format(theme), metrics[0], theme=theme)
            if is_judged:
                critic_calibration(run.episodes, folder / _CALIBRATION.format(theme), gamma=discount, theme=theme)
            if episode is not None:
                replay(episode, folder / _REPLAY[theme], theme=theme)
    except ImportError as error:
        logger.warning('The card gets no pictures: %s They come with pip install "turnppo-hf[report]".', error)


def picture_facts(run: RunRecord, folder: Path) -> dict[str, Any]:
    """Return the variables of the card's template that describe the pictures that are there."""

    def is_drawn(name: str) -> bool:
        return all((folder / name.format(theme)).exists() for theme in _THEMES)

    critic = run.results.critic
    share = None if critic is None else critic.explained_variance
    has_replay = all((folder / name).exists() for name in _REPLAY.values())
    facts: dict[str, Any] = {
        "replay": (run.results.shown_episode or "") if has_replay else "",
        "has_curve": bool(drawable_metrics(run.results.learning_curve or ())) and is_drawn(_CURVE),
        "has_calibration": share is not None,
        "is_calibration_drawn": is_drawn(_CALIBRATION),
    }
    if facts["has_curve"]:
        facts["curve_alt"] = _curve_in_words(run)
    if critic is not None and share is not None:
        facts["calibration"] = (
            f"Before each of {critic.turns} turns of the held-out episodes the critic gave a value; the return "
            f"that followed (format penalties included, discount {critic.discount:g} per turn) is known. The "
            f"critic explains **{card_text.percent(share)}** of the variance of these returns (0 % is as good as a "
            "constant)."
        )
        facts["calibration_alt"] = (
            "Critic's value before each turn against the return that followed: it explains "
            f"{card_text.percent(share)} of the variance over {critic.turns} turns"
        )
    return facts


def _curves(run: RunRecord, metric: Metric) -> dict[str, Sequence[LearningPoint]]:
    """Name the learning curves: the agent's own by its algorithm, further seeds of it by their seed."""
    own = run.record.method.title if run.record.method else run.name
    curves: dict[str, Sequence[LearningPoint]] = {own: run.results.learning_curve or ()}
    for other in run.comparison:
        points = other.learning_curve or ()
        if metric in drawable_metrics(points):
            name = other.model or "" if other.algorithm is None else ALGORITHMS[other.algorithm].title
            curves[name if name not in curves else f"{name}, seed {other.seed}"] = points
    return curves


def _curve_in_words(run: RunRecord) -> str:
    points = run.results.learning_curve or ()
    metric = drawable_metrics(points)[0]
    ends = [f"{mean_and_interval(point, metric)[0]:.2f} at step {point.step}" for point in (points[0], points[-1])]
    return f"Held-out {metric} over training: {', '.join(ends)}"
