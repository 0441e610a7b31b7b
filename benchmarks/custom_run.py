"""All that a user writes to train on an environment of his own; `startup.py` counts these lines."""

import gymnasium

from turnppo_hf import TurnPPOConfig, TurnPPOTrainer
from turnppo_hf.agent import find_model


class Guess(gymnasium.Env):
    observation_space = action_space = gymnasium.spaces.Text(1000)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.secret, self.left = self.np_random.integers(10), 3
        return "Which digit do I think of?", {}

    def step(self, action):
        self.left -= 1
        found = str(self.secret) in action
        return "No. Again?", float(found), found, self.left == 0, {"solved": found}


if __name__ == "__main__":
    args = TurnPPOConfig("runs/guess", max_steps=2, generation_batch_size=8, max_turn_length=4, report_to="none")
    trainer = TurnPPOTrainer(model=str(find_model("tiny")), args=args, environment_factory=Guess)
    trainer.train()
