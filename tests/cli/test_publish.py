"""`turnppo train --push_to_hub`, `card`, `push`, `evaluate` on the test Hub: what strangers get was measured."""

import io
import json
import re
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from turnppo_hf import TurnPPOAgent
from turnppo_hf.cli import publish
from turnppo_hf.cli.main import main
from turnppo_hf.hub.run_record import read_run
from turnppo_hf.models import imitation
from turnppo_hf.trainer.checkpoints import _seal, verify

pytestmark = pytest.mark.slow  # a run of training

FLAGS = ["--max_steps", "4", "--eval_episodes", "12", "--generation_batch_size", "16", "--logging_steps", "1"]
TRAIN = ["train", "trainer_configs/sokoban_cpu.yaml", *FLAGS, "--save_steps", "2"]


def run_command(*arguments):
    """Run `turnppo` and return its exit status and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    return status, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run that was never pushed."""
    folder = tmp_path_factory.mktemp("run") / "agent"
    assert run_command(*TRAIN, "--output_dir", folder)[0] == 0
    return folder


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "agent")


def test_training_pushes_both_networks_at_every_save_and_the_evidence_at_the_end(hub, tmp_path):
    folder = tmp_path / "out"
    pushing = ["--push_to_hub", "true", "--hub_strategy", "every_save", "--hub_model_id", "alice/agent"]
    status, printed, _ = run_command(*TRAIN, "--hub_always_push", "true", "--output_dir", folder, *pushing)
    assert status == 0 and "pushed to alice/agent" in printed
    commits = hub.commits("alice/agent")
    assert [commit.title for commit in commits[:-1]] == [
        "End of training",
        "Training in progress, step 4",
        "Training in progress, step 2",
    ]
    weights = {}
    for commit in commits[:-1]:
        files = hub.files("alice/agent", revision=commit.oid)
        assert {"model.safetensors", "critic/model.safetensors", "turnppo.json", "README.md"} <= set(files)
        assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
        weights[commit.oid] = (load(files["model.safetensors"]), load(files["critic/model.safetensors"]))
        actor = AutoModelForCausalLM.from_pretrained("alice/agent", revision=commit.oid)
        critic = AutoModelForTokenClassification.from_pretrained(
            "alice/agent", subfolder="critic", revision=commit.oid
        )
        agent = TurnPPOAgent.from_pretrained("alice/agent", revision=commit.oid, device="cpu")
        for network, same, saved in zip(
            (actor, critic), (agent.actor, agent.critic), weights[commit.oid], strict=True
        ):
            state = network.state_dict()
            assert all(torch.equal(value, state[name]) for name, value in saved.items())
            assert all(torch.equal(value, state[name]) for name, value in same.state_dict().items())
        trajectory = agent.play(seed=7, temperature=0.0)
        local = folder if commit.title == "End of training" else folder / f"checkpoint-{commit.title.split()[-1]}"
        assert TurnPPOAgent.from_pretrained(local, device="cpu").play(seed=7, temperature=0.0) == trajectory
    first, last = commits[-2].oid, commits[0].oid
    assert not torch.equal(*(weights[oid][0]["model.norm.weight"] for oid in (first, last)))
    assert not torch.equal(*(weights[oid][1]["score.weight"] for oid in (first, last)))
    assert {"results.json", "replay.webp", "assets/learning_curve-dark.png"} <= set(hub.files("alice/agent"))
    assert hub.saw_token(hub.token) == [] and hub.sent_to_storage(hub.token) == []
    assert not any(hub.token.encode() in path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_evaluation_of_the_pushed_agent_gives_the_figures_of_its_card(hub, run):
    assert run_command("push", run, "agent", "--message", "first release")[0] == 0
    assert hub.commits("alice/agent")[0].title == "first release"
    status, printed, _ = run_command("evaluate", "alice/agent", "--json")
    assert status == 0
    players, results = json.loads(printed)["players"], json.loads((run / "results.json").read_text())
    for name, mine in (("model", "after"), ("random", "random"), ("optimal", "optimal")):
        assert players[name] == results[mine]
    judged, recorded = json.loads(printed)["critic"], dict(results["critic"])
    groups = [judged.pop("groups"), recorded.pop("groups")]
    assert judged == pytest.approx(recorded, abs=1e-5)
    assert groups[0] == [pytest.approx(group, abs=1e-5) for group in groups[1]] and groups[0]
    card = ModelCard(hub.files("alice/agent")["README.md"].decode())
    row = next(line for line in card.text.splitlines() if "**this agent" in line)
    assert f"{players['model']['success_rate']:.2f} (" in row and f"{players['model']['mean_return']:.2f} ±" in row
    assert "`turnppo evaluate alice/agent`" in card.text
    _, text, _ = run_command("evaluate", "alice/agent")
    share = results["critic"]["explained_variance"]
    assert f"critic: explained variance {share:.3f} of the returns that followed" in text


def test_pushed_wheel_is_the_package(hub, run):
    run_command("push", run, "agent")
    (name,) = [path for path in hub.files("alice/agent") if path.endswith(".whl")]
    assert name == "wheels/turnppo_hf-0.1.0-py3-none-any.whl"


def test_push_of_a_checkpoint_and_of_the_packaged_actor(hub, run):
    package = Path(imitation.__file__).parent / "sokoban_tiny"
    before = {path: path.read_bytes() for path in package.rglob("*") if path.is_file()}
    assert run_command("push", run / "checkpoint-2", "alice/checkpoint")[0] == 0
    assert "critic/model.safetensors" in hub.files("alice/checkpoint")
    assert "optimizer.pt" not in hub.files("alice/checkpoint")
    assert run_command("push", "tiny", "alice/tiny")[0] == 0
    assert "alice/tiny" in hub.files("alice/tiny")["README.md"].decode()
    assert {path: path.read_bytes() for path in package.rglob("*") if path.is_file()} == before


def test_push_private_to_a_branch_and_as_pull_request(hub, run):
    run_command("push", run, "alice/agent", "--private", "--revision", "dev")
    assert hub.repos["model", "alice/agent"].private
    assert "model.safetensors" in hub.files("alice/agent", revision="dev")
    assert "model.safetensors" not in hub.files("alice/agent")
    status, printed, _ = run_command("push", run, "alice/agent", "--create_pr")
    assert status == 0 and "/discussions/" in printed
    assert "model.safetensors" not in hub.files("alice/agent")


def test_push_keeps_what_the_owner_typed_on_the_hub(hub, run):
    run_command("push", run, "alice/agent")
    card = hub.files("alice/agent")["README.md"] + b"\n## Thanks\n\nTo my cat.\n"
    HfApi().upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="alice/agent")
    run_command("push", run, "alice/agent")
    assert "To my cat." in hub.files("alice/agent")["README.md"].decode()


