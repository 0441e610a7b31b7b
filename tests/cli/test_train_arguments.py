"""What YAML and flags mean: numbers inside of mappings, keys set twice, JSON with a mistake."""

from __future__ import annotations

import shlex
import warnings
from pathlib import Path

import pytest

from turnppo_hf.cli.train_arguments import RunConfigError, TaskArguments, parse_run, read_yaml

RUN = "model: tiny\nenvironment: sokoban\noutput_dir: runs/x\nuse_cpu: true\nmax_steps: 1\n"


def written(tmp_path: Path, text: str) -> str:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    return str(file)


def test_number_with_an_exponent_is_one_at_any_depth(tmp_path: Path) -> None:
    text = "lr: 1e-7\nkwargs: {eta: 1e-7, deep: [1E5, 2.5e3, -.5e-2]}\nname: '1e-7'\nsha: 12e4567\nword: e5\n"
    found = read_yaml(written(tmp_path, text))
    assert found == {
        "lr": 1e-7, "kwargs": {"eta": 1e-7, "deep": [1e5, 2500.0, -0.005]}, "name": "1e-7", "sha": "12e4567",
        "word": "e5",
    }  # fmt: skip
    run = parse_run([written(tmp_path, f"{RUN}learning_rate: 1e-6\nlr_scheduler_kwargs: {{eta_min: 1e-7}}\n")])
    assert run.training.learning_rate == 1e-6 and run.training.lr_scheduler_kwargs == {"eta_min": 1e-7}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f"{RUN}max_steps: 2\n", r"sets `max_steps` twice, in lines 5 and 6, .*Keep one"),
        (f"{RUN}environment_kwargs:\n  size: 5\n  size: 6\n", r"sets `size` twice, in lines 7 and 8"),
    ],
)
def test_key_that_is_set_twice_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(RunConfigError, match=sentence):
        parse_run([written(tmp_path, text)])
    merged = read_yaml(written(tmp_path, "base: &base {size: 5}\nother: {<<: *base, size: 6}\n"))
    assert merged["other"] == {"size": 6}, "a merge may be overridden"


@pytest.mark.parametrize(
    "name", ["model_init_kwargs", "lr_scheduler_kwargs", "chat_template_kwargs", "environment_kwargs"]
)
def test_flag_of_json_with_a_mistake_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"`{name}` is no JSON: .*Write for example --{name}"):
        parse_run([written(tmp_path, RUN), f"--{name}", '{"a": }'])


def test_data_file_that_is_missing_is_named_as_a_file() -> None:
    from turnppo_hf.cli.train import choose_tasks

    task = TaskArguments("tiny", "turnppo_hf/Sokoban-v0", dataset="levels.jsonl")
    with pytest.raises(
        RunConfigError, match=r"'levels\.jsonl' looks like a file, and there is none here.*Name a file"
    ):
        choose_tasks(task)


@pytest.mark.parametrize(
    ("environment", "kwargs", "held_out", "warns"),
    [
        ("sokoban", {}, {}, True),
        ("sokoban", {}, {"split": "test"}, True),
        ("turnppo_hf/TextWorld-v0", {"split": "train"}, {}, True),
        ("sokoban", {"split": "train"}, {"split": "test"}, False),
        ("minigrid", {"split": None}, {}, False),
        ("minigrid", {"split": "train", "split_by": "layout"}, {"split": "test"}, False),
        ("minigrid", {"split": "train", "split_by": "start"}, {"split": "test"}, False),
        ("minigrid", {"split": "train", "split_by": "layout"}, {"split": "test", "split_by": "start"}, True),
        ("minigrid", {"split": "train"}, {"split": "test", "split_by": "start"}, False),
        ("webshop", {"split": "train"}, {"split": "test", "split_by": "product"}, True),
        ("webshop", {"split": "train", "num_products": 100}, {"split": "test", "num_products": 120}, True),
        ("textarena/TowerOfHanoi-v0", {}, {}, False),
    ],
)
def test_held_out_levels_that_may_be_those_of_training_are_warned_of(environment, kwargs, held_out, warns) -> None:
    from turnppo_hf.cli.train import choose_tasks

    task = TaskArguments("tiny", environment, environment_kwargs=kwargs, eval_environment_kwargs=held_out)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        choose_tasks(task)
    assert ["held-out episodes may be levels" in str(item.message) for item in caught] == [True] * warns


@pytest.mark.parametrize("values", [{"num_tasks": 10**12}, {"eval_episodes": 0}, {"eval_seed_start": -1}])
def test_number_of_tasks_that_cannot_be_made_is_refused(values: dict[str, int]) -> None:
    [name] = values
    with pytest.raises(RunConfigError, match=f"`{name}` must be between .*, got .*Set `{name}`"):
        TaskArguments("tiny", "turnppo_hf/Sokoban-v0", **values)


def test_command_that_the_terminal_reads_keeps_places_and_masks_secrets() -> None:
    flags = [
        "--output_dir",
        "runs/mine",
        "--hub_token=mine-alone",
        "--trackio_space_id",
        "me/space",
        "--token_lam",
        "1",
    ]
    run = parse_run(["sokoban_cpu", *flags])
    assert run.command == "turnppo train sokoban_cpu --token_lam 1"
    assert shlex.split(run.typed) == [
        *("turnppo", "train", "sokoban_cpu", "--output_dir", "runs/mine", "--hub_token=<redacted>"),
        *("--trackio_space_id", "me/space", "--token_lam", "1"),
    ]
    spaced = parse_run(["sokoban_cpu", "--hub_token", "mine-alone"])
    assert shlex.split(spaced.typed)[-2:] == ["--hub_token", "<redacted>"]
