"""A run's folder: no other run's, one run at a time, and emptied only where that is asked for."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import TrainerCallback

from turnppo_hf.trainer.run_folder import RunFolder, RunFolderError
from turnppo_hf.trainer.run_settings import check_same_run, difference, task_settings

SAVING = {"save_strategy": "steps", "save_steps": 1}


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": "grpo", "num_generations": 2},
        {"algorithm": "token_ppo"},
        {"seed": 3},
        {"learning_rate": 0.5},
        {"max_steps": 3},
        {"gamma": 0.5},
        {"environment_factory": "turnppo_hf/Sokoban-v0"},
    ],
)
@pytest.mark.parametrize("left", ["checkpoints", "agent"])
def test_folder_of_another_run_is_refused_before_anything_is_played(make_trainer, run, changes, left):
    first = make_trainer(**(SAVING if left == "checkpoints" else {}))
    if left == "agent":
        with first.opened():
            first.save_model()
    else:
        first.train()
    trainer = make_trainer(**changes)
    trainer.collector.collect = None
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(RunFolderError, match=r"of another run \(its `.*this one would mix with it"):
        trainer.train()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == {
        **before,
        run / "_lock": _lock(run),
    }


def _lock(run):
    return (run / "_lock").read_bytes()


def test_agent_without_a_record_is_another_runs(make_trainer, run):
    run.mkdir()
    (run / "config.json").write_text("{}")
    with pytest.raises(RunFolderError, match=r"holds config.json of another run \(it has no record of its settings\)"):
        make_trainer().train()
    (run / "config.json").unlink()
    (run / "notes.txt").write_text("mine")  # the control: what is no run's does not count
    make_trainer().train()


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"logging_steps": 2, "save_steps": 2, "report_to": "none"}])
def test_same_run_may_be_repeated(make_trainer, run, changes):
    first = make_trainer(**SAVING)
    first.train()
    first.save_model()
    again = make_trainer(**{**SAVING, **changes})
    again.train()
    assert again.state.global_step == 2
    assert sorted(path.name for path in (run / "_earlier").iterdir()) == ["checkpoint-1", "checkpoint-2"]


@pytest.mark.slow
def test_folder_is_emptied_where_that_is_asked_for(make_trainer, run):
    first = make_trainer(**SAVING)
    first.train()
    first.save_model()
    assert (run / "critic").is_dir()
    second = make_trainer(algorithm="grpo", num_generations=2, overwrite_output_dir=True)
    second.train()
    assert {path.name for path in run.iterdir()} == {"_lock", "_run.json"}
    second.save_model()
    assert (run / "model.safetensors").exists() and not (run / "critic").exists()


@pytest.mark.parametrize("what", ["working directory", "home", "model"])
def test_folder_of_more_than_a_run_is_not_emptied(make_trainer, run, monkeypatch, what, tiny_actor):
    inner = run / "inner"
    inner.mkdir(parents=True)
    (inner / "file").touch()
    model = {}
    if what == "working directory":
        monkeypatch.chdir(inner)
    elif what == "home":
        monkeypatch.setenv("HOME", str(inner))
    else:
        tiny_actor.config._name_or_path = str(inner)
    trainer = make_trainer(overwrite_output_dir=True, **model)
    with pytest.raises(RunFolderError, match=rf"would empty .*holds .*{what} .*Nothing was deleted"):
        trainer.train()
    assert (inner / "file").exists()


@pytest.mark.slow
def test_emptying_and_resuming_exclude_each_other(make_trainer, run):
    make_trainer(**SAVING).train()
    with pytest.raises(RunFolderError, match="are both set"):
        make_trainer(**SAVING, overwrite_output_dir=True).train(resume_from_checkpoint=True)
    assert (run / "checkpoint-2").exists()


def test_run_without_a_critic_leaves_none(make_trainer, run):
    trainer = make_trainer(algorithm="grpo", num_generations=2)
    (run / "critic").mkdir(parents=True)
    (run / "critic" / "config.json").write_text("{}")
    trainer.save_model()
    assert not (run / "critic").exists()


class During(TrainerCallback):
    """Calls a function at the end of the first step."""

    def __init__(self, call):
        self.call = call

    def on_step_end(self, args, state, control, **kwargs):
        self.call()


def test_second_run_is_refused_while_the_first_writes_and_not_afterwards(make_trainer):
    refused = []

    def second():
        with pytest.raises(RunFolderError, match=rf"Another run writes to .* now \(process {os.getpid()} on "):
            make_trainer().train()
        refused.append(True)

    first = make_trainer(max_steps=1)
    first.add_callback(During(second))
    first.train()
    assert refused == [True]
    make_trainer(max_steps=1).train()


@pytest.mark.slow
def test_lock_is_given_back_by_a_run_that_fails(make_trainer):
    trainer = make_trainer()
    trainer.collector.collect = None
    for _ in range(2):
        with pytest.raises(TypeError, match="NoneType"):
            trainer.train()
    make_trainer().train()


HOLDER = """
import multiprocessing, sys, time
from pathlib import Path
from turnppo_hf.trainer.run_folder import RunFolder
if __name__ == "__main__":
    with RunFolder(Path(sys.argv[1])).locked():
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        print(child.pid, flush=True)
        time.sleep(60)
"""


@pytest.mark.slow
def test_killed_run_blocks_nobody_though_a_process_of_it_lives_on(run):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run)], stdout=subprocess.PIPE, text=True, env=environment
    )
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(RunFolderError, match=f"process {holder.pid} on"), RunFolder(run).locked():
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        os.kill(child, 0)  # it lives
        with RunFolder(run).locked():
            assert (run / "_lock").read_text().startswith(f"{os.getpid()} on ")
    finally:
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()


def test_forked_child_does_not_give_up_its_parents_lock(run):
    with RunFolder(run).locked():
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(0,))
        child.start()
        child.join()
        with pytest.raises(RunFolderError), RunFolder(run).locked():
            pass


def test_record_of_a_run_is_json_that_never_is_pushed(make_trainer, run):
    make_trainer().train()
    settings = json.loads((run / "_run.json").read_text())
    assert settings["environments"] == ["CountingEnvironment"] and settings["algorithm"] == "turn_ppo"
    from turnppo_hf.hub.files import is_private

    assert all(is_private(name) for name in ("_run.json", "_lock", "_earlier/checkpoint-1/model.safetensors"))


def test_other_rows_and_rewards_are_told_where_a_run_goes_on(caplog):
    seeds = Dataset.from_dict({"seed": range(8)})
    then = {"algorithm": "grpo", **task_settings(seeds, ["reward"])}
    with caplog.at_level("WARNING"):
        check_same_run(then, {"algorithm": "grpo"}, "an older checkpoint")
        assert caplog.text == "" and difference(then, {"algorithm": "grpo"}) is None
        check_same_run({**then, **task_settings(seeds.select(range(4)), ["other"])}, then, "there")
    assert "`train_dataset` '4 rows of seed'; it was '8 rows of seed' until there" in caplog.text
    assert "`reward_funcs` ['other']" in caplog.text
