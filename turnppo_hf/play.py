"""One trajectory in, what a reader of the terminal sees out."""

from __future__ import annotations

from turnppo_hf.trajectory import Trajectory

_WIDTH = 72


def render_episode(trajectory: Trajectory) -> str:
    """
    Return an episode as text: each turn's observation, response, action, reward, penalty and value, and the ending.

    Args:
        trajectory (`Trajectory`): Its turns show `value` where a critic scored them.
    """
    lines = [f"{trajectory.environment}, seed {trajectory.seed}"]
    for number, turn in enumerate(trajectory.turns, start=1):
        value = "" if turn.value is None else f"critic's value {turn.value:.2f} "
        lines += [f"-- turn {number} {value}".ljust(_WIDTH, "-"), turn.observation, "", f"response  {turn.completion}"]
        if turn.finish_reason == "length":
            lines.append("          (cut at its token limit)")
        if turn.action != turn.completion:
            lines.append(f"action    {turn.action or '(none understood)'}")
        penalty = f"   format penalty {turn.penalty:g}" if turn.penalty else ""
        lines.append(f"reward    {turn.reward:g}{penalty}")
    lines.append("-" * _WIDTH)
    if trajectory.error is not None:
        lines.append(f"The environment failed: {trajectory.error}")
    turns = "1 turn" if len(trajectory.turns) == 1 else f"{len(trajectory.turns)} turns"
    lines.append(
        f"{trajectory.stop_reason.value} after {turns}   return {trajectory.total_reward:g}   "
        f"format penalties {trajectory.total_penalty:g}"
    )
    return "\n".join(lines)
