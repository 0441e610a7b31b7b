"""docs/environments.md does what it says: its examples run in order, and the first one learns."""

import re
from functools import partial
from pathlib import Path

import pytest

pytest.importorskip("openenv")
pytest.importorskip("textarena")

from tests.environments.test_trl_classes import calling_model  # noqa: F401 (a fixture)
from tests.helpers.openenv_server import serving
from turnppo_hf.environments import make_environment

PAGE = (Path(__file__).parents[2] / "docs" / "environments.md").read_text(encoding="utf-8")
MAX_LINES, MAX_CODE_LINES = 40, 25


def blocks(text):
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_first_example_is_short():
    [section] = re.findall(r"^## Your own, from nothing\n(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)
    [code] = blocks(section)
    assert len(section.strip().splitlines()) <= MAX_LINES
    assert len([line for line in code.splitlines() if line.strip()]) <= MAX_CODE_LINES


def run_examples(stand_ins):
    """Run the page's blocks in one namespace, with what a test has in place of a model on the Hub and a server."""
    assert all(written in PAGE for written in stand_ins)
    namespace = {"__name__": "page"}
    for number, source in enumerate(blocks(PAGE)):
        for written, stand_in in stand_ins.items():
            source = source.replace(written, stand_in)
        exec(compile(source, f"block {number}", "exec"), namespace)
        for name in re.findall(r"(\w+)\.train\(\)", source):
            trainer = namespace[name]
            assert trainer.state.global_step == trainer.args.max_steps
        if number == 0:
            success = [entry["success"] for entry in trainer.state.log_history if "success" in entry]
            assert len(success) == 12 and sum(success[-4:]) > sum(success[:4]) + 0.4
            # the others only have to run
            namespace["args"].max_steps, namespace["args"].generation_batch_size = 2, 8
    assert {item.environment for item in namespace["trainer"]._last_trajectories} == {"lift", "guess"}


@pytest.mark.slow
def test_examples_run_in_order_and_the_first_one_learns(calling_model, tmp_path, monkeypatch, capsys):  # noqa: F811
    actor, tokenizer, _ = calling_model
    actor.save_pretrained(tmp_path / "chat")
    tokenizer.save_pretrained(tmp_path / "chat")
    monkeypatch.chdir(tmp_path)
    sokoban = partial(make_environment, "sokoban", action_format="bare")
    stand_ins = {
        '"Qwen/Qwen3-0.6B"': repr(str(tmp_path / "chat")),
        "max_steps=100, max_completion_length=2048": "max_steps=1, max_completion_length=64, use_cpu=True, "
        "bf16=False, per_device_train_batch_size=2, num_generations=2",
    }
    with serving(sokoban) as server_url:  # what the page's shell block starts in a process
        run_examples(stand_ins | {"http://localhost:8000": server_url})
    assert capsys.readouterr().out.splitlines().count("[]") == 2  # both environments that are checked are sound
