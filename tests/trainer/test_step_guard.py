"""Numbers that are not finite: the step is skipped for both networks, counted and reported; too many stop the run."""

import math

import pytest
import torch

from tests.helpers.scripted import CountingEnvironment
from tests.trainer.test_turn_ppo_trainer import train_logs, weights
from turnppo_hf.ppo.credit import Credit
from turnppo_hf.trainer.rollout_batch import RolloutBatch
from turnppo_hf.trainer.step_guard import Findings, StepGuard, describe_episodes
from turnppo_hf.trajectory import NonFiniteError

LOGGER = "turnppo_hf.trainer.step_guard"
PATHS = [{}, {"num_minibatches": 2}, {"num_iterations": 2}]  # a batch used once, in parts, and twice


def break_gradient(trainer, network, number, steps):
    """Put a number into the gradient of the optimizer steps given, counted from 0."""
    clip = trainer.sharding.clip_networks

    def clip_networks(model, max_norm):
        if trainer.state.global_step in steps:
            parameters = model.networks[network].parameters()
            next(item for item in parameters if item.grad is not None).grad.view(-1)[0] = number
        return clip(model, max_norm)

    trainer.sharding.clip_networks = clip_networks


def break_samples(trainer, number, batches=(0,)):
    """Put a number into the first sampled log-prob of the rollout batches given."""
    collect = trainer.collector.collect

    def broken(rows, batch_number):
        mine, everyone = collect(rows, batch_number)
        if batch_number in batches:
            turn = mine[0].turns[0]
            object.__setattr__(turn, "sampling_logprobs", (number, *turn.sampling_logprobs[1:]))
        return mine, everyone

    trainer.collector.collect = broken


class Paying(CountingEnvironment):
    """Pays one number at every turn of some seeds."""

    reward, seeds = 0.0, ()

    def reset(self, *, seed=None, options=None):
        self.pays = seed in self.seeds
        return super().reset(seed=seed, options=options)

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, self.reward if self.pays else reward, *rest


def states(trainer):
    moments = trainer.optimizer.state_dict()["state"]
    return {
        "weights": weights(trainer.model),
        "moments": {(i, k): torch.as_tensor(v).clone() for i, item in moments.items() for k, v in item.items()},
        "schedule": trainer.lr_scheduler.last_epoch,
    }


def same(first, second):
    return all(
        first[name].keys() == second[name].keys()
        and all(torch.equal(value, second[name][key]) for key, value in first[name].items())
        for name in ("weights", "moments")
    )


def record_states(trainer):
    """Keep what the optimizer holds before each step."""
    kept, step = [], trainer.training_step

    def training_step(*args, **kwargs):
        kept.append(states(trainer))
        return step(*args, **kwargs)

    trainer.training_step = training_step
    return kept


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("network", ["actor", "critic"])
@pytest.mark.parametrize("number", [math.nan, -math.inf])
def test_gradient_that_is_not_finite_skips_the_step_of_both_networks(make_trainer, caplog, path, network, number):
    trainer = make_trainer(max_steps=4, lr_scheduler_type="linear", **path)
    break_gradient(trainer, network, number, steps=(1,))
    kept = record_states(trainer)
    trainer.train()
    assert same(kept[1], kept[2]) and kept[1]["schedule"] == kept[2]["schedule"] == 1
    assert not same(kept[0], kept[1]) and not same(kept[2], kept[3]) and kept[3]["schedule"] == 2  # the control
    assert [entry["updates/skipped"] for entry in train_logs_of_all(trainer)] == [0, 1, 0, 0]
    assert [math.isnan(entry["loss"]) for entry in train_logs_of_all(trainer)] == [False, True, False, False]
    [line] = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert f"Step 2 was skipped: the gradient norm of the {network} is" in line and "seed" in line
    assert all(value.isfinite().all() for value in weights(trainer.model).values())


def train_logs_of_all(trainer):
    return [entry for entry in trainer.state.log_history if "updates/skipped" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS[:2])
@pytest.mark.parametrize(
    ("algorithm", "number"),
    [("turn_ppo", 1e38), ("token_ppo", -3e38), ("grpo", 1e38), ("rloo", 3e38)],
)
def test_rewards_that_overflow_the_returns_skip_every_update_of_the_batch(
    make_trainer, caplog, path, algorithm, number
):
    class Huge(Paying):
        reward, seeds = number, (0,)

    trainer = make_trainer(Huge, max_steps=4, algorithm=algorithm, shuffle_dataset=False, gamma=1.0, **path)
    kept = record_states(trainer)
    trainer.train()
    updates = trainer.args.updates_per_batch
    skipped = [entry["updates/skipped"] for entry in train_logs_of_all(trainer)]
    assert skipped[:updates] == [1.0] * updates and all(same(kept[0], item) for item in kept[1:updates])
    assert all(value.isfinite().all() for value in weights(trainer.model).values())
    lines = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert len(lines) == sum(skipped) and "squared returns" in lines[0] and "Episodes: Huge seed 0" in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("path", [*PATHS, {"critic_warmup_steps": 4}, {"algorithm": "grpo", "num_generations": 4}])
@pytest.mark.parametrize("number", [-math.inf])
def test_log_prob_at_sampling_that_is_not_finite_names_its_episode(make_trainer, caplog, path, number):
    trainer = make_trainer(max_steps=4, shuffle_dataset=False, **path)
    break_samples(trainer, number)
    kept = record_states(trainer)
    trainer.train()
    updates = trainer.args.updates_per_batch
    skipped = [entry["updates/skipped"] for entry in train_logs_of_all(trainer)]
    assert skipped == [1.0] * updates + [0.0] * (4 - updates)
    assert same(kept[0], kept[updates - 1])
    line = caplog.records[0].getMessage()
    assert "log-probs at sampling are not finite. Episodes: CountingEnvironment seed 0. Weights" in line


