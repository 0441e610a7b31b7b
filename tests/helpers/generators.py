"""Tiny models and prompts for tests of generators, and what a full forward says of a response."""

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.conftest import EMBEDDED
from tests.helpers.tiny import tiny_actor
from turnppo_hf.models.adapters import keep_layout

VOCABULARY, END = 40, 39
PROMPTS = {0: [5, 6, 7], 1: [8] * 9, 2: [4, 4], 3: [9, 3, 2, 1, 5, 6, 7, 8, 9, 10, 11, 12]}


def make_model(kind="llama", **changes):
    """Weights far from uniform, so that a wrong position or cache is seen."""
    model = tiny_actor(kind, vocab_size=VOCABULARY, eos_token_id=END, **changes).eval()
    if kind != "gemma2":  # its soft-capping needs the eager form
        model.set_attn_implementation("sdpa")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def with_lora(model, **changes):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **changes)
    return peft.get_peft_model(model, config)


def quantized_with_lora():
    """The embedded actor in four bits, with an adapter that changes what it computes."""
    pytest.importorskip("bitsandbytes")
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, bnb_4bit_quant_type="nf4")
    base = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32, quantization_config=four_bits)
    keep_layout(base)
    return with_lora(base)


def perturb_adapter(policy):
    with torch.no_grad():
        for weight in (item for item in policy.parameters() if item.requires_grad):
            weight.add_(torch.randn_like(weight) * 0.1)


def drain(generator, count):
    done = {}
    while len(done) < count:
        done |= {completion.episode: completion for completion in generator.take_completions()}
    return done


@torch.no_grad()
def logprobs_by_full_forward(model, prompt, completion, temperature=1.0):
    logits = model(torch.tensor([[*prompt, *completion]])).logits[0] / temperature
    rows = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
    return rows[torch.arange(len(completion)), torch.tensor(completion)]


def play_turns(generator, turns=3, max_new_tokens=6):
    """Three turns of four ragged episodes: returns every (prompt, completion)."""
    prompts, played = dict(PROMPTS), []
    for turn in range(turns):
        for episode, prompt in prompts.items():
            generator.submit(episode, prompt, max_new_tokens=max_new_tokens, seed=100 * turn + episode)
        for episode, completion in drain(generator, len(prompts)).items():
            played.append((list(prompts[episode]), completion))
            observation = [20 + episode] * (1 + episode + turn)
            prompts[episode] = [*prompts[episode], *completion.completion_ids, *observation]
    return played
