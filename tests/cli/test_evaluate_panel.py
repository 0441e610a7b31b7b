"""`turnppo evaluate --panel`: what is written, what is counted, and how a mistake ends."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_main import error_of
from tests.helpers.openai_server import FakeServer, fake_server
from turnppo_hf.cli.main import main
from turnppo_hf.cli.players import AgentPlayer
from turnppo_hf.evaluation.outcome import summarize_outcomes
from turnppo_hf.evaluation.panels import catalog
from turnppo_hf.evaluation.panels.results import PanelResults, agreement, protocol_of
from turnppo_hf.hub.agent_record import AgentRecord
from turnppo_hf.hub.panel.folder import read_panel, write_panel
from turnppo_hf.models.pretrained import find_model

pytest.importorskip("openai", reason='needs the client: pip install "turnppo-hf[openai]"')
NUM_TASKS = 20


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("panels") / "bare"
    with pytest.MonkeyPatch.context() as patch:
        spec = catalog.PANELS["sokoban_5x5_bare"]
        patch.setitem(catalog.PANELS, "sokoban_5x5_bare", replace(spec, num_tasks=NUM_TASKS))
        write_panel("sokoban_5x5_bare", folder)
    return str(folder)


@pytest.fixture(scope="module")
def scored(panel: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scored")
    assert main(["evaluate", "tiny-trained", "--panel", panel, "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with fake_server(lambda _: "Up Up") as running:
        yield running


def over(server: FakeServer, behaviour: str, panel: str, folder: Path, *more: str) -> int:
    words = ["evaluate", "--endpoint", server.url, "--model", behaviour, "--panel", panel, "--output", str(folder)]
    return main([*words, "--retries", "0", *more])


def test_results_hold_score_interval_outcomes_and_checksum(scored: Path, panel: str) -> None:
    results, read = PanelResults.from_file(scored), read_panel(panel)
    assert results.protocol_checksum == results.panel_checksum == read.manifest.protocol_checksum
    assert [outcome.task_id for outcome in results.outcomes] == [task.task_id for task in read.tasks]
    assert results.summary == summarize_outcomes(results.outcomes) and results.summary.success_rate > 0.5
    assert results.summary.success_low < results.summary.success_rate < results.summary.success_high
    assert results.reference["optimal"]["success_rate"] == 1.0
    assert results.player["kind"] == "agent" and results.player["batch_size"] == 256


def test_same_batch_size_gives_the_same_episodes_and_another_is_counted(
    scored: Path, panel: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "again"
    shutil.copytree(scored, copy)
    assert main(["evaluate", "tiny-trained", "--panel", panel, "--output", str(copy)]) == 0
    assert "batch size 256 then, 256 now): 0 of 20 episodes differ in what was written" in capsys.readouterr().out
    assert PanelResults.from_file(copy).outcomes == PanelResults.from_file(scored).outcomes
    words = ["--batch_size", "3", "--compare", str(scored), "--output", str(tmp_path / "three")]
    assert main(["evaluate", "tiny-trained", "--panel", panel, *words]) == 0
    assert f"beside {scored}: " in capsys.readouterr().out


def test_differing_episodes_are_counted(scored: Path) -> None:
    results = PanelResults.from_file(scored)
    first, second, *rest = results.outcomes
    changed = (replace(first, answers="0" * 16), replace(second, answers="1" * 16, total_reward=-3.0), *rest)
    found = agreement(results, replace(results, outcomes=changed))
    assert (found.episodes, found.different, found.same_ending) == (20, 2, 19)
    with pytest.raises(ValueError, match=r"are of the panel sokoban_5x5_bare \(000"):
        agreement(results, replace(results, panel_checksum="0" * 64))


def test_deviating_settings_have_a_protocol_of_their_own(
    panel: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--episodes", "4", "--temperature", "0.5", "--output", str(tmp_path)]
    assert main(["evaluate", "tiny-trained", "--panel", panel, *words]) == 0
    results = PanelResults.from_file(tmp_path)
    assert results.deviations == {"episodes": 4, "temperature": 0.5} and len(results.outcomes) == 4
    assert results.protocol_checksum == protocol_of(results.panel_checksum, results.deviations)
    assert results.protocol_checksum != results.panel_checksum
    assert "not the panel's protocol (episodes 4, temperature 0.5)" in capsys.readouterr().out


def test_any_causal_model_with_a_chat_template_is_scored(panel: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(find_model("tiny"), folder)
    (folder / "turnppo.json").unlink(missing_ok=True)
    words = ["--episodes", "3", "--output", str(tmp_path / "out")]
    assert main(["evaluate", str(folder), "--panel", panel, *words]) == 0
    player = PanelResults.from_file(tmp_path / "out").player
    assert player["kind"] == "causal language model" and player["context"] == "full" and player["chat_template"]


def test_model_without_chat_template_is_one_sentence(
    panel: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(find_model("tiny"), folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert "has no chat template" in error_of(capsys, "evaluate", str(folder), "--panel", panel)


@pytest.mark.parametrize("behaviour", ["good", "empty", "prose"])
def test_endpoint_is_scored_and_its_requests_counted(
    server: FakeServer, panel: str, tmp_path: Path, behaviour: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert over(server, behaviour, panel, tmp_path) == 0
    results = PanelResults.from_file(tmp_path)
    assert results.player["kind"] == "endpoint" and results.summary.failed == 0
    assert results.player["requests"] == sum(outcome.turns for outcome in results.outcomes)
    assert (results.summary.invalid_turns == 1.0) == (behaviour != "good")
    assert f"{results.player['requests']} requests" in capsys.readouterr().out


def test_episodes_that_fail_are_counted_and_said(
    server: FakeServer, panel: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert over(server, "half", panel, tmp_path) == 0
    results = PanelResults.from_file(tmp_path)
    assert results.summary.failed and results.summary.episodes + results.summary.failed == NUM_TASKS
    out = capsys.readouterr().out
    assert f"{results.summary.failed} of 20 episodes failed" in out and "this one not" in out
    assert over(server, "empty", panel, tmp_path / "few", "--max_requests", "30", "--batch_size", "1") == 0
    assert "no request is left of --max_requests 30" in capsys.readouterr().out
    assert PanelResults.from_file(tmp_path / "few").player["requests"] == 30


def test_key_stands_in_no_output(
    server: FakeServer, panel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    key = "a-key-of-no-known-form-4567"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    url = server.url.replace("127.0.0.1", f"user:{key}@127.0.0.1")
    words = ["evaluate", "--endpoint", url, "--model", "good", "--panel", panel, "--output", str(tmp_path)]
    assert main([*words, "--episodes", "2"]) == 0
    assert error_of(capsys, *words[:4], "denied", *words[5:7], "--output", str(tmp_path / "b"))
    texts = [path.read_text() for path in tmp_path.rglob("*.json")]
    captured = capsys.readouterr()
    assert texts and all(key not in text for text in [*texts, captured.out, captured.err])


def test_endpoint_without_panel_plays_seeds(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--endpoint", server.url, "--model", "good", "--episodes", "2"]
    world = ["--environment", "sokoban", "--environment_kwargs", '{"size": 5, "action_format": "bare"}']
    assert main([*words, *world, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["players"]["model"]["episodes"] == 2
    assert "Name one: --environment turnppo_hf/Sokoban-v0" in error_of(capsys, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "No model is named"),
        (["tiny", "--model", "x"], "no --endpoint is given"),
        (["tiny", "--max_requests", "3"], "--max_requests is of the requests to an endpoint"),
        (["tiny", "--retries", "0"], "--retries is of the requests to an endpoint"),
        (["tiny", "--request_timeout", "9"], "--request_timeout is of the requests to an endpoint"),
        (["tiny", "--revision", "v1"], "lies on this machine"),
        (["tiny", "--seed", "-1"], "--seed must be at least 0"),
        (["--endpoint", "http://127.0.0.1/v1", "--model", "m", "--revision", "v1"], "is its own choice"),
        (["--endpoint", "http://127.0.0.1/v1", "--model", "m", "--panel", "PANEL", "--temperature", "nan"], "finite"),
        (["--endpoint", "http://127.0.0.1/v1", "--model", "m", "--panel", "PANEL", "--temperature", "-2"], "finite"),
        (["tiny", "--panel", "PANEL", "--seed", "0"], "--seed does not go with --panel"),
        (["tiny", "--panel", "PANEL", "--environment", ""], "--environment does not go with --panel"),
        (["tiny", "--panel", "PANEL", "--output", __file__], "is a file"),
        (["tiny", "--endpoint", "http://127.0.0.1/v1"], "named with --model NAME"),
        (["--endpoint", "ftp://127.0.0.1", "--model", "m", "--environment", "sokoban"], "is no address"),
        (["tiny", "--output", "x"], "no --panel is given"),
        (["tiny", "--compare", "x"], "no --panel is given"),
        (["tiny", "--batch_size", "0"], "at least 1"),
        (["tiny", "--panel", "PANEL", "--seed", "3"], "--seed does not go with --panel"),
        (["tiny", "--panel", "PANEL", "--environment", "sokoban"], "--environment does not go with --panel"),
        (["tiny", "--panel", "PANEL", "--push"], "--push does not go with --panel"),
        (["tiny", "--panel", "PANEL", "--episodes", "0"], "at least 1"),
        (["tiny", "--panel", "PANEL", "--compare", "nowhere"], "cannot be read"),
        (["tiny", "--panel", "no/panel"], "no panel of that name"),
    ],
)
def test_mistakes_are_one_error(
    words: list[str], message: str, panel: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [panel if word == "PANEL" else word for word in words]
    assert message in error_of(capsys, "evaluate", *given)


@pytest.mark.parametrize("place", ["file/below", "taken"])
def test_place_that_takes_no_results_is_named_before_anything_is_played(
    place: str, panel: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AgentPlayer, "play", None)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "taken" / "results.json").mkdir(parents=True)
    words = ["evaluate", "tiny-trained", "--panel", panel, "--output", str(tmp_path / place)]
    error = error_of(capsys, *words)
    assert f"written into {tmp_path / place} (" in error and "nothing was played" in error


def test_score_is_shown_though_it_cannot_be_written(
    panel: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PanelResults, "save", full)
    words = ["evaluate", "tiny-trained", "--panel", panel, "--episodes", "2", "--output", str(tmp_path / "full")]
    assert main(words) == 2
    captured = capsys.readouterr()
    assert "tiny-trained on the panel" in captured.out and "success" in captured.out and "Wrote" not in captured.out
    assert str(tmp_path / "full") in captured.err and "No space left" in captured.err
    assert main([*words, "--json"]) == 2
    kept = PanelResults.from_text(capsys.readouterr().out, "kept.json")
    assert len(kept.outcomes) == 2 and list((tmp_path / "full").iterdir()) == []


def test_result_of_another_is_not_replaced_and_nothing_is_played_for_it(
    scored: Path, panel: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AgentPlayer, "play", None)
    other = write_panel("webshop_generated_bare", tmp_path / "other").manifest.protocol_checksum
    results = PanelResults.from_file(scored)
    replace(results, panel="other", panel_checksum=other, protocol_checksum=other).save(tmp_path / "of_other")
    words = ["evaluate", "tiny-trained", "--panel", panel, "--output", str(tmp_path / "new")]
    assert "are of the panel other" in error_of(capsys, *words, "--compare", str(tmp_path / "of_other"))
    shutil.copytree(scored, tmp_path / "theirs")
    words = ["evaluate", "tiny", "--panel", panel, "--output", str(tmp_path / "theirs")]
    assert "would be replaced by another's" in error_of(capsys, *words, "--episodes", "2")


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("model",), None, "`model`"),
        (("model",), " ", "`model`"),
        (("protocol_checksum",), "abc", "`protocol_checksum`"),
        (("protocol_checksum",), "0" * 64, "`protocol_checksum`"),
        (("deviations",), {"temperature": 1.0}, "`protocol_checksum`"),
        (("schema_version",), 2, "`schema_version`"),
        (("summary", "success_rate"), 0.99, "`summary.success_rate`"),
        (("summary", "success_low"), float("nan"), "`summary.success_low`"),
        (("summary", "stop_reasons"), {"solved": 20}, "`summary.stop_reasons`"),
        (("outcomes",), [], "`outcomes`"),
        (("outcomes", 3, "total_reward"), float("inf"), "`outcomes[3].total_reward`"),
        (("outcomes", 3, "total_reward"), "10", "`outcomes[3].total_reward`"),
        (("outcomes", 3, "success"), 1, "`outcomes[3].success`"),
        (("outcomes", 3, "stop_reason"), "won", "`outcomes[3].stop_reason`"),
        (("outcomes", 3, "invalid_turns"), 99, "`outcomes[3].invalid_turns`"),
        (("outcomes", 3, "penalty"), 1.0, "`outcomes[3].penalty`"),
        (("outcomes", 3, "task_id"), "sokoban_5x5_bare-0000", "`outcomes[3].task_id`"),
        (("reference", "random"), {}, "`reference.random.episodes`"),
    ],
)
def test_odd_value_is_named_with_field_and_file(
    scored: Path, tmp_path: Path, path: tuple[Any, ...], value: Any, field: str
) -> None:
    content = json.loads((scored / "results.json").read_text())
    part = content
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    file = tmp_path / "odd.json"
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError) as refused:
        PanelResults.from_file(file)
    assert str(refused.value).startswith(f"{file}: {field} is ")
    if path[0] != "reference":  # without it there is just no such player
        del part[path[-1]]
        file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"is missing|outcomes give|must be another|at least one"):
            PanelResults.from_file(file)


def test_results_of_a_training_run_are_named_as_such(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps({"schema_version": 1, "algorithm": "turn_ppo", "after": {}}))
    with pytest.raises(ValueError, match=r"`protocol_checksum` is missing, .* of a training run"):
        PanelResults.from_file(file)
    for content in ("", "[]", "3", "{", "[" * 100_000):
        file.write_text(content)
        with pytest.raises(ValueError, match=r"results\.json: "):
            PanelResults.from_file(file)


def test_all_agents_sample_a_panel_alike(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(find_model("tiny-trained"), tmp_path / "agent"))
    record = AgentRecord.from_folder(folder)
    replace(record, sampling={"temperature": 1.0, "top_k": 1}).save(folder)
    asked = argparse.Namespace(model=str(folder), revision=None, batch_size=None)
    assert AgentPlayer(asked).agent.record.top_k == 1
    assert AgentPlayer(asked, 64).agent.record.top_k == 0  # else one checksum would stand for two distributions


def test_result_that_the_page_opens_with_is_of_the_panel_as_it_is_made(tmp_path: Path) -> None:
    made = write_panel("sokoban_5x5_bare", tmp_path / "panel").manifest.protocol_checksum
    shown = PanelResults.from_file(Path(__file__).parents[2] / "spaces_demo" / "results" / "tiny-trained.json")
    assert shown.panel_checksum == shown.protocol_checksum == made
