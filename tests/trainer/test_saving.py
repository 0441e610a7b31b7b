"""A trainer that pushes: what arrives on the test Hub, what stays here, and that no fault of the Hub stops a run."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, constants, snapshot_download
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, TrainerCallback
from transformers.integrations import TrackioCallback

import turnppo_hf.hub.client
import turnppo_hf.trainer.hub_push
from tests.fake_hub.clients import Clock
from tests.fake_hub.fixture import Hub
from tests.hub.test_client import FAULTS, inject
from tests.trainer.test_turn_ppo_trainer import tasks
from turnppo_hf import TurnPPOAgent, TurnPPOConfig
from turnppo_hf.hub.exceptions import PushError

REPO = "alice/run"
NETWORKS = ("model.safetensors", "critic/model.safetensors")
RELEASE = {"README.md", "turnppo.json", "config.json", "critic/config.json", "tokenizer.json", "chat_template.jinja"}
RELEASE |= {"tokenizer_config.json", "training_config.json", "trainer_state.json", *NETWORKS}
LOGGERS = ("turnppo_hf.hub.client", "turnppo_hf.trainer.hub_push")


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Seconds that retries would have slept; what still waits for the end of the program is forgotten."""
    slept: list[float] = []
    monkeypatch.setattr(turnppo_hf.hub.client, "time", Clock(slept))
    registered = list(threading._threading_atexits)  # type: ignore[attr-defined]
    yield slept
    threading._threading_atexits[:] = registered  # type: ignore[attr-defined]


@pytest.fixture
def pushing(make_trainer: Any, hub: Hub) -> Any:
    """Build trainers that push every save."""

    def make(**changes: Any) -> Any:
        saving = {"save_strategy": "steps", "save_steps": 1, "hub_always_push": True}
        return make_trainer(**{"push_to_hub": True, **saving, **changes})

    return make


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def during_training(hub: Hub, repo_id: str = REPO, revision: str = "main") -> list[Any]:
    """Commits of the saves, the oldest first."""
    commits = [commit for commit in hub.commits(repo_id, revision) if commit.title.startswith("Training in progress")]
    return commits[::-1]


def said(caplog: Any) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name in LOGGERS]


