"""What the first rank alone has loaded reaches the others, wherever a network holds it."""

import pytest
import torch
from torch import nn

from turnppo_hf.trainer.first_rank_weights import FirstRanksWeights

CPU = torch.device("cpu")


class Network(nn.Module):
    """Two blocks, a weight that two modules hold, a buffer that is saved, and one that is not."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.blocks = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.blocks[1].requires_grad_(False)
        self.register_buffer("saved", torch.arange(4))
        self.register_buffer("computed", torch.ones(2), persistent=False)


@pytest.fixture
def ranks(monkeypatch):
    """Let this process be the ranks of a launch one after another; what the first one sends, the others get."""
    sent, here = [], {"rank": 0, "empty": [0.0, 1.0]}

    def broadcast(value, src):
        if here["rank"] == src:
            sent.append(value.clone())
        else:
            value.copy_(sent.pop(0))

    names = {
        "is_initialized": lambda: True,
        "get_world_size": lambda: 2,
        "get_rank": lambda: here["rank"],
        "all_reduce": lambda answers: answers.copy_(torch.tensor(here["empty"])),
        "broadcast": broadcast,
    }
    for name, stand_in in names.items():
        monkeypatch.setattr(torch.distributed, name, stand_in)
    here["sent"] = sent
    return here


def fill(network):
    weights = FirstRanksWeights(network, CPU)
    for block in network.blocks:
        weights.fill(block)
    weights.fill(network)


def test_weights_and_buffers_of_the_first_rank_reach_one_that_loaded_nothing(ranks):
    torch.manual_seed(0)
    first = Network()
    before = {name: value.clone() for name, value in first.state_dict().items()}
    fill(first)
    ranks["rank"] = 1
    with torch.device("meta"):
        other = Network()
    fill(other)
    assert not ranks["sent"]
    for network in (first, other):
        assert network.head.weight is network.embedding.weight
        assert {name: value.tolist() for name, value in network.state_dict().items()} == {
            name: value.tolist() for name, value in before.items()
        }
        assert network.computed.tolist() == [1.0, 1.0]
        assert [parameter.requires_grad for parameter in network.parameters()] == [True, True, True, False, False]


def test_buffers_alone_leave_weights_without_memory(ranks):
    first = Network()
    FirstRanksWeights(first, CPU).fill_buffers(first)
    ranks["rank"] = 1
    with torch.device("meta"):
        other = Network()
    FirstRanksWeights(other, CPU).fill_buffers(other)
    assert other.saved.tolist() == [0, 1, 2, 3] and all(parameter.is_meta for parameter in other.parameters())


def test_ranks_that_loaded_all_send_nothing(ranks):
    ranks["empty"] = [0.0, 0.0]
    network = Network()
    parameters = list(network.parameters())
    fill(network)
    assert not ranks["sent"]
    assert all(mine is theirs for mine, theirs in zip(parameters, network.parameters(), strict=True))


def test_first_rank_without_weights_is_refused(ranks):
    ranks["empty"] = [1.0, 1.0]
    with torch.device("meta"):
        network = Network()
    with pytest.raises(ValueError, match="no weights on the first rank"):
        FirstRanksWeights(network, CPU)
