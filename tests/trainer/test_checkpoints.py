"""Checkpoints: complete or absent, checked before a run goes on from one, and the run that goes on is the same run."""

import json
import math
import os
import resource
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from benchmarks.damage import DAMAGES
from tests.trainer.test_step_guard import states
from turnppo_hf.trainer import checkpoints
from turnppo_hf.trainer.checkpoints import CheckpointError, CheckpointRecord, newest_complete, verify

SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 4, "num_minibatches": 2}
LOGGERS = ("turnppo_hf.trainer.checkpoints", "turnppo_hf.trainer.run_settings")


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of four steps with all its checkpoints, trained once for all tests that damage a copy."""
    return tmp_path_factory.mktemp("finished") / "run"


@pytest.fixture
def copy(finished, run, make_trainer):
    if not finished.exists():
        make_trainer(**SAVING).train()
        shutil.copytree(run, finished)
        shutil.rmtree(run)
    shutil.copytree(finished, run)
    return run


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name in LOGGERS]


def numbers(trainer):
    """A run's log without times."""
    skipped = ("time/", "train_", "sampling/tokens_per_s")
    return [{k: v for k, v in entry.items() if not k.startswith(skipped)} for entry in trainer.state.log_history]


def same_state(first, second):
    return all(
        torch.equal(first[kind][name], second[kind][name]) for kind in ("weights", "moments") for name in first[kind]
    )


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 3])
def test_resumed_run_is_the_uninterrupted_one_in_weights_moments_and_log(make_trainer, run, step):
    # steps 1 and 3 lie in the middle of a rollout batch, all in the middle of a log entry
    settings = {**SAVING, "logging_steps": 4, "max_steps": 6, "lr_scheduler_type": "linear"}
    whole = make_trainer(**settings)
    whole.train()
    for later in range(step + 1, 7):
        shutil.rmtree(run / f"checkpoint-{later}")
    resumed = make_trainer(**settings)
    resumed.train(resume_from_checkpoint=True)
    assert same_state(states(whole), states(resumed)) and states(whole)["schedule"] == states(resumed)["schedule"]
    assert repr(numbers(whole)) == repr(numbers(resumed))  # NaN included
    assert resumed.state.global_step == 6 and len(numbers(resumed)) == 2


@pytest.mark.parametrize("asked", [True, "true", "True"])
def test_true_is_the_newest_complete_checkpoint(make_trainer, copy, asked):
    trainer = make_trainer(**{**SAVING, "max_steps": 6})
    with trainer.opened(asked) as checkpoint:
        assert checkpoint == str(copy / "checkpoint-4")


@pytest.mark.parametrize("asked", [None, False, "false"])
def test_false_starts_anew(make_trainer, copy, asked):
    with make_trainer(**SAVING).opened(asked) as checkpoint:
        assert checkpoint is None


def test_true_without_a_checkpoint_is_refused(make_trainer, run):
    with pytest.raises(CheckpointError, match=r"is true, but .*run holds no complete checkpoint"):
        make_trainer().train(resume_from_checkpoint="true")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_checkpoint_is_skipped_for_the_one_before(make_trainer, copy, caplog, damage):
    DAMAGES[damage](copy / "checkpoint-4")
    assert newest_complete(copy) == copy / "checkpoint-3"
    [sentence] = said(caplog)
    assert sentence.startswith(f"{copy / 'checkpoint-4'} ") and sentence.endswith(
        "skipped for the checkpoint before it."
    )
    with pytest.raises(CheckpointError, match=r"checkpoint-4 .*The last good one is .*checkpoint-3"):
        make_trainer(**SAVING).train(resume_from_checkpoint=str(copy / "checkpoint-4"))
    verify(copy / "checkpoint-3")  # the control


def test_every_file_of_a_checkpoint_is_checked(copy):
    names = [
        path.relative_to(copy / "checkpoint-3").as_posix()
        for path in (copy / "checkpoint-3").rglob("*")
        if path.is_file()
    ]
    assert {"optimizer.pt", "scheduler.pt", "rollout_0_of_1.safetensors", "critic/model.safetensors"} <= set(names)
    for name in names:
        file = copy / "checkpoint-3" / name
        content = file.read_bytes()
        for broken in (content[:-2], content + b"x", bytes([content[0] ^ 1]) + content[1:]):
            file.write_bytes(broken)
            with pytest.raises(CheckpointError, match=name.replace("critic/", "")):
                verify(copy / "checkpoint-3")
        file.unlink()
        with pytest.raises(CheckpointError, match=r"lacks its file|holds no checkpoint\.json"):
            verify(copy / "checkpoint-3")
        file.write_bytes(content)
    verify(copy / "checkpoint-3")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "is a run's folder, not one of its checkpoints"),
        ("checkpoint-9", "does not exist"),
        ("_run.json", "is a file"),
        ("checkpoint-2/critic", "holds no checkpoint.json"),
    ],
)
def test_path_that_is_no_checkpoint_is_refused_before_anything_is_played(make_trainer, copy, name, sentence):
    trainer = make_trainer(**SAVING)
    trainer.collector.collect = None  # nothing may be played
    with pytest.raises(CheckpointError, match=rf"{sentence}.*other numbers.*The last good one is .*checkpoint-4"):
        trainer.train(resume_from_checkpoint=str(copy / name))


