"""WebShop's files: what is read and made of them, and what is wrong with them, in sentences."""

from __future__ import annotations

import gzip
import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

import turnppo_hf.environments.webshop.files as module
from tests.helpers.shop import product
from turnppo_hf.environments.webshop.data import checksum, draw_price, index_text, make_goals
from turnppo_hf.environments.webshop.files import find_data, prepare_world, read_world

ATTRIBUTES = {
    "B000000001": {
        "attributes": ["easy assembly", "long lasting"],
        "instruction": "Find me easy assembly table lamps",
        "instruction_attributes": ["easy assembly"],
    },
    "B000000002": {"attributes": []},
}
HUMAN = {
    "B000000002": [
        {"instruction": "a tall lamp.", "instruction_attributes": ["tall"], "instruction_options": ["red"]},
        {"instruction": "any lamp", "instruction_attributes": [], "instruction_options": []},
    ]
}
NOUNS = {"B000000001": ["lamp"], "B000000002": ["lamp"], "B000000003": []}


def item(asin: str, **changes: Any) -> dict[str, Any]:
    """A product as WebShop's file holds it."""
    return {
        "asin": asin,
        "name": "Brass Lamp",
        "category": "garden",
        "query": " Table Lamps ",
        "product_category": "Home \u203a Lamps",
        "full_description": None,
        "small_description": ["easy"],
        "pricing": "$19.99",
        "customization_options": {"Color": [{"value": " Red/Blue "}, {"value": "green"}], "Size": None},
        **changes,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Official files of three products, two of which count."""
    items = [
        item("B000000001"),
        item("B000000002", pricing="$10.00$20.00", customization_options="", small_description="one"),
        item("B000000001", name="again"),
        item("nan"),
        item("B000000003X"),
    ]
    write(tmp_path, items_shuffle=items, items_ins_v2=ATTRIBUTES, items_human_ins=HUMAN, title_nouns=NOUNS)
    return tmp_path


def write(folder: Path, **files: Any) -> None:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


def test_original_files_give_the_recorded_goals_and_prices(shared_data: Path, tmp_path: Path) -> None:
    """All 6,910 goals and 1,000 prices, drawn again with the seed of the record."""
    source = shared_data / "webshop"
    for name in ("items_shuffle_1000.json", "items_ins_v2_1000.json"):
        shutil.copy(source / name, tmp_path)
    shutil.copy(source / "title_nouns_en_core_web_sm_3.8.0.json", tmp_path)
    made, frozen = read_world(tmp_path), read_world(source)
    assert made.goals == json.loads((source / "goals_synthetic_seed0.json").read_text()) == frozen.goals
    prices = json.loads((source / "product_prices_seed0.json").read_text())
    assert {asin: made.products[asin]["price"] for asin in made.products} == prices
    assert dict(made.products) == dict(frozen.products) and made.checksum == frozen.checksum
    assert read_world(tmp_path, seed=1).goals != made.goals


def test_official_records_are_read_as_webshop_reads_them(folder: Path) -> None:
    world = read_world(folder)
    assert list(world.products) == ["B000000001", "B000000002"]  # the first of a name; no "nan", none over 10 letters
    first, second = world.products.values()
    assert first["options"] == {"color": ["red | blue", "green"]}
    assert (first["query"], first["Description"], first["Price"]) == ("table lamps", "", "$19.99")
    assert (first["Attributes"], first["title_nouns"]) == (["easy assembly", "long lasting"], ["lamp"])
    assert (second["pricing"], second["Price"]) == ([10.0, 20.0], "$10.0 to $20.0")
    assert (second["BulletPoints"], second["options"]) == (["one"], {})
    assert 10 <= second["price"] <= 20 and not world.synthetic


def test_goals_are_all_combinations_with_a_cap_above_the_price(folder: Path) -> None:
    goals = read_world(folder).goals
    assert sorted(goal["goal_options"]["color"] for goal in goals) == ["green", "red | blue"]  # type: ignore[call-overload]
    for goal in goals:
        assert goal["price_upper"] in (30.0, 40.0, 50.0, 60.0) and goal["price_upper"] > 20
        assert goal["weight"] == 0.5  # one attribute that two goals use
        options = goal["goal_options"]["color"]  # type: ignore[call-overload]
        assert goal["instruction_text"] == (
            f"Find me easy assembly table lamps with color: {options}, "
            f"and price lower than {goal['price_upper']:.2f} dollars"
        )


def test_expensive_product_has_no_cap() -> None:
    lamp = product("B000000001", price=985.0)  # 990 is the only step above
    [one, _] = make_goals([lamp], {"B000000001": ATTRIBUTES["B000000001"]}, random.Random(0))  # type: ignore[list-item]
    assert one["price_upper"] == 1_000_000 and "price" not in one["instruction_text"]


def test_price_of_a_range_is_drawn_within_it() -> None:
    assert draw_price([5.0], random.Random(0)) == 5
    assert {5 <= draw_price([5.0, 6.0], random.Random(seed)) <= 6 for seed in range(50)} == {True}


def test_human_goals_are_those_that_name_attributes(folder: Path) -> None:
    [goal] = read_world(folder, goals="human").goals
    assert goal["instruction_text"].startswith("a tall lamp, and price lower than")
    assert (goal["goal_options"], goal["weight"]) == (["red"], 1)


def test_search_text_is_title_description_first_bullet_and_options() -> None:
    lamp = product("B1", options={"Color": ["red", "blue"], "size": ["s"]})
    expected = "brass table lamp a lamp. easy assembly color: red, blue, and size: s"
    assert index_text(lamp) == expected  # type: ignore[arg-type]
    bare = product("B1", options={}, BulletPoints=[], Description="")
    assert index_text(bare) == "brass table lamp   "  # type: ignore[arg-type]


def test_first_products_make_a_world_of_their_own(folder: Path, shared_data: Path) -> None:
    assert len(read_world(folder, num_products=1).products) == 1
    few = read_world(shared_data / "webshop", num_products=100)
    assert len(few.products) == 100 and {goal["asin"] for goal in few.goals} <= set(few.products)


def test_world_file_is_the_folders_world(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    target = tmp_path_factory.mktemp("out") / "deep" / "shop.world"
    seen: list[tuple[int, int | None]] = []
    meta = prepare_world(folder, target, progress=lambda done, total: seen.append((done, total)))
    direct, frozen = read_world(folder), read_world(target)
    assert meta["checksum"] == direct.checksum == frozen.checksum
    assert (meta["products"], meta["goals"], meta["synthetic"], seen[-1]) == (2, 2, False, (2, 2))
    assert dict(frozen.products) == dict(direct.products) and frozen.goals == direct.goals
    assert frozen.index.search("brass") == direct.index.search("brass") != []
    assert read_world(target.parent).checksum == meta["checksum"]  # a folder with one world file
    assert [file.name for file in target.parent.iterdir()] == ["shop.world"]


def test_failed_preparation_leaves_nothing(folder: Path) -> None:
    (folder / "title_nouns.json").write_text('{"B000000001": []}')
    with pytest.raises(ValueError, match="B000000002"):
        prepare_world(folder, folder / "shop.world")
    assert not list(folder.glob("*world*"))


def test_nouns_are_computed_where_no_file_has_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Token:
        def __init__(self, text: str) -> None:
            self.text, self.pos_ = text, "NOUN" if text == "Lamp" else "ADJ"

    class Tagger:
        def pipe(self, pairs: Any, as_tuples: bool) -> Any:
            assert as_tuples
            return (([Token(word) for word in text.split()], context) for text, context in pairs)

    spacy = type(sys)("spacy")
    spacy.load = lambda *_, **__: Tagger()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spacy", spacy)
    (folder / "title_nouns.json").unlink()
    assert [record["title_nouns"] for record in read_world(folder).products.values()] == [["lamp"], ["lamp"]]


def test_missing_nouns_without_spacy_are_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    (folder / "title_nouns.json").unlink()
    with pytest.raises(ValueError, match=r"title_nouns\*.json.*spacy download en_core_web_sm"):
        read_world(folder)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("items_shuffle.json", '[{"asin": "B1", ', "items_shuffle.json is no complete file"),
        ("items_shuffle.json", "[]", "holds no products"),
        ("items_shuffle.json", "", "no complete file"),
        ("items_shuffle.json", "[1, 2]", "entry 0 is no product"),
        ("items_shuffle.json", '[{"asin": "B000000001"}]', "product B000000001"),
        ("items_shuffle.json", json.dumps([item("B000000001", pricing="$")]), "product B000000001"),
        ("items_ins_v2.json", '{"B9": {', "items_ins_v2.json is no complete file"),
        ("items_ins_v2.json", "[]", "holds list of length 0"),
        ("items_ins_v2.json", '{"B999999999": {"attributes": []}}', "None of the 2 products"),
        ("title_nouns.json", '{"B000000002": ["lamp"]}', "Product B000000001"),
        ("product_prices.json", '{"B000000002": 3.0}', "Product B000000001"),
        ("goals_synthetic.json", '[{"asin": "B000000001"}]', "Goal 0 .* cannot be met"),
    ],
)
def test_damaged_or_foreign_file_is_told_by_name(folder: Path, file: str, content: str, words: str) -> None:
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=words):
        read_world(folder)


@pytest.mark.parametrize("change", [{"asin": "B000000009"}, {"price_upper": 0}, {"attributes": []}])
def test_frozen_goal_that_cannot_be_met_is_told(folder: Path, change: dict[str, Any]) -> None:
    goals = read_world(folder).goals
    write(folder, goals_synthetic=goals)
    assert read_world(folder).goals == goals
    write(folder, goals_synthetic=[goals[0], {**goals[1], **change}])
    with pytest.raises(ValueError, match=r"Goal 1 .* cannot be met"):
        read_world(folder)


def test_truncated_slim_catalogue_is_told(tmp_path: Path, shared_data: Path) -> None:
    packed = (shared_data / "webshop" / "catalogue_1000_slim.jsonl.gz").read_bytes()
    file = tmp_path / "catalogue_1000_slim.jsonl.gz"
    for content in (packed[:5000], b"no gzip", gzip.compress(b'{"asin": "B1"'), gzip.compress(b"")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"catalogue_1000_slim.jsonl.gz is no complete file"):
            read_world(tmp_path)


def test_oversized_line_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_LINE", 100)
    (tmp_path / "catalogue_slim.jsonl.gz").write_bytes(gzip.compress(b'{"asin": "' + b"B" * 200 + b'"}'))
    with pytest.raises(ValueError, match="more than 100 bytes"):
        read_world(tmp_path)


def test_folder_without_products_or_with_several_is_told(tmp_path: Path, folder: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="holds no products"):
        read_world(empty)
    write(folder, items_shuffle_1000=[item("B000000001")])
    with pytest.raises(ValueError, match=r"several catalogues \(items_shuffle.json, items_shuffle_1000.json\)"):
        read_world(folder)
    assert len(read_world(folder / "items_shuffle_1000.json").products) == 1
    for name in ("a", "b"):
        prepare_world(folder / "items_shuffle.json", empty / f"{name}.world")
    with pytest.raises(ValueError, match=r"several world files \(a.world, b.world\)"):
        read_world(empty)


def test_world_file_is_not_cut_or_prepared_again(folder: Path) -> None:
    prepare_world(folder, folder / "shop.world")
    with pytest.raises(ValueError, match="frozen with 2 products, but `num_products` is 1"):
        read_world(folder / "shop.world", num_products=1)
    with pytest.raises(ValueError, match="world file already"):
        prepare_world(folder / "shop.world", folder / "other.world")


def test_full_disk_is_told_before_anything_is_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(ValueError, match="GB free"):
        prepare_world(folder, folder / "shop.world")
    assert not list(folder.glob("*world*"))


def test_dataset_that_nobody_has_is_told() -> None:
    with pytest.raises(ValueError, match="'no/such-dataset' is no file or folder here"):
        find_data("no/such-dataset")


def test_checksum_depends_on_content_and_order_of_lines() -> None:
    assert checksum(["a\n", "b\n"]) == checksum(iter(["a\n", "b\n"])) != checksum(["b\n", "a\n"])