def test_episodes_of_a_run_become_a_dataset(hub, run):
    status, printed, _ = run_command("push", run, "agent", "--episodes", "agent-episodes")
    assert status == 0 and len(printed.split()) == 2
    rows = datasets.load_dataset("alice/agent-episodes", split="test")
    episodes = read_run(run).episodes
    assert [row["return"] for row in rows] == pytest.approx([item.total_reward for item in episodes])
    assert rows[0]["turn_values"] == pytest.approx([turn.value for turn in episodes[0].turns])
    assert "alice/agent-episodes" in ModelCard(hub.files("alice/agent")["README.md"].decode()).data.datasets
    (run / "trajectories" / "held_out.parquet").unlink()
    status, _, said = run_command("push", run, "alice/agent", "--episodes", "alice/agent-episodes")
    assert status == 2 and "holds no episodes" in said


def test_agent_and_episodes_are_shown_in_a_collection_once(hub):
    for _ in range(2):
        assert run_command("push", "tiny", "alice/tiny", "--collection", "Sokoban agents")[0] == 0
    (collection,) = hub.store.collections.values()
    assert [item["id"] for item in collection["items"]] == ["alice/tiny"]
    status, _, said = run_command("push", "tiny", "alice/tiny", "--collection", "alice/none-123")
    assert status == 2 and "The agent is pushed, but was not added to the collection" in said


def test_evaluation_is_pushed_by_its_owner_as_commit_by_a_stranger_as_pull_request(hub, run, monkeypatch):
    run_command("push", run, "alice/agent")
    status, printed, _ = run_command("evaluate", "alice/agent", "--push", "--episodes", "4")
    assert status == 0 and hub.commits("alice/agent")[0].title == "Evaluation by alice"
    monkeypatch.setenv("HF_TOKEN", hub.tokens["bob"])
    status, printed, _ = run_command("evaluate", "alice/agent", "--push", "--episodes", "4")
    assert status == 0 and re.search(r"/alice/agent/discussions/\d+", printed)
    assert ".eval_results/turnppo-bob.yaml" not in hub.files("alice/agent")
    files = hub.files("alice/agent", revision="refs/pr/1")
    (success, mean) = yaml.safe_load(files[".eval_results/turnppo-bob.yaml"])
    assert success["dataset"]["task_id"] == "sokoban_success_rate" and 0 <= success["value"] <= 1
    assert mean["notes"] == "4 episodes, seeds 1000000 to 1000003, temperature 1, turnppo-hf 0.1.0"
    assert "model.safetensors" in files and "README.md" in files