@pytest.mark.slow
def test_checkpoint_saved_without_its_optimizer_is_refused(make_trainer, run):
    make_trainer(**SAVING, save_only_model=True).train()
    with pytest.raises(CheckpointError, match=r"saved without its optimizer \(`save_only_model`\)"):
        make_trainer(**SAVING).train(resume_from_checkpoint=str(run / "checkpoint-2"))


@pytest.mark.parametrize(
    "changes",
    [
        {"algorithm": "grpo", "num_generations": 2},
        {"algorithm": "token_ppo"},
        {"critic": "shared"},
        {"seed": 1},
        {"generation_batch_size": 4},
        {"num_minibatches": 1},
        {"num_iterations": 2},
        {"num_generations": 2},
        {"environment_factory": "turnppo_hf/Sokoban-v0"},
    ],
)
def test_another_run_is_refused(make_trainer, copy, changes):
    name = "environment" if "environment_factory" in changes else next(iter(changes))
    with pytest.raises(CheckpointError, match=f"differs: .*`{name}"):
        make_trainer(**{**SAVING, **changes}).train(resume_from_checkpoint=True)


def test_another_model_is_refused(make_trainer, copy, embedded_actor):
    with pytest.raises(CheckpointError, match=r"`model` is '.*sokoban_tiny of \d+ numbers', there '"):
        make_trainer(model=embedded_actor, **SAVING).train(resume_from_checkpoint=True)


def test_what_may_change_is_logged(make_trainer, copy, caplog):
    changes = {"max_steps": 9, "logging_steps": 3, "save_steps": 5, "learning_rate": 0.002}
    trainer = make_trainer(**{**SAVING, **changes})
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 9
    lines = said(caplog)
    for name, value in changes.items():
        assert any(line.startswith(f"The run goes on with `{name}` {value!r}; it was ") for line in lines), name
    assert len(lines) == len(changes)
    assert [entry["step"] for entry in numbers(trainer) if "loss" in entry] == [1, 2, 3, 4, 6, 9]


def test_finished_run_makes_no_further_step(make_trainer, copy):
    before = {path: path.read_bytes() for path in copy.glob("checkpoint-*/*") if path.is_file()}
    trainer = make_trainer(**SAVING)
    trainer.training_step = None
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 4
    assert before == {path: path.read_bytes() for path in copy.glob("checkpoint-*/*") if path.is_file()}


def test_checkpoint_of_a_past_that_is_left_is_moved_aside(make_trainer, copy, caplog):
    trainer = make_trainer(**{**SAVING, "save_steps": 2})
    trainer.train(resume_from_checkpoint=str(copy / "checkpoint-1"))
    assert sorted(path.name for path in copy.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2", "checkpoint-4"]
    assert sorted(path.name for path in (copy / "_earlier").iterdir()) == [f"checkpoint-{n}" for n in (2, 3, 4)]
    assert "3 checkpoints after step 1" in caplog.text


@pytest.mark.slow
def test_rotation_keeps_the_newest_and_the_best(make_trainer, run):
    fields = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "eval_reward", "save_total_limit": 1}
    settings = {**SAVING, **fields, "load_best_model_at_end": True, "eval_dataset": Dataset.from_dict({"seed": [1]})}
    trainer = make_trainer(**settings)
    scores = iter([1.0, 3.0, 2.0, 0.0])
    evaluate = trainer.evaluate
    trainer.evaluate = lambda *args, **kwargs: {**evaluate(*args, **kwargs), "eval_reward": next(scores)}
    kept = []
    save = trainer._save_checkpoint
    trainer._save_checkpoint = lambda *args: (
        save(*args),
        kept.append(sorted(p.name[11:] for p in run.glob("checkpoint-*"))),
    )
    trainer.train()
    assert kept == [["1"], ["2"], ["2", "3"], ["2", "4"]]
    best = torch.load(run / "checkpoint-2" / "optimizer.pt", weights_only=True)
    assert best["state"] and trainer.state.best_model_checkpoint == str(run / "checkpoint-2")
    DAMAGES["weights cut"](run / "checkpoint-2")
    with pytest.raises(CheckpointError, match=r"The best checkpoint, .*checkpoint-2, has .*load_best_model_at_end"):
        trainer._load_best_model()


