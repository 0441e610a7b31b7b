"""Launches that are taken and those that are refused; the files that describe them."""

import io
import re
import runpy
import subprocess
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DistributedType

from tests.helpers.launch import variables_of
from tests.helpers.tiny import tiny_actor_critic
from turnppo_hf.trainer import distributed, first_rank_weights
from turnppo_hf.trainer.distributed import Sharding, WholeNetworks
from turnppo_hf.trainer.zero_sharding import prevent_partitioned_loading

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "trainer_configs" / "accelerate").glob("*.yaml"))


def launch(kind, processes=1, **fields):
    state = SimpleNamespace(deepspeed_plugin=fields.pop("zero", None), fsdp_plugin=fields.pop("fsdp", None))
    defaults = {"is_fsdp2": False, "parallelism_config": None, "device": torch.device("cpu")}
    return SimpleNamespace(distributed_type=kind, num_processes=processes, state=state, **{**defaults, **fields})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (launch(DistributedType.FSDP), "The launch uses FSDP1"),
        (launch(DistributedType.MEGATRON_LM), "The launch uses MEGATRON_LM"),
        (
            launch(
                DistributedType.MULTI_GPU,
                parallelism_config=SimpleNamespace(tp_enabled=True, cp_enabled=False, sp_enabled=False),
            ),
            "The launch uses a sliced model",
        ),
    ],
)
def test_launch_that_was_never_tried_is_refused(asked, message):
    with pytest.raises(ValueError, match=message):
        Sharding(asked)


def test_processes_that_do_not_see_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    Sharding(launch(DistributedType.NO))  # of a scheduler that started one process of ours
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match="2 processes were launched, but each of them sees 1"):
        Sharding(launch(DistributedType.NO))
    Sharding(launch(DistributedType.MULTI_CPU, processes=2))


@pytest.mark.parametrize(
    ("asked", "count", "warns"),
    [
        (launch(DistributedType.NO, device=torch.device("cuda")), 2, True),
        (launch(DistributedType.NO, device=torch.device("cuda")), 1, False),
        (launch(DistributedType.NO), 2, False),
        (launch(DistributedType.MULTI_GPU, processes=2, device=torch.device("cuda")), 2, False),
    ],
)
def test_accelerators_that_nobody_uses_are_named(asked, count, warns, monkeypatch):
    warnings = []
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    monkeypatch.setattr(distributed.logger, "warning", lambda text, *numbers: warnings.append(text % numbers))
    Sharding(asked)
    assert len(warnings) == warns
    assert not warns or ("2 accelerators are visible" in warnings[0] and "--num_processes 2" in warnings[0])


def test_clipping_and_loading_of_deepspeed_give_way_to_those_of_two_networks():
    zero = SimpleNamespace(zero3_init_flag=True, zero_stage=3, deepspeed_config={"gradient_clipping": 1.0})
    sharding = Sharding(launch(DistributedType.DEEPSPEED, zero=zero))
    assert zero.deepspeed_config["gradient_clipping"] == 0.0 and not zero.zero3_init_flag
    assert sharding.is_split and sharding.in_step


@pytest.mark.parametrize(
    ("file", "kind"), [("latest", "DeepSpeed"), ("optimizer_0", "FSDP2"), ("optimizer.pt", "replicas")]
)
def test_checkpoint_of_another_kind_of_launch_is_refused(tmp_path, file, kind):
    (tmp_path / file).touch()
    here = Sharding(launch(DistributedType.NO))
    if kind == "replicas":
        here.check_checkpoint(str(tmp_path))
    else:
        with pytest.raises(ValueError, match=f"the optimizer state of {kind}, and this launch uses replicas"):
            here.check_checkpoint(str(tmp_path))


