"""A panel is the same wherever and however it is made, and a part that was changed is refused by name."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard

from tests.fake_hub.fixture import Hub
from turnppo_hf.cli.main import main
from turnppo_hf.evaluation.panels import build, catalog
from turnppo_hf.hub.exceptions import ReleaseError
from turnppo_hf.hub.panel import folder as panel_folder
from turnppo_hf.hub.panel.folder import find_panel, push_panel, read_panel, write_panel

NUM_TASKS = 24
SHUFFLED = """
import random, sys
import numpy as np
from dataclasses import replace
from turnppo_hf.evaluation.panels import catalog
from turnppo_hf.hub.panel.folder import write_panel

name, folder, workers, num_tasks, data = sys.argv[1:]
random.seed(99), np.random.seed(99)
catalog.PANELS[name] = replace(catalog.PANELS[name], num_tasks=int(num_tasks))
shuffled = lambda numbers: random.Random(5).sample(numbers, len(numbers))
if __name__ == "__main__":
    write_panel(name, folder, data=data or None, workers=int(workers), order=shuffled)
"""


@pytest.fixture(autouse=True)
def _few_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, spec in list(catalog.PANELS.items()):
        monkeypatch.setitem(catalog.PANELS, name, replace(spec, num_tasks=NUM_TASKS))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A panel of Sokoban."""
    folder = tmp_path_factory.mktemp("panels") / "sokoban"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(catalog.PANELS, "sokoban_one_move", replace(catalog.PANELS["sokoban_one_move"], num_tasks=24))
        write_panel("sokoban_one_move", folder)
    return folder


