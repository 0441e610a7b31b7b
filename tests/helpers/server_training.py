"""What each of two ranks does in test_vllm_real_server: train with unequal numbers of episodes, on a server or not."""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import EMBEDDED
from tests.helpers.scripted import CountingEnvironment
from turnppo_hf import TurnPPOConfig, TurnPPOTrainer


class UnequalEnvironment(CountingEnvironment):
    """Fails at once for most seeds of the first rank's share, so that the ranks' live counts differ at every turn."""

    def reset(self, *, seed=None, options=None):
        if seed in (0, 1, 2):
            raise ConnectionError("no level")
        return super().reset(seed=seed, options=options)


if __name__ == "__main__":
    url, output = sys.argv[1:]
    trainer = TurnPPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32),
        args=TurnPPOConfig(
            output, max_steps=3, generation_batch_size=8, learning_rate=1e-3, max_turn_length=4, logging_steps=1,
            report_to="none", save_strategy="no", disable_tqdm=True, use_cpu=True, shuffle_dataset=False,
            use_vllm=True, **({"vllm_mode": "server", "vllm_server_base_url": url} if url != "colocate" else {}),
        ),
        processing_class=AutoTokenizer.from_pretrained(EMBEDDED),
        environment_factory=UnequalEnvironment,
    )  # fmt: skip
    trainer.train()
    if trainer.accelerator.is_main_process:
        with open(f"{output}/log.json", "w") as file:
            json.dump(trainer.state.log_history, file)