@pytest.mark.parametrize(
    ("fsdp", "recomputes", "zero_stage", "is_first", "place"),
    [
        (True, "false", None, False, "meta"),
        (True, "false", None, True, None),
        (True, "true", None, False, None),
        (False, "false", None, False, None),
        (False, "false", 3, False, "meta"),
        (False, "false", 3, True, None),
        (False, "false", 2, False, None),
    ],
)
def test_first_rank_of_a_machine_loads_for_the_others(monkeypatch, fsdp, recomputes, zero_stage, is_first, place):
    monkeypatch.setattr(first_rank_weights, "is_fsdp_enabled", lambda: fsdp)
    monkeypatch.setattr(first_rank_weights, "PartialState", lambda: SimpleNamespace(is_local_main_process=is_first))
    monkeypatch.setenv("FSDP_ACTIVATION_CHECKPOINTING", recomputes)
    zero = None if zero_stage is None else SimpleNamespace(zero_stage=zero_stage)
    assert first_rank_weights.load_on(SimpleNamespace(deepspeed_plugin=zero)) == place


def test_model_in_parts_is_refused():
    networks = tiny_actor_critic()
    prevent_partitioned_loading(networks.actor)
    next(networks.actor.parameters()).ds_id = 0
    with pytest.raises(ValueError, match="was loaded in ZeRO-3's partitions"):
        prevent_partitioned_loading(networks.actor)


def test_second_networks_hold_the_weights_of_now_and_no_memory_afterwards():
    networks = tiny_actor_critic()
    second = WholeNetworks(networks, torch.device("cpu"))
    with torch.no_grad():
        next(networks.actor.parameters()).add_(1.0)
    with second.filled("actor") as copy:
        pairs = zip(copy.actor.parameters(), networks.actor.parameters(), strict=True)
        assert all(torch.equal(mine, theirs) and mine is not theirs for mine, theirs in pairs)
        ids = torch.tensor([[1, 2, 3]])
        assert torch.equal(copy.actor(ids).logits, networks.actor(ids).logits)
        assert sum(parameter.numel() for parameter in copy.critic.parameters()) == 0
    assert sum(parameter.numel() for parameter in copy.parameters()) == 0


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_file_is_one_that_accelerate_takes(file):
    assert file.read_text().startswith("# ")
    written, read = yaml.safe_load(file.read_text()), load_config_from_file(str(file))
    assert read.distributed_type == written["distributed_type"]
    assert read.num_processes == written["num_processes"]
    variables = variables_of(file.stem)
    assert variables["ACCELERATE_MIXED_PRECISION"] == written["mixed_precision"]
    if written["distributed_type"] == "FSDP":
        assert variables["FSDP_VERSION"] == "2" and variables["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"
    if written["distributed_type"] == "DEEPSPEED":
        assert variables["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == file.stem[-1]
        assert variables["ACCELERATE_DEEPSPEED_ZERO3_INIT"] == "false"


def test_job_of_the_hub_says_what_it_needs_and_trains(monkeypatch, tmp_path):
    script = ROOT / "trainer_configs" / "hf_jobs.py"
    [header] = re.findall(r"^# /// script\n(.*?)^# ///$", script.read_text(), re.DOTALL | re.MULTILINE)
    needs = tomllib.loads(header.replace("# ", ""))
    assert needs == {"requires-python": ">=3.11", "dependencies": ["turnppo-hf"]}
    called = []
    monkeypatch.setattr("turnppo_hf.cli.main.main", lambda arguments: called.append(arguments) or 0)
    monkeypatch.setattr("urllib.request.urlopen", lambda _: io.BytesIO(b"model: tiny"))
    monkeypatch.setattr("sys.argv", ["hf_jobs.py", "https://example.org/run.yaml", "--seed", "1"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(script), run_name="__main__")
    assert called == [["train", "config.yaml", "--seed", "1"]]
    assert (tmp_path / "config.yaml").read_text() == "model: tiny"


def test_slurm_script_is_one_that_bash_reads_and_names_files_that_exist():
    script = ROOT / "trainer_configs" / "accelerate" / "slurm.sh"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    assert "trainer_configs/accelerate/multi_node.yaml" in script.read_text()
