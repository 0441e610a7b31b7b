"""Cards say what was recorded, and nothing else; what their owner wrote stays."""

import io
import json
import re
import shutil
from contextlib import redirect_stdout
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from turnppo_hf.cli.main import main
from turnppo_hf.evaluation.calibration import judge_critic
from turnppo_hf.evaluation.replay import shown_episode
from turnppo_hf.hub.card.card import Published, prepare_release, render_card
from turnppo_hf.hub.card.text import fenced, percent
from turnppo_hf.hub.exceptions import ReleaseError
from turnppo_hf.hub.run_record import add_comparison, package_version, read_run
from turnppo_hf.models.pretrained import find_model
from turnppo_hf.trajectory import StopReason

pytestmark = pytest.mark.slow  # a run of training, and pictures anew for each card

FLAGS = ["--max_steps", "2", "--eval_episodes", "12", "--generation_batch_size", "16", "--logging_steps", "1"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three short runs of `turnppo train`: Turn-PPO, GRPO, and one on other held-out tasks."""
    folder = tmp_path_factory.mktemp("runs")
    train = ["train", "trainer_configs/sokoban_cpu.yaml", *FLAGS]
    with redirect_stdout(io.StringIO()):
        assert main([*train, "--output_dir", str(folder / "turn")]) == 0
        assert main([*train, "--output_dir", str(folder / "grpo"), "--algorithm", "grpo"]) == 0
        assert main([*train, "--output_dir", str(folder / "other"), "--eval_seed_start", "2000000"]) == 0
    return folder


@pytest.fixture
def run(runs, tmp_path):
    """A copy of the first run that a test may change."""
    return shutil.copytree(runs / "turn", tmp_path / "turn")


def section(card, heading):
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", card, re.MULTILINE | re.DOTALL).group(1)


def test_card_has_the_results_of_the_run(run):
    card = render_card(run, "alice/agent")
    results = json.loads((run / "results.json").read_text())
    after = results["after"]
    row = next(line for line in card.splitlines() if "**this agent (Turn-PPO)**" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    interval = f"{after['success_rate']:.2f} ({after['success_low']:.2f} to {after['success_high']:.2f})"
    assert cells[1:] == [
        "2 steps",
        "12",
        interval,
        f"{after['mean_return']:.2f} ± {after['return_error']:.2f}",
    ]
    assert "seeds 1000000 to 1000011, sampled at temperature 1, one training run (seed 42)" in card
    for player in ("before training", "random player", "optimal player"):
        assert player in section(card, "Results")
    assert f"**{percent(after['success_rate'])}**" in card
    assert f"| actor's learning rate | {2e-4:g} |" in section(card, "Training")
    assert "| optimizer steps | 2 |" in section(card, "Training")
    assert "`turnppo train trainer_configs/sokoban_cpu.yaml --max_steps 2" in section(card, "Training")
    assert "--output_dir" not in card and str(run.parent) not in card


def test_card_is_valid_and_says_what_the_hub_reads(run, hub):
    prepare_release(run, "alice/agent", dataset="alice/episodes", tags=["mine"])
    card = ModelCard.load(run / "README.md")
    card.validate()
    data = card.data.to_dict()
    assert data["library_name"] == "transformers" and data["pipeline_tag"] == "text-generation"
    assert {"trl", "turn-ppo", "sokoban", "reinforcement-learning", "mine"} <= set(data["tags"])
    assert data["datasets"] == ["alice/episodes"]
    after = json.loads((run / "results.json").read_text())["after"]
    metrics = data["model-index"][0]["results"][0]["metrics"]
    assert {item["type"]: item["value"] for item in metrics} == {
        "success_rate": pytest.approx(after["success_rate"], abs=1e-4),
        "mean_return": pytest.approx(after["mean_return"], abs=1e-4),
    }
    entries = parse_eval_result_entries(yaml.safe_load((run / ".eval_results" / "turnppo.yaml").read_text()))
    assert [entry.value for entry in entries] == [after["success_rate"], after["mean_return"]]
    assert {entry.dataset_id for entry in entries} == {"alice/episodes"}
    assert entries[0].notes.startswith("12 episodes, seeds 1000000 to 1000011, sampled at temperature 1, turnppo-hf")


def test_pictures_of_a_card_are_there_and_told_in_words(run):
    prepare_release(run, "alice/agent")
    card = (run / "README.md").read_text()
    for alt, path in re.findall(r"!\[(.*?)\]\((.*?)\)", card):
        assert (run / path.partition("#")[0]).stat().st_size > 1000, path
        assert len(alt) > 20, path
    assert len(re.findall(r"hf-dark-mode-only", card)) == len(re.findall(r"hf-light-mode-only", card)) == 3
    assert "![Replay of Sokoban-v0, seed 10000" in card


def test_card_of_an_agent_without_critic_has_no_word_of_one(runs):
    card = render_card(runs / "grpo", "alice/grpo")
    said = card.replace(section(card, "Limitations"), "").replace("; no critic)", "").lower()
    assert "critic" not in said and "values(" not in said
    assert "It has no critic" in section(card, "Limitations")
    assert "critic's learning rate" not in card and "gamma" not in section(card, "Training")


def test_card_without_results_claims_nothing(run):
    (run / "results.json").unlink()
    card = render_card(run, "alice/agent")
    assert "No held-out evaluation was recorded" in card and "succeeds" not in card
    assert "model-index" not in card and "learning_curve" not in card
    history = json.loads((run / "trainer_state.json").read_text())
    history["log_history"].append({"step": 2, "eval_reward": 1.25, "eval_success": 0.5})
    (run / "trainer_state.json").write_text(json.dumps(history))
    assert "step 2): success 0.500, mean return 1.25." in render_card(run, "alice/agent")


def test_card_of_a_checkpoint_is_written_from_the_checkpoint(runs):
    card = render_card(runs / "turn" / "checkpoint-2", "alice/agent")
    assert "| optimizer steps | 2 |" in card and "No held-out evaluation" in card


def test_compared_runs_stand_beside_the_agent(run, runs):
    add_comparison(run, [runs / "grpo"])
    prepare_release(run, "alice/agent")
    card = (run / "README.md").read_text()
    theirs = json.loads((runs / "grpo" / "results.json").read_text())["after"]
    row = next(line for line in card.splitlines() if line.startswith("| GRPO, seed 42 |"))
    assert f"{theirs['success_rate']:.2f} (" in row and f"{theirs['mean_return']:.2f} ±" in row
    assert "--algorithm grpo`" in card, "the command that made it"
    add_comparison(run, [])
    assert "GRPO" not in render_card(run, "alice/agent").split("## Citation")[0]


def test_runs_on_other_tasks_do_not_compare(run, runs, tmp_path):
    with pytest.raises(ReleaseError, match="differ in `held_out`, so their figures do not compare"):
        add_comparison(run, [runs / "other"])
    with pytest.raises(ReleaseError, match=r"holds no results\.json"):
        add_comparison(run, [tmp_path])


def test_regenerated_card_is_the_same_card(run):
    prepare_release(run, "alice/agent")
    first = (run / "README.md").read_text()
    prepare_release(run, "alice/agent")
    assert (run / "README.md").read_text() == first


def test_users_sections_and_keys_survive_regeneration(run):
    prepare_release(run, "alice/agent")
    card = (run / "README.md").read_text()
    card = card.replace("library_name: transformers", "library_name: transformers\nlicense: mit\nlanguage: [en]")
    card = card.replace("- sokoban\n", "- sokoban\n- my-tag\n")
    card = card.replace("## Training\n", "## Ethics\n\nMy own words.\n\n```\n## no heading\n```\n\n## Training\n")
    card = card.replace("## Limitations\n", "## Limitations\n<!-- keep: true -->\nThese are mine.\n")
    card = card.replace("## Results\n", "## Results\n\nThis sentence is not kept.\n")
    (run / "README.md").write_text(card)
    prepare_release(run, "alice/renamed")
    again = (run / "README.md").read_text()
    headings = re.findall(r"^## (.+)$", again, re.MULTILINE)
    assert headings.index("Ethics") == headings.index("Training") - 2, "a line of code counts as heading in this count"
    assert "My own words.\n\n```\n## no heading\n```" in again and "These are mine." in again
    assert "This sentence is not kept." not in again
    data = ModelCard(again).data.to_dict()
    assert data["license"] == "mit" and data["language"] == ["en"] and "my-tag" in data["tags"]
    assert "alice/renamed" in again and "alice/agent" not in again.replace("alice/agent-episodes", "")


def test_published_cards_sections_are_kept_as_well(run):
    prepare_release(run, "alice/agent")
    published = (run / "README.md").read_text() + "\n## From the web\n\nTyped on the Hub.\n"
    prepare_release(run, "alice/agent", published=Published(published))
    assert "Typed on the Hub." in (run / "README.md").read_text()


@pytest.mark.parametrize("text", ["plain", "```\ncode\n```", "a ````` b", "## heading\n|table|", "</div><script>"])
def test_fenced_text_cannot_leave_its_block(text):
    block = fenced(text)
    fence = block.split("text\n", 1)[0]
    assert block.endswith(f"\n{fence}") and fence not in text and fence.strip("`") == ""


def test_prompt_that_holds_a_card_stays_in_its_block(run):
    record = json.loads((run / "turnppo.json").read_text())
    record["example"] = {
        "messages": [{"role": "user", "content": 'x"""\n```\n## Results\n'}],
        "prompt": "```\n## Results\n{{ 7 * 7 }} <script>alert(1)</script>\n````",
    }
    (run / "turnppo.json").write_text(json.dumps(record))
    prepare_release(run, "alice/agent")
    prepare_release(run, "alice/agent")
    card = (run / "README.md").read_text()
    assert card.count("{{ 7 * 7 }}") == 1 and "49" not in section(card, "Environment and prompt")
    assert card.index("**this agent") < card.index("{{ 7 * 7 }}")


