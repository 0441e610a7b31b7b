"""The frozen world: shared between threads and processes, and noticed where it is damaged."""

from __future__ import annotations

import multiprocessing
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers.shop import make_world
from turnppo_hf.environments.webshop.rules import World
from turnppo_hf.environments.webshop.world_file import is_world_file, read_world_file, write_world


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_world(make_world().data, tmp_path / "shop.world")
    return tmp_path / "shop.world"


def change(file: Path, statement: str) -> None:
    connection = sqlite3.connect(file)
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_world_comes_back_as_it_was(file: Path) -> None:
    world, again = make_world(), World.load(file)
    assert again.label == world.label and again.data.synthetic
    assert list(again.products) == list(world.products) and dict(again.products) == dict(world.products)
    assert list(again.goals) == list(world.goals) and again.search("lamp") == world.search("lamp")
    assert again.products["B000000001"] is again.products["B000000001"]  # one object, not read twice
    assert "B9" not in again.products and len(again.products) == 3


def test_order_of_option_groups_survives(tmp_path: Path) -> None:
    """Groups stand on the page in this order, so sorting them would change observations."""
    world = make_world()
    world.products["B000000001"]["options"] = {"size": ["s"], "color": ["red"]}
    write_world(world.data, tmp_path / "shop.world")
    assert list(read_world_file(tmp_path / "shop.world").products["B000000001"]["options"]) == ["size", "color"]


def test_threads_read_the_same_products(file: Path) -> None:
    products = read_world_file(file).products
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda number: products[f"B00000000{number % 3 + 1}"]["name"], range(300)))
    assert names == ["Brass Table Lamp", "Glass Floor Lamp", "Wool Rug"] * 100


def read_in_child(products: object, asin: str, queue: object) -> None:
    queue.put(products[asin]["name"])  # type: ignore[attr-defined, index]


def test_forked_process_opens_the_file_itself(file: Path) -> None:
    products = read_world_file(file).products
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=read_in_child, args=(products, "B000000003", queue))
    child.start()
    assert queue.get(timeout=30) == "Wool Rug"
    child.join()
    assert products["B000000002"]["name"] == "Glass Floor Lamp"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE products SET record = replace(record, 'Brass', 'Steel')",
        "DELETE FROM goals",
        "UPDATE goals SET record = '{'",
        "UPDATE arrays SET data = zeroblob(length(data)) WHERE name = 'frequencies'",
        "DELETE FROM arrays WHERE name = 'postings'",
        "UPDATE meta SET value = '\"0\"' WHERE name = 'checksum'",
        "DROP TABLE goals",
    ],
)
def test_changed_content_is_noticed(file: Path, statement: str) -> None:
    change(file, statement)
    with pytest.raises(ValueError, match=r"damaged|do not belong together"):
        read_world_file(file)


@pytest.mark.parametrize("keep", [4096, 9000, -1])
def test_truncated_file_is_noticed(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"damaged: it has \d+ bytes of \d+"):
        read_world_file(file)


def test_world_that_does_not_fit_into_memory_says_what_it_needs(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goals = len(read_world_file(file).goals)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=goals * 1000))
    with pytest.raises(ValueError, match=rf"GB of memory for its {goals} goals .*--goals human"):
        read_world_file(file)


def test_another_version_is_refused(file: Path) -> None:
    change(file, "PRAGMA user_version = 99")
    with pytest.raises(ValueError, match="version 99; this program reads version 1"):
        read_world_file(file)


def test_other_files_are_no_world_files_and_not_overwritten(tmp_path: Path, file: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("keep me")
    change(tmp_path / "db.sqlite", "CREATE TABLE t (a)")
    assert [is_world_file(path) for path in (file, other, tmp_path / "db.sqlite")] == [True, False, False]
    with pytest.raises(ValueError, match="not overwritten"):
        write_world(make_world().data, other)
    assert other.read_text() == "keep me"
    write_world(make_world().data, file)  # a world file is replaced
    assert sorted(path.name for path in tmp_path.iterdir()) == ["db.sqlite", "notes.txt", "shop.world"]