def read(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class AtSteps(TrainerCallback):
    """Calls one function as each step ends, before its save, and another after the save."""

    def __init__(self, before: Any = None, after: Any = None) -> None:
        self.before, self.after = before, after

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.before:
            self.before(state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.after:
            self.after(state.global_step)


def finish(trainer: Any) -> None:
    """Wait for the pushes under way, but leave it to the trainer to report them."""
    while trainer.hub.background.is_busy:
        time.sleep(0.005)


@pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)
@pytest.mark.slow
def test_every_save_is_a_revision_that_everybody_loads(hub: Hub, pushing: Any, run: Path) -> None:
    trainer = pushing(hub_model_id="guild/sokoban", max_steps=2)
    trainer.train()
    commits = during_training(hub, "guild/sokoban")
    assert [commit.title for commit in commits] == ["Training in progress, step 1", "Training in progress, step 2"]
    for number, commit in enumerate(commits, start=1):
        checkpoint = run / f"checkpoint-{number}"
        files = hub.files("guild/sokoban", commit.oid)
        assert set(files) >= RELEASE
        assert not {name for name in files if name.endswith((".bin", ".pt", ".pth")) or "checkpoint" in name}
        assert {name: files[name] for name in NETWORKS} == {
            name: (checkpoint / name).read_bytes() for name in NETWORKS
        }
        agent = TurnPPOAgent.from_pretrained("guild/sokoban", revision=commit.oid)
        actor = AutoModelForCausalLM.from_pretrained("guild/sokoban", revision=commit.oid)
        critic = AutoModelForTokenClassification.from_pretrained(
            "guild/sokoban", revision=commit.oid, subfolder="critic"
        )
        wanted = (
            AutoModelForCausalLM.from_pretrained(checkpoint),
            AutoModelForTokenClassification.from_pretrained(checkpoint / "critic"),
        )
        for pair in ((actor, critic), (agent.actor, agent.critic)):
            for found, network in zip(pair, wanted, strict=True):
                state = network.state_dict()
                assert state and all(torch.equal(value, state[name]) for name, value in found.state_dict().items())
    for name in NETWORKS:  # the control: these are different weights
        assert commits[0].files[name] != commits[1].files[name]
    trainer.push_to_hub()
    assert hub.commits("guild/sokoban")[0].title == "End of training"
    assert "guild/sokoban" in hub.files("guild/sokoban")["README.md"].decode()
    assert not list(run.glob("_push-*")), "no copy is left"


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
@pytest.mark.slow
def test_strategy_that_keeps_checkpoints_pushes_what_a_run_resumes_from(
    hub: Hub, pushing: Any, run: Path, tmp_path: Path, strategy: str
) -> None:
    trainer = pushing(hub_strategy=strategy, num_minibatches=2, max_steps=2)
    trainer.train()
    files = hub.files(REPO)
    kept = {"checkpoint": {"last-checkpoint": 2}, "all_checkpoints": {"checkpoint-1": 1, "checkpoint-2": 2}}[strategy]
    assert {name.split("/")[0] for name in files if "checkpoint" in name} == set(kept)
    for folder, number in kept.items():
        local = read(run / f"checkpoint-{number}")
        pushed = {name.removeprefix(f"{folder}/"): data for name, data in files.items() if name.startswith(folder)}
        assert pushed == local, "all of it, and nothing of the release around it"
        assert {"optimizer.pt", "critic/model.safetensors"} <= set(pushed)
        assert ("rollout_0_of_1.safetensors" in pushed) == (number == 1), "the batch that has an update left"
    assert not {name for name in files if "/" not in name and name.endswith((".pt", ".pth", ".bin"))}
    if strategy == "all_checkpoints":
        final = weights_of(trainer)
        place = Path(snapshot_download(REPO, local_dir=tmp_path / "elsewhere"))
        again = pushing(push_to_hub=False, num_minibatches=2, max_steps=2, save_strategy="no")
        again.train(resume_from_checkpoint=str(place / "checkpoint-1"))
        assert all(torch.equal(value, final[name]) for name, value in weights_of(again).items())


def weights_of(trainer: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.slow
def test_strategy_end_pushes_at_the_end_only(hub: Hub, pushing: Any) -> None:
    trainer = pushing(hub_strategy="end", max_steps=1)
    trainer.train()
    assert hub.files(REPO) == {}
    trainer.push_to_hub(commit_message="Now")
    assert set(hub.files(REPO)) >= RELEASE and hub.commits(REPO)[0].title == "Now"
    trainer.save_model()
    assert [commit.title for commit in hub.commits(REPO)][:1] == ["Now"], "nothing changed, so no commit"


@pytest.mark.slow
def test_rotation_during_a_slow_push_loses_no_revision(hub: Hub, pushing: Any, run: Path) -> None:
    hub.inject("POST .*/preupload/", delay=0.7, times=None)
    trainer = pushing(save_total_limit=1, max_steps=3)
    saved: list[bytes] = []
    trainer.add_callback(
        AtSteps(after=lambda step: saved.append((run / f"checkpoint-{step}" / NETWORKS[0]).read_bytes()))
    )
    trainer.train()
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-3"]
    assert [commit.files[NETWORKS[0]] for commit in during_training(hub)] == saved
    assert len(set(saved)) == 3 and not list(run.glob("_push-*"))


@pytest.mark.slow
def test_save_during_a_push_is_left_out_and_says_so(hub: Hub, pushing: Any, caplog: Any) -> None:
    go = threading.Event()
    trainer = pushing(hub_always_push=False, max_steps=3)
    push = trainer.hub._push_copy
    trainer.hub._push_copy = lambda *arguments: go.wait(60) and push(*arguments)
    trainer.add_callback(AtSteps(after=lambda step: step == 3 and go.set()))
    trainer.train()
    assert [commit.title for commit in during_training(hub)] == ["Training in progress, step 1"]
    left_out = [line for line in said(caplog) if "hub_always_push=True" in line]
    assert [line.split(" is not")[0] for line in left_out] == [f"The checkpoint of step {step}" for step in (2, 3)]


@pytest.mark.slow
def test_run_without_critic_pushes_none(hub: Hub, pushing: Any) -> None:
    trainer = pushing(algorithm="grpo", max_steps=1)
    trainer.train()
    (commit,) = during_training(hub)
    assert "model.safetensors" in commit.files and not any(name.startswith("critic/") for name in commit.files)
    assert TurnPPOAgent.from_pretrained(REPO, revision=commit.oid).critic is None


@pytest.mark.slow
def test_training_goes_on_whatever_the_hub_does(
    hub: Hub, pushing: Any, run: Path, caplog: Any, monkeypatch: Any
) -> None:
    """One save for each fault, and the fault lasts for all of its push. With `-s` it prints what the user sees."""
    trainer = pushing(max_steps=len(FAULTS))
    names = list(FAULTS)
    heard: dict[str, list[str]] = {}

    def strike(step: int) -> None:
        caplog.clear()
        inject(hub, names[step - 1], None, monkeypatch)

    def heal(step: int) -> None:
        finish(trainer)
        heard[names[step - 1]] = said(caplog)
        hub.heal()

    trainer.add_callback(AtSteps(strike, heal))
    trainer.train()
    assert trainer.state.global_step == len(FAULTS) and hub.files(REPO) == {}
    for step, name in enumerate(names, start=1):
        checkpoint = run / f"checkpoint-{step}"
        assert {"optimizer.pt", "trainer_state.json", *NETWORKS} <= set(read(checkpoint))
        last = heard[name][-1]
        assert f"{checkpoint} was not pushed to 'alice/run'" in last and "The files are on the disk" in last
        assert len(heard[name]) == (4 if FAULTS[name][2] else 1)
        print("\n|", name, "|", last.replace(str(run), "FOLDER"), "|")
    assert any(f"{len(FAULTS)} of {len(FAULTS)} pushes failed" in line for line in said(caplog))
    assert hub.token not in caplog.text and not list(run.glob("_push-*"))
    inject(hub, "500 failing", None, monkeypatch)
    with pytest.raises(PushError, match="the Hub fails"):
        trainer.push_to_hub()
    assert set(read(run)) >= RELEASE, "the output folder is complete"
    hub.heal()
    trainer.push_to_hub()
    assert hub.files(REPO)[NETWORKS[1]] == (run / f"checkpoint-{step}" / NETWORKS[1]).read_bytes()


@pytest.mark.slow
def test_faults_that_pass_cost_no_revision(hub: Hub, pushing: Any, caplog: Any, monkeypatch: Any) -> None:
    names = [name for name, fault in FAULTS.items() if fault[2]]
    trainer = pushing(max_steps=len(names))
    trainer.add_callback(
        AtSteps(lambda step: inject(hub, names[step - 1], 1, monkeypatch), lambda step: finish(trainer))
    )
    trainer.train()
    commits = during_training(hub)
    assert [commit.title for commit in commits] == [
        f"Training in progress, step {step}" for step in range(1, len(names) + 1)
    ]
    assert len({commit.files[name] for commit in commits for name in NETWORKS}) == 2 * len(names)
    assert not any("pushes failed" in line for line in said(caplog)) and hub.token not in caplog.text


@pytest.mark.slow
def test_training_starts_while_the_hub_is_down(
    hub: Hub, pushing: Any, caplog: Any, waits: list[float], run: Path
) -> None:
    (run / "_push-7-1").mkdir(parents=True)  # a run was killed while it pushed
    hub.inject("", status=500, times=None)
    trainer = pushing(max_steps=1)
    assert "Training starts all the same" in caplog.text and waits == [], "it does not wait for the Hub"
    assert not (run / "_push-7-1").exists()
    trainer.train()
    assert "1 of 1 pushes failed" in caplog.text
    hub.heal()
    trainer.push_to_hub()
    assert REPO in hub.files(REPO)["README.md"].decode(), "the card knows the namespace that nobody told at the start"
    asked = hub.requests("GET|HEAD .*README.md")
    assert {request.path.split("/resolve/")[0] for request in asked if "/resolve/" in request.path} == {"/alice/run"}


@pytest.mark.parametrize("trouble", ["token", "right", "offline", "name"])
def test_push_that_can_never_succeed_is_refused_before_training(
    hub: Hub, pushing: Any, monkeypatch: Any, trouble: str
) -> None:
    changes: dict[str, Any] = {
        "token": {"hub_token": "hf_NobodysToken"},
        "right": {"hub_model_id": "bob/agent"},
        "offline": {},
        "name": {"hub_model_id": "a/b/c"},
    }[trouble]
    sentence = {
        "token": r"does not accept the token.*hf auth login",
        "right": r"may not write there",
        "offline": r"HF_HUB_OFFLINE is set",
        "name": r"`name` or `namespace/name`",
    }[trouble]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", trouble == "offline")
    with pytest.raises(PushError, match=sentence) as caught:
        pushing(**changes)
    assert "hf_NobodysToken" not in str(caught.value)


@pytest.mark.slow
def test_tokens_and_paths_stay_on_the_machine(
    hub: Hub, pushing: Any, run: Path, tmp_path: Path, caplog: Any, monkeypatch: Any
) -> None:
    caplog.set_level("DEBUG", logger="turnppo_hf")
    other = hub.tokens["alice-read"]
    monkeypatch.setenv("HF_TOKEN", other)  # in use as well; only the argument may write
    evaluating = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "eval_reward"}
    trainer = pushing(
        hub_token=hub.token, hub_private_repo=True, hub_revision="runs", max_steps=2, load_best_model_at_end=True,
        eval_dataset=tasks(4), **evaluating,
    )  # fmt: skip
    trainer.args.model_init_kwargs = {"token": hub.token, "nested": [{"password": f"Bearer {other}"}]}
    inject(hub, "401 revoked token", 1, monkeypatch)
    trainer.train()
    future = trainer.push_to_hub(blocking=False)
    assert future.result(timeout=60).oid == hub.commits(REPO, "runs")[0].oid
    assert (
        hub.repos["model", REPO].private and hub.files(REPO) == {} and len(during_training(hub, revision="runs")) == 1
    )
    secrets = [token.encode() for token in (hub.token, other)]
    for folder, files in (("Hub", hub.files(REPO, "runs")), ("here", read(run))):
        for name, data in files.items():
            assert not any(secret in data for secret in secrets), f"{folder}: {name}"
            resumable = folder == "here" and name.startswith("checkpoint-")
            assert resumable or str(tmp_path).encode() not in data, f"{folder}: {name}"
    assert b'"token": "<redacted>"' in hub.files(REPO, "runs")["training_config.json"]
    assert hub.saw_token(hub.token) == hub.saw_token(other) == hub.sent_to_storage(hub.token) == []
    assert not any(token in caplog.text for token in (hub.token, other))


@pytest.mark.slow
def test_sections_that_users_wrote_on_the_hub_survive_every_push(hub: Hub, pushing: Any) -> None:
    trainer = pushing(max_steps=1)
    trainer.train()
    card = hub.files(REPO)["README.md"].decode()

    def publish(text: str) -> None:
        HfApi().upload_file(path_or_fileobj=text.encode(), path_in_repo="README.md", repo_id=REPO)

    publish(f"{card}\n## Notes of a user\n\nIt likes corners.\n")
    hub.inject("HEAD .*/README.md", status=503)
    trainer.push_to_hub()
    assert "It likes corners." in hub.files(REPO)["README.md"].decode()
    publish(hub.files(REPO)["README.md"].decode().replace("corners", "walls"))
    hub.inject("HEAD .*/README.md", status=503, times=None)
    with pytest.raises(PushError, match=r"README\.md of 'alice/run' was not read"):
        trainer.push_to_hub()
    assert "It likes walls." in hub.files(REPO)["README.md"].decode(), "a card that was not read is not written over"
    hub.heal()
    trainer.push_to_hub(token=hub.token)
    assert "Notes of a user" in hub.files(REPO)["README.md"].decode()


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["stage", "prepare_release", "callback"])
def test_trouble_on_this_side_stops_no_training(
    hub: Hub, pushing: Any, run: Path, caplog: Any, monkeypatch: Any, trouble: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    trainer = pushing(max_steps=2)
    if trouble == "callback":
        trainer.add_callback(type("Failing", (TrainerCallback,), {"on_push_begin": fail}))
    else:
        monkeypatch.setattr(turnppo_hf.trainer.hub_push, trouble, fail)
    trainer.train()
    assert trainer.state.global_step == 2 and hub.files(REPO) == {}
    assert sum("No space left on device" in line for line in said(caplog)) >= 2
    assert not list(run.glob("_push-*")) and set(read(run / "checkpoint-2")) >= set(NETWORKS)


def test_other_ranks_push_nothing(hub: Hub, make_trainer: Any, monkeypatch: Any) -> None:
    trainer = make_trainer(push_to_hub=False)
    monkeypatch.setattr(trainer, "is_world_process_zero", lambda: False)
    trainer.init_hf_repo()
    assert trainer.push_to_hub() is None
    trainer._push_from_checkpoint("checkpoint-1")
    trainer._finish_current_push()
    assert hub.log == [] and trainer.hub_model_id is None


def test_model_card_is_written_without_a_request(hub: Hub, make_trainer: Any, run: Path) -> None:
    trainer = make_trainer()
    trainer.save_model()
    trainer.create_model_card(model_name="Pusher", tags="sokoban")
    assert "# Pusher" in (run / "README.md").read_text() and hub.log == []


@pytest.mark.parametrize(("setting", "spaces"), [({}, []), ({"trackio_static_space_id": None}, ["run-static"])])
def test_push_makes_no_space_of_trackios_logs_by_default(tmp_path: Path, setting: Any, spaces: list[str]) -> None:
    made: list[str] = []
    callback = object.__new__(TrackioCallback)
    project = SimpleNamespace(get=lambda: "run")
    callback._trackio = SimpleNamespace(
        context_vars=SimpleNamespace(current_project=project), sync=lambda **space: made.append("run-static")
    )
    callback._space_id = callback._static_space_id = None
    args = TurnPPOConfig(str(tmp_path), report_to="none", **setting)
    callback.on_push_begin(args, SimpleNamespace(is_world_process_zero=True), None, model=None)
    assert made == spaces
