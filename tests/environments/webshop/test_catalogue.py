"""The generated shop: what it holds, that it is the same everywhere, and that shopping in it is a task."""

from __future__ import annotations

import itertools
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnppo_hf.environments.webshop.catalogue import generate_world, words
from turnppo_hf.environments.webshop.data import Goal, Product, WorldData, index_text
from turnppo_hf.environments.webshop.environment import WebShop
from turnppo_hf.environments.webshop.rules import World, is_similar
from turnppo_hf.environments.webshop.search import tokenize
from turnppo_hf.environments.webshop.shopper import search_words, wanted_options

SINGLE = re.compile(r"\$\d+\.\d{1,2}")
RANGE = re.compile(r"\$\d+\.\d{1,2} to \$\d+\.\d{1,2}")


@pytest.fixture(scope="module")
def world() -> World:
    return World(generate_world())


def is_bare(product: Product) -> bool:
    return not product["BulletPoints"]


def texts(data: WorldData) -> Iterable[str]:
    """Everything that a page or a wish of the shop can show, ASINs aside."""
    for product in data.products.values():
        yield from (product["name"], product["category"], product["query"], product["product_category"])
        yield from (product["Description"], product["Price"], *product["BulletPoints"], *product["Attributes"])
        yield from product["title_nouns"]
        yield from itertools.chain(product["options"], *product["options"].values())
    for goal in data.goals:
        yield goal["instruction_text"]


def one_goal_per_product(world: World) -> list[Goal]:
    rng = random.Random(0)
    return [world.goals[rng.choice(numbers)] for numbers in world.goals_by_product()]


def test_equal_arguments_give_equal_shops_and_leave_global_randomness_alone() -> None:
    random.seed(0)
    before = random.getstate()
    one, other = generate_world(60, seed=7), generate_world(60, seed=7)
    assert list(one.products.values()) == list(other.products.values()) and one.goals == other.goals
    assert one.checksum == other.checksum != generate_world(60, seed=8).checksum
    assert random.getstate() == before


def test_shop_does_not_depend_on_the_hash_seed() -> None:
    code = "from turnppo_hf.environments.webshop.catalogue import *; print(generate_world(60, 7).checksum, words())"
    shops = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert shops == {f"{generate_world(60, 7).checksum} {words()}"}


def test_default_shop_says_that_it_is_synthetic(world: World) -> None:
    assert world.data.synthetic and world.data.name == "synthetic-500 (seed 0)"
    assert generate_world(20, seed=3).name == "synthetic-20 (seed 3)"


@settings(deadline=None, max_examples=15)
@given(num_products=st.integers(20, 150), seed=st.integers(0, 2**64))
def test_every_field_of_a_product_has_its_shape(num_products: int, seed: int) -> None:
    data = generate_world(num_products, seed)
    products = list(data.products.values())
    assert len(products) == num_products == len({product["name"] for product in products})
    assert [product["asin"] for product in products] == list(data.products) == data.index.asins
    for product in products:
        assert product.keys() == Product.__required_keys__
        assert re.fullmatch(r"B0\d{8}", product["asin"])
        assert 5 <= len(product["name"].split()) <= 9 and product["name"] == product["name"].title()
        assert len(product["query"].split()) in (2, 3) and product["query"] == product["query"].lower()
        assert len(product["product_category"].split(" \u203a ")) >= 3
        assert is_bare(product) == (not product["Attributes"])
        if not is_bare(product):
            assert 2 <= len(set(product["Attributes"])) == len(product["Attributes"]) <= 5
        assert len(product["options"]) <= 2
        for group, values in product["options"].items():
            assert group == group.lower() and 2 <= len(values) <= 30 and len(set(values)) == len(values)
            assert values == [value.lower() for value in values]
        clickable = [value for values in product["options"].values() for value in values]
        assert len(set(clickable)) == len(clickable)
        assert min(product["pricing"]) <= product["price"] <= max(product["pricing"])
        assert (SINGLE if len(product["pricing"]) == 1 else RANGE).fullmatch(product["Price"])
        assert product["Price"] == " to ".join(f"${price}" for price in product["pricing"])


def test_large_catalogue_repeats_no_title_and_shows_whole_cents() -> None:
    """Large enough that equal titles are drawn, and that sums such as 61.99 + 9 would show."""
    products = generate_world(6000, seed=0).products.values()
    assert len({product["name"] for product in products}) == 6000
    assert all(price == round(price, 2) for product in products for price in product["pricing"])


def test_product_numbers_are_random(world: World) -> None:
    """Neither the kind nor the place in the catalogue can be read from a number."""
    numbers = [int(asin[2:]) for asin in world.products]
    assert abs(np.corrcoef(numbers, range(len(numbers)))[0, 1]) < 0.15
    by_number = [world.products[asin]["query"] for asin in sorted(world.products)]
    assert np.mean([one == other for one, other in itertools.pairwise(by_number)]) < 0.08  # 1 in 40 by chance


