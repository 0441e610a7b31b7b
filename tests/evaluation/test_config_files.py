"""A config is found by its path, else by the name of one in the package; of other words the nearest is named."""

from pathlib import Path

import pytest

from turnppo_hf.cli.main import main
from turnppo_hf.cli.train_arguments import parse_run
from turnppo_hf.distribution import config_folder
from turnppo_hf.evaluation.config_files import find_config, near_config, packaged_configs


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("folder", ["", "imitate", "studies", "accelerate"])
def test_every_packaged_config_is_found_by_name_and_by_its_path_from_anywhere(folder: str) -> None:
    known = packaged_configs(folder)
    assert sorted(known.values()) == sorted((config_folder() / folder).glob("*.yaml")) and known
    for name, file in known.items():
        inside = f"{folder}/{name}".lstrip("/")
        for written in (name, f"{name}.yaml", inside, f"trainer_configs/{inside}.yaml", f"trainer_configs/{inside}"):
            assert find_config(written, folder) == file, written


def test_file_at_the_path_comes_before_a_packaged_one() -> None:
    for name in ("sokoban_cpu", "sokoban_cpu.yaml", "mine.yml"):
        Path(name).write_text("model: tiny")
        assert find_config(name) == Path(name)
    Path("webshop_cpu").mkdir()  # a folder is no config
    assert find_config("webshop_cpu") == config_folder() / "webshop_cpu.yaml"


@pytest.mark.parametrize(
    "written", ["./sokoban_cpu.yaml", "../sokoban_cpu", "/none/sokoban_cpu.yaml", "other/sokoban_cpu"]
)
def test_path_to_another_place_is_not_taken_for_a_name(written: str) -> None:
    assert find_config(written) == Path(written)


def test_run_by_name_records_the_name_and_reads_the_file() -> None:
    run = parse_run(["sokoban_cpu", "--seed", "3"])
    assert run.path == "sokoban_cpu" and run.command == "turnppo train sokoban_cpu --seed 3"
    assert run.settings["max_steps"] == 160 and run.training.seed == 3
    assert parse_run(["--config", "sokoban_cpu"]).settings["max_steps"] == 160


@pytest.mark.parametrize(
    ("written", "folder", "near"),
    [
        ("sokobn_cpu", "", "'sokoban_cpu'"),
        ("Sokoban_CPU.yaml", "", "'sokoban_cpu'"),
        ("trainer_configs/webshop_cp.yaml", "", "'webshop_cpu'"),
        ("minigird", "imitate", "'minigrid'"),
        ("studies/dorkey.yaml", "studies", "'doorkey'"),
    ],
)
def test_unknown_name_gets_the_nearest_and_the_list(written: str, folder: str, near: str) -> None:
    found = near_config(written, folder)
    assert f"Did you mean {near}?" in found and all(name in found for name in packaged_configs(folder))
    assert "Did you mean" not in near_config("quite another thing", folder)


def test_nearest_file_beside_a_path_comes_first() -> None:
    Path("my_run.yaml").write_text("model: tiny")
    assert near_config("my_rnu.yaml") == " Did you mean 'my_run.yaml'?"


@pytest.mark.parametrize("command", ["train", "imitate", "study"])
def test_command_with_an_unknown_name_ends_with_one_sentence(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    near = {"train": "sokoban_cpu", "imitate": "minigrid", "study": "doorkey"}[command]
    assert main([command, f"{near}x"]) == 2
    assert f"Did you mean {near!r}?" in capsys.readouterr().err