def test_judge_critic_counts_known_returns_only(run):
    episodes = list(read_run(run).episodes)
    discount = 0.99
    judged = judge_critic(episodes, discount)
    assert judged.turns == sum(len(item.turns) for item in episodes) and judged.discount == 0.99
    cut = [replace(episodes[0], stop_reason=StopReason.TIME_LIMIT), *episodes[1:]]
    assert judge_critic(cut, discount).turns == judged.turns - len(episodes[0].turns)
    blind = [replace(item, turns=tuple(replace(turn, value=None) for turn in item.turns)) for item in episodes]
    assert judge_critic(blind, discount) is None and judge_critic([], discount) is None


def test_shown_episode_is_solved_where_one_is(run):
    episodes = list(read_run(run).episodes)
    shown = shown_episode(episodes)
    assert shown.solved == any(item.solved for item in episodes)
    lost = [replace(item, stop_reason=StopReason.TASK_BUDGET) for item in episodes]
    assert shown_episode(lost).total_reward == max(item.total_reward for item in lost)
    assert shown_episode([]) is None


def test_folder_without_record_is_refused(tmp_path):
    with pytest.raises(ReleaseError, match=r"holds no turnppo\.json, so nothing is known"):
        render_card(tmp_path)


def test_emissions_of_codecarbon_enter_the_card(run):
    assert "Carbon" not in render_card(run, "alice/agent")
    (run / "emissions.csv").write_text("timestamp,emissions\na,0.0005\nb,0.001\n")
    prepare_release(run, "alice/agent")
    card = (run / "README.md").read_text()
    assert "1.5 g of CO2" in section(card, "Carbon")
    assert ModelCard(card).data.to_dict()["co2_eq_emissions"]["emissions"] == pytest.approx(1.5)