def test_token_that_may_not_write_is_told_before_the_evaluation(hub, monkeypatch):
    run_command("push", "tiny", "alice/agent")
    monkeypatch.setenv("HF_TOKEN", hub.tokens["alice-read"])
    status, printed, said = run_command("evaluate", "alice/agent", "--push", "--episodes", "4")
    assert status == 2 and "may read and not write" in said and "success" not in printed


def test_evaluation_of_an_older_commit_is_not_pushed(hub):
    for agent in ("tiny-trained", "tiny"):
        assert run_command("push", agent, "alice/agent")[0] == 0
    newest, oldest = hub.commits("alice/agent")[0].oid, hub.commits("alice/agent")[1].oid
    status, _, said = run_command("evaluate", "alice/agent", "--episodes", "2", "--push", "--revision", oldest)
    assert status == 2 and "whose agent would be given the figures of another" in said
    status, _, _ = run_command("evaluate", "alice/agent", "--episodes", "2", "--push", "--revision", newest)
    assert status == 0


def test_episodes_that_cannot_be_pushed_stop_the_agent_or_are_told(hub):
    status, _, said = run_command("push", "tiny-trained", "agent", "--episodes", "bob/eps")
    assert status == 2 and "'bob/eps' was not created" in said and ("model", "alice/agent") not in hub.repos
    status, _, said = run_command("push", "tiny-trained", "agent", "--episodes", "eps", "--create_pr")
    assert status == 2 and "not as a pull request" in said and ("dataset", "alice/eps") not in hub.repos
    assert run_command("push", "tiny-trained", "agent", "--episodes", "eps", "--revision", "v2")[0] == 0
    assert "README.md" in hub.files("alice/eps", repo_type="dataset", revision="v2")


def test_secret_in_an_episode_stops_the_agent_too(hub, run, monkeypatch):
    monkeypatch.setattr(publish, "write_dataset", lambda _, folder, **kwargs: spoil(folder, hub.token))
    status, _, said = run_command("push", run, "alice/agent", "--episodes", "alice/eps")
    assert status == 2 and "holds what looks like a secret" in said and hub.token not in said
    assert not {("model", "alice/agent"), ("dataset", "alice/eps")} & set(hub.repos)


