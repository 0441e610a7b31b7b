"""Prints docs/gpu.md, what was measured on accelerators: `python benchmarks/gpu_page.py > docs/gpu.md`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RUNS = Path(__file__).parent / "results_gpu"
_HEAD = """# What was measured on an accelerator

Written by `python benchmarks/gpu_page.py > docs/gpu.md` from the files in `benchmarks/results_gpu`, which
`make gpu` makes (`python benchmarks/gpu.py`, at most nine minutes, random weights at Qwen2.5's sizes). One
card was at hand, for three runs: {device}, torch {torch}, transformers {transformers}, Python {python}. Not
run on a card: vLLM, several GPUs, FSDP2 and DeepSpeed, a pretrained model, more than {steps} steps of a
training.

- Ceilings of this card: {tflops:.0f} TFLOP/s in bfloat16 (8192 x 8192 matrices), {copy:.2f} TB/s (copy, bytes
  read and written).
- Gradients of one update against float64 on the CPU, worst of six algorithms and settings and both networks:
  {float32:.1e} in float32, {bf16:.1e} under bfloat16 autocast (to reach: 1e-4 and 5e-2).
- Log-probs of sampling with a cache against a whole forward, {tokens} tokens, worst gap: {gap32:.1e} nats in
  float32, {gap16:.3f} under bfloat16 autocast (mean {gap16_mean:.4f}).
- A training of the packaged model saves, resumes and loads as an agent on `{agent}`; an update gives the same
  bits twice, and updates and sampling run under `torch.use_deterministic_algorithms(True)`.
"""
_SAMPLING = """
## Sampling

1.5B parameters, prompts of 512 to 1024 tokens, 128 new tokens a row, tokens per second. Before: cuDNN's
attention was chosen, which builds a plan for every new shape, and every sampled token is a new shape. It is
switched off in sampling and in updates. The first run had it too, and did not show it where a later variant
repeated the shapes of an earlier one: its figures per variant, such as "one autocast", are of plans that were
there already.

| episodes | weights | before | after | peak before, GiB | peak after, GiB |
|---|---|---|---|---|---|
"""
_UPDATE = """
The peak fell from the first run's {peak:.1f} GiB at 256 episodes, because the cache grows by a quarter and
not to twice its need.

## One update

64 episodes, 54,020 tokens of which 23,460 were sampled, both networks of 1.5B, bfloat16 autocast,
milliseconds (median of four; of two with adapters). Shares are of the card's measured peak, forward and
backward without recomputation. Same shapes in every round, so that without cuDNN's attention (last column)
the pass itself is {slower:.0%} slower; what the plans cost in training, where lengths are new in every step,
was not measured directly.

| variant | critic | actor | share, critic | share, actor | peak, GiB | sum without cuDNN |
|---|---|---|---|---|---|---|
"""
_TAIL = """
A kernel ran in {busy:.0%} of an update's time, {launches:,} launches; the rest waits for the processor. Fewer
and longer rows a forward are the cheapest gain left: rows that are not cut by length took {cut:.0%} less time
here than rows cut at 512 saved tokens, the CPU's figure. The default on accelerators is 4096 since these runs.
"""


def page() -> str:
    """Compose the page."""
    first, before, after = (
        json.loads((RUNS / f"h100_{name}.json").read_text(encoding="utf-8"))
        for name in ("first_run", "before_attention", "after_attention")
    )
    return _head(after) + _sampling(before, after) + _update(first, before, after)


def _head(after: dict[str, Any]) -> str:
    gaps, ceilings = after["sampled_against_scored"], after["ceilings"]
    machine = ceilings["machine"]
    return _HEAD.format(
        device=ceilings["device"],
        python=machine["python"],
        **{name: machine["versions"][name] for name in ("torch", "transformers")},
        steps=after["training"]["to_4"]["steps_logged"],
        tflops=ceilings["bf16_flops"] / 1e12,
        copy=ceilings["copy_bytes_per_s"] / 1e12,
        float32=after["correctness"]["worst_gradient"]["device_float32"],
        bf16=after["correctness"]["worst_gradient"]["device_bf16"],
        tokens=gaps["device_float32"]["tokens"],
        gap32=gaps["device_float32"]["gap_max"],
        gap16=gaps["device_bf16"]["gap_max"],
        gap16_mean=gaps["device_bf16"]["gap_mean"],
        agent=after["training"]["agent"],
    )


def _sampling(before: dict[str, Any], after: dict[str, Any]) -> str:
    lines = []
    for name, figures in after.items():
        if name.startswith("sampling/"):
            _, _, episodes, weights = name.split("/")
            old = before[name]
            kind = "float32, autocast" if "float32" in weights else "bfloat16"
            lines.append(
                f"| {episodes.split()[0]} | {kind} | {old['tokens_per_s']:.0f} | {figures['tokens_per_s']:.0f} "
                f"| {old['peak_gib']:.1f} | {figures['peak_gib']:.1f} |\n"
            )
    return _SAMPLING + "".join(lines)


def _update(first: dict[str, Any], before: dict[str, Any], after: dict[str, Any]) -> str:
    lines = []
    for section, variants in before.items():
        for name, figures in variants.items() if section.startswith("update/") else ():
            if isinstance(figures, dict):
                kind = section.rpartition("/")[2]
                later = after[section][name]
                total = later["critic_ms"]["median"] + later["actor_ms"]["median"]
                lines.append(
                    f"| {kind}: {name} | {figures['critic_ms']['median']:.0f} | {figures['actor_ms']['median']:.0f} "
                    f"| {figures['share_of_peak_critic']:.2f} | {figures['share_of_peak_actor']:.2f} "
                    f"| {figures['peak_gib']:.1f} | {total:.0f} |\n"
                )
    full, busy = before["update/1.5B/full"], before["busy/1.5B"]
    uncut, cut = full["rows not cut"]["wall_ms"]["median"], full["rows cut at 512"]["wall_ms"]["median"]
    without = after["update/1.5B/full"]["rows not cut"]["wall_ms"]["median"]
    head = _UPDATE.format(peak=first["sampling/1.5B/256/default"]["peak_gib"], slower=without / uncut - 1)
    tail = _TAIL.format(busy=busy["busy"], launches=busy["launches"], cut=1 - uncut / cut)
    return head + "".join(lines) + tail


if __name__ == "__main__":
    print(page(), end="")
