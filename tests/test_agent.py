"""Agents: loaded from a folder or the Hub at a revision, they act, judge, play, and are saved as they were."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from tests.helpers.scripted import CountingEnvironment
from tests.helpers.tiny import turn_logprobs
from turnppo_hf import TurnPPOAgent
from turnppo_hf.environments import SokobanTools, make_environment
from turnppo_hf.hub.agent_record import AgentRecord
from turnppo_hf.hub.exceptions import ReleaseError
from turnppo_hf.models.actor_critic import ActorCritic, critic_from_actor
from turnppo_hf.models.checkpoint import save_networks
from turnppo_hf.trajectory import StopReason

KWARGS = {"size": 5, "max_actions_per_turn": 2, "max_turns": 6, "max_actions": 12, "action_format": "bare"}
RECORD = {
    "environment": "turnppo_hf/Sokoban-v0",
    "environment_kwargs": {**KWARGS, "split": "train"},
    "evaluation": {"environment_kwargs": {**KWARGS, "split": "test"}, "temperature": 1.0, "seed": 5, "episodes": 4},
    "limits": {"max_turns": None, "max_turn_length": 8, "max_completion_length": 512},
    "algorithm": "turn_ppo",
    "gamma": 0.9,
    "lam": 0.5,
}


@pytest.fixture
def folder(tmp_path, embedded_actor, tiny_tokenizer):
    """The packaged actor with a critic whose values differ from state to state, as a run saves them."""
    critic = critic_from_actor(embedded_actor)
    torch.nn.init.normal_(critic.score.weight, generator=torch.Generator().manual_seed(0))
    save_networks(
        ActorCritic(embedded_actor, critic), tiny_tokenizer, AgentRecord.from_dict(RECORD), str(tmp_path / "agent")
    )
    return tmp_path / "agent"


@pytest.fixture
def agent(folder):
    return TurnPPOAgent.from_pretrained(folder, device="cpu")


def same_weights(first, second):
    theirs = second.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in first.state_dict().items())


def test_act_answers_an_observation_as_play_does(agent):
    trajectory = agent.play(seed=3, temperature=0.0)
    assert agent.act(trajectory.turns[0].observation, temperature=0.0) == trajectory.turns[0].completion
    history = []
    for turn in trajectory.turns:
        history.append({"role": "user", "content": turn.observation})
        assert agent.act(history, temperature=0.0) == turn.completion
        history.append({"role": "assistant", "content": turn.completion})


def test_act_samples_by_seed_and_as_the_agent_was_judged(agent):
    observation = agent.play(seed=3).turns[0].observation
    answers = {agent.act(observation, seed=seed) for seed in range(8)}
    assert len(answers) > 1, "the record's evaluation samples at temperature 1"
    assert len({agent.act(observation, seed=1) for _ in range(3)}) == 1
    assert len({agent.act(observation, seed=seed, temperature=0.0) for seed in range(8)}) == 1


def test_values_of_a_trajectory_are_the_critic_at_the_last_prompt_token(agent):
    trajectory = agent.play(seed=3)
    values = agent.values(trajectory)
    assert values == [turn.value for turn in trajectory.turns]
    for value, turn in zip(values, trajectory.turns, strict=True):
        expected = agent.critic(input_ids=torch.tensor([turn.prompt_ids])).logits[0, -1, 0].detach()
        assert value == pytest.approx(float(expected), abs=1e-5)
    assert len(set(values)) == len(values), "states differ, so values do"


def test_values_of_messages_are_one_for_each_state(agent):
    trajectory = agent.play(seed=3, temperature=0.0)
    messages = []
    for turn in trajectory.turns:
        messages += [
            {"role": "user", "content": turn.observation},
            {"role": "assistant", "content": turn.completion},
        ]
    values = agent.values(messages[:-1])
    assert values == pytest.approx(agent.values(trajectory), abs=1e-4)
    assert agent.values(trajectory.turns[0].observation) == pytest.approx(values[:1], abs=1e-5)


def test_play_writes_turn_level_credit_by_the_record(agent):
    trajectory = agent.play(seed=3)
    following = advantage = 0.0
    for turn in reversed(trajectory.turns):
        delta = turn.reward + turn.penalty + 0.9 * following - turn.value
        advantage = delta + 0.9 * 0.5 * advantage
        assert turn.advantage == pytest.approx(advantage, abs=1e-4)
        assert turn.turn_return == pytest.approx(advantage + turn.value, abs=1e-4)
        following = turn.value


def test_credit_of_an_agent_of_token_ppo_is_not_discounted(agent):
    agent.record = replace(agent.record, algorithm="token_ppo")
    trajectory = agent.play(seed=3)
    rest = [sum(item.reward + item.penalty for item in trajectory.turns[n:]) for n in range(len(trajectory.turns))]
    assert [turn.turn_return for turn in trajectory.turns] == pytest.approx(rest, abs=1e-4)


def test_play_takes_the_held_out_environment_unless_told(agent):
    name, factory = agent.environment()
    assert (name, factory.keywords["split"]) == ("turnppo_hf/Sokoban-v0", "test")
    assert agent.environment(split="train")[1].keywords["split"] == "train"
    # another environment takes nothing from the record
    name, factory = agent.environment("webshop", data="synthetic")
    assert (name, factory.keywords) == ("turnppo_hf/WebShop-v0", {"data": "synthetic"})
    level = "#####\n#@$.#\n#####"
    trajectory = agent.play(lambda: make_environment("sokoban", **KWARGS), options={"level": level})
    assert "P" in trajectory.turns[0].observation and trajectory.turns[0].observation.startswith("#####\n#PXO#")


def test_play_tasks_is_the_same_in_any_company(agent):
    _, factory = agent.environment()
    together = agent.play_tasks(factory, [{"seed": seed} for seed in range(6)], temperature=1.0)
    alone = agent.play_tasks(factory, [{"seed": 4}], temperature=1.0)
    assert [turn.completion for turn in alone[0].turns] == [turn.completion for turn in together[4].turns]


def test_score_leaves_failed_episodes_as_they_are(agent):
    _, factory = agent.environment()

    class Fails:
        def __init__(self):
            self.inner = factory()

        def reset(self, *, seed, options=None):
            if seed == 1:
                raise RuntimeError("no board today")
            return self.inner.reset(seed=seed, options=options)

        def step(self, action):
            return self.inner.step(action)

        def close(self):
            self.inner.close()

    scored = agent.score(agent.play_tasks(Fails, [{"seed": 0}, {"seed": 1}, {"seed": 2}]))
    assert [item.stop_reason is StopReason.ERROR for item in scored] == [False, True, False]
    assert all(turn.value is not None for item in (scored[0], scored[2]) for turn in item.turns)


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ([], "does not end with a message of the user"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "does not end with a message"),
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "two messages of the user in a row"),
        (["a"], "A history is an observation"),
        (None, "A history is an observation"),
        (5, "A history is an observation"),
        (iter(["a"]), "A history is an observation"),
        *(([{"role": "user", "content": item}], "A history is an observation") for item in (None, 5, [], {})),
        ([{"role": "user", "content": [{"type": "image"}]}], "A history is an observation"),
        ([{"role": 5, "content": "a"}, {"role": "user", "content": "b"}], "A history is an observation"),
        ([{"content": "a"}], "A history is an observation"),
    ],
)
def test_history_that_cannot_be_answered_says_why(agent, history, message):
    for ask in (agent.act, agent.values):
        with pytest.raises(ValueError, match=message):
            ask(history)


def test_conversation_longer_than_the_model_reads_says_so(agent):
    with pytest.raises(ValueError, match=r"has \d+ tokens, but the model reads \d+ at most"):
        agent.act("#" * 5000)
    with pytest.raises(ValueError, match=r"has \d+ tokens, but the model reads \d+ at most"):
        agent.values("#" * 5000)


@pytest.mark.parametrize("temperature", [-1.0, float("nan"), float("inf"), "hot", [1.0]])
def test_temperature_that_draws_nothing_says_so(agent, temperature):
    with pytest.raises(ValueError, match=r"`temperature` must be 0 \(greedy\) or positive"):
        agent.act("#####", temperature=temperature)


@pytest.mark.parametrize(
    ("algorithm", "why"), [("grpo", "trained with grpo, which has none"), ("turn_ppo", "no folder `critic`")]
)
def test_agent_without_critic_plays_and_says_why_it_has_no_values(folder, algorithm, why):
    agent = TurnPPOAgent.from_pretrained(folder, record={"algorithm": algorithm})
    agent.critic = None
    trajectory = agent.play(seed=3)
    assert all(turn.value is None for turn in trajectory.turns)
    for history in (trajectory, "#####"):
        with pytest.raises(ValueError, match=rf"has no critic.*{why}"):
            agent.values(history)


def test_saved_agent_is_the_agent(agent, tmp_path):
    (agent.folder / "README.md").write_text("# mine\n")
    (agent.folder / "optimizer.pt").write_bytes(b"private")
    agent.save_pretrained(tmp_path / "copy")
    copy = TurnPPOAgent.from_pretrained(tmp_path / "copy")
    assert same_weights(agent.actor, copy.actor) and same_weights(agent.critic, copy.critic)
    assert copy.record == agent.record
    assert copy.play(seed=3) == agent.play(seed=3)
    assert (tmp_path / "copy" / "README.md").read_text() == "# mine\n"
    assert not (tmp_path / "copy" / "optimizer.pt").exists()
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert config["model_type"] == "llama", "the mixin writes no configuration of its own"


def test_agent_saved_without_evidence_gets_a_card_of_its_record(agent, tmp_path):
    agent.save_pretrained(tmp_path / "copy")
    card = (tmp_path / "copy" / "README.md").read_text()
    assert "No held-out evaluation was recorded" in card and "`turnppo_hf/Sokoban-v0`" in card


@pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)
@pytest.mark.slow
def test_pushed_agent_is_loaded_by_everyone_at_its_revision(hub, agent):
    address = agent.push_to_hub("agent")
    first = hub.commits("alice/agent")[0].oid
    assert address.endswith(first)
    with torch.no_grad():
        for network in (agent.actor, agent.critic):
            for parameter in network.parameters():
                parameter.add_(0.01)
    agent.push_to_hub("alice/agent", commit_message="further")
    assert hub.commits("alice/agent")[0].title == "further"

    old, new = (TurnPPOAgent.from_pretrained("alice/agent", revision=revision) for revision in (first, None))
    assert same_weights(new.actor, agent.actor) and same_weights(new.critic, agent.critic)
    assert not same_weights(old.actor, agent.actor) and not same_weights(old.critic, agent.critic)
    assert same_weights(old.actor, AutoModelForCausalLM.from_pretrained("alice/agent", revision=first))
    critic = AutoModelForTokenClassification.from_pretrained("alice/agent", subfolder="critic", revision=first)
    assert same_weights(old.critic, critic)
    assert new.play(seed=3) == agent.play(seed=3)
    assert "alice/agent" in hub.files("alice/agent")["README.md"].decode()
    assert hub.saw_token(hub.token) == []


@pytest.mark.slow
def test_save_pretrained_pushes_as_every_model_does(hub, agent, tmp_path):
    agent.save_pretrained(tmp_path / "copy", push_to_hub=True, repo_id="alice/agent")
    assert "critic/model.safetensors" in hub.files("alice/agent")


def test_repository_that_is_missing_or_wrong_says_so(hub):
    with pytest.raises(ReleaseError, match=r"'alice/none' could not be had.*no folder here either.*tiny-trained"):
        TurnPPOAgent.from_pretrained("alice/none")


@pytest.mark.slow
def test_agent_loads_offline_from_the_cache(hub, agent):
    agent.push_to_hub("alice/agent")
    TurnPPOAgent.from_pretrained("alice/agent")
    before = len(hub.log)
    script = "from turnppo_hf import TurnPPOAgent as A; print(A.from_pretrained('alice/agent').play(seed=3).solved)"
    offline = {**hub.environment, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=offline, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(agent.play(seed=3).solved)
    assert len(hub.log) == before


def test_sampling_of_the_record_is_used(agent):
    agent.record = replace(agent.record, sampling={"temperature": 1.0, "top_p": 1.0, "top_k": 1})
    trajectory = agent.play(seed=3, temperature=1.0)
    greedy = agent.play(seed=3, temperature=0.0)
    assert [turn.completion for turn in trajectory.turns] == [turn.completion for turn in greedy.turns]
    turn = trajectory.turns[0]
    assert list(turn.sampling_logprobs) == pytest.approx(turn_logprobs(agent.actor, turn).tolist(), abs=1e-4)


def test_smallest_probability_of_the_record_is_used(agent):
    agent.record = replace(agent.record, sampling={"temperature": 1.0, "min_p": 1.0})
    greedy = [turn.completion for turn in agent.play(seed=3, temperature=0.0).turns]
    assert [turn.completion for turn in agent.play(seed=3, temperature=1.0).turns] == greedy


def test_bootstrap_of_the_run_is_that_of_the_score(agent):
    class Cut(CountingEnvironment):
        def step(self, action):
            observation, reward, *_ = super().step(action)
            return observation, reward, False, self.turn == 2, {"truncation": "time_limit"}

    cut = agent.play_tasks(Cut, [{"seed": 3}])
    (bootstrapped,) = agent.score(cut)
    agent.record = replace(agent.record, bootstrap_truncated=False)
    (ended,) = agent.score(cut)
    assert bootstrapped.turns[-1].turn_return != ended.turns[-1].turn_return


def test_user_of_a_record_is_told_of_what_has_no_effect(folder):
    with pytest.raises(ReleaseError, match=r"no key 'limit'\. Did you mean 'limits'\?"):
        TurnPPOAgent.from_pretrained(folder, record={"limit": {"max_turns": 3}})
    with pytest.raises(ReleaseError, match=r"In `record`, `limits.max_turn` is 3"):
        TurnPPOAgent.from_pretrained(folder, record={"limits": {"max_turn": 3}})
    with pytest.raises(ReleaseError, match=r"`schema_version` is 99"):
        TurnPPOAgent.from_pretrained(folder, record={"schema_version": 99})
    (folder / "turnppo.json").write_text(json.dumps({**RECORD, "schema_version": 1, "mine": 3}))
    agent = TurnPPOAgent.from_pretrained(folder)
    assert TurnPPOAgent.from_pretrained(folder, record=agent.record.to_dict()).record == agent.record


def test_folder_without_tokenizer_and_revision_of_a_folder_are_told(folder):
    with pytest.raises(ReleaseError, match=r"has no tokenizer that can be read .*not the `critic`"):
        TurnPPOAgent.from_pretrained(folder / "critic")
    with pytest.raises(ReleaseError, match=r"A revision \('v1'\) names a commit on the Hub"):
        TurnPPOAgent.from_pretrained(folder, revision="v1")


def test_agent_plays_what_the_trainer_plays(agent):
    class Silent(CountingEnvironment):
        action_space = gymnasium.spaces.Discrete(4)

    assert agent.play(CountingEnvironment, seed=3).error is None
    assert "Wrap the environment" in str(agent.play(Silent, seed=3).error)
    assert "is played by tool calls" in str(agent.play(SokobanTools, seed=3).error)
    with pytest.raises(TypeError, match="which cannot be called"):
        agent.play(CountingEnvironment(), seed=3)
    with pytest.raises(ValueError, match="Task 0 has no `seed`"):
        agent.play_tasks(CountingEnvironment, [{"level": 3}])


def test_folder_is_the_path_it_was_loaded_from(agent, folder):
    assert agent.folder == Path(folder)


def test_agent_saved_over_another_leaves_none_of_its_figures(agent, tmp_path):
    folder = tmp_path / "used"
    trained = TurnPPOAgent.from_pretrained("tiny-trained")
    trained.save_pretrained(folder)
    card = folder / "README.md"
    card.write_text(card.read_text() + "\n## Notes\n\nMine.\n")
    mine = [
        folder / name for name in ("notes.txt", "critic/reviews/film.txt", "wheels/mine.whl", "sub/model.safetensors")
    ]
    for file in mine:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("mine")
    trained.save_pretrained(folder)  # once more: the same agent
    assert (folder / "results.json").exists() and "Mine." in card.read_text()
    agent.save_pretrained(folder)
    assert not (folder / "results.json").exists() and not list(folder.glob("*.webp"))
    text = card.read_text()
    assert "No held-out evaluation was recorded" in text and "Mine." in text
    assert all(file.read_text() == "mine" for file in mine)
    TurnPPOAgent.from_pretrained(folder).save_pretrained(folder)  # over itself: nothing is lost
    assert card.read_text() == text
    trained.save_pretrained(folder)  # which brings a card
    assert "Mine." in card.read_text() and "No held-out evaluation" not in card.read_text()
    assert not [path for path in folder.iterdir() if path.name.startswith("_")]


def test_saving_takes_no_file_of_a_folder_without_an_agent(agent, tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("replay-of-mine.webp", "adapter_notes.md"):
        (folder / name).write_text("mine")
    agent.save_pretrained(folder)
    assert (folder / "replay-of-mine.webp").read_text() == (folder / "adapter_notes.md").read_text() == "mine"


def test_agent_in_memory_keeps_the_figures_of_its_own_run(agent, folder):
    (folder / "results.json").write_text("{}")
    in_memory = TurnPPOAgent(agent.actor, agent.chat.tokenizer, agent.critic, agent.record)
    in_memory.save_pretrained(folder)
    assert (folder / "results.json").read_text() == "{}"


@pytest.mark.parametrize("name", ["max_parallel_episodes", "environment_timeout_s"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), "2", None, [3]])
def test_play_that_could_play_nothing_is_refused(agent, name, value):
    with pytest.raises(ValueError, match=rf"`{name}` must be .*got .*could be played"):
        agent.play_tasks(CountingEnvironment, [{"seed": 1}], **{name: value})


@pytest.mark.parametrize("value", [True, 2.5])
def test_episodes_at_a_time_are_a_whole_number(agent, value):
    with pytest.raises(ValueError, match="`max_parallel_episodes` must be an integer"):
        agent.play_tasks(CountingEnvironment, [{"seed": 1}], max_parallel_episodes=value)


@pytest.mark.parametrize("seed", [-1, 1.5, "a", float("nan"), [1]])
def test_seed_that_seeds_nothing_is_refused_and_of_a_row_fails_its_episode(agent, seed):
    for ask in (lambda: agent.act("####", seed=seed), lambda: agent.play(CountingEnvironment, seed)):
        with pytest.raises(ValueError, match=r"`seed` is .*no whole number from 0 on.*Give an integer"):
            ask()
    failed, played = agent.play_tasks(CountingEnvironment, [{"seed": seed}, {"seed": 1}])
    assert "no whole number from 0 on" in failed.error and played.error is None


@pytest.mark.parametrize("item", [None, 5, "x", {"seed": 1}, ["x"], [None]])
def test_what_is_no_list_of_episodes_is_refused(agent, item):
    with pytest.raises(TypeError, match="`trajectories` must be a list of Trajectory, got"):
        agent.score(item)
    with pytest.raises(TypeError, match="`tasks` must be a list of Mapping, got"):
        agent.play_tasks(CountingEnvironment, item)
    with pytest.raises(TypeError, match=r"`trajectories` must be a list .* of a single one"):
        agent.score(agent.play(CountingEnvironment))


@pytest.mark.parametrize("device", ["nowhere", "cuda:99", "npu", [1]])
def test_device_that_is_not_here_is_refused_before_anything_is_loaded(device):
    with pytest.raises(ValueError, match=r"`device` is .*where no network can be put .*Pass another one"):
        TurnPPOAgent.from_pretrained("no/such-agent", device=device)