def test_catalogue_has_the_kinds_and_the_rarities_of_a_real_one(world: World) -> None:
    products = list(world.products.values())
    assert len({product["category"] for product in products}) == 5
    kinds = Counter(product["query"] for product in products)
    assert len(kinds) == 40 and set(kinds.values()) == {12, 13}
    sizes = Counter(len(values) for product in products for values in product["options"].values())
    assert sizes[30] == 2 and max(size for size in sizes if size < 30) == 12
    assert sum(sizes[size] for size in (2, 3, 4, 5)) > 0.9 * sizes.total()
    assert sum(map(is_bare, products)) == 1
    assert 0.1 < np.mean([product["Description"] == "" for product in products]) < 0.25
    assert 0.02 < np.mean([len(product["pricing"]) == 2 for product in products]) < 0.15
    assert 0.01 < np.mean([product["pricing"] == [100.0] for product in products]) < 0.08
    colors = [color for product in products for color in product["options"].get("color", [])]
    assert any(re.fullmatch(r"[a-z]+ \| [a-z]+", color) for color in colors)


def test_colors_with_a_number_are_rare_but_occur() -> None:
    products = list(generate_world(1500, seed=2).products.values())
    colors = [color for product in products for color in product["options"].get("color", [])]
    numbered = [color for color in colors if re.fullmatch(r"[a-z]+\d{3}", color)]
    assert 1 <= len(numbered) < 0.02 * len(colors)


@pytest.mark.parametrize(("num_products", "seed"), [(500, 0), (20, 1), (1500, 2)])
def test_vocabulary_is_closed(num_products: int, seed: int) -> None:
    found: set[str] = set()
    for text in texts(generate_world(num_products, seed)):
        assert re.fullmatch(r"[A-Za-z0-9 .,:$&|\u203a]*", text), text
        found.update(re.findall("[a-z]+", text.lower()))
    assert found <= set(words())


def test_vocabulary_is_small_sorted_and_in_use(world: World) -> None:
    assert 300 <= len(words()) <= 450 and list(words()) == sorted(set(words()))
    used = {word for text in texts(world.data) for word in re.findall("[a-z]+", text.lower())}
    assert set(words()) == used


def test_attributes_stand_in_the_bullets_and_nowhere_else(world: World) -> None:
    every = {attribute for product in world.products.values() for attribute in product["Attributes"]}
    for product in world.products.values():
        if is_bare(product):
            continue
        bullets = " ".join(product["BulletPoints"]).lower()
        shown = f"{product['name']} {product['Description']} {bullets}".lower()
        for attribute in every:
            claimed = attribute in product["Attributes"]
            assert (attribute in bullets) == (attribute in shown) == claimed, (attribute, product)


def test_reward_tells_attributes_and_option_values_apart(world: World) -> None:
    assert is_similar("12 ounce", "16 ounce")  # the trap
    attributes = {attribute for product in world.products.values() for attribute in product["Attributes"]}
    groups: dict[tuple[str, str], set[str]] = {}
    for product in world.products.values():
        for group, values in product["options"].items():
            plain = {value for value in values if not re.search(r"\||[a-z]\d", value)}
            groups.setdefault((group, product["query"]), set()).update(plain)
    for distinct in [attributes, *groups.values()]:
        for one, other in itertools.combinations(sorted(distinct), 2):
            assert not is_similar(one, other), (one, other)
    for (group, _), distinct in groups.items():
        for one, other in itertools.permutations(sorted(distinct), 2):
            assert not is_similar(one, (group, other)), (one, other)  # as WebShop compares them


def test_title_nouns_are_words_of_the_title_in_order(world: World) -> None:
    for product in world.products.values():
        title = product["name"].lower().split()
        rest = iter(title)
        assert all(noun in rest for noun in product["title_nouns"])
        assert {title[0], title[-1]} <= set(product["title_nouns"])  # the brand, and what it is
    nouns = {noun for product in world.products.values() for noun in product["title_nouns"]}
    assert {"lamp", "tree", "cotton"} <= nouns and not {"sensitive", "running", "free", "long"} & nouns


def test_titles_have_the_search_terms_of_the_query_though_in_the_singular(world: World) -> None:
    assert not set(tokenize("wall shelves")) <= set(tokenize("Wall Shelf"))  # a kind that would not do
    for product in world.products.values():
        assert set(tokenize(product["query"])) <= set(tokenize(product["name"]))


def test_search_for_a_kind_finds_it_first_and_others_that_share_words(world: World) -> None:
    strangers = set()
    for query in {product["query"] for product in world.products.values()}:
        found = [world.products[asin]["query"] for asin in world.search(query)]
        assert set(found[:5]) == {query}
        strangers |= set(found[:20]) - {query}
    assert len(strangers) > 10


def test_index_holds_the_products(world: World) -> None:
    asin, product = next(iter(world.products.items()))
    assert world.search(index_text(product), k=1) == [asin]


