"""A model's forward takes its cache under the name that its class has, bare, adapted or under mixed precision."""

from types import MethodType

import pytest
import torch
import transformers

from tests.helpers.tiny import tiny_actor
from turnppo_hf.generation.slot_cache import cache_argument


class Older(torch.nn.Module):
    def forward(self, input_ids, past_key_values=None, **kwargs):
        raise NotImplementedError


class Newer(torch.nn.Module):
    def forward(self, input_ids, cache=None, past_key_values=None, **kwargs):
        raise NotImplementedError


class Adapted(torch.nn.Module):
    """What PEFT lays around a model: a forward that hands everything on."""

    def __init__(self, base):
        super().__init__()
        self.base = base

    def get_base_model(self):
        return self.base

    def forward(self, *args, **kwargs):
        return self.base(*args, **kwargs)


@pytest.mark.parametrize(("kind", "name"), [(Older, "past_key_values"), (Newer, "cache")])
def test_cache_has_the_name_of_the_forward(kind, name):
    model = kind()
    assert cache_argument(model) == cache_argument(Adapted(model)) == name
    model.forward = MethodType(lambda self, *args, **kwargs: None, model)  # as accelerate does for mixed precision
    assert cache_argument(model) == name


def test_models_of_transformers_have_the_newer_name_from_5_24_on():
    minor = int(transformers.__version__.split(".")[1])
    assert cache_argument(tiny_actor()) == ("cache" if minor >= 24 else "past_key_values")
