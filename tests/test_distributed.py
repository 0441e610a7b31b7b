"""Two processes make the step that one makes: whitening, denominators and gradients are those of the whole batch."""

import pytest
import torch
from safetensors.torch import load_file

from tests.launch import run_ranks


def train(processes, output, algorithm, failing, minibatches=1):
    run_ranks("distributed_run.py", output, algorithm, failing, minibatches, processes=processes)
    return load_file(output)


@pytest.mark.parametrize(
    ("algorithm", "failing", "played"),
    [
        ("turn_ppo", "1,2", 8),  # unequal shares in the first batch
        ("turn_ppo", "0,1,2,3", 8),  # the first rank has nothing in the first batch
        ("grpo", "", 8),
    ],
)
def test_two_processes_take_the_step_of_one(tmp_path, algorithm, failing, played):
    one, two = (train(processes, tmp_path / f"{processes}.safetensors", algorithm, failing) for processes in (1, 2))
    assert one["played"].tolist() == two["played"].tolist() == [8, played]
    for name, value in one.items():
        torch.testing.assert_close(
            two[name], value, atol=1e-6, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_rank_without_episodes_takes_part_in_every_update_of_a_batch(tmp_path):
    weights = train(2, tmp_path / "2.safetensors", "turn_ppo", "0,1,2,3", minibatches=2)
    assert all(bool(value.isfinite().all()) for value in weights.values())
