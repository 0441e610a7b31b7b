"""A real vLLM server in a process of its own: weights reach it, log-probs match, one and two ranks train on it."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch

from tests.helpers.generators import perturb_adapter, quantized_with_lora, with_lora
from tests.helpers.launch import ROOT, free_port, run_ranks
from tests.trainer.test_turn_ppo_trainer import train_logs
from turnppo_hf.generation.self_check import check_engine, logprob_gaps
from turnppo_hf.generation.vllm_server import ServerEngine

pytest.importorskip("vllm", reason="needs vLLM, which has an environment of its own: see .ci/run")

FLOAT32_GAP = 1e-4  # nats


@contextmanager
def serving(folder, *flags):
    """A server of its own process that answers; yields its address."""
    port, log = free_port(), folder / "log"
    program = "import sys; from turnppo_hf.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "vllm-serve", "tiny", "--port", str(port), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": "1"}
    with open(log, "w") as file:
        server = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        ServerEngine(f"http://127.0.0.1:{port}", timeout_s=300)  # waits until it answers
        assert server.poll() is None, log.read_text()[-3000:]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.fixture(scope="module")
def roomy_url(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server"), "--max_lora_rank", "4") as url:
        yield url


def test_weights_reach_the_server_and_logprobs_match(url, embedded_actor):
    reading = ServerEngine(url)  # any server of vLLM's can be sampled from, with the weights that it loaded
    assert float(logprob_gaps(reading, embedded_actor).max()) < FLOAT32_GAP
    engine = ServerEngine(url, embedded_actor)
    for temperature in (1.0, 0.7):
        with torch.no_grad():
            for weight in embedded_actor.parameters():
                weight.add_(torch.randn_like(weight) * 0.3 * weight.std())
        assert float(logprob_gaps(engine, embedded_actor, temperature=temperature).mean()) > 0.01  # control
        engine.sync()
        assert float(logprob_gaps(engine, embedded_actor, temperature=temperature).max()) < FLOAT32_GAP
    check_engine(engine, embedded_actor)
    engine.rest()


def test_adapter_reaches_a_server_that_has_room_for_it_alone(roomy_url, make_trainer, embedded_actor, monkeypatch):
    sent = []
    monkeypatch.setattr(ServerEngine, "_send_weights", recorded(ServerEngine._send_weights, sent))
    policy = with_lora(embedded_actor)
    engine = ServerEngine(roomy_url, policy)
    for _ in range(3):
        perturb_adapter(policy)
        if sent:
            assert float(logprob_gaps(engine, policy).mean()) > 1e-3  # control
        engine.sync()
        assert float(logprob_gaps(engine, policy).max()) < FLOAT32_GAP
    assert len(sent) == 1  # the base
    settings = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": roomy_url}
    trainer = make_trainer(model=policy, max_steps=3, **settings)
    trainer.train()
    assert max(entry["sampling/logprob_gap_max"] for entry in train_logs(trainer)) < FLOAT32_GAP
    assert len(sent) == 2  # once by another client, in its three transfers


def test_whole_policy_reaches_a_server_with_room_for_adapters(roomy_url, embedded_actor):
    with torch.no_grad():
        for weight in embedded_actor.parameters():
            weight.add_(torch.randn_like(weight) * 0.3 * weight.std())
    engine = ServerEngine(roomy_url, embedded_actor)
    engine.sync()
    assert float(logprob_gaps(engine, embedded_actor).max()) < FLOAT32_GAP


def test_quantized_base_is_sampled_on_a_server(roomy_url):
    policy = quantized_with_lora()
    engine = ServerEngine(roomy_url, policy)
    engine.sync()
    assert float(logprob_gaps(engine, policy).max()) < FLOAT32_GAP


def recorded(method, calls):
    def call(*args, **kwargs):
        calls.append(kwargs)
        return method(*args, **kwargs)

    return call


def test_trainer_in_another_process_than_the_server_trains(url, make_trainer, embedded_actor):
    settings = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": url}
    trainer = make_trainer(model=embedded_actor, max_steps=3, **settings)
    before = [weight.detach().clone() for weight in trainer.model.parameters()]
    trainer.train()
    assert not any(torch.equal(old, new) for old, new in zip(before, trainer.model.parameters(), strict=True))
    logs = train_logs(trainer)
    assert len(logs) == 3
    assert max(entry["sampling/logprob_gap_max"] for entry in logs) < FLOAT32_GAP
    # the server has the weights of the last rollout, not those that the last update made
    stale = float(logprob_gaps(trainer.collector.engine, trainer.model.actor).mean())
    assert stale > 1e-6


@pytest.mark.parametrize("mode", ["server", "colocate"])
def test_two_ranks_with_unequal_live_counts_train_on_their_own_answers(url, tmp_path, mode):
    run_ranks("server_training.py", url if mode == "server" else mode, tmp_path, timeout=300)
    logs = [entry for entry in json.loads((tmp_path / "log.json").read_text()) if "policy_loss" in entry]
    assert len(logs) == 3 and logs[0]["episodes/failed"] == 3
    # an answer to another rank's prompt would have another log-prob under the trainer
    assert max(entry["sampling/logprob_gap_max"] for entry in logs) < FLOAT32_GAP
