"""
A size and a seed go in; a generated shop in the shape of WebShop's comes out, for where its files are not at hand.

Every text is made of the word lists below and of digits, so a word-level vocabulary of `words` reads all of it. What
makes it a task: most products imitate another one of their kind and differ from it in attributes, options or price,
so that a search lists several of which few fit the wish; and kinds of other categories share words with them.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from turnppo_hf.environments.webshop_data import Product, WorldData, draw_price, index_text, make_goals
from turnppo_hf.environments.webshop_search import SearchIndex

MIN_PRODUCTS = 20
MAX_PRODUCTS = 1_000_000  # about half of the titles that the words can form, so that a new one is found soon

_PRODUCTS_PER_KIND = 5  # at least; small catalogues have fewer kinds instead of products without a rival
_MANY_VALUES = 30
_NO_PRICE = 100.0  # WebShop's price of products that have none
_PART = " \u203a "  # between the parts of a category's path

# Category -> first part of its paths, prices in dollars, what its products are bought for.
_CATEGORIES = {
    "beauty": ("Beauty & Personal Care", (6, 80), "travel home winter summer"),
    "electronics": ("Electronics", (12, 150), "travel office home studio"),
    "fashion": ("Clothing & Shoes", (12, 150), "travel work winter summer"),
    "garden": ("Home & Kitchen", (15, 150), "bedroom kitchen office patio"),
    "grocery": ("Grocery & Food", (5, 80), "breakfast family office party"),
}
# Category -> attributes. A preposition belongs to the sentence and not to the attribute.
_ATTRIBUTES = {
    "beauty": "cruelty free, paraben free, fragrance free, long lasting, eco friendly, non toxic, with tea tree, "
    "with coconut oil, with natural ingredients, for sensitive skin",
    "electronics": "light weight, heavy duty, water resistant, shock proof, easy install, high quality, long lasting, "
    "with carrying case, with gift box, for outdoor use",
    "fashion": "light weight, water resistant, quick drying, machine washable, hand made, easy care, with soft lining, "
    "with elastic band, for daily wear, for outdoor use",
    "garden": "easy clean, easy install, eco friendly, heavy duty, hand made, space saving, non toxic, "
    "with natural finish, for living room, for small spaces",
    "grocery": "gluten free, sugar free, dairy free, fat free, plant based, high protein, low sodium, eco friendly, "
    "with natural ingredients, with gift box",
}
# Category -> query, what a title calls the product, second part of the path, materials, option groups.
_KINDS = {
    "beauty": (
        ("face masks", "face mask", "Skin Care", "clay aloe honey oat", "scent pack"),
        ("face creams", "face cream", "Skin Care", "aloe honey shea almond", "scent volume"),
        ("body lotions", "body lotion", "Skin Care", "aloe oat shea almond", "scent volume"),
        ("hand soaps", "hand soap", "Bath", "clay honey oat almond", "scent volume"),
        ("bath bombs", "bath bomb", "Bath", "clay aloe honey oat", "scent pack"),
        ("hair gels", "hair gel", "Hair Care", "aloe honey shea almond", "scent volume"),
        ("shampoo bars", "shampoo bar", "Hair Care", "clay honey oat shea", "scent pack"),
        ("lip balms", "lip balm", "Makeup", "aloe honey shea almond", "scent color"),
    ),
    "electronics": (
        ("phone cases", "phone case", "Phones", "leather silicone carbon canvas", "color style"),
        ("phone chargers", "phone charger", "Phones", "nylon silicone carbon aluminum", "color length"),
        ("usb cables", "usb cable", "Computers", "nylon silicone rubber aluminum", "color length"),
        ("laptop bags", "laptop bag", "Computers", "leather nylon canvas mesh", "color side"),
        ("computer speakers", "computer speaker", "Computers", "oak bamboo carbon aluminum", "color style"),
        ("camera straps", "camera strap", "Cameras", "leather nylon canvas mesh", "color length"),
        ("camera tripods", "camera tripod", "Cameras", "steel bamboo carbon aluminum", "color side"),
        ("alarm clocks", "alarm clock", "Clocks", "oak glass steel aluminum", "color style"),
    ),
    "fashion": (
        ("running shoes", "running shoe", "Shoes", "mesh canvas leather nylon", "color shoe"),
        ("rain boots", "rain boot", "Shoes", "rubber canvas leather nylon", "color shoe"),
        ("dress shirts", "dress shirt", "Tops", "cotton linen silk bamboo", "color fit"),
        ("summer dresses", "summer dress", "Tops", "cotton linen silk velvet", "color fit"),
        ("rain jackets", "rain jacket", "Coats", "nylon canvas mesh fleece", "color fit"),
        ("winter coats", "winter coat", "Coats", "wool fleece leather velvet", "color fit"),
        ("ankle socks", "ankle sock", "Accessories", "cotton wool bamboo silk", "color pack"),
        ("sun hats", "sun hat", "Accessories", "cotton linen straw canvas", "color fit"),
    ),
    "garden": (
        ("table lamps", "table lamp", "Lighting", "brass glass ceramic oak", "color side"),
        ("floor lamps", "floor lamp", "Lighting", "brass steel bamboo oak", "color side"),
        ("throw pillows", "throw pillow", "Bedding", "cotton wool linen velvet", "color side"),
        ("bed blankets", "bed blanket", "Bedding", "cotton wool fleece linen", "color bed"),
        ("coffee tables", "coffee table", "Furniture", "oak pine glass steel", "color style"),
        ("bar stools", "bar stool", "Furniture", "oak pine leather steel", "color pack"),
        ("window curtains", "window curtain", "Decor", "cotton linen velvet silk", "color length"),
        ("picture frames", "picture frame", "Decor", "oak pine brass glass", "color side"),
    ),
    "grocery": (
        ("coffee beans", "coffee bean", "Drinks", "almond honey cocoa maple", "flavor volume"),
        ("tea bags", "tea bag", "Drinks", "ginger honey fruit maple", "flavor pack"),
        ("energy bars", "energy bar", "Snacks", "almond oat cocoa fruit", "flavor pack"),
        ("potato chips", "potato chip", "Snacks", "pepper honey maple ginger", "flavor pack"),
        ("fruit snacks", "fruit snack", "Snacks", "oat honey cocoa maple", "flavor pack"),
        ("pasta sauces", "pasta sauce", "Pantry", "pepper ginger almond fruit", "flavor volume"),
        ("cooking oils", "cooking oil", "Pantry", "almond coconut pepper ginger", "flavor volume"),
        ("breakfast cereals", "breakfast cereal", "Pantry", "oat almond cocoa maple", "flavor pack"),
    ),
}
# Kind of group -> its name in the shop and its values. No two values of a group count as equal in the reward: units
# are short, since "12 ounce" and "16 ounce" would.
_GROUPS = {
    "color": ("color", "black, blue, brown, gold, gray, green, navy, orange, pink, purple, red, silver, white, yellow"),
    "scent": ("scent", "lavender, vanilla, citrus, rose, coconut, mint, lemon, peach, jasmine"),
    "flavor": ("flavor name", "vanilla, honey, lemon, chocolate, mango, peach, cinnamon, garlic, cherry"),
    "fit": ("size", "petite, small, medium, large, tall, plus"),
    "shoe": ("size", "5, 6, 7, 8, 9, 10, 11, 12"),
    "bed": ("size", "twin, full, queen, king"),
    "side": ("size", "20 cm, 30 cm, 40 cm, 50 cm, 60 cm"),
    "volume": ("size", "2 oz, 4 oz, 8 oz, 16 oz, 30 oz"),
    "length": ("length", "3 ft, 6 ft, 10 ft, 15 ft"),
    "pack": ("count", "2 pack, 4 pack, 6 pack, 8 pack"),
    "style": ("style", "classic, modern, sport, compact"),
}
# Made up, so that nobody takes the shop for a real one.
_BRANDS = (
    "ardovex belquor corvanth dremlo elzarin fenquil gorvane hexmoor imbrask jorvelt kelzian lumbrix mivarto norquist "
    "oskavel plinvor quovarn rensolt skavire tromvel ulvandi vexmere wibzorn yolprin"
).split()
# What is no noun in a title; all other words are.
_NO_NOUNS = frozenset(
    "based cruelty daily dairy dry drying eco easy elastic fat free friendly gluten hand heavy high lasting light low "
    "machine made natural non outdoor paraben plant proof quick resistant running sensitive small soft toxic "
    "washable clean install saving carrying living cooking throw".split()
)
_DESCRIPTIONS = (
    "The {brand} {noun} is made of {material}.",
    "{phrase} by {brand}.",
    "This {noun} by {brand} is a good choice for {use}.",
)
_BULLETS = ("{phrase}", "{phrase} by {brand}", "New {phrase}", "A {phrase} of good quality")
_FACTS = ("Made of {material}", "A good choice for {use}")
_WISH = "Find me {phrase}"
_WISH_ENDS = "with, and price lower than dollars"  # what `make_goals` adds


@dataclass(frozen=True)
class _Kind:
    """What products that answer the same query have in common."""

    category: str
    query: str
    noun: str
    path: str
    materials: list[str]
    uses: list[str]
    attributes: list[str]
    groups: list[str]
    prices: tuple[int, int]


def generate_world(num_products: int = 500, seed: int = 0) -> WorldData:
    """
    Generate a synthetic shop: products, goals and search index.

    Args:
        num_products (`int`, *optional*, defaults to `500`):
            From 20 to 1,000,000. From 200 on there are 40 kinds of products, eight in each category.
        seed (`int`, *optional*, defaults to `0`):
            Of everything that is drawn, at least 0: equal arguments give equal shops.
    Returns:
        `WorldData`: products with distinct titles, and goals for about nine in ten of them.
    Raises:
        `ValueError`: an argument is no integer or out of range.
    """
    _check_arguments(num_products, seed)
    rng = random.Random(seed)
    kinds = _all_kinds()[: max(num_products // _PRODUCTS_PER_KIND, 1)]
    of_products = [kinds[number % len(kinds)] for number in range(num_products)]
    rng.shuffle(of_products)
    products = {product["asin"]: product for product in _make_products(of_products, rng)}
    queries = (product for product in products.values() if product["Attributes"] and rng.random() < 0.9)
    goals = make_goals(products.values(), {product["asin"]: _instruction(product, rng) for product in queries}, rng)
    index = SearchIndex.build(list(products), map(index_text, products.values()))
    return WorldData(products, goals, index, name=f"synthetic-{num_products} (seed {seed})", synthetic=True)


def words() -> tuple[str, ...]:
    """Return every word that a generated shop can contain: lower-case letters, sorted, numbers left out."""
    tables: list[Any] = [_CATEGORIES, _ATTRIBUTES, _KINDS, [name for name, _ in _GROUPS.values()], _BRANDS]
    tables += [[values for _, values in _GROUPS.values()], _DESCRIPTIONS, _BULLETS, _FACTS, _WISH, _WISH_ENDS, "to"]
    return tuple(sorted(set(_words_in(tables))))
