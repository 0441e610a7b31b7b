"""Our environments as TRL's environment classes: the same worlds, and GRPOTrainer trains in them."""

import inspect
from pathlib import Path

import pytest
import trl
from datasets import Dataset
from transformers.utils import get_json_schema

from turnppo_hf.environments import SokobanTools, WebShopTools, make_environment

OPEN, CLOSE = '<tool_call>\n{"name": "move", "arguments": {"directions": "', '"}}\n</tool_call>'
LEVEL = "#####\n#@$.#\n#####"
DIRECTIONS = ("Up", "Down", "Left", "Right")


@pytest.mark.parametrize(("kind", "tools"), [(SokobanTools, {"move"}), (WebShopTools, {"search", "click"})])
def test_tools_are_what_trl_offers_to_the_model(kind, tools):
    names = {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}
    assert names == tools | {"reset", "get_reward"}
    for name in tools:
        schema = get_json_schema(getattr(kind, name))["function"]
        assert schema["description"] and all(
            item["description"] for item in schema["parameters"]["properties"].values()
        )


def test_moves_earn_what_they_earn_in_sokoban():
    environment, tools = make_environment("turnppo_hf/Sokoban-v0", action_format="bare"), SokobanTools()
    for seed in (3, 4):
        environment.reset(seed=seed)
        opening = tools.reset(seed=seed, prompt=[{"role": "user", "content": ""}], difficulty=1)
        assert environment.unwrapped.state.render() in opening and "Call move, with at most 5 directions" in opening
        rewards = []
        for answer in (*environment.unwrapped.optimal_completions()[:1], "fly", "Up Left", "Down", "Up", "Up", "Up"):
            assert not tools.done
            _, reward, terminated, truncated, info = environment.step(answer)
            shown = tools.move(answer)
            rewards.append(reward + info.get("penalty", 0.0))
            assert environment.unwrapped.state.render() in shown
            if terminated or truncated:
                break
        assert tools.rewards == rewards and tools.get_reward() == sum(rewards)
        assert tools.done and shown.endswith("The episode is over.")
        with pytest.raises(ValueError, match="over"):
            tools.move("Up")


def test_given_level_and_arguments_reach_sokoban():
    tools = SokobanTools(max_turns=1)
    assert "#####\n#PXO#\n#####" in tools.reset(level="#####\n#@$.#\n#####")
    tools.move("Right")
    assert tools.done and tools.get_reward() == pytest.approx(10.9)


@pytest.mark.parametrize(
    ("kind", "column", "meant"),
    [(SokobanTools, "Level", "level"), (SokobanTools, "seeds", "seed"), (WebShopTools, "goals", "goal")],
)
def test_misspelt_column_is_refused_and_another_one_is_not(kind, column, meant):
    tools = kind(**({"data": "synthetic"} if kind is WebShopTools else {}))
    tools.reset(seed=1, prompt="", difficulty=3, environment="x")
    with pytest.raises(ValueError, match=f"Unknown reset option '{column}'. Did you mean '{meant}'"):
        tools.reset(seed=1, prompt="", **{column: 3})


def test_purchases_earn_what_they_earn_in_webshop():
    environment = make_environment("turnppo_hf/WebShop-v0", data="synthetic", action_format="bare")
    tools = WebShopTools(data="synthetic")
    page, info = environment.reset(seed=5)
    assert page in tools.reset(seed=5, prompt="")
    assert tools.click("nothing of this name") == environment.step("click[nothing of this name]")[0]
    assert tools.rewards == [-0.1]
    while not tools.done:
        [command] = environment.unwrapped.expert_completions()
        name, _, argument = command.removesuffix("]").partition("[")
        page, reward, *_ = environment.step(command)
        assert getattr(tools, name)(argument) == page
    assert tools.rewards[-1] == reward == 1.0
    tools.reset(goal=info["goal"])
    assert not tools.done and tools.rewards == []


@pytest.fixture
def calling_model(tiny_tokenizer, embedded_actor):
    """The embedded actor with tokens for a tool call, a template that knows tools, and a bias that makes it call."""
    tokenizer = tiny_tokenizer
    tokenizer.add_tokens([OPEN, CLOSE, "<tool_response>\n", "<|im_start|>", "<|im_end|>"], special_tokens=False)
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    embedded_actor.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    embedded_actor.config.max_position_embeddings = 4096
    embedded_actor.config.eos_token_id = embedded_actor.generation_config.eos_token_id = tokenizer.eos_token_id
    first, last, end = tokenizer.convert_tokens_to_ids([OPEN, CLOSE, "<|im_end|>"])
    words = tokenizer.convert_tokens_to_ids(list(DIRECTIONS))
    bias = [[[first], 1000.0], [[last, end], 9000.0]]
    bias += [[[first, word], 3000.0] for word in words] + [[[word, last], 6000.0] for word in words]
    return embedded_actor, tokenizer, bias


@pytest.mark.slow
def test_grpo_trains_two_steps_on_sokoban(calling_model, tmp_path):
    model, tokenizer, bias = calling_model
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    made = []

    class Watched(SokobanTools):
        def __init__(self):
            super().__init__()
            made.append(self)

    args = trl.GRPOConfig(
        str(tmp_path), max_steps=2, per_device_train_batch_size=4, num_generations=4, max_completion_length=600,
        max_tool_calling_iterations=3, learning_rate=1e-3, temperature=10.0, generation_kwargs={"sequence_bias": bias},
        use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", save_strategy="no",
        logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    trainer = trl.GRPOTrainer(
        model=model,
        args=args,
        # a move to the right solves it: the episodes of a group earn different amounts
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": ""}], "level": LEVEL}] * 2),
        processing_class=tokenizer,
        environment_factory=Watched,
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2 and all(log["grad_norm"] > 0 and log["reward_std"] > 0 for log in logs)
    # TRL knows no end of an episode: it goes on calling, and is told each time that nothing counts any more
    assert all(log["tools/call_frequency"] == 3 and log["tools/failure_frequency"] < 0.5 for log in logs)
    assert len(made) == 4 and all(tools.rewards for tools in made)
    assert any(tools.done for tools in made) and any(len(tools.rewards) == 3 for tools in made)
    assert logs[-1]["reward"] == pytest.approx(sum(tools.get_reward() for tools in made) / 4)
    assert any((before[name] != parameter).any() for name, parameter in model.named_parameters())
