"""
A size and a seed go in; a generated shop in the shape of WebShop's comes out, for where its files are not at hand.

Every text is made of the word lists below and of digits, so a word-level vocabulary of `words` reads all of it. What
makes it a task: half of the products imitate another one of their kind and differ from it in attributes, options or
price, so that a search lists several of which few fit the wish; and kinds of other categories share words with them.
"""

from __future__ import annotations

import itertools
import random
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from turnppo_hf.environments.webshop.data import Product, WorldData, draw_price, index_text, make_goals
from turnppo_hf.environments.webshop.search import SearchIndex

MIN_PRODUCTS = 20
MAX_PRODUCTS = 1_000_000  # about half of the titles that the words can form, so that a new one is found soon

_PRODUCTS_PER_KIND = 5  # at least; small catalogues have fewer kinds instead of products without a rival
_SHARE_WANTED = 0.9  # products that goals ask for
_SHARE_IMITATING = 0.5  # products that begin as a copy of another one of their kind
_MANY_VALUES = 30
_NO_PRICE = 100.0  # WebShop's price of products that have none
_PRICE_RANGE = "${} to ${}"
_PART = " \u203a "  # between the parts of a category's path

# Category -> first part of its paths, prices in dollars, what its products are bought for.
_CATEGORIES = {
    "beauty": ("Beauty & Personal Care", (6, 100), "travel home winter summer"),
    "electronics": ("Electronics", (12, 240), "travel office home studio"),
    "fashion": ("Clothing & Shoes", (12, 240), "travel work winter summer"),
    "garden": ("Home & Kitchen", (15, 240), "bedroom kitchen office patio"),
    "grocery": ("Grocery & Food", (5, 100), "breakfast family office party"),
}
# Category -> attributes. A preposition in front belongs to the sentence, not to the attribute.
_ATTRIBUTES = {
    "beauty": "cruelty free, paraben free, fragrance free, long lasting, eco friendly, non toxic, with tea tree, "
    "with coconut oil, with natural ingredients, for sensitive skin",
    "electronics": "light weight, heavy duty, water resistant, shock proof, easy install, high quality, long lasting, "
    "with carrying case, with gift box, for outdoor use",
    "fashion": "light weight, water resistant, quick drying, machine washable, hand made, easy care, "
    "with soft lining, with elastic band, for daily wear, for outdoor use",
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
    "color": (
        "color",
        "black, blue, brown, gold, gray, green, navy, orange, pink, purple, red, silver, white, yellow",
    ),
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
# Made up, so that the shop is not taken for a real one.
_BRANDS = (
    "ardovex belquor corvanth dremlo elzarin fenquil gorvane hexmoor imbrask jorvelt kelzian lumbrix mivarto norvask "
    "oskavel plinvor quovarn rensolt skavire tromvel ulvandi vexmere wibzorn yolprin"
).split()
# What is no noun in a title; all other words are.
_NO_NOUNS = frozenset(
    "based carrying clean cooking cruelty daily dairy drying easy eco elastic fat free friendly gluten hand heavy "
    "high install lasting light living long low machine made natural non outdoor paraben plant proof quick resistant "
    "running saving sensitive small soft throw toxic washable".split()
)
_DESCRIPTIONS = (
    "The {brand} {noun} is made of {material}.",
    "{phrase} by {brand}.",
    "This {noun} by {brand} is a good choice for {use}.",
)
_BULLETS = ("{phrase}", "{phrase} by {brand}", "New {phrase}", "Our {phrase}")
_FACTS = ("Made of {material}", "A good choice for {use}")
_WISH = "Find me {phrase}"
_REST_OF_WISH = "with, and price lower than dollars"  # the words that `make_goals` adds
_PREPOSITIONS = {
    attribute: preposition
    for entries in _ATTRIBUTES.values()
    for preposition, _, attribute in (entry.partition(" ") for entry in entries.split(", "))
    if preposition in ("for", "with")
}


@dataclass(frozen=True)
class _Kind:
    """A row of `_KINDS`: products that answer the same query."""

    category: str
    query: str
    noun: str
    section: str
    materials: str
    groups: str

    @property
    def path(self) -> str:
        return _PART.join([_CATEGORIES[self.category][0], self.section, self.query.title()])


_ALL_KINDS = [_Kind(category, *rows[number]) for number in range(8) for category, rows in _KINDS.items()]


def generate_world(num_products: int = 500, seed: int = 0) -> WorldData:
    """
    Generate a synthetic shop: products, goals and search index.

    Args:
        num_products (`int`, *optional*, defaults to `500`):
            From 20 to 1,000,000. From 200 on there are 40 kinds of products, eight in each category.
        seed (`int`, *optional*, defaults to `0`):
            Of everything that is drawn, at least 0: equal arguments give equal shops.
    Returns:
        `WorldData`: products with distinct titles, and goals for about nine in ten of them. Two products have 30
        values of an option, one has neither bullet points nor attributes.
    Raises:
        `ValueError`: an argument is no integer or out of range.
    """
    _check_arguments(num_products, seed)
    rng = random.Random(seed)
    products = {product["asin"]: product for product in _draw_products(num_products, rng)}
    wanted = [product for product in products.values() if product["Attributes"] and rng.random() < _SHARE_WANTED]
    goals = make_goals(products.values(), {product["asin"]: _instruction(product, rng) for product in wanted}, rng)
    index = SearchIndex.build(list(products), map(index_text, products.values()))
    return WorldData(products, goals, index, name=f"synthetic-{num_products} (seed {seed})", synthetic=True)


def words() -> tuple[str, ...]:
    """Return every word of the generated shops, sorted: lower-case letters, so without numbers and ASINs."""
    texts = [*_BRANDS, *_DESCRIPTIONS, *_BULLETS, *_FACTS, _WISH, _REST_OF_WISH]
    texts += [f"{first} {uses}" for first, _, uses in _CATEGORIES.values()]
    texts += _ATTRIBUTES.values()
    texts += [f"{kind.category} {kind.query} {kind.noun} {kind.path} {kind.materials}" for kind in _ALL_KINDS]
    texts += [f"{name} {values}" for name, values in _GROUPS.values()]
    plain = re.sub(r"\{\w+\}", "", " ".join([*texts, _PRICE_RANGE]))
    return tuple(sorted(set(re.findall("[a-z]+", plain.lower()))))


def _draw_products(num_products: int, rng: random.Random) -> list[Product]:
    kinds = _ALL_KINDS[: num_products // _PRODUCTS_PER_KIND]
    of_products = [kinds[number % len(kinds)] for number in range(num_products)]
    rng.shuffle(of_products)
    products: list[Product] = []
    of_kind: dict[_Kind, list[Product]] = defaultdict(list)
    titles: set[str] = set()
    # small numbers: the packaged actor has a token for each below 1000
    for number, kind in zip(rng.sample(range(max(num_products, 1000)), num_products), of_products, strict=True):
        product = _draw_product(f"B0{number:08}", kind, of_kind[kind], titles, rng)
        titles.add(product["name"])
        of_kind[kind].append(product)
        products.append(product)
    # what is rare in real catalogues; made last, so that no other product imitates it
    for kind in kinds[:2]:
        of_kind[kind][0]["options"] = _many_values(kind, rng)
    bare = of_kind[kinds[2]][0]
    bare["BulletPoints"], bare["Attributes"] = [], []
    return products


def _draw_product(asin: str, kind: _Kind, others: Sequence[Product], titles: set[str], rng: random.Random) -> Product:
    """A product, often like one of `others` in all but attributes, options or price; its title is none of `titles`."""
    attributes = rng.sample(_attributes(kind), rng.randint(2, 5))
    options, pricing = _draw_options(kind, rng), _draw_pricing(kind, rng)
    if others and rng.random() < _SHARE_IMITATING:
        model, difference = rng.choice(others), rng.choice(("attributes", "options", "price", "price"))
        attributes = list(model["Attributes"])
        if difference == "attributes":
            _exchange(attributes, kind, rng)
        if difference != "options":
            options = {group: list(values) for group, values in model["options"].items()}
        if difference != "price":
            pricing = list(model["pricing"])
    while (words := _draw_words(kind, attributes, rng))["title"] in titles:
        pass
    description = rng.choice(_DESCRIPTIONS).format(**words, phrase=_phrase(rng.sample(attributes, 1), kind.noun))
    return {
        "asin": asin,
        "name": words["title"],
        "category": kind.category,
        "query": kind.query,
        "product_category": kind.path,
        "Description": _sentence(description) if rng.random() < 0.85 else "",
        "BulletPoints": _draw_bullets(attributes, words, rng),
        "pricing": pricing,
        "Price": f"${pricing[0]}" if len(pricing) == 1 else _PRICE_RANGE.format(*pricing),
        "options": options,
        "Attributes": attributes,
        "title_nouns": [word for word in words["title"].lower().split() if word not in _NO_NOUNS],
        "price": draw_price(pricing, rng),
    }


def _draw_words(kind: _Kind, attributes: Sequence[str], rng: random.Random) -> dict[str, str]:
    """A title of five to nine words and what the other texts share with it."""
    brand, material = rng.choice(_BRANDS), rng.choice(kind.materials.split())
    use = rng.choice([use for use in _CATEGORIES[kind.category][2].split() if use not in kind.noun])
    shown = attributes[: rng.choices((1, 2), weights=(30, 70))[0]]
    title = " ".join([brand, *shown, material, *[use] * (rng.random() < 0.7), kind.noun]).title()
    return {"title": title, "brand": brand.title(), "material": material, "use": use, "noun": kind.noun}


def _draw_bullets(attributes: Sequence[str], words: Mapping[str, str], rng: random.Random) -> list[str]:
    phrases = [_phrase([attribute], words["noun"]) for attribute in attributes]
    bullets = [rng.choice(_BULLETS).format(**words, phrase=phrase) for phrase in phrases]
    bullets += [fact.format(**words) for fact in _FACTS]
    rng.shuffle(bullets)
    return [_sentence(bullet) for bullet in bullets]


def _draw_options(kind: _Kind, rng: random.Random) -> dict[str, list[str]]:
    names = kind.groups.split()
    count = rng.choices((0, 1, 2), weights=(8, 32, 60))[0]
    options = {}
    for name in sorted(rng.sample(names, count), key=names.index):
        group, all_values = _GROUPS[name]
        values = all_values.split(", ")
        size = 12 if rng.random() < 0.03 else rng.choices((2, 3, 4, 5), weights=(30, 35, 20, 15))[0]
        chosen = sorted(rng.sample(range(len(values)), min(size, len(values))))
        options[group] = [_compound(values[place], values, name, rng) for place in chosen]
    return options


def _compound(value: str, values: Sequence[str], name: str, rng: random.Random) -> str:
    """Mostly the value itself; of colors sometimes two in one, rarely one with a number."""
    chance = rng.random()
    if name != "color" or chance > 0.06:
        return value
    if chance < 0.005:
        return f"{value}{rng.randint(100, 999)}"
    return f"{value} | {rng.choice([other for other in values if other != value])}"


def _many_values(kind: _Kind, rng: random.Random) -> dict[str, list[str]]:
    """One group with all its values and as many pairs of them as it takes."""
    group, values = _GROUPS[kind.groups.split()[0]]
    single = values.split(", ")
    pairs = [f"{one} | {other}" for one, other in itertools.combinations(single, 2)]
    return {group: single + rng.sample(pairs, _MANY_VALUES - len(single))}


def _draw_pricing(kind: _Kind, rng: random.Random) -> list[float]:
    chance = rng.random()
    if chance < 0.04:
        return [_NO_PRICE]
    price = rng.randint(*_CATEGORIES[kind.category][1])
    prices = [price] if chance < 0.92 else [price, price + rng.randint(5, 20)]
    discount = rng.choice((0.0, 0.01, 0.5))
    return [price - discount for price in prices]  # from whole dollars, so no float shows more than cents


def _exchange(attributes: list[str], kind: _Kind, rng: random.Random) -> None:
    """Put other attributes of the category in the place of one or two."""
    new = [attribute for attribute in _attributes(kind) if attribute not in attributes]
    count = rng.randint(1, 2)
    for place, attribute in zip(rng.sample(range(len(attributes)), count), rng.sample(new, count), strict=True):
        attributes[place] = attribute


def _instruction(product: Product, rng: random.Random) -> dict[str, Any]:
    """A wish for some of the attributes, in the form of WebShop's `items_ins_v2*.json`."""
    in_title, *others = product["Attributes"]
    count = rng.choices((0, 1, 2), weights=(35, 45, 20))[0]
    asked = [in_title, *rng.sample(others, min(count, len(others)))]
    asked.sort(key=lambda attribute: _PREPOSITIONS.get(attribute, ""))
    return {"instruction": _WISH.format(phrase=_phrase(asked, product["query"])), "instruction_attributes": asked}


def _phrase(attributes: Sequence[str], noun: str) -> str:
    """Attributes and noun as a phrase, e.g. "easy clean table lamp with gift box"."""
    front = [attribute for attribute in attributes if attribute not in _PREPOSITIONS]
    phrase = f"{', '.join(front)} {noun}".lstrip()
    for preposition in ("for", "with"):
        behind = [attribute for attribute in attributes if _PREPOSITIONS.get(attribute) == preposition]
        phrase += f" {preposition} {', '.join(behind)}" if behind else ""
    return phrase


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def _attributes(kind: _Kind) -> list[str]:
    entries = _ATTRIBUTES[kind.category].split(", ")
    return [entry.removeprefix("for ").removeprefix("with ") for entry in entries]


def _check_arguments(num_products: object, seed: object) -> None:
    if type(num_products) is not int or not MIN_PRODUCTS <= num_products <= MAX_PRODUCTS:
        raise ValueError(
            f"`num_products` must be an integer from {MIN_PRODUCTS} to {MAX_PRODUCTS}, got {num_products!r}. Fewer "
            "leave nothing to choose from, and for more there are not enough words for different titles. Pass a "
            "number in this range, for example 500."
        )
    if type(seed) is not int or seed < 0:
        raise ValueError(
            f"`seed` must be an integer of at least 0, got {seed!r}. Equal seeds stand for equal shops, and others "
            "could not be distinguished. Pass for example 0."
        )