class Full:
    """A disk on which no file grows beyond some bytes."""

    def __init__(self, size):
        self.size = size

    def __enter__(self):
        self.limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.limit[1]))

    def __exit__(self, *_):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.limit)


@pytest.mark.slow
@pytest.mark.parametrize("size", [100, 3000, 30_000, 60_000])  # from the first small file to the largest one
def test_full_disk_is_one_sentence_with_the_last_checkpoint_and_leaves_no_part(make_trainer, run, size):
    trainer = make_trainer(**SAVING)
    save = trainer._save_checkpoint

    def save_checkpoint(*args):
        if trainer.state.global_step < 3:
            return save(*args)
        with Full(size):
            return save(*args)

    trainer._save_checkpoint = save_checkpoint
    with pytest.raises(
        CheckpointError, match=r"The checkpoint of step 3 cannot be written \(.+\).*checkpoint-2\. Make"
    ):
        trainer.train()
    assert sorted(path.name for path in run.iterdir()) == ["_lock", "_run.json", "checkpoint-1", "checkpoint-2"]
    again = make_trainer(**SAVING)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4


@pytest.mark.slow
@pytest.mark.parametrize("call", ["mkdir", "rename", "open"])
def test_folder_that_turns_read_only_is_one_sentence(make_trainer, run, monkeypatch, call):
    trainer = make_trainer(**SAVING)
    real = getattr(Path, call)

    def refuse(self, *args, **kwargs):
        writes = call != "open" or "w" in str(args)
        if trainer.state.global_step == 2 and "_saving-" in str(self) and writes:
            raise OSError(30, "Read-only file system")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, call, refuse)
    with pytest.raises(CheckpointError, match=r"step 2 cannot be written \(.*Read-only file system.*checkpoint-1"):
        trainer.train()


def test_write_is_tried_before_the_first_step(make_trainer, run, monkeypatch):
    trainer = make_trainer(**SAVING)
    trainer.collector.collect = None
    with Full(100), pytest.raises(CheckpointError, match=r"`output_dir` .*run cannot be written \(.+\)"):
        trainer.train()
    shutil.rmtree(run)
    run.write_text("a file")
    with pytest.raises(CheckpointError, match="cannot be written"):
        trainer.train()


def test_kill_while_a_checkpoint_is_replaced_loses_none(copy):
    shutil.copytree(copy / "checkpoint-4", copy / "_saving-checkpoint-4")
    (copy / "checkpoint-4").rename(copy / "_replaced-checkpoint-4")
    checkpoints.finish_interrupted(copy)
    assert newest_complete(copy) == copy / "checkpoint-4" and not list(copy.glob("_saving*")) + list(
        copy.glob("_rep*")
    )
    shutil.copytree(copy / "checkpoint-4", copy / "_replaced-checkpoint-4")
    checkpoints.finish_interrupted(copy)
    assert not list(copy.glob("_rep*"))


def test_record_of_a_checkpoint_has_the_runs_time_and_no_token(make_trainer, run):
    trainer = make_trainer(**SAVING, hub_token="hf_" + "a" * 30)
    trainer.args.model_init_kwargs = {"token": "hf_" + "b" * 30}
    trainer.train()
    record = CheckpointRecord.load(run / "checkpoint-4")
    assert record.step == 4 and record.duration_s["total"] >= record.duration_s["training"] > 0
    texts = [(run / name).read_text() for name in ("checkpoint-4/checkpoint.json", "_run.json")]
    assert json.loads(texts[0])["settings"] == json.loads(texts[1]) and json.loads(texts[1])["seed"] == 42
    assert not any("hf_" in text for text in texts)


def test_time_of_all_parts_is_added(make_trainer, copy, monkeypatch):
    record = CheckpointRecord.load(copy / "checkpoint-2")
    object.__setattr__(record, "duration_s", {"training": 1000.0, "total": 2000.0})
    record.save(copy / "checkpoint-2")
    trainer = make_trainer(**SAVING)
    trainer.train(resume_from_checkpoint=str(copy / "checkpoint-2"))
    duration = trainer.clock.read()
    assert 1000 < duration.training < 1900 and 2000 < duration.total < 2900
    assert math.isclose(CheckpointRecord.load(copy / "checkpoint-4").duration_s["total"], duration.total, abs_tol=60)
    assert os.listdir(copy / "_earlier")
