"""The trained agent in the package: it plays as its card says, and lies ready to be pushed."""

import io
import json
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from tests.test_documents import numbers, unsupported_figures
from turnppo_hf import TurnPPOAgent
from turnppo_hf.cli.main import main
from turnppo_hf.hub.card.card import render_card
from turnppo_hf.hub.card.merge import merge_cards
from turnppo_hf.hub.files import check_folder, is_private
from turnppo_hf.models.pretrained import find_model

FOLDER = find_model("tiny-trained")
CARD = (FOLDER / "README.md").read_text(encoding="utf-8")
RESULTS = json.loads((FOLDER / "results.json").read_text())


def test_released_agent_is_small_and_holds_both_networks():
    weights = [FOLDER / "model.safetensors", FOLDER / "critic" / "model.safetensors"]
    assert sum(path.stat().st_size for path in weights) < 6e6
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 6e6
    check_folder(FOLDER)
    private = [name for path in FOLDER.rglob("*") if is_private(name := path.relative_to(FOLDER).as_posix())]
    assert private == ["trajectories/held_out.parquet"], "kept for the pictures and the dataset, and not pushed"


def test_released_agent_is_loaded_by_plain_transformers():
    agent = TurnPPOAgent.from_pretrained("tiny-trained", device="cpu")
    actor = AutoModelForCausalLM.from_pretrained(FOLDER)
    critic = AutoModelForTokenClassification.from_pretrained(FOLDER / "critic")
    for mine, theirs in ((agent.actor, actor), (agent.critic, critic)):
        state = theirs.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in mine.state_dict().items())


@pytest.mark.slow
def test_evaluation_of_the_released_agent_gives_its_cards_figures():
    printed = io.StringIO()
    with redirect_stdout(printed):
        assert main(["evaluate", "tiny-trained", "--json"]) == 0
    found = json.loads(printed.getvalue())
    for player, row in (("model", "after"), ("random", "random"), ("optimal", "optimal")):
        # another processor rounds otherwise, and one token in thousands may fall on the other side of its draw
        assert found["players"][player]["success_rate"] == pytest.approx(RESULTS[row]["success_rate"], abs=0.012)
        assert found["players"][player]["mean_return"] == pytest.approx(RESULTS[row]["mean_return"], abs=0.15)
    assert found["critic"]["explained_variance"] == pytest.approx(RESULTS["critic"]["explained_variance"], abs=0.02)
    assert found["seed"] == 1_000_000 and found["players"]["model"]["episodes"] == 256


def test_figures_of_the_released_card_are_those_of_its_results():
    section = re.search(r"^## Results\n(.*?)^## Environment", CARD, re.MULTILINE | re.DOTALL).group(1)
    facts = [RESULTS, *numbers(RESULTS)]
    text = re.sub(r"\(0 % is as good as a constant\)|discount 0\.99", "", section)
    assert unsupported_figures(text, facts) == []
    assert unsupported_figures(text.replace("0.67 (", "0.77 ("), facts) == ["0.77"], "a wrong figure would be found"
    assert {"GRPO", "token PPO"} <= set(re.findall(r"^\| (GRPO|token PPO)", section, re.MULTILINE))


def test_released_card_is_what_the_command_writes():
    assert merge_cards(CARD, render_card(Path(FOLDER), "tiny-trained")) == CARD


def test_released_agent_solves_and_its_critic_orders_states():
    agent = TurnPPOAgent.from_pretrained("tiny-trained", device="cpu")
    _, factory = agent.environment()
    tasks = [{"seed": 1_000_000 + number} for number in range(48)]
    episodes = agent.score(agent.play_tasks(factory, tasks, temperature=1.0))
    solved = [item.turns[0].value for item in episodes if item.solved]
    lost = [item.turns[0].value for item in episodes if not item.solved]
    assert len(solved) > 24
    assert sum(solved) / len(solved) > sum(lost) / len(lost) + 0.5
