"""`turnppo evaluate --panel`: a player and a panel in; `results.json`, and its score beside the references, out."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from turnppo_hf.cli.players import AgentPlayer, EndpointPlayer

if TYPE_CHECKING:
    from turnppo_hf.evaluation.panels.build import PanelTask
    from turnppo_hf.evaluation.panels.results import PanelResults
    from turnppo_hf.hub.panel.folder import Panel

_OWN = {
    "environment": "the environment is the panel's",
    "environment_kwargs": "the environment's arguments are the panel's",
    "seed": "the tasks are the panel's",
    "push": "results on a panel are shown by the leaderboard of the Space",
}


def evaluate_panel(arguments: argparse.Namespace) -> int:
    """Play a panel, write `results.json`, and print the score."""
    from tqdm import tqdm

    from turnppo_hf.environments.conversation import TextEnvironment, warn_of_lost_rules
    from turnppo_hf.evaluation.panels.build import check_prompts
    from turnppo_hf.evaluation.panels.results import RESULTS_FILE, check_same_panel, protocol_of
    from turnppo_hf.hub.panel.folder import find_panel, read_panel

    for name, why in _OWN.items():
        given = getattr(arguments, name)
        if given is not None and given is not False:  # 0 is a seed
            raise ValueError(
                f"--{name} does not go with --panel: {why}, or its scores would compare with no others. Leave it out."
            )
    panel = read_panel(find_panel(arguments.panel))
    other = None if arguments.compare is None else _read(arguments.compare)
    if other is not None:
        check_same_panel(other, panel.manifest.name, panel.manifest.protocol_checksum)
    tasks, deviations = _chosen(panel, arguments)
    temperature = deviations.get("temperature", panel.manifest.temperature)
    check_prompts(panel.environment(), tasks)
    longest = panel.manifest.max_turn_length
    protocol = protocol_of(panel.manifest.protocol_checksum, deviations)
    model = str(arguments.model if arguments.endpoint is None else arguments.endpoint_model)
    folder = Path(arguments.output or Path("panel_results", panel.manifest.name, _slug(model)))
    earlier = _earlier(folder, model, protocol)  # before anything is played for nothing
    player: AgentPlayer | EndpointPlayer
    if arguments.endpoint is None:
        player = AgentPlayer(arguments, longest)
        world = TextEnvironment(panel.environment()())
        warn_of_lost_rules(world, player.agent.record.context or "full")
        world.close()
    else:
        player = EndpointPlayer(arguments, temperature, longest)
    name = panel.manifest.environment
    _check_writable(folder)
    with tqdm(total=len(tasks), unit=" episodes", disable=None) as bar:
        played = player.play(
            panel.environment(),
            [task.row for task in tasks],
            temperature=temperature,
            name=name,
            on_finished=lambda _: bar.update(),
        )
    results = _results(panel, tasks, player, deviations, played)
    notes = _notes(results, player, earlier, other, arguments.compare)
    failure = None
    try:
        results.save(folder)
    except OSError as error:  # a disk that has filled up since: what was played is shown all the same
        failure = error
    if arguments.json:
        print(results.to_text(), end="")
        print("\n".join(notes), file=sys.stderr)
    else:
        _print_results(results, notes)
    if failure is not None:
        raise ValueError(
            f"No results were written into {folder} ({failure}), so they stand nowhere but above; what --json prints "
            "can be kept as a file. Make room, or name another folder with --output, and evaluate again."
        ) from failure
    if not arguments.json:
        print(f"Wrote {folder / RESULTS_FILE}")
    return 0


def _chosen(panel: Panel, arguments: argparse.Namespace) -> tuple[Sequence[PanelTask], dict[str, Any]]:
    """The tasks that are played, and the settings that are not the panel's."""
    manifest, deviations = panel.manifest, {}
    episodes = manifest.num_tasks if arguments.episodes is None else min(arguments.episodes, manifest.num_tasks)
    if episodes != manifest.num_tasks:
        deviations["episodes"] = episodes
    if arguments.temperature is not None and arguments.temperature != manifest.temperature:
        deviations["temperature"] = arguments.temperature
    return panel.tasks[:episodes], deviations


