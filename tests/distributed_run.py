"""Train the tiny actor for two steps and write the weights: run by one process or by several (test_distributed.py)."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.scripted import CountingEnvironment
from turnppo_hf import TurnPPOConfig, TurnPPOTrainer
from turnppo_hf.trajectory import StopReason


class Ragged(CountingEnvironment):
    """Fails for the seeds given, so that ranks hold unequal shares or none."""

    failing: frozenset[int] = frozenset()

    def reset(self, *, seed=None, options=None):
        if seed in self.failing:
            raise RuntimeError("not this one")
        return super().reset(seed=seed, options=options)


def main(output: Path, algorithm: str, failing: str, minibatches: str = "1") -> None:
    """Train with plain SGD, whose step shows the gradient itself."""
    Ragged.failing = frozenset(int(seed) for seed in failing.split(",") if seed)
    embedded = Path(__file__).parents[1] / "turnppo_hf" / "models" / "sokoban_tiny"
    trainer = TurnPPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(embedded, dtype=torch.float32),
        args=TurnPPOConfig(
            str(output.parent / "run"),
            algorithm=algorithm,
            num_generations=None if "ppo" in algorithm else 2,
            num_minibatches=int(minibatches),
            max_steps=2 * int(minibatches),
            generation_batch_size=8,
            optim="sgd",
            learning_rate=1e-3,
            max_turn_length=4,
            max_turns=2,
            shuffle_dataset=False,
            max_failed_share=0.9,
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            logging_steps=1,
        ),
        processing_class=AutoTokenizer.from_pretrained(embedded),
        environment_factory=Ragged,
    )
    trainer.train()
    if trainer.accelerator.is_main_process:
        tensors = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
        played = [item for item in trainer._last_trajectories if item.stop_reason is not StopReason.ERROR]
        tensors["played"] = torch.tensor([len(trainer._last_trajectories), len(played)])
        tensors["advantage_std"] = torch.tensor(trainer.state.log_history[0]["advantages/std"])
        save_file(tensors, output)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
