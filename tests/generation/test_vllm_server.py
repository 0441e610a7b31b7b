"""The client of a vLLM server: whose answers are whose, faults, restarts; a real server has a file of its own."""

import json
import threading

import pytest
import torch

from tests.helpers.fake_vllm import serving
from tests.helpers.generators import drain, make_model, with_lora
from tests.helpers.launch import free_port, run_ranks
from tests.trainer.test_turn_ppo_trainer import tasks, train_logs
from turnppo_hf.generation import vllm_server
from turnppo_hf.generation.adapter_transfer import base_marks
from turnppo_hf.generation.vllm_generator import VLLMGenerator
from turnppo_hf.generation.vllm_server import ServerEngine
from turnppo_hf.trajectory import GenerationError


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(vllm_server, "_FIRST_PAUSE_S", 0.01)


def connect(server, model=None, **changes):
    engine = ServerEngine(server.url, model, **{"timeout_s": 5.0, "max_parallel_requests": 4, **changes})
    return VLLMGenerator(engine, eos_token_ids=[])


def submit(generator, episodes):
    for episode in episodes:
        generator.submit(episode, [10 + episode, 1, 2], max_new_tokens=4, seed=episode)


def test_every_episode_gets_its_own_answer_also_beyond_the_connections():
    with serving() as server:
        generator = connect(server)
        submit(generator, range(20))
        answers = drain(generator, 20)
        assert {episode: answer.completion_ids for episode, answer in answers.items()} == {
            episode: (10 + episode,) * 2 for episode in range(20)
        }
        assert generator.max_context == 128
        assert generator.take_completions() == []


def test_sync_sends_every_weight_once_and_forgets_the_prefix_cache():
    model = make_model(tie_word_embeddings=True)
    with serving() as server:
        connect(server, model).sync()
        [sent] = server.weights
        expected = dict(model.named_parameters())
        assert set(sent) == set(expected)
        assert all(torch.equal(weight, expected[name]) for name, weight in sent.items())
        assert server.log.index("turnppo_load_weights") < server.log.index("/reset_prefix_cache")


@pytest.mark.parametrize("fault", ["drop", "500", "hang"])
def test_failed_requests_are_sent_again(fault):
    with serving() as server:
        generator = connect(server, make_model(), timeout_s=0.5 if fault == "hang" else 5.0)
        generator.sync()
        server.faults += [fault] * 2
        submit(generator, range(6))
        assert len(drain(generator, 6)) == 6
        assert len(server.weights) == 1  # the server never went away
        generator.reset()


@pytest.mark.parametrize("fault", ["drop", "500", "hang"])
def test_answer_that_is_asked_for_between_attempts_may_fail_too(fault):
    with serving() as server:
        generator = connect(server, make_model(), timeout_s=0.5 if fault == "hang" else 5.0)
        generator.sync()
        server.faults += ["500"]
        server.faults_of["turnppo_instance"] += [fault]
        submit(generator, [0])
        assert len(drain(generator, 1)) == 1
        server.faults += ["500"]
        server.faults_of["turnppo_instance"] += [fault] * 2
        submit(generator, [1])
        with pytest.raises(GenerationError, match=r"failed 3 times, last with .*`vllm_server_timeout`"):
            generator.take_completions()


@pytest.mark.parametrize("called", ["/v1/models", "turnppo_instance"])
@pytest.mark.parametrize("fault", ["drop", "500", "hang"])
def test_connection_and_sync_ask_again(called, fault):
    with serving() as server:
        server.faults_of[called] += [fault]
        generator = connect(server, make_model(), timeout_s=0.5 if fault == "hang" else 5.0)
        server.faults_of["turnppo_instance"] += [fault]
        generator.sync()
        assert len(server.weights) == 1


@pytest.mark.parametrize("answer", ["404", "200"])
def test_what_is_not_a_vllm_server_is_told_at_the_start(answer):
    with serving() as server:
        server.faults_of["/v1/models"] += [answer]
        with pytest.raises(GenerationError, match=r"is not a vLLM server: it names no model.*`vllm_server_base_url`"):
            connect(server)


def test_request_that_fails_again_and_again_ends_the_batch():
    with serving() as server:
        generator = connect(server)
        server.faults += ["500"] * 3
        submit(generator, [0])
        with pytest.raises(
            GenerationError, match=r"failed 3 times, last with status 500.*`vllm_server_timeout` \(5 s\)"
        ):
            generator.take_completions()


def test_refused_request_is_told_with_the_servers_words():
    with serving() as server:
        generator = connect(server)
        server.faults += ["400"]
        submit(generator, [0])
        with pytest.raises(GenerationError, match=r"refuses a request .*made to fail.*--max_model_length"):
            generator.take_completions()


def test_server_that_is_gone_is_waited_for_and_then_given_up():
    with serving() as server:
        generator = connect(server, timeout_s=0.2)
    submit(generator, range(3))
    message = r"No vLLM server answers at http://127\.0\.0\.1:\d+ \(.*\), waited 0\.2 s.*`turnppo vllm-serve MODEL`"
    with pytest.raises(GenerationError, match=message):
        generator.take_completions()


