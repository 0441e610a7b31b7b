"""
Products and wishes go in; goals come out, with the records that the shop is made of.

The records are dicts under the original's names, so that files and memory hold the same. How products are read and
goals are made follows WebShop's `load_products` and `get_goals` (https://github.com/princeton-nlp/WebShop), which draw
prices and price caps anew in every process: here they are drawn once from a seed, or read where they are frozen.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypedDict

from turnppo_hf.environments.webshop.search import SearchIndex

GoalKind = Literal["synthetic", "human"]

NO_PRICE_CAP = 1_000_000
_PRICE_CAPS = [10.0 * step for step in range(1, 100)]
_CANONICAL_SEED = 233  # of the order in which WebShop numbers its goals


class Product(TypedDict):
    """What can be bought."""

    asin: str  # up to 10 characters, upper case
    name: str  # the title
    category: str  # e.g. "beauty"
    query: str  # lower case, e.g. "lips makeup"
    product_category: str  # a path, its parts joined by a single right angle quotation mark
    Description: str
    BulletPoints: list[str]
    pricing: list[float]  # one price or both ends of a range, dollars; [100.0] where the source has none
    Price: str  # as shown: "$15.99" or "$28.08 to $33.39"
    options: dict[str, list[str]]  # group -> values, both lower case
    Attributes: list[str]
    title_nouns: list[str]  # nouns of the title, lower case, in order; repeated ones count
    price: float  # dollars; drawn once where `pricing` is a range


class Goal(TypedDict):
    """What a shopper is asked to buy."""

    asin: str
    category: str
    query: str
    name: str
    product_category: str
    instruction_text: str  # the wish as the shopper reads it
    attributes: list[str]
    price_upper: float  # dollars; 1000000 where the wish names no cap
    goal_options: dict[str, str] | list[str]  # group -> value; of human goals the bare values
    weight: float


@dataclass(frozen=True)
class WorldData:
    """A shop's content, e.g. the one that `read_world` gives."""

    products: Mapping[str, Product]  # by ASIN, in the catalogue's order
    goals: list[Goal]  # in the canonical order: the place is WebShop's session number
    index: SearchIndex  # over `index_text` of every product
    name: str  # e.g. "webshop-1000"; stands in logs and cards
    synthetic: bool  # a generated catalogue, not WebShop's products

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of products and goals: equal where the shop is."""
        return checksum(map(canonical, itertools.chain(self.products.values(), self.goals)))


def checksum(lines: Iterable[str]) -> str:
    """Return the SHA-256 of the `canonical` lines of products and goals."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode())
    return digest.hexdigest()


def canonical(record: Mapping[str, Any]) -> str:
    """Return a record as one line of JSON that does not depend on the order of its fields."""
    # the order of option groups is the order on the page, so only the outer level is sorted
    return json.dumps(dict(sorted(record.items())), ensure_ascii=False, separators=(",", ":")) + "\n"


def index_text(product: Product) -> str:
    """Return what the search reads of a product: title, description, first bullet point and options."""
    options = ", and ".join(f"{group}: {', '.join(values)}" for group, values in product["options"].items())
    first_bullet = product["BulletPoints"][0] if product["BulletPoints"] else ""
    return f"{product['name']} {product['Description']} {first_bullet} {options}".lower()


def make_goals(
    products: Iterable[Product],
    instructions: Mapping[str, Mapping[str, Any]],
    rng: random.Random,
) -> list[Goal]:
    """
    Make WebShop's synthetic goals, one for each combination of a product's options, in canonical order.

    Args:
        products (`Iterable[Product]`): In the catalogue's order.
        instructions (`Mapping`): Of each product that is asked for: `instruction` (the wish without options and
            price) and `instruction_attributes`, as in `items_ins_v2*.json`.
        rng (`random.Random`): Draws the price caps.
    """
    goals: list[Goal] = []
    uses: Counter[str] = Counter()
    for product in products:
        entry = instructions.get(product["asin"], {})
        if entry.get("instruction") is None:
            continue
        attributes = entry["instruction_attributes"]
        cap, cap_text = _draw_cap(product["price"], rng)
        groups = sorted(product["options"])
        for values in itertools.product(*(product["options"][group] for group in groups)):
            chosen = dict(zip(groups, values, strict=True))
            asked = ", and ".join(f"{group}: {value}" for group, value in chosen.items())
            wish = f"{entry['instruction']}{f' with {asked}' if asked else ''}{cap_text}"
            goals.append(_goal(product, wish, attributes, cap, chosen))
            uses.update(attributes)
    for goal in goals:
        # summed one by one as in WebShop: another order would round differently
        goal["weight"] = sum(1.0 / uses[attribute] for attribute in goal["attributes"]) / len(goal["attributes"])
    return _canonical_order(goals)


def make_human_goals(
    products: Iterable[Product], instructions: Mapping[str, Sequence[Mapping[str, Any]]], rng: random.Random
) -> list[Goal]:
    """
    Make WebShop's goals from wishes that people wrote, in canonical order.

    Args:
        products (`Iterable[Product]`): In the catalogue's order.
        instructions (`Mapping`): Of each product the entries of `items_human_ins*.json`.
        rng (`random.Random`): Draws the price caps.
    """
    goals: list[Goal] = []
    for product in products:
        for entry in instructions.get(product["asin"], ()):
            if not entry["instruction_attributes"]:
                continue
            cap, cap_text = _draw_cap(product["price"], rng)
            wish = entry["instruction"].strip(".") + cap_text
            goals.append(_goal(product, wish, entry["instruction_attributes"], cap, entry["instruction_options"]))
    return _canonical_order(goals)


def draw_price(pricing: Sequence[float], rng: random.Random) -> float:
    """Return what a product costs: its price, or one within its range."""
    return pricing[0] if len(pricing) == 1 else rng.uniform(*pricing[:2])


def _draw_cap(price: float, rng: random.Random) -> tuple[float, str]:
    above = [cap for cap in _PRICE_CAPS if cap > price][:4]
    if len(above) < 2:
        return NO_PRICE_CAP, ""
    cap = max(rng.sample(above, 2))
    return cap, f", and price lower than {cap:.2f} dollars"


def _goal(product: Product, wish: str, attributes: list[str], cap: float, options: Any) -> Goal:
    return {
        "asin": product["asin"],
        "category": product["category"],
        "query": product["query"],
        "name": product["name"],
        "product_category": product["product_category"],
        "instruction_text": wish,
        "attributes": attributes,
        "price_upper": cap,
        "goal_options": options,
        "weight": 1,
    }


def _canonical_order(goals: list[Goal]) -> list[Goal]:
    random.Random(_CANONICAL_SEED).shuffle(goals)
    return goals
