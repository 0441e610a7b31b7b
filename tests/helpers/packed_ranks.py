"""Differentiate one pair of networks over a batch that two ranks share, of which only the first runs packed."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed import get_rank
from torch.nn.parallel import DistributedDataParallel

from tests.helpers.steps import gradients_of
from tests.models.test_packed_rows import networks, rows_of
from turnppo_hf.models import packed_rows
from turnppo_hf.trainer.distributed import leave_together

RAGGED, EQUAL = [8, 8, 9, 40, 70], [30, 30]


def differentiate(model, batch):
    """Gradients of both networks over all log-probs and values."""
    (model("critic", batch) * batch.attention_mask).square().sum().backward()
    model("actor", batch)[0].sum().backward()


def main(folder):
    """Write the first rank's gradients, and which ranks ran packed."""
    packed_rows._LEAST_SAVED, packed_rows._LEAST_SHARE = 1, 0.0
    pair = networks()
    model = DistributedDataParallel(pair, find_unused_parameters=True)
    batch = rows_of([RAGGED, EQUAL][get_rank()])
    differentiate(model, batch)
    packed = torch.tensor([float(packed_rows.runs_packed(pair.actor, batch))])
    gathered = [torch.zeros(1), torch.zeros(1)]
    torch.distributed.all_gather(gathered, packed)
    if get_rank() == 0:
        save_file({**gradients_of(pair), "packed": torch.cat(gathered)}, Path(folder) / "gradients.safetensors")
    # its reducer would end gloo's threads while it holds the interpreter's lock, for which they may wait
    del model
    leave_together()


if __name__ == "__main__":
    main(sys.argv[1])