def test_categories_share_attributes(world: World) -> None:
    found = world.search("eco friendly")
    assert len({world.products[asin]["category"] for asin in found}) >= 3


def test_many_products_differ_from_another_in_one_respect(world: World) -> None:
    def respects(product: Product) -> tuple[Any, ...]:
        return sorted(product["Attributes"]), product["options"], product["pricing"]

    near = 0
    for product in world.products.values():
        rivals = [other for other in world.products.values() if other["query"] == product["query"]]
        shared = [
            sum(one == same for one, same in zip(respects(product), respects(rival), strict=True))
            for rival in rivals
            if rival is not product
        ]
        near += 2 in shared
    assert near > 0.4 * len(world.products)


@pytest.mark.parametrize(("num_products", "seed"), [(500, 0), (40, 5)])
def test_goals_ask_for_products_as_they_are(num_products: int, seed: int) -> None:
    data = generate_world(num_products, seed)
    for goal in data.goals:
        product, wish = data.products[goal["asin"]], goal["instruction_text"]
        assert all(goal[field] == product[field] for field in ("category", "query", "name", "product_category"))  # type: ignore[literal-required]
        assert 1 <= len(goal["attributes"]) <= 3 and set(goal["attributes"]) <= set(product["Attributes"])
        assert product["price"] < goal["price_upper"] <= product["price"] + 40
        assert wish.startswith("Find me ") and wish.endswith(
            f", and price lower than {goal['price_upper']:.2f} dollars"
        )
        assert product["query"] in wish and all(attribute in wish for attribute in goal["attributes"])
        assert isinstance(goal["goal_options"], dict) and goal["goal_options"].keys() == product["options"].keys()
        for group, value in goal["goal_options"].items():
            assert value in product["options"][group] and f"{group}: {value}" in wish


def test_goals_are_mildly_skewed_and_enough_for_every_split(world: World) -> None:
    counts = Counter(goal["asin"] for goal in world.goals)
    assert 0.85 < len(counts) / len(world.products) < 0.95
    assert max(counts.values()) >= 30 and max(counts.values()) < 0.03 * len(world.goals)
    assert len(world.goals_by_product("test", "product")) >= 25
    assert len(world.goals_by_product("train", "index")) > 100


def test_wishes_are_worded_in_several_ways(world: World) -> None:
    wishes = [goal["instruction_text"] for goal in world.goals]
    front, tea, skin = (
        r"Find me [a-z ]+ free(, [a-z ]+)* face masks ",
        r"Find me .* with tea tree",
        r"for sensitive skin",
    )
    for pattern in (front, tea, skin, r"Find me face masks (with|for)"):
        assert any(re.search(pattern, wish) for wish in wishes), pattern


def test_the_asked_for_product_earns_everything(world: World) -> None:
    for goal in world.goals:
        options = dict(goal["goal_options"])
        assert world.reward(asin=goal["asin"], goal=goal, options=options, strict_options=True)[0] == 1
        if world.reward(asin=goal["asin"], goal=goal, options=options)[0] < 1:  # WebShop's quirk
            assert any(re.fullmatch(r"[a-z]+\d{3}", value) for value in options.values()), goal


def mean_score(choose: Callable[[WebShop], str], num_episodes: int = 100) -> float:
    environment = WebShop(data="synthetic")
    scores = []
    for seed in range(num_episodes):
        environment.reset(seed=seed)
        over, reward = False, 0.0
        while not over:
            _, reward, terminated, truncated, _ = environment.step(choose(environment))
            over = terminated or truncated
        scores.append(reward)
    return float(np.mean(scores))


@pytest.mark.slow
def test_shopping_takes_care(world: World) -> None:
    """The best listed product with its options is nearly perfect, the first one is not, and chance earns little."""
    best, first = [], []
    for goal in one_goal_per_product(world):
        listed = world.search(search_words(goal))[:10]
        options = {asin: wanted_options(world.products[asin], goal) for asin in listed}
        best.append(max(world.reward(asin=asin, goal=goal, options=options[asin])[0] for asin in listed))
        first.append(world.reward(asin=listed[0], goal=goal, options={})[0])
    assert np.mean(best) > 0.98
    assert 0.4 < np.mean(first) < 0.6
    rng = np.random.default_rng(0)
    assert mean_score(lambda environment: environment.random_completion(rng), 1000) < 0.15


@pytest.mark.parametrize("num_products", [19, 0, -500, 1_000_001, 500.0, "500", True, None, np.int64(500)])
def test_impossible_size_is_refused_in_a_sentence(num_products: Any) -> None:
    with pytest.raises(ValueError, match=r"`num_products` must be an integer from 20 to 1000000, got .*\. Fewer"):
        generate_world(num_products)


@pytest.mark.parametrize("seed", [-1, 0.5, "0", True, None])
def test_impossible_seed_is_refused_in_a_sentence(seed: Any) -> None:
    with pytest.raises(ValueError, match="`seed` must be an integer of at least 0, got"):
        generate_world(20, seed)
