"""
A shop goes in; what its search finds, its goals, and what a purchase is worth come out.

Usable without the environment: `World.load("path/to/webshop").search("red shoes")`. The reward is that of WebShop
(Yao et al. 2022, https://huggingface.co/papers/2207.01206), whose program this follows to the last quirk.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, cast

from rapidfuzz import fuzz, utils

from turnppo_hf.environments.reading import as_integer
from turnppo_hf.environments.webshop.catalogue import generate_world
from turnppo_hf.environments.webshop.data import NO_PRICE_CAP, Goal, GoalKind, Product, WorldData
from turnppo_hf.environments.webshop.files import find_data, read_world

Split = Literal["train", "validation", "test"]
SplitBy = Literal["index", "product"]

NUM_RESULTS = 50  # products that a search returns
_MATCH = 85  # token-set ratios above it count as equal, after rounding
# Goals by their place in the canonical order, as the original's baselines and RAGEN split them.
_INDEX_SPLITS = {"test": (0, 500), "validation": (500, 1500), "train": (1500, None)}
_PRODUCT_SPLITS = {"test": (0, 10), "validation": (10, 20), "train": (20, 100)}  # percentiles of a hash of the ASIN
_LATIN_1 = {code: None for code in range(128, 256)}  # thefuzz drops these characters before it compares
# WebShop's list, in its order: the first that occurs in a value replaces it.
_COLORS = (
    "alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy camel camo "
    "caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral cranberry cream "
    "crystal dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass gray green grey heather "
    "indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon mauve merlot midnight mint mocha "
    "multicolor mushroom mustard natural navy nude olive orange peach pewter pink plum purple rainbow red rose royal "
    "rust sand sapphire seashell silver skull slate steel stone stonewash sunflower tan taupe teal tiger turquoise "
    "violet walnut wheat white wine yellow"
).split()


class World:
    """
    A catalogue with its search engine, its goals and its reward.

    Args:
        data (`WorldData`): Products, goals and index, as `read_world` or `generate_world` give them.
    """

    def __init__(self, data: WorldData) -> None:
        self.data = data
        self.products: Mapping[str, Product] = data.products
        self.goals: Sequence[Goal] = data.goals
        self._by_product: dict[tuple[Split | None, SplitBy], list[list[int]]] = {}

    @classmethod
    def load(
        cls,
        data: str | Path,
        *,
        goals: GoalKind = "synthetic",
        num_products: int | None = None,
        seed: int = 0,
    ) -> World:
        """
        Load a shop from its files.

        Args:
            data (`str` or `Path`):
                World file, a folder with WebShop's files, one of its catalogue files, or a dataset id on the Hub.
            goals (`"synthetic"` or `"human"`, *optional*, defaults to `"synthetic"`):
                Which goals are made where the files hold no frozen ones.
            num_products (`int`, *optional*):
                Only the first products of the catalogue.
            seed (`int`, *optional*, defaults to `0`):
                Of the prices and price caps that are drawn where the files hold no frozen ones.
        Raises:
            `ValueError`: there are no such files, or they are damaged or do not belong together.
        """
        return cls(read_world(find_data(data), goals=goals, num_products=num_products, seed=seed))

    @classmethod
    def generate(cls, num_products: int = 500, seed: int = 0) -> World:
        """Make a synthetic shop, see `generate_world`."""
        return cls(generate_world(num_products, seed))

    def __repr__(self) -> str:
        return f"World({self.label})"

    @property
    def label(self) -> str:
        """Name, size and checksum in one line: what logs and cards print of the world."""
        kind = "SYNTHETIC catalogue, not WebShop's products: " if self.data.synthetic else ""
        return (
            f"{kind}{self.data.name}, {len(self.products)} products, {len(self.goals)} goals, "
            f"checksum {self.data.checksum[:12]}"
        )

    def search(self, query: str, k: int = NUM_RESULTS) -> list[str]:
        """
        Return the ASINs of the `k` products that match best, the best first.

        Args:
            query (`str`): Words; letter case does not matter.
            k (`int`, *optional*, defaults to `50`): Products at most.

        Source: BM25 as Lucene computes it, see `webshop_search`.
        """
        return self.data.index.search(query.lower(), k)

    def reward(
        self,
        *,
        asin: str,
        goal: Goal | Mapping[str, Any],
        options: Mapping[str, str],
        price: float | None = None,
        strict_options: bool = False,
    ) -> tuple[float, dict[str, Any]]:
        """
        Return what buying a product is worth for a goal.

            r_type * (matched attributes + matched options + [price <= cap]) / (attributes + options + 1)

        Synthetic goals hold pairs of group and value. WebShop compares a chosen value with the whole pair, as text
        where no color is in it, so that some goals cannot reach 1 even with the product and options they name.
        This is kept unless `strict_options`.

        Args:
            asin (`str`): What is bought.
            goal (`Goal`): What was asked for.
            options (`Mapping[str, str]`): The chosen value of each option group.
            price (`float`, *optional*): Dollars. Defaults to the product's price in this world.
            strict_options (`bool`, *optional*, defaults to `False`): Compare with the value of the pair.
        Returns:
            `tuple[float, dict]`: the reward in [0, 1] and its terms under WebShop's names: `r_type`, `query_match`,
            `category_match`, `title_score`, `r_att`, `w_att`, `r_price`, `w_price` and, where the goal has options,
            `r_option`, `w_option`.
        Raises:
            `ValueError`: an unknown product, a goal without attributes or with a price cap of 0 or less.
        """
        product, goal = self._product(asin), self.checked_goal(goal)
        price = product["price"] if price is None else price
        terms = _type_terms(product, goal, self._product(goal["asin"])["title_nouns"])
        wanted = goal["goal_options"]
        if isinstance(wanted, Mapping):
            wanted_options: list[Any] = list(wanted.values()) if strict_options else list(wanted.items())
        else:
            wanted_options = list(wanted)
        num_attributes = _matched_attributes(product, goal["attributes"])
        num_options = _matched_options(list(options.values()), wanted_options)
        is_affordable = price <= goal["price_upper"]
        total = len(goal["attributes"]) + len(wanted_options) + 1
        reward = (num_attributes + num_options + is_affordable) / total * terms["r_type"]
        terms |= {"r_att": num_attributes / len(goal["attributes"]), "w_att": len(goal["attributes"]) / total}
        if wanted_options:
            terms |= {"r_option": num_options / len(wanted_options), "w_option": len(wanted_options) / total}
        return reward, {**terms, "r_price": is_affordable, "w_price": 1 / total}

    def checked_goal(self, goal: int | Goal | Mapping[str, Any]) -> Goal:
        """
        Return the goal of a number, or the given one after a look at it.

        Raises:
            `ValueError`: there is no such goal, its product is missing, or nothing could be earned with it.
        """
        if (number := as_integer(goal)) is not None:
            if not 0 <= number < len(self.goals):
                raise ValueError(
                    f"There is no goal number {number}: {self.data.name} has {len(self.goals)}. Nothing could be "
                    f"bought for it. Pass a number from 0 to {len(self.goals) - 1}, or the goal itself as a dict."
                )
            return self.goals[number]
        if not isinstance(goal, Mapping):
            raise ValueError(
                f"`goal` must be a number or a dict with a goal's fields, got {type(goal).__name__}. The wish "
                "cannot be read. Pass an index into `world.goals` or one of its entries."
            )
        if missing := sorted(Goal.__required_keys__ - goal.keys() - {"weight"}):
            raise ValueError(
                f"The goal has no {', '.join(missing)}. Its reward could not be computed. Pass a dict with the fields "
                "of the entries of `world.goals`."
            )
        if goal["price_upper"] <= 0:
            raise ValueError(
                f"The goal's `price_upper` is {goal['price_upper']}. No product is that cheap, and WebShop's reward "
                f"is undefined there. Pass a cap above 0, or {NO_PRICE_CAP} for none."
            )
        if not goal["attributes"]:
            raise ValueError(
                "The goal has no attributes. WebShop's reward divides by their number. Name at least one attribute."
            )
        self._product(goal["asin"])
        return cast(Goal, goal)

    def goals_by_product(self, split: Split | None = None, split_by: SplitBy = "index") -> list[list[int]]:
        """
        Return the numbers of a split's goals, grouped by the product they ask for.

        Args:
            split (`"train"`, `"validation"` or `"test"`, *optional*): All goals by default.
            split_by (`"index"` or `"product"`, *optional*, defaults to `"index"`):
                `"index"`: WebShop's split, goals 0-499 for the test, 500-1499 for validation, the rest for training;
                their products overlap. `"product"`: no product is on two sides (80, 10 and 10 % of them).
        Raises:
            `ValueError`: the split is empty.
        """
        if (split, split_by) not in self._by_product:
            groups: dict[str, list[int]] = defaultdict(list)
            for number, goal in enumerate(self.goals):
                if split is None or _is_in(split, split_by, number, goal["asin"]):
                    groups[goal["asin"]].append(number)
            if not groups:
                raise ValueError(
                    f"The split {split!r} by {split_by} of {self.data.name} is empty: the world has {len(self.goals)} "
                    'goals. There would be nothing to shop for. Use split_by="product", or more products.'
                )
            self._by_product[split, split_by] = list(groups.values())
        return self._by_product[split, split_by]

    def _product(self, asin: str) -> Product:
        try:
            return self.products[asin]
        except KeyError:
            raise ValueError(
                f"There is no product {asin!r} in {self.data.name}. It can neither be bought nor asked for. Use the "
                "goals that belong to these products, or a larger catalogue."
            ) from None


@lru_cache(maxsize=8)
def shared_world(data: str | None, num_products: int | None) -> World:
    """
    Return the world of these arguments, loaded once per process: every environment shares it.

    Args:
        data (`str`, *optional*): See `World.load`. A synthetic catalogue is generated without it.
        num_products (`int`, *optional*): The first products of the data; the size of a synthetic catalogue.
    """
    if data is not None:
        return World.load(data, num_products=num_products)
    return World.generate() if num_products is None else World.generate(num_products)


def _is_in(split: Split, split_by: SplitBy, number: int, asin: str) -> bool:
    place = number if split_by == "index" else int.from_bytes(hashlib.sha256(asin.encode()).digest()[:8]) % 100
    first, end = (_INDEX_SPLITS if split_by == "index" else _PRODUCT_SPLITS)[split]
    return place >= first and (end is None or place < end)


def _type_terms(product: Product, goal: Goal, goal_nouns: Sequence[str]) -> dict[str, Any]:
    query_match = product["query"] == goal["query"]
    category_match = len(_category_parts(product["product_category"]) & _category_parts(goal["product_category"])) >= 2
    shared = len(set(product["title_nouns"]) & set(goal_nouns))
    # the nouns of the goal count as often as they occur in its title
    title_score = shared / len(goal_nouns) if goal_nouns else 0.2
    r_type = 1.0 if query_match or category_match or title_score > 0.2 else 0.5
    if title_score < 0.1:
        r_type = 0.1
    if title_score == 0:
        r_type = 0.0
    return {
        "r_type": r_type,
        "query_match": query_match,
        "category_match": category_match,
        "title_score": title_score,
    }


def _category_parts(path: str) -> set[str]:
    return {part.strip() for part in path.split("\u203a")}


def _matched_attributes(product: Product, wanted: Sequence[str]) -> int:
    texts = [product["name"].lower(), " ".join(product["BulletPoints"]).lower(), product["Description"].lower()]
    return sum(
        any(is_similar(attribute, goal_attribute) for attribute in product["Attributes"])
        or any(goal_attribute in text for text in texts)
        for goal_attribute in wanted
    )


def _matched_options(chosen: Sequence[str], wanted: Sequence[Any]) -> int:
    chosen = [_color_or_value(value) for value in chosen]
    return sum(any(is_similar(value, _color_or_value(goal_value)) for value in chosen) for goal_value in wanted)


def _color_or_value(value: Any) -> Any:
    """`in` looks for a part of a string but for a member of a pair: WebShop's quirk is in this line."""
    return next((color for color in _COLORS if color in value), value)


def is_similar(one: Any, other: Any) -> bool:
    """Whether thefuzz's `token_set_ratio` is above 85; like there, pairs are compared as their `str`."""
    return round(fuzz.token_set_ratio(_plain(str(one)), _plain(str(other)))) > _MATCH


@lru_cache(maxsize=1 << 16)
def _plain(text: str) -> str:
    return utils.default_process(text.translate(_LATIN_1))
