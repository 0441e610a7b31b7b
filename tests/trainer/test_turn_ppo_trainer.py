"""The trainer: constructor, one update and many, logging, evaluation."""

import copy
import inspect

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForTokenClassification, TrainerCallback
from trl import GRPOTrainer

from tests.helpers.scripted import CountingEnvironment
from turnppo_hf import TurnPPOTrainer
from turnppo_hf.models.actor_critic import critic_from_actor
from turnppo_hf.trainer.metrics import METRICS
from turnppo_hf.trainer.optimizer_step import pick_minibatch
from turnppo_hf.trajectory import StopReason

# earlier responses lose their first character, as those of reasoning models lose their thoughts
REWRITING = (
    "{%- for message in messages -%}<|{{ message.role }}|>"
    "{{ message.content[1:] if message.role == 'assistant' else message.content }}<|end|>{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


def weights(network):
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def moved(before, network):
    return [name for name, parameter in network.named_parameters() if not torch.equal(before[name], parameter)]


def train_logs(trainer):
    return [entry for entry in trainer.state.log_history if "policy_loss" in entry or "value_loss" in entry]


def test_constructor_has_grpo_trainers_order_with_the_critic_last():
    ours = list(inspect.signature(TurnPPOTrainer.__init__).parameters)
    theirs = list(inspect.signature(GRPOTrainer.__init__).parameters)
    assert ours == [*theirs, "value_model"]


@pytest.mark.parametrize("algorithm", ["turn_ppo", "token_ppo", "grpo", "rloo", "gigpo"])
@pytest.mark.parametrize("passes", [(1, 1), (2, 2)])
def test_every_algorithm_moves_what_it_trains(make_trainer, algorithm, passes):
    iterations, minibatches = passes
    trainer = make_trainer(
        algorithm=algorithm, num_iterations=iterations, num_minibatches=minibatches, beta=0.01, entropy_coef=0.01,
        max_steps=iterations * minibatches,
    )  # fmt: skip
    before = {name: weights(network) for name, network in trainer.model.networks.items()}
    trainer.train()
    assert set(before) == ({"actor", "critic"} if "ppo" in algorithm else {"actor"})
    for name, network in trainer.model.networks.items():
        assert moved(before[name], network), name
    logs = train_logs(trainer)
    assert len(logs) == iterations * minibatches
    # the first minibatch meets the policy that sampled it
    assert logs[0]["clip_fraction"] == 0.0
    assert logs[0]["log_ratio/std"] < 1e-5
    tails = [(entry.get("log_ratio/p01"), entry.get("log_ratio/p99")) for entry in logs]
    if len(logs) == 1:  # a batch that is used once has no ratios
        assert tails == [(None, None)]
    else:
        assert tails[0] == (pytest.approx(0.0, abs=1e-5), pytest.approx(0.0, abs=1e-5))
        assert all(low < high for low, high in tails[1:])
    assert all(abs(value) < 1e6 for entry in logs for value in entry.values() if value == value)


def test_every_logged_name_is_documented(make_trainer):
    trainer = make_trainer(beta=0.1, num_minibatches=2, eval_strategy="steps", eval_steps=1, eval_dataset=tasks(4))
    trainer.train()
    names = {metric.name.split("<")[0] for metric in METRICS}
    of_transformers = ("loss", "grad_norm", "learning_rate", "epoch", "step", "train_", "total_flos")
    for entry in trainer.state.log_history:
        for name in entry:
            plain = name.removeprefix("eval_")
            assert plain.startswith(of_transformers) or any(
                plain == known or (known.endswith(("/", "_")) and plain.startswith(known)) for known in names
            ), f"{name} is not in metrics.METRICS"
    required = {"explained_variance", "value/turn_1", "advantages/std", "clip_fraction", "log_ratio/std", "approx_kl",
                "log_ratio/p01", "log_ratio/p99", "advantages/turn_1",
                "entropy", "completions/mean_length", "turns/mean", "episodes/truncated_share", "success", "reward",
                "turns/invalid_share", "turns/no_action_share", "grad_norm/actor", "grad_norm/critic"}  # fmt: skip
    assert required <= set(train_logs(trainer)[0])


def test_critic_learns_with_its_own_rate(make_trainer):
    trainer = make_trainer(critic_lr_multiplier=7.0, weight_decay=0.1)
    optimizer = trainer.create_optimizer()
    critic = {id(parameter) for parameter in trainer.model.critic.parameters()}
    rates = {(id(p) in critic, group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    assert rates == {(False, 1e-3), (True, 7e-3)}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(trainer.model.parameters()))
    assert optimizer.param_groups[0]["lr"] == 1e-3  # the rate that is logged as `learning_rate`


def test_warm_up_trains_the_critic_only(make_trainer):
    trainer = make_trainer(critic_warmup_steps=2, weight_decay=0.1)
    before = {name: weights(network) for name, network in trainer.model.networks.items()}
    trainer.train()
    assert moved(before["critic"], trainer.model.critic)
    assert not moved(before["actor"], trainer.model.actor)


def test_each_network_is_clipped_by_itself(make_trainer):
    trainer = make_trainer(max_grad_norm=0.5)
    for name, scale in (("actor", 0.1), ("critic", 100.0)):
        for parameter in trainer.model.networks[name].parameters():
            parameter.grad = torch.full_like(parameter, scale)
    before = {name: [p.grad.clone() for p in n.parameters()] for name, n in trainer.model.networks.items()}
    trainer._clip_grad_norm(trainer.model)
    norms = {
        name: torch.cat([p.grad.reshape(-1) for p in network.parameters()]).norm()
        for name, network in trainer.model.networks.items()
    }
    assert norms == pytest.approx({"actor": 0.5, "critic": 0.5}, rel=1e-4)
    # control: one clip over both would have scaled the actor by the critic's norm
    joint = torch.cat([grad.reshape(-1) for grads in before.values() for grad in grads]).norm()
    actor = torch.cat([grad.reshape(-1) for grad in before["actor"]]).norm()
    assert float(0.5 * actor / joint) < 0.01


@pytest.mark.slow
def test_micro_batches_do_not_change_the_run(make_trainer, tiny_actor):
    start, finals = copy.deepcopy(tiny_actor.state_dict()), []
    for max_tokens in (100_000, 40):
        tiny_actor.load_state_dict(start)
        trainer = make_trainer(max_tokens_per_micro_batch=max_tokens, optim="sgd", max_steps=2)
        trainer.train()
        finals.append(weights(trainer.model.actor))
    for name, value in finals[0].items():
        torch.testing.assert_close(value, finals[1][name], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_agent_learns_and_the_control_does_not(make_trainer, embedded_actor):
    class Inverted(CountingEnvironment):
        def step(self, action):
            observation, reward, terminated, truncated, info = super().step(action)
            return observation, -reward, terminated, truncated, info

    start, successes = copy.deepcopy(embedded_actor.state_dict()), []
    for environment in (CountingEnvironment, Inverted):
        embedded_actor.load_state_dict(start)
        trainer = make_trainer(
            environment, model=embedded_actor, max_steps=15, generation_batch_size=32, learning_rate=3e-4
        )
        trainer.train()
        successes.append([entry["success"] for entry in train_logs(trainer)])
    assert successes[0][-1] > 0.95 > successes[0][0], successes
    assert successes[1][-1] < 0.2, successes


def tasks(count, **columns):
    return Dataset.from_dict(
        {"seed": list(range(count)), **{name: [value] * count for name, value in columns.items()}}
    )


def test_every_task_of_a_batch_is_another_one(make_trainer):
    trainer = make_trainer(train_dataset=tasks(24), max_steps=3)
    seen = []
    collect = trainer._play_rollout_batch
    trainer._play_rollout_batch = lambda rows, number: (
        seen.append([row["seed"] for row in rows]) or collect(rows, number)
    )
    trainer.train()
    assert all(len(set(batch)) == 8 for batch in seen)
    assert len({seed for batch in seen for seed in batch}) == 24
    assert train_logs(trainer)[0]["episodes/distinct_tasks"] == 8


def test_group_baselines_play_each_task_several_times(make_trainer):
    trainer = make_trainer(algorithm="grpo", num_generations=4, max_steps=1)
    trainer.train()
    groups = [trajectory.group for trajectory in trainer._last_trajectories]
    assert groups == [0] * 4 + [1] * 4
    assert len({(t.group, t.seed) for t in trainer._last_trajectories}) == 2


@pytest.mark.slow
@pytest.mark.parametrize("passes", [1, 2])
def test_with_one_update_per_batch_no_row_is_read_twice(make_trainer, passes):
    trainer = make_trainer(num_iterations=passes, max_steps=passes)
    read = {"actor": 0, "critic": 0}

    def count(name):
        def hook(_, arguments, inputs):
            if not {"cache", "past_key_values"} & inputs.keys():  # the rollout has a cache
                read[name] += inputs["input_ids"].shape[0]

        return hook

    for name, network in trainer.model.networks.items():
        network.register_forward_pre_hook(count(name), with_kwargs=True)
    trainer.train()
    rows = len(trainer._rollout.batch.input_ids)
    # several updates need the values before them, which is another pass; old log-probs are those of the exact sampler
    assert read == {"actor": passes * rows, "critic": (1 if passes == 1 else 3) * rows}
    assert trainer.collector.generator.tokens_processed <= int(trainer._rollout.batch.attention_mask.sum())


def test_batch_is_collected_once_for_all_its_updates(make_trainer):
    trainer = make_trainer(num_iterations=2, num_minibatches=2, max_steps=8)
    calls = []
    collect = trainer._play_rollout_batch
    trainer._play_rollout_batch = lambda rows, number: calls.append(number) or collect(rows, number)
    trainer.train()
    assert calls == [0, 1]


def test_minibatches_cover_the_batch_in_another_order_each_pass(make_trainer):
    args = make_trainer(num_iterations=2, num_minibatches=4).args
    passes = [torch.cat([pick_minibatch(8, args, 0, part + 4 * number) for part in range(4)]) for number in range(2)]
    assert all(sorted(order.tolist()) == list(range(8)) for order in passes)
    assert passes[0].tolist() != passes[1].tolist()


def test_template_that_rewrites_history_trains_on_what_was_sampled(make_trainer, tiny_tokenizer):
    tiny_tokenizer.chat_template = REWRITING
    trainer = make_trainer(max_turn_length=6, num_minibatches=2, max_steps=2, generation_batch_size=16)
    trainer.train()
    batch = trainer._rollout.batch
    turns = [turn for trajectory in trainer._last_trajectories for turn in trajectory.turns]
    assert len(batch.input_ids) > 2 * len(batch)  # nearly every turn starts a row
    assert int(batch.completion_mask.sum()) == sum(len(turn.completion_ids) for turn in turns)
    assert train_logs(trainer)[0]["log_ratio/std"] < 1e-5  # every token meets the prompt that it was sampled from


def test_evaluation_during_training_is_logged_and_repeatable(make_trainer):
    trainer = make_trainer(eval_strategy="steps", eval_steps=1, eval_dataset=tasks(6))
    first, second = trainer.evaluate(), trainer.evaluate()
    assert first == second and "eval_success" in first
    trainer.train()
    assert sum("eval_success" in entry for entry in trainer.state.log_history) == 2


def test_truncation_is_bootstrapped_by_stop_reason(make_trainer):
    for limit, bootstraps in ((None, False), (1, True)):
        trainer = make_trainer(max_turns=limit, max_steps=1)
        trainer.train()
        reasons = {trajectory.stop_reason for trajectory in trainer._last_trajectories}
        assert (StopReason.TURN_LIMIT in reasons) is bootstraps
        assert bool(trainer._rollout.batch.bootstrap_mask.any()) is bootstraps
    without_critic = {"algorithm": "grpo", "num_generations": 4, "context": "last"}
    for changes in ({"bootstrap_truncated": False}, without_critic):
        trainer = make_trainer(max_turns=1, max_steps=1, **changes)
        trainer.train()
        assert not trainer._rollout.batch.bootstrap_mask.any()
        assert trainer.state.log_history[0]["episodes/bootstrapped_share"] == 0.0
        assert trainer._rollout.batch.completion_mask.any(1).all(), "no row is computed for nothing"


def test_sampler_that_a_callback_changes_is_refused(make_trainer):
    class Anneal(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            args.temperature = 0.5

    trainer = make_trainer()
    trainer.add_callback(Anneal())
    with pytest.raises(ValueError, match=r"`temperature` was 1\.0 when the trainer was made and is 0\.5 now"):
        trainer.train()
    assert trainer.state.global_step == 1


def test_value_model_is_used_and_checked(make_trainer, tiny_actor):
    critic = critic_from_actor(tiny_actor)
    assert make_trainer(value_model=critic).model.critic is critic
    config = copy.deepcopy(tiny_actor.config)
    config.num_labels = 2
    with pytest.raises(ValueError, match=r"has 2 labels"):
        make_trainer(value_model=AutoModelForTokenClassification.from_config(config))


def test_arguments_without_effect_are_refused(tiny_actor):
    with pytest.raises(ValueError, match="`reward_processing_classes` is not supported"):
        TurnPPOTrainer(tiny_actor, environment_factory=CountingEnvironment, reward_processing_classes=object())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"environment_factory": None}, "`environment_factory` is missing"),
        ({"environment_factory": "turnppo_hf/Sokobann-v0"}, "Sokoban-v0"),
        ({"environment_factory": dict}, r"returned dict, which has no reset\(\) and step\(\)"),
        ({"train_dataset": Dataset.from_dict({"seed": []})}, "has 0 rows, but a rollout batch takes 8"),
        ({"train_dataset": tasks(7)}, "has 7 rows, but a rollout batch takes 8"),
        ({"train_dataset": tasks(8, environment="other")}, "names 'other', but"),
        ({"max_steps": -1}, "no `train_dataset` and `max_steps` is -1"),
        ({"generation_batch_size": 7, "num_minibatches": 2}, r"\(7\) must be divisible by"),
        ({"eval_dataset": {"a": tasks(2)}}, "`eval_dataset` is a dict"),
        ({"eval_dataset": Dataset.from_dict({"seed": []})}, "`eval_dataset` has no rows"),
        ({"eval_dataset": tasks(2, environment="other")}, "names 'other', but"),
        ({"algorithm": "grpo", "critic_warmup_steps": 2}, "grpo has no critic"),
        ({"entropy_coef": -0.1}, "`entropy_coef` must be at least 0"),
        ({"generation_batch_size": 0}, "`generation_batch_size` must be at least 1"),
        ({"remove_unused_columns": True}, "`remove_unused_columns` is True"),
    ],
)
def test_bad_input_is_refused_at_the_door(make_trainer, changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make_trainer(**changes)


def test_optimizer_that_lacks_the_critic_is_refused(make_trainer):
    trainer = make_trainer()
    trainer.optimizer = torch.optim.SGD(trainer.model.actor.parameters(), lr=1e-3)
    with pytest.raises(ValueError, match=r"lacks \d+ trainable parameters, such as 'critic\."):
        trainer.train()


def test_actor_in_half_precision_is_trained_with_a_warning(make_trainer, tiny_actor):
    with pytest.warns(UserWarning, match="weights are torch.bfloat16"):
        make_trainer(model=tiny_actor.to(torch.bfloat16))


def test_absent_stop_reasons_count_as_zero_in_a_log_over_batches(make_trainer):
    trainer = make_trainer(max_steps=4, logging_steps=4)
    trainer.train()
    [log] = train_logs(trainer)
    assert sum(value for name, value in log.items() if name.startswith("stop/")) == pytest.approx(1.0)
    assert log["success"] == pytest.approx(log["stop/solved"])


def test_completions_are_printed_and_saved_with_their_credit(make_trainer, tmp_path):
    trainer = make_trainer(log_completions=True, num_completions_to_print=2)
    trainer.train()
    saved = Dataset.from_parquet(str(tmp_path / "run" / "trajectories" / "trajectories_00002.parquet"))
    [first, *_] = saved["turns"][0]
    assert first["value"] is not None and first["turn_return"] == pytest.approx(first["advantage"] + first["value"])
    assert len(saved) == 8


def test_episodes_that_are_masked_are_printed_without_credit(make_trainer, tmp_path):
    make_trainer(
        log_completions=True, mask_truncated_completions=True, max_turn_length=1, max_completion_length=6
    ).train()
    saved = Dataset.from_parquet(str(tmp_path / "run" / "trajectories" / "trajectories_00002.parquet"))
    credited = [turns[0]["advantage"] is not None for turns in saved["turns"] if turns]
    assert len(saved) == 8 and not all(credited)


@pytest.mark.parametrize("dataset", [None, Dataset.from_dict({"seed": []}), {"a": Dataset.from_dict({"seed": [1]})}])
def test_evaluation_of_nothing_is_refused(make_trainer, dataset):
    with pytest.raises(ValueError, match=r"no `eval_dataset`|`eval_dataset` has no rows|one datasets\.Dataset"):
        make_trainer().evaluate(dataset)


@pytest.mark.slow
@pytest.mark.parametrize("rest", ["continue", "drop"])
def test_oversampled_batches_are_full_and_the_rest_goes_on_or_is_dropped(make_trainer, rest):
    trainer = make_trainer(max_steps=3, oversampling_factor=1.5, oversampling_rest=rest)
    opened = []
    start = trainer.collector._worker.start
    trainer.collector._worker.start = lambda episodes: (opened.append(len(episodes)), start(episodes))[1]
    trainer.train()
    logs = train_logs(trainer)
    assert all(len(trainer._last_trajectories) == 8 and entry["episodes/failed"] == 0 for entry in logs)
    # 12 are under way: those that go on leave room for fewer new ones
    assert opened == ([12, 8, 8] if rest == "continue" else [12, 12, 12])
    assert trainer.collector._worker.num_left == (4 if rest == "continue" else 0)
    gaps = [entry["sampling/logprob_gap_max"] for entry in logs]
    assert gaps[0] < 1e-5
    if rest == "drop":
        assert max(gaps) < 1e-5  # all of a batch is sampled with the same weights