@pytest.mark.slow
@pytest.mark.parametrize("where", ["critic", "actor"])
@pytest.mark.parametrize("path", PATHS[:2])
def test_output_of_a_network_that_is_not_finite_skips_the_step(make_trainer, caplog, where, path):
    trainer = make_trainer(max_steps=4, beta=0.1, **path)
    forward = type(trainer.model).forward

    def broken(self, mode, batch, *args, **kwargs):
        output = forward(self, mode, batch, *args, **kwargs)
        if mode != where or trainer.state.global_step != 0:
            return output
        if mode == "critic":
            return output * math.nan
        return (output[0] * math.nan, *output[1:])

    type(trainer.model).forward = broken
    try:
        kept = record_states(trainer)
        trainer.train()
    finally:
        type(trainer.model).forward = forward
    assert same(kept[0], kept[1])
    assert train_logs_of_all(trainer)[0]["updates/skipped"] == 1
    assert ("values are not finite" if where == "critic" else "log-probs are not finite") in caplog.text


def test_skipped_steps_in_a_row_stop_the_run_and_name_the_last_checkpoint(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=20, save_strategy="steps", save_steps=2)
    break_gradient(trainer, "actor", math.nan, steps=(1, 2, 3, 5, 6, 7, 8, 9, 10))
    with pytest.raises(NonFiniteError, match=r"5 optimizer steps in a row.*`max_skipped_steps`.*checkpoint-8"):
        trainer.train()
    assert trainer.state.global_step == 9  # those before the step that was made do not count


@pytest.mark.parametrize("limit", [1, 2])
def test_limit_is_the_configs(make_trainer, limit):
    trainer = make_trainer(max_steps=4, max_skipped_steps=limit)
    break_gradient(trainer, "actor", math.nan, steps=range(4))
    with pytest.raises(NonFiniteError, match="No complete checkpoint lies in"):
        trainer.train()
    assert trainer.state.global_step == limit - 1
    with pytest.raises(ValueError, match="`max_skipped_steps` must be at least 1"):
        make_trainer(max_skipped_steps=0)


def test_norms_are_judged_where_nothing_is_clipped(make_trainer):
    trainer = make_trainer(max_steps=2, max_grad_norm=0.0)
    break_gradient(trainer, "critic", math.inf, steps=(0,))
    trainer.train()
    assert [entry["updates/skipped"] for entry in train_logs_of_all(trainer)] == [1, 0]


def test_steps_that_a_gradient_scaler_leaves_out_are_not_counted():
    guard = StepGuard(1, lambda tensor: tensor, lambda: "")
    guard.watch({"policy loss": 1.0}, Findings(), ())
    assert not guard.skips(1, {})  # with a scaler no norm is given
    with pytest.raises(NonFiniteError):
        guard.skips(1, {"actor": math.inf})


@pytest.mark.slow
def test_mean_of_a_log_entry_leaves_skipped_steps_out(make_trainer):
    trainer = make_trainer(max_steps=4, logging_steps=4)
    break_gradient(trainer, "actor", math.nan, steps=(2, 3))
    trainer.train()
    alone = make_trainer(max_steps=2, logging_steps=2)
    alone.train()
    [entry], [expected] = train_logs(trainer), train_logs(alone)
    assert entry["updates/skipped"] == 2 and math.isfinite(entry["loss"]) and math.isfinite(expected["loss"])
    assert math.isfinite(entry["grad_norm/actor"])


@pytest.mark.slow
@pytest.mark.parametrize("network", ["actor", "critic"])
def test_weights_that_are_not_finite_are_neither_saved_nor_pushed(make_trainer, tmp_path, network, monkeypatch):
    trainer = make_trainer(max_steps=2, save_strategy="steps", save_steps=1)
    trainer.train()
    with torch.no_grad():
        next(trainer.model.networks[network].parameters()).view(-1)[0] = math.nan
    saved = (tmp_path / "run" / "model.safetensors").exists()
    for save in (trainer.save_model, trainer.push_to_hub, lambda: trainer._save_checkpoint(trainer.model, None)):
        trainer.hub.repo_id = "alice/run"
        trainer.state.global_step = 3
        with pytest.raises(NonFiniteError, match=r"were not saved\. .*checkpoint-2"):
            save()
    assert (tmp_path / "run" / "model.safetensors").exists() == saved
    assert not list(tmp_path.glob("run/checkpoint-3/*.safetensors"))


def test_findings_of_a_rollout_batch_survive_a_checkpoint(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=1, num_minibatches=2)
    break_samples(trainer, math.nan)
    trainer.train()
    rollout = trainer._rollout
    rollout.save(tmp_path / "batch.safetensors")
    read = RolloutBatch.load(tmp_path / "batch.safetensors", torch.device("cpu"))
    assert read.findings == rollout.findings and read.findings.found == {"log-probs at sampling": {0}}
    assert read.episodes == rollout.episodes and len(read.episodes) == 8
    assert isinstance(read.credit, Credit)


def test_findings_map_indices_and_join():
    findings = Findings()
    findings.check("values", torch.tensor([True, False, True]), torch.tensor([4, 2, 0]))
    findings.check("values", torch.tensor([True, True]))
    assert findings.found == {"values": {2}} and findings and not Findings()
    assert findings.of(torch.tensor([7, 8, 9])).found == {"values": {9}}
    assert (findings | Findings({"values": {1}, "returns": {0}})).found == {"values": {1, 2}, "returns": {0}}
    assert describe_episodes([]) == ()
