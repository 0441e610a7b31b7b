"""A shop of three products, made by hand."""

from __future__ import annotations

from typing import Any

from turnppo_hf.environments.webshop.data import WorldData, index_text
from turnppo_hf.environments.webshop.rules import World
from turnppo_hf.environments.webshop.search import SearchIndex


def product(asin: str, **changes: Any) -> dict[str, Any]:
    """A lamp for 20 dollars in two colors."""
    name = changes.get("name", "Brass Table Lamp")
    return {
        "asin": asin,
        "name": name,
        "category": "garden",
        "query": "table lamps",
        "product_category": "Home \u203a Lighting \u203a Table Lamps",
        "Description": "A lamp.",
        "BulletPoints": ["easy assembly", "for the living room"],
        "pricing": [20.0],
        "Price": "$20.0",
        "options": {"color": ["dark red", "black | blue"]},
        "Attributes": ["easy assembly"],
        "title_nouns": name.lower().split(),
        "price": 20.0,
        **changes,
    }


def goal(asin: str, **changes: Any) -> dict[str, Any]:
    """The lamp, easy to assemble, in dark red, for less than 30 dollars."""
    return {
        "asin": asin,
        "name": "Brass Table Lamp",
        "category": "garden",
        "query": "table lamps",
        "product_category": "Home \u203a Lighting \u203a Table Lamps",
        "instruction_text": "Find me easy assembly table lamps "
        "with color: dark red, and price lower than 30.00 dollars",
        "attributes": ["easy assembly"],
        "price_upper": 30.0,
        "goal_options": {"color": "dark red"},
        "weight": 1.0,
        **changes,
    }


def make_world(products: list[dict[str, Any]] | None = None, goals: list[dict[str, Any]] | None = None) -> World:
    """Two lamps and a rug by default; goals for the first lamp."""
    if products is None:
        rug = {"query": "rugs", "product_category": "Home \u203a Rugs", "Attributes": ["hand wash"], "options": {}}
        products = [
            product("B000000001"),
            product("B000000002", name="Glass Floor Lamp", query="floor lamps", price=35.0, Price="$35.0"),
            product("B000000003", name="Wool Rug", Description="", BulletPoints=["hand wash"], **rug),
        ]
    goals = [goal(products[0]["asin"])] if goals is None else goals
    return World(
        WorldData(
            products={item["asin"]: item for item in products},
            goals=goals,
            index=SearchIndex.build([item["asin"] for item in products], map(index_text, products)),
            name="hand-made",
            synthetic=True,
        )
    )