def _results(
    panel: Panel,
    tasks: Sequence[PanelTask],
    player: AgentPlayer | EndpointPlayer,
    deviations: Mapping[str, Any],
    played: Sequence[Any],
) -> PanelResults:
    from turnppo_hf.evaluation.outcome import Outcome, summarize_outcomes
    from turnppo_hf.evaluation.panels.results import SCHEMA_VERSION, PanelResults, protocol_of
    from turnppo_hf.hub.panel.folder import versions
    from turnppo_hf.redaction import redact

    outcomes = tuple(Outcome.of(trajectory, task.task_id) for trajectory, task in zip(played, tasks, strict=True))
    reference = {
        name: summarize_outcomes([task.players[name] for task in tasks]).to_dict() for name in tasks[0].players
    }
    return PanelResults(
        schema_version=SCHEMA_VERSION,
        model=player.name,
        panel=panel.manifest.name,
        panel_checksum=panel.manifest.protocol_checksum,
        protocol_checksum=protocol_of(panel.manifest.protocol_checksum, deviations),
        deviations=dict(deviations),
        player=redact(player.how()),
        made_with=versions(panel.manifest.environment),
        summary=summarize_outcomes(outcomes),
        reference=reference,
        outcomes=outcomes,
    )


def _earlier(folder: Path, model: str, protocol: str) -> PanelResults | None:
    """The result that is replaced, where it is of the same model and protocol."""
    from turnppo_hf.evaluation.panels.results import RESULTS_FILE

    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, so no results could be written into it. Name a folder with --output.")
    if not (folder / RESULTS_FILE).is_file():
        return None
    earlier = _read(folder)
    if (earlier.model, earlier.protocol_checksum) != (model, protocol):
        raise ValueError(
            f"{folder / RESULTS_FILE} is of the model {earlier.model!r} on {earlier.panel} with the protocol checksum "
            f"{earlier.protocol_checksum[:12]}, and would be replaced by another's. Name another folder with --output."
        )
    return earlier


def _check_writable(folder: Path) -> None:
    """Find out whether results can be written into a folder, which is created, before an hour is played for them."""
    from turnppo_hf.evaluation.panels.results import RESULTS_FILE

    file = folder / RESULTS_FILE
    is_new = not file.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(file, "a", encoding="utf-8"):
            pass
        if is_new:
            file.unlink()
    except OSError as error:
        raise ValueError(
            f"No results could be written into {folder} ({error}), so nothing was played. Name another folder with "
            "--output."
        ) from error


def _read(source: str | Path) -> PanelResults:
    from turnppo_hf.evaluation.panels.results import PanelResults

    return PanelResults.from_file(source)


def _notes(
    results: PanelResults,
    player: AgentPlayer | EndpointPlayer,
    earlier: PanelResults | None,
    other: PanelResults | None,
    compared: str | None,
) -> list[str]:
    from turnppo_hf.evaluation.panels.results import agreement

    notes = []
    if isinstance(player, EndpointPlayer):
        notes.append(f"the endpoint: {player.report()}")
    failed = [outcome for outcome in results.outcomes if outcome.failed]
    if failed:
        notes.append(
            f"{len(failed)} of {len(results.outcomes)} episodes failed and are not in these figures; the first, "
            f"{failed[0].task_id}: {failed[0].error}"
        )
    if results.deviations:
        settings = ", ".join(f"{name} {value:g}" for name, value in results.deviations.items())
        notes.append(f"not the panel's protocol ({settings}): it compares with results of the same settings only")
    if earlier is not None:
        sizes = f"batch size {earlier.player.get('batch_size')} then, {results.player['batch_size']} now"
        notes.append(f"beside the result that was here ({sizes}): {agreement(results, earlier)}")
    if other is not None:
        notes.append(f"beside {compared}: {agreement(results, other)}")
    return notes


def _print_results(results: PanelResults, notes: Sequence[str]) -> None:
    from turnppo_hf.evaluation.summary import Summary, comparison_table
    from turnppo_hf.redaction import redact_text

    rows = {"model": results.summary, **{name: Summary.from_dict(row) for name, row in results.reference.items()}}
    how = ", ".join(f"{name} {value}" for name, value in results.player.items() if name != "kind")
    print(f"{results.model} on the panel {results.panel}, {len(results.outcomes)} tasks")
    print(f"{results.player['kind']}: {redact_text(how)}")
    print(f"protocol checksum {results.protocol_checksum}\n")
    print(comparison_table(rows))
    reasons = ", ".join(f"{why} {count}" for why, count in results.summary.stop_reasons.items())
    print(f"\nstop reasons: {reasons}")
    for note in notes:
        print(redact_text(note))


def _slug(model: str) -> str:
    return re.sub(r"[^\w.-]+", "-", model).strip("-.") or "model"
