"""
Thousands of short rows: what a rollout and an update cost where the actor reads the newest observation only.

64 episodes of DoorKey of up to 57 turns, an actor and a critic of 0.2 million parameters each, `context: last`, two
updates. The actor is untrained, so that nearly every episode uses up its turns.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from statistics import median
from typing import Any

import harness
import torch

from turnppo_hf import TurnPPOConfig, TurnPPOTrainer
from turnppo_hf.environments import make_environment
from turnppo_hf.models.demonstrations import make_demonstrations, reference_player
from turnppo_hf.models.imitation import tiny_llama, word_tokenizer
from turnppo_hf.ppo.batch import stack

TURNS = 57


def make_trainer(folder: str, episodes: int, updates: int) -> TurnPPOTrainer:
    """A trainer on the load; nothing of it depends on the machine."""
    kwargs: dict[str, Any] = {"action_format": "bare", "max_steps": TURNS, "env_id": "MiniGrid-DoorKey-5x5-v0"}
    environment = make_environment("minigrid", **kwargs)
    plays = make_demonstrations(environment, reference_player(environment), 200, 0.5, seed=0)
    tokenizer = word_tokenizer(plays, 4096)
    torch.manual_seed(0)
    model = tiny_llama(tokenizer, hidden_size=96, num_hidden_layers=2)
    args = TurnPPOConfig(
        folder,
        generation_batch_size=episodes,
        num_minibatches=updates,
        max_steps=updates * 1000,
        max_turn_length=2,
        context="last",
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        learning_rate=1e-5,
    )
    factory = partial(make_environment, "minigrid", **kwargs)
    return TurnPPOTrainer(model=model, args=args, processing_class=tokenizer, environment_factory=factory)


def measure(episodes: int, repetitions: int, updates: int = 2) -> dict[str, Any]:
    """CPU and wall seconds of one rollout batch, its stacking, and its updates; the median of the repetitions."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(folder, episodes, updates)
        trainer.create_optimizer_and_scheduler(updates * 1000)
        times: dict[str, list[tuple[float, float]]] = {"rollout": [], "stack": [], "update": []}

        def timed(name: str, call: Any) -> Any:
            start = time.process_time(), time.perf_counter()
            result = call()
            times[name].append((time.process_time() - start[0], time.perf_counter() - start[1]))
            return result

        for number in range(repetitions):
            rows = [{"seed": number * episodes + index} for index in range(episodes)]
            played = timed("rollout", partial(trainer.collector.collect, rows, number))[0]
            batch = timed("stack", partial(stack, played))
            trainer.collector.collect = lambda *_, played=played: (played, played)
            for update in range(updates):
                trainer.state.global_step = number * updates + update
                timed("update", partial(trainer.training_step, trainer.model, rows))
                trainer.optimizer.step()
                trainer.optimizer.zero_grad()
            del trainer.collector.collect
    return {
        "episodes": episodes,
        "turns": batch.num_turns,
        "rows": len(batch.input_ids),
        "tokens_of_a_row": round(float(batch.attention_mask.sum(1).float().mean()), 1),
        "parameters": sum(weight.numel() for weight in trainer.model.actor.parameters()),
        **{f"{name}_cpu_s": round(median(cpu for cpu, _ in found), 3) for name, found in times.items()},
        **{f"{name}_wall_s": round(median(wall for _, wall in found), 3) for name, found in times.items()},
    }


def main() -> None:
    """Print the figures."""
    parser = harness.parser_for(__doc__)
    harness.run("short_rows", parser, lambda options: measure(4, 1) if options.smoke else measure(64, 5))


if __name__ == "__main__":
    main()