def test_package_version_names_the_commit():
    found = package_version()
    assert re.fullmatch(r"[0-9a-f]{40}\+?", found.commit) and found.version in ("0.1.0",)


def test_python_of_a_card_runs(run, hub, tmp_path):
    from turnppo_hf.cli.publish import push_run

    push_run(str(run), "alice/agent", message="release")
    card = hub.files("alice/agent")["README.md"].decode()
    blocks = re.findall(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 2
    printed = io.StringIO()
    with redirect_stdout(printed):
        for block in blocks:
            exec(compile(block, "card", "exec"), {})
    lines = printed.getvalue().splitlines()
    assert set(lines[0].split()) <= {"Up", "Down", "Left", "Right"}
    assert re.match(r"(True|False) -?\d", lines[-1])


def test_card_of_an_agent_whose_training_is_unknown_claims_none(tmp_path):
    folder = shutil.copytree(find_model("tiny"), tmp_path / "tiny")
    card = render_card(folder, "alice/tiny")
    assert "trained with" not in card and "How it was trained was not recorded." in card and "Turn-PPO |" not in card


def test_card_where_success_is_defined_only_after_training(run):
    results = json.loads((run / "results.json").read_text())
    for row in (results["before"], results["learning_curve"][0]):
        row.update(success_rate=None, success_low=None, success_high=None)
    (run / "results.json").write_text(json.dumps(results))
    prepare_release(run, "alice/agent")
    card = (run / "README.md").read_text()
    assert "before training it was" not in card and "| before training |  | 12 | not defined |" in card
    assert "Held-out return over training" in card


def test_card_of_one_held_out_episode_has_no_interval_of_the_return(run):
    results = json.loads((run / "results.json").read_text())
    for row in (results["before"], results["after"], *results["learning_curve"]):
        row.update(success_rate=None, success_low=None, success_high=None, return_error=None)
    (run / "results.json").write_text(json.dumps(results))
    shutil.rmtree(run / "assets", ignore_errors=True)
    prepare_release(run, "alice/agent")
    assert " ± - (standard error)" in (run / "README.md").read_text()


@pytest.mark.parametrize("environment", [None, "Guess-v0"])
def test_card_of_an_environment_of_ones_own_says_how_to_name_it(run, environment):
    record = json.loads((run / "turnppo.json").read_text())
    (run / "turnppo.json").write_text(json.dumps({**record, "environment": environment, "environment_name": "Guess"}))
    card = render_card(run, "alice/agent")
    assert "agent.play(make_environment, seed=" in card and "--environment MODULE:ID" in card
    assert "prints the same figures" not in card and "for Guess" in card


def test_quick_start_samples_as_the_evaluation_did(run):
    card = render_card(run, "alice/agent")
    assert "do_sample=True, temperature=1, top_k=0, top_p=1)" in card


def test_steps_are_those_of_the_weights(run):
    state = json.loads((run / "trainer_state.json").read_text())
    (run / "trainer_state.json").write_text(json.dumps({**state, "best_global_step": 1}))
    assert "| optimizer steps | 2 |" in render_card(run, "alice/agent")
    config = json.loads((run / "training_config.json").read_text())
    (run / "training_config.json").write_text(json.dumps({**config, "load_best_model_at_end": True}))
    assert "| optimizer steps | 1 |" in render_card(run, "alice/agent")


def test_places_of_this_machine_are_not_published(run, caplog):
    state = json.loads((run / "trainer_state.json").read_text())
    (run / "trainer_state.json").write_text(json.dumps({**state, "best_model_checkpoint": "/home/me/checkpoint-2"}))
    record = json.loads((run / "turnppo.json").read_text())
    record["environment_kwargs"]["levels"] = "/home/me/levels.txt"
    (run / "turnppo.json").write_text(json.dumps(record))
    prepare_release(run, "alice/agent")
    assert json.loads((run / "trainer_state.json").read_text())["best_model_checkpoint"] == "checkpoint-2"
    assert "`levels` is '/home/me/levels.txt', a path of this machine" in caplog.text


def test_what_an_earlier_release_left_odd_is_told_or_passed_over(run):
    prepare_release(run, "alice/agent")
    card = (run / "README.md").read_text()
    (run / "README.md").write_text(card.replace("---\n", "---\nreleased: 2025-02-30\n", 1))
    (run / ".eval_results" / "turnppo.yaml").write_text("- date: 2025-02-30\n")
    prepare_release(run, "alice/agent")
    (run / "README.md").write_text(
        re.sub(r"(?m)^datasets:\n(- .*\n)*", "", card).replace("---\n", "---\ndatasets: 5\n", 1)
    )
    prepare_release(run, "alice/agent")
    (run / "README.md").write_bytes(card.encode() + "## Caf\u00e9\n".encode("latin-1"))
    with pytest.raises(ReleaseError, match=r"README\.md is no text in UTF-8 .* Save it as UTF-8"):
        prepare_release(run, "alice/agent")


def test_rollout_batch_under_way_is_no_part_of_the_actor(run):
    size = read_run(run).sizes["actor"]
    shutil.copy(run / "model.safetensors", run / "rollout_0_of_1.safetensors")
    assert read_run(run).sizes["actor"] == size


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0 %"), (-0.001, "0 %"), (0.001, "under 1 %"), (0.5, "50 %"), (0.998, "over 99 %"), (1.0, "100 %")],
)
def test_percent_keeps_what_is_not_all_apart_from_all(share, text):
    assert percent(share) == text