def test_address_without_a_server_is_told_at_the_start():
    with pytest.raises(GenerationError, match=r"No vLLM server answers.*`vllm_server_base_url`"):
        ServerEngine(f"http://127.0.0.1:{free_port()}", timeout_s=0.1)


def test_server_that_takes_no_weights_is_for_generation_only():
    with serving(takes_weights=False) as server:
        generator = connect(server)
        generator.sync()
        submit(generator, [3])
        assert drain(generator, 1)[3].completion_ids == (13, 13)
        with pytest.raises(GenerationError, match=r"did not take the trainer's weights .*`turnppo vllm-serve MODEL`"):
            connect(server, make_model())


def test_restarted_server_gets_the_weights_before_the_requests_go_on():
    model = make_model()
    with serving() as first:
        port = first.server_address[1]
        generator = connect(first, model)
        generator.sync()
        first.faults += ["hang"] * 3
        submit(generator, range(3))
        answered = threading.Thread(target=first.release.wait)
        answered.start()
    answered.join()
    with serving(port=port) as second:
        assert len(drain(generator, 3)) == 3
        assert len(second.weights) == 1
        assert second.log.index("turnppo_load_weights") < second.log.index("/v1/completions")
        generator.reset()


def test_restart_that_no_request_met_is_noticed_at_the_end_of_the_batch():
    with serving() as server:
        generator = connect(server, make_model())
        generator.sync()
        submit(generator, [0])
        drain(generator, 1)
        server.restart()
        with pytest.raises(GenerationError, match=r"was started anew during the rollout.*not trained on"):
            generator.reset()


def test_adapter_goes_alone_once_the_server_has_its_base():
    policy = with_lora(make_model())
    with serving(max_lora_rank=8) as server:
        generator = connect(server, policy)
        for number in (1, 2):
            with torch.no_grad():
                for weight in (weight for weight in policy.parameters() if weight.requires_grad):
                    weight.add_(1)
            generator.sync()
            [(name, sent)] = server.adapters.items()  # the one before is gone
            state = {key: weight for key, weight in policy.state_dict().items() if "lora_" in key}
            assert {key.replace(".default", "") for key in state} == set(sent)
            assert all(torch.equal(weight, sent[key.replace(".default", "")]) for key, weight in state.items())
            submit(generator, [number])
            assert drain(generator, 1)[number].completion_ids == (10 + number,) * 2
            assert server.asked[-1] == name
            generator.reset()
        [base] = server.weights
        assert set(base) == set(dict(make_model().named_parameters()))
        with torch.no_grad():
            policy.get_base_model().model.norm.weight.add_(1)
        generator.sync()
        assert len(server.weights) == 2  # another base is noticed
        assert server.log.index("/v1/load_lora_adapter") < server.log.index("/reset_prefix_cache")


def test_restarted_server_gets_base_and_adapter_before_the_requests_go_on():
    with serving(max_lora_rank=8) as first:
        port = first.server_address[1]
        generator = connect(first, with_lora(make_model()))
        generator.sync()
        [name] = first.adapters
        first.faults += ["hang"] * 3
        submit(generator, range(3))
        answered = threading.Thread(target=first.release.wait)
        answered.start()
    answered.join()
    with serving(port=port, max_lora_rank=8) as second:
        assert len(drain(generator, 3)) == 3
        assert len(second.weights) == 1 and list(second.adapters) == [name]
        assert set(second.asked) == {name}
        generator.reset()
        second.restart()  # again, and no request meets it
        generator.sync()
        assert len(second.weights) == 2 and len(second.adapters) == 1


@pytest.mark.parametrize("room", [0, 2])
def test_server_without_room_for_the_adapter_gets_it_merged_and_that_is_said(caplog, room):
    policy = with_lora(make_model())
    with serving(max_lora_rank=room) as server, caplog.at_level("WARNING", logger="turnppo_hf"):
        connect(server, policy).sync()
        assert set(server.weights[0]) == set(dict(make_model().named_parameters())) and not server.adapters
        assert "no room for an adapter of rank 4" in caplog.text
        assert "`turnppo vllm-serve MODEL --max_lora_rank 4`" in caplog.text
        policy.get_base_model().is_quantized = True
        with pytest.raises(GenerationError, match=r"into a quantized base it would be rounded away.*max_lora_rank 4"):
            connect(server, policy)


@pytest.mark.parametrize(
    ("fault", "words"),
    [("400", "same folder"), ("404", r"`turnppo vllm-serve MODEL --max_lora_rank 4`"), ("500", "See its log")],
)
def test_adapter_that_the_server_refuses_is_told_with_its_words(fault, words):
    with serving(max_lora_rank=8) as server:
        generator = connect(server, with_lora(make_model()))
        server.faults_of["/v1/load_lora_adapter"] += [fault]
        with pytest.raises(GenerationError, match=rf"did not take the trainer's adapter \(.*made to fail.*{words}"):
            generator.sync()


