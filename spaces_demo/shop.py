"""A way through the shop in, its page as data out: the browser draws it, and no product can bring its own HTML."""

from __future__ import annotations

from typing import Any

from turnppo_hf.environments.webshop.pages import PAGE_SIZE, SUB_PAGES, ShoppingSession

_LONGEST = 600  # characters of a description; products of the real shop have pages of them


def shop_page(session: ShoppingSession) -> dict[str, Any]:
    """
    Return what a visitor of the shop sees, as plain data.

    Returns:
        `dict`: `place` ("start", "search_results", "item_page", "item_sub_page", "done"), `wish`, and by place
        `query`, `products`, `page`, `pages`, `total`; `product` with `options`; `texts`; `score` and `terms`.
    """
    page: dict[str, Any] = {
        "place": session.place,
        "wish": session.goal["instruction_text"],
        "query": " ".join(session.keywords),
    }
    if session.place == "search_results":
        total = len(session.results)
        page |= {
            "products": [
                {"id": product["asin"].lower(), "name": product["name"], "price": product["Price"]}
                for product in session.products_on_page
            ],
            "page": session.page,
            "pages": max(-(-total // PAGE_SIZE), 1),
            "total": total,
        }
    elif session.asin is not None:
        page["product"] = _product(session)
    if session.place == "item_sub_page":
        page |= {"title": session.sub_page, "texts": [node.text[:_LONGEST] for node in session.nodes()[4:]]}
    if session.place == "done":
        page |= {"score": session.reward, "terms": _terms(session)}
    return page


def _product(session: ShoppingSession) -> dict[str, Any]:
    product = session.product
    return {
        "id": product["asin"].lower(),
        "name": product["name"],
        "price": product["Price"],
        "options": [
            {"group": group, "values": list(values), "chosen": session.options.get(group.lower())}
            for group, values in product["options"].items()
        ],
        "buttons": list(SUB_PAGES),
    }


def _terms(session: ShoppingSession) -> list[dict[str, Any]]:
    """The parts of the score that are shares, under descriptive names."""
    names = {"r_type": "kind of product", "r_att": "attributes", "r_option": "options", "r_price": "price"}
    return [
        {"name": name, "share": float(session.terms[key])}
        for key, name in names.items()
        if session.terms.get(key) is not None
    ]