def spoil(folder, secret):
    folder.mkdir()
    (folder / "rows.jsonl").write_text(json.dumps({"observation": secret}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("push", "no/such/run", "alice/agent"), "There is no folder 'no/such/run'"),
        (("card", "no/such/run"), "There is no folder 'no/such/run'"),
        (("push", "docs", "alice/agent"), "holds no config.json"),
        (("card", "docs"), "holds no turnppo.json"),
        (("evaluate", "tiny", "--episodes", "2", "--push"), "no repository on the Hub"),
        (("evaluate", "x", "--push", "--environment_kwargs", "{}"), "plays another one"),
        (("evaluate", "tiny", "--temperature", "-1", "--episodes", "2"), "--temperature must be 0"),
        (("push", "tiny", "bob/agent"), "may not write there (403"),
        (("push", "tiny", "a/b/c"), "Name it as `name` or `namespace/name`"),
        (("evaluate", "alice/none"), "no such repository"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_status_two(hub, arguments, message):
    status, _, said = run_command(*arguments)
    assert status == 2 and message in said and "Traceback" not in said
    assert hub.token not in said


def test_card_command_writes_the_card_and_prints_its_path(run):
    status, printed, _ = run_command("card", run, "--repo_id", "alice/agent", "--compare", run)
    assert status == 0 and printed.strip() == str(run / "README.md")
    card = (run / "README.md").read_text()
    assert "alice/agent" in card and "| Turn-PPO, seed 42 |" in card


def test_push_over_another_agent_leaves_nothing_of_it(hub, run):
    assert run_command("push", "tiny-trained", "alice/agent", "--episodes", "eps")[0] == 0
    assert run_command("evaluate", "alice/agent", "--push", "--episodes", "2")[0] == 0
    added = yaml.safe_load(hub.files("alice/agent")[".eval_results/turnppo-alice.yaml"])
    assert {entry["dataset"]["id"] for entry in added} == {"alice/eps"}
    assert run_command("push", "tiny-trained", "alice/agent")[0] == 0  # the same agent once more
    assert ".eval_results/turnppo-alice.yaml" in hub.files("alice/agent")
    assert "- alice/eps" in hub.files("alice/agent")["README.md"].decode()
    api = HfApi()
    api.upload_file(path_or_fileobj=b"mine", path_in_repo="assets/mine.png", repo_id="alice/agent")
    assert run_command("push", "tiny", "alice/agent")[0] == 0
    files = set(hub.files("alice/agent"))
    gone = {
        "critic/model.safetensors",
        "results.json",
        ".eval_results/turnppo.yaml",
        "replay.webp",
        "train_config.yaml",
    }
    assert not gone & files and "assets/mine.png" in files
    assert "alice/eps" not in hub.files("alice/agent")["README.md"].decode()
    assert ".eval_results/turnppo-alice.yaml" not in files
    assert TurnPPOAgent.from_pretrained("alice/agent").critic is None


def test_folder_with_other_figures_names_no_dataset_of_the_earlier_ones(hub, run):
    assert run_command("push", run, "alice/agent", "--episodes", "bob/eps")[0] == 2
    assert not (run / "README.md").exists() or "bob/eps" not in (run / "README.md").read_text()
    assert run_command("push", run, "alice/agent", "--episodes", "eps")[0] == 0
    assert run_command("push", run, "alice/agent", "--episodes", "eps2")[0] == 0
    card = hub.files("alice/agent")["README.md"].decode()
    assert "- alice/eps2" in card and "- alice/eps\n" not in card
    assert run_command("push", run, "alice/agent")[0] == 0
    assert "- alice/eps2" in hub.files("alice/agent")["README.md"].decode()
    results = json.loads((run / "results.json").read_text())
    results["after"]["mean_return"] += 1.0
    (run / "results.json").write_text(json.dumps(results))
    assert run_command("push", run, "alice/agent")[0] == 0
    assert "alice/eps2" not in hub.files("alice/agent")["README.md"].decode()


def test_push_takes_only_what_belongs_to_a_release(hub, run):
    (run / "secrets.env").write_text(f"HF_TOKEN={hub.token}")
    (run / "notes.txt").write_text(hub.token)
    (run / "mine.png").write_bytes(b"a picture of a section of mine")
    private = ["notes/a.json", "ablation/model.safetensors", "wandb/run-1/files/config.yaml", "critic/old/a.json"]
    for name in private:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(b"{}")
    assert run_command("push", run, "alice/agent")[0] == 0
    published = set(hub.files("alice/agent"))
    assert hub.saw_token(hub.token) == [] and "mine.png" in published and not published & set(private)
    assert {"model.safetensors", "critic/model.safetensors", ".eval_results/turnppo.yaml"} <= published


def test_card_and_push_of_a_checkpoint_leave_it_resumable(hub, run):
    checkpoint = run / "checkpoint-2"
    state = checkpoint / "trainer_state.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "best_model_checkpoint": str(checkpoint)}))
    (checkpoint / "checkpoint.json").unlink()
    _seal(checkpoint, 2, {}, {})
    before = state.read_bytes()
    assert run_command("card", checkpoint)[0] == run_command("push", checkpoint, "alice/agent")[0] == 0
    assert state.read_bytes() == before and verify(checkpoint).step == 2
    assert json.loads(hub.files("alice/agent")["trainer_state.json"])["best_model_checkpoint"] == "checkpoint-2"
    assert "checkpoint.json" not in hub.files("alice/agent")


@pytest.mark.parametrize("card", [b"", b"---\nlicense: mit\n---", b"# Hello"])
def test_push_to_a_repository_that_was_made_on_the_hubs_page(hub, run, card):
    api = HfApi()
    api.create_repo("alice/agent")
    api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="alice/agent")
    assert run_command("push", run, "alice/agent")[0] == 0
    merged = hub.files("alice/agent")["README.md"].decode()
    assert "this agent (Turn-PPO)" in merged and ("license: mit" in merged) == (b"mit" in card)