def test_rank_that_meets_a_restarted_server_late_finds_the_policy_of_the_others():
    policy = with_lora(make_model())
    with serving(max_lora_rank=8) as server:
        first, late = connect(server, policy), connect(server, policy)
        first.sync()
        late.engine.is_main = False
        late.engine.gather = lambda mine: [("", first.engine._weights, first.engine._adapter), *mine]
        late.sync()
        server.restart()
        for episode, generator in enumerate((first, late)):
            server.faults += ["500"]
            submit(generator, [episode])
            assert len(drain(generator, 1)) == 1
        assert len(server.weights) == 2  # at the start, and by the rank that was first
        assert server.log.count("/v1/load_lora_adapter") == 2
        server.faults_of["/v1/load_lora_adapter"] += ["400"]  # "has already been loaded": another was faster by little
        late.engine._post("/v1/load_lora_adapter", lora_name=late.engine._adapter, lora_path="/nowhere")
        for generator in (first, late):
            generator.reset()


def test_weights_of_another_trainer_on_the_server_are_noticed():
    with serving(max_lora_rank=8) as server:
        mine, other = connect(server, with_lora(make_model())), connect(server, make_model())
        mine.sync()
        other.sync()
        mine.sync()
        assert len(server.weights) == 3 and set(server.weights[2]) == set(server.weights[0])


@pytest.mark.parametrize("kind", ["whole", "adapter"])
def test_policy_that_cannot_be_written_is_told_at_once_and_to_every_rank(kind, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    told = []
    with serving(max_lora_rank=8) as server:
        model = make_model() if kind == "whole" else with_lora(make_model())
        generator = connect(server, model, gather=lambda mine: told.extend(mine) or mine)
        monkeypatch.setattr(vllm_server, "save_file" if kind == "whole" else "write_adapter", full)
        with pytest.raises(GenerationError, match=r"could not be written to .*No space left.*`TMPDIR`"):
            generator.sync()
    assert len(told) == 1 and "No space left" in told[0][0]


def test_adapter_of_a_copy_that_is_not_trained_is_no_part_of_its_base():
    policy = with_lora(make_model()).requires_grad_(False)  # as what is whole while a launch cuts the one that trains
    before = base_marks(policy)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_" in name:
                weight.add_(1)
        assert torch.equal(base_marks(policy), before)
        policy.get_base_model().model.norm.weight.add_(1)
    assert not torch.equal(base_marks(policy), before)


def test_wake_interrupts_the_waiting_for_a_server():
    with serving() as server:
        generator = connect(server)
        server.faults += ["hang"]
        submit(generator, [0])
        wake = threading.Event()
        threading.Timer(0.05, wake.set).start()
        assert generator.take_completions(wake) == []
        generator.release(0)
        assert generator.take_completions() == []


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["whole", "adapter"])
def test_ranks_with_unequal_live_counts_get_their_own_answers(tmp_path, policy):
    with serving(max_lora_rank=8) as server:
        run_ranks("server_ranks.py", server.url, tmp_path, policy)
        assert len(server.weights) == 1  # the main rank's alone
        assert set(server.asked) == (set(server.adapters) or {"m"})
    for rank, expected in ((0, [30, 31, 32, 20, 21, 10]), (1, [110])):
        answers = json.loads((tmp_path / f"{rank}.json").read_text())
        assert answers == [[episode, [episode] * 2] for episode in sorted(expected)]


@pytest.mark.parametrize("dies_in", ["training", "evaluation"])
@pytest.mark.slow
def test_dead_server_stops_training_with_a_checkpoint_to_resume_from(make_trainer, tmp_path, monkeypatch, dies_in):
    monkeypatch.setattr("turnppo_hf.trainer.collector.check_engine", lambda *_, **__: None)  # the fake samples nothing
    with serving(max_model_len=256) as server:
        settings = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": server.url, "max_steps": 4}
        settings |= {"eval_strategy": "steps", "eval_steps": 2, "eval_dataset": tasks(4)}
        trainer = make_trainer(vllm_server_timeout=1.0, **settings)
        name = {"training": "training_step", "evaluation": "evaluate"}[dies_in]
        whole = getattr(trainer, name)

        def then_die(*args, **kwargs):
            if trainer.state.global_step == 2:
                server.faults += ["500"] * 1000
            return whole(*args, **kwargs)

        setattr(trainer, name, then_die)
        message = r"failed 3 times.*A checkpoint of step 2 was saved in .*Resume from it with `resume_from_checkpoint`"
        with pytest.raises(GenerationError, match=message):
            trainer.train()
        assert len(train_logs(trainer)) == 2  # nothing was trained on a part of a batch
        server.faults.clear()
        resumed = make_trainer(vllm_server_timeout=5.0, **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
        assert resumed.state.global_step == 4