@pytest.fixture
def panel(made: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    for file in made.rglob("*.*"):
        copy = tmp_path / "panel" / file.relative_to(made)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    return tmp_path / "panel"


def files_of(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*.*")
    }


def make_in_another_process(name: str, folder: Path, *, workers: int, data: str = "") -> None:
    """Make a panel under another hash seed, from shuffled tasks, with other random states, in worker processes."""
    script = folder.parent / "make.py"
    script.write_text(SHUFFLED)
    variables = {**os.environ, "PYTHONHASHSEED": str(random.randrange(1, 1000))}
    words = [sys.executable, str(script), name, str(folder), str(workers), str(NUM_TASKS), data]
    subprocess.run(words, env=variables, check=True, timeout=280)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "workers"),
    [
        ("sokoban_6x6", 8),
        ("sokoban_8x8", 1),
        ("webshop_generated", 8),
        ("minigrid_doorkey_8x8", 2),
        ("minigrid_go_to_local", 2),
        ("webshop_1000", 2),
    ],
)
def test_panel_is_the_same_in_any_process_order_and_number_of_workers(
    name: str, workers: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    data = str(request.getfixturevalue("shared_data") / "webshop") if name == "webshop_1000" else ""
    if name.startswith("minigrid"):
        pytest.importorskip("minigrid", reason='needs MiniGrid: pip install "turnppo-hf[minigrid]"')
    random.seed(1), np.random.seed(1)
    here = write_panel(name, tmp_path / "here", data=data or None)
    make_in_another_process(name, tmp_path / "there", workers=workers, data=data)
    there = read_panel(tmp_path / "there")
    assert there.tasks == here.tasks and len(here.tasks) == NUM_TASKS
    assert there.players == here.players and len(here.players) == 2
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")


def test_a_global_random_generator_in_a_reference_player_would_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control: were the random player seeded once for all tasks, their order would show."""
    one_for_all = np.random.default_rng(0)
    monkeypatch.setattr(build.np.random, "default_rng", lambda _: one_for_all)
    panels = [
        write_panel("sokoban_6x6", tmp_path / str(number), order=order)
        for number, order in enumerate((list, lambda numbers: numbers[::-1]))
    ]
    assert panels[0].manifest.protocol_checksum == panels[1].manifest.protocol_checksum
    assert panels[0].players["random"] != panels[1].players["random"]
    assert panels[0].players["optimal"] == panels[1].players["optimal"]


def test_panel_is_read_back_and_by_datasets(panel: Path, tmp_path: Path) -> None:
    read = read_panel(panel)
    rows = load_dataset(str(panel), split="test", cache_dir=str(tmp_path / "cache"))
    assert rows["task_id"] == [task.task_id for task in read.tasks]
    assert len(set(rows["state"])) == NUM_TASKS and "@" in json.loads(rows[0]["options"])["level"]
    assert rows[3]["optimal"]["total_reward"] == read.tasks[3].players["optimal"].total_reward
    assert read.manifest.environment_kwargs["max_actions_per_turn"] == 1
    assert read.manifest.environment_kwargs["max_actions"] == 10  # a default, written out
    card = DatasetCard.load(panel / "README.md")
    assert read.manifest.protocol_checksum in card.text and "optimal" in card.text
    build.check_prompts(read.environment(), read.tasks)


def test_goal_and_prices_are_frozen_in_the_row_and_the_shop(tmp_path: Path) -> None:
    panel = write_panel("webshop_generated", tmp_path / "shop")
    task = panel.tasks[0]
    world = panel.environment()().unwrapped.world
    goal = task.options["goal"]
    assert world.data.checksum == panel.manifest.world
    assert task.facts == {"price": world.products[goal["asin"]]["price"], "price_cap": goal["price_upper"]}
    assert goal["instruction_text"].split(", and price")[0][:30] in task.prompt
    moved = [replace(item, facts={**item.facts, "price_cap": 1.0}) for item in panel.tasks]
    checksum = panel_folder.protocol_checksum(panel.manifest, moved)
    assert checksum != panel.manifest.protocol_checksum


@pytest.mark.parametrize("name", ["data/test.parquet", "webshop.world"])
@pytest.mark.parametrize("change", ["missing", "longer", "one_bit"])
def test_changed_or_missing_file_is_named_with_both_checksums(name: str, change: str, tmp_path: Path) -> None:
    folder = tmp_path / "shop"
    write_panel("webshop_generated", folder)
    file, frozen = folder / name, json.loads((folder / "panel.json").read_text())["files"][name]
    content = file.read_bytes()
    changed = {"longer": content + b"x", "one_bit": content[:-1] + bytes([content[-1] ^ 1])}.get(change)
    file.unlink() if changed is None else file.write_bytes(changed)
    found = "none" if changed is None else hashlib.sha256(changed).hexdigest()
    with pytest.raises(ValueError) as refused:
        read_panel(folder)
    message = str(refused.value)
    assert message.startswith(name) and found in message and frozen in message
    assert ("is missing" if changed is None else "was changed") in message


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("max_turn_length", 4096, "protocol checksum"),
        ("temperature", 1.0, "protocol checksum"),
        ("num_tasks", 3, "protocol checksum"),
        ("protocol_checksum", "0" * 64, "protocol checksum"),
        ("environment", "os:system", "an environment of this package"),
        ("environment_kwargs", {"data": "/etc"}, "environment_kwargs.data"),
        ("environment_kwargs", {"levels": "/etc"}, "environment_kwargs.levels"),
        ("environment_kwargs", {"folder": "/etc"}, "environment_kwargs.folder"),
        ("name", "../../elsewhere", "`name`"),
        ("name", "/elsewhere", "`name`"),
        ("name", "", "`name`"),
        ("files", {"../../etc/passwd": "0"}, "files"),
        ("num_tasks", "many", "an integer"),
        ("schema_version", 2, "schema_version"),
    ],
)
def test_changed_manifest_is_refused(panel: Path, field: str, value: Any, words: str) -> None:
    manifest = json.loads((panel / "panel.json").read_text())
    (panel / "panel.json").write_text(json.dumps({**manifest, field: value}))
    with pytest.raises(ValueError, match=r"panel\.json") as refused:
        read_panel(panel)
    assert words in str(refused.value)


def test_panel_is_read_from_its_file_and_from_no_cache(
    panel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "kind=panel"
    for count in (20, 21):
        spec = replace(catalog.PANELS["sokoban_5x5_bare"], num_tasks=count)
        monkeypatch.setitem(catalog.PANELS, "sokoban_5x5_bare", spec)
        made = write_panel("sokoban_5x5_bare", place)
        os.utime(place / "data" / "test.parquet", (1e9, 1e9))
        assert read_panel(place).tasks == made.tasks
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "file" / "below")
    assert len(read_panel(panel).tasks) == NUM_TASKS


@pytest.mark.parametrize("content", [b"", b"PAR1 nonsense PAR1", b"PAR1"])
def test_table_that_is_none_is_named(panel: Path, content: bytes) -> None:
    (panel / "data" / "test.parquet").write_bytes(content)
    manifest = json.loads((panel / "panel.json").read_text())
    manifest["files"] = {"data/test.parquet": hashlib.sha256(content).hexdigest()}
    (panel / "panel.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"test\.parquet holds no tasks"):
        read_panel(panel)


@pytest.mark.parametrize("content", ["", "[]", "{}", "nonsense", "[" * 100_000])
def test_manifest_that_is_none_is_refused(panel: Path, content: str) -> None:
    (panel / "panel.json").write_text(content)
    with pytest.raises(ValueError, match="damaged, or of a newer version"):
        read_panel(panel)
    (panel / "panel.json").unlink()
    with pytest.raises(ValueError, match=r"holds no panel\.json"):
        read_panel(panel)


def test_environment_that_opens_otherwise_is_refused(panel: Path) -> None:
    read = read_panel(panel)
    with pytest.raises(ValueError, match=f"{read.tasks[0].task_id} opens with another level or prompt"):
        build.check_prompts(lambda: read.environment()(max_turns=9), read.tasks)


def test_mistakes_of_the_command_are_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "new")
    for words, message in (
        (["sokoban_6x5"], "Did you mean 'sokoban_6x6'"),
        (["webshop_1000", "--data", str(tmp_path)], "holds no products"),
        (["sokoban_6x6", "--data", folder], "would have no effect"),
        (["sokoban_6x6", "--workers", "0"], "at least 1"),
    ):
        assert main(["panel", *words, "--output", folder]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert main(["panel", "sokoban_6x6", "--output", str(tmp_path / "mine")]) == 2
    assert "already holds 'notes.txt'" in capsys.readouterr().err
    assert main(["panel", "--list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in catalog.PANELS)


def test_webshop_1000_without_data_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="none are named"):
        write_panel("webshop_1000", tmp_path / "new")
    shop = write_panel("webshop_generated", tmp_path / "shop")
    with pytest.raises(ValueError, match="500 products, and the panel is that of WebShop's 1000"):
        write_panel("webshop_1000", tmp_path / "new", data=shop.folder)


def test_command_writes_prints_and_replaces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "panel"
    assert main(["panel", "sokoban_5x5_bare", "--output", str(folder)]) == 0
    first = files_of(folder)
    assert read_panel(folder).manifest.protocol_checksum in capsys.readouterr().out
    assert main(["panel", "sokoban_5x5_bare", "--output", str(folder)]) == 0
    assert files_of(folder) == first and set(first) == {"README.md", "panel.json", "data/test.parquet"}


@pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)
def test_pushed_panel_is_read_back_equal(hub: Hub, panel: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("notes.txt", "answers [draft].txt", "data/more.parquet"):  # one of them looks like a pattern
        (panel / name).write_text("mine")
    assert main(["push", str(panel), "frozen", "--private"]) == 0
    assert hub.repos["dataset", "alice/frozen"].private and "alice/frozen" in capsys.readouterr().out
    pushed = set(hub.files("alice/frozen", repo_type="dataset"))
    assert pushed - {".gitattributes"} == {"README.md", "panel.json", "data/test.parquet"}
    assert read_panel(find_panel("alice/frozen")).tasks == read_panel(panel).tasks
    assert main(["push", str(panel), "frozen", "--episodes", "x"]) == 2
    with pytest.raises(ReleaseError, match="no panel of that name"):
        find_panel("alice/nothing")
    (panel / "data" / "test.parquet").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"data/test.parquet .* was changed"):
        push_panel(panel, "frozen", message="again")


def test_panel_that_cannot_be_made_leaves_the_earlier_one(panel: Path, tmp_path: Path) -> None:
    before = files_of(panel)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="holds no products"):
        write_panel("webshop_1000", panel, data=empty)
    assert files_of(panel) == before
    assert [path for path in panel.parent.iterdir() if path.name.startswith(".")] == []


def test_panel_behind_a_link_is_replaced_whole(panel: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(panel, target_is_directory=True)
    write_panel("sokoban_5x5_bare", link)
    assert read_panel(panel).manifest.name == "sokoban_5x5_bare" and link.is_symlink()
