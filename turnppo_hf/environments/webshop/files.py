"""
A path goes in, a shop comes out: WebShop's own files, the slim catalogue made of them, or a frozen world file.

What is frozen in a file beside the products (prices, goals, nouns of titles) is used; the rest is made as WebShop
makes it, from a seed.
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import ijson

from turnppo_hf.environments.webshop.data import (
    Goal,
    GoalKind,
    Product,
    WorldData,
    draw_price,
    index_text,
    make_goals,
    make_human_goals,
)
from turnppo_hf.environments.webshop.search import SearchIndex
from turnppo_hf.environments.webshop.world_file import WorldWriter, is_world_file, read_world_file

_PATTERNS = {  # what a folder may hold -> names
    "slim": "catalogue_*slim.jsonl.gz",
    "items": "items_shuffle*.json",
    "attributes": "items_ins_v2*.json",
    "human": "items_human_ins*.json",
    "nouns": "title_nouns*.json",
    "prices": "product_prices*.json",
    "goals": "goals_synthetic*.json",
}
_NOUN_TAGS = {"NOUN", "PROPN"}
_SPACY_MODEL = "en_core_web_sm"
_MAX_LINE = 1 << 24  # bytes of one product
_SIZE_FACTOR = 2  # bytes of disk per byte of a source: the world file and its index
_DAMAGED = (json.JSONDecodeError, ijson.JSONError, UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile)


def find_data(data: str | Path) -> Path:
    """
    Return a local path, or that of a snapshot of a dataset on the Hub.

    Raises:
        `ValueError`: there is neither.
    """
    path = Path(data)
    if path.exists():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(str(data), repo_type="dataset", allow_patterns=["*.world", *_PATTERNS.values()]))
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"{str(data)!r} is no file or folder here and no dataset that the Hub gives ({reason}). There are no "
            "products to sell. Name a folder with WebShop's files or a world file (docs/webshop.md), or pass "
            '"synthetic".'
        ) from error


def read_world(
    path: str | Path, *, goals: GoalKind = "synthetic", num_products: int | None = None, seed: int = 0
) -> WorldData:
    """
    Read a shop.

    Args:
        path (`str` or `Path`): World file, folder with WebShop's files or with one world file, or a catalogue file
            with its companions beside it.
        goals (`"synthetic"` or `"human"`, *optional*, defaults to `"synthetic"`): Which goals to make.
        num_products (`int`, *optional*): Only the first products; goals are then made for them.
        seed (`int`, *optional*, defaults to `0`): Of prices and price caps that no file holds.
    Raises:
        `ValueError`: files are missing, damaged or do not belong together.
    """
    source = _locate(Path(path))
    if isinstance(source, Path):
        data = read_world_file(source)
        if num_products is not None and num_products != len(data.products):
            raise ValueError(
                f"{source} is frozen with {len(data.products)} products, but `num_products` is {num_products}. A part "
                "of it would be another world. Leave `num_products` out, or prepare a world of that size."
            )
        return data
    products: dict[str, Product] = {}

    def keep(product: Product) -> None:
        products[product["asin"]] = product

    index, made = _build(source, keep, products.values, goals, num_products, seed)
    return WorldData(products, made, index, _name(len(products), goals, seed), synthetic=False)


def prepare_world(
    path: str | Path,
    target: str | Path,
    *,
    goals: GoalKind = "synthetic",
    num_products: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int | None], object] | None = None,
) -> dict[str, Any]:
    """
    Make a world file from WebShop's files; products pass through one by one, so that a million of them fit.

    Args:
        path, goals, num_products, seed: See `read_world`.
        target (`str` or `Path`): File to write.
        progress (`Callable`, *optional*): Called with the number of products so far, and their total or None.
    Returns:
        `dict`: the file's own description: name, sources, counts, checksum.
    Raises:
        `ValueError`: as `read_world`, or the disk is too small.
    """
    source = _locate(Path(path))
    if isinstance(source, Path):
        raise ValueError(f"{source} is a world file already. There is nothing to prepare. Use it as `data`.")
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _check_disk(source.catalogue, target)
    writer = WorldWriter(target)
    count = 0

    def keep(product: Product) -> None:
        nonlocal count
        writer.add_product(product)
        count += 1
        if progress is not None and count % 100 == 0:
            progress(count, num_products)

    try:
        index, made = _build(source, keep, writer.products, goals, num_products, seed)
        if progress is not None:
            progress(count, count)
        meta = {"name": _name(count, goals, seed), "synthetic": False, "sources": ", ".join(source.names)}
        return writer.finish(made, index, meta)
    except BaseException:
        writer.abandon()
        raise


@dataclass(frozen=True)
class _Source:
    """Files that belong together; all but the catalogue are read already."""

    catalogue: Path
    is_slim: bool  # the catalogue holds attributes, instructions and nouns itself
    attributes: Mapping[str, Any]  # by ASIN
    human: Mapping[str, Any]  # by ASIN
    nouns: Mapping[str, list[str]] | None  # by ASIN
    prices: Mapping[str, float] | None  # by ASIN
    goals: list[Goal] | None
    names: tuple[str, ...]  # of the files


def _locate(path: Path) -> _Source | Path:
    """Find what belongs to a path: a world file, or a catalogue and its companions."""
    if path.is_file():
        if is_world_file(path):
            return path
        key = "slim" if path.name.endswith(".gz") else "items"
        return _read_companions(path.parent, {key: path})
    worlds = sorted(path.glob("*.world"))
    if len(worlds) == 1:
        return worlds[0]
    if worlds:
        raise ValueError(
            f"{path} holds several world files ({', '.join(file.name for file in worlds)}). Each is another shop. "
            "Name one of them."
        )
    catalogues = {key: sorted(path.glob(_PATTERNS[key])) for key in ("slim", "items")}
    key = "slim" if catalogues["slim"] else "items"
    if not catalogues[key]:
        raise ValueError(
            f"{path} holds no products: neither a .world file nor {_PATTERNS['items']} nor {_PATTERNS['slim']}. There "
            "is nothing to sell. docs/webshop.md lists which files are needed and where they come from."
        )
    if len(catalogues[key]) > 1:
        raise ValueError(
            f"{path} holds several catalogues ({', '.join(file.name for file in catalogues[key])}). Each is another "
            "shop. Name one of them."
        )
    return _read_companions(path, {key: catalogues[key][0]})


def _read_companions(folder: Path, files: dict[str, Path]) -> _Source:
    is_slim = "slim" in files
    [catalogue] = files.values()
    size = re.search(r"_(\d+)", catalogue.stem)
    for key in ("attributes", "human", "nouns", "prices", "goals"):
        found = sorted(folder.glob(_PATTERNS[key]))
        if len(found) > 1:  # of several sizes, the catalogue's own
            found = [
                file for file in found if (match := re.search(r"_(\d+)", file.stem)) and size and match[1] == size[1]
            ]
        if found:
            files[key] = found[0]
    return _Source(
        catalogue=catalogue,
        is_slim=is_slim,
        attributes={} if is_slim else _read_json(files.get("attributes"), dict) or {},
        human={} if is_slim else _human(_read_json(files.get("human"), (dict, list))),
        nouns=None if is_slim else _read_json(files.get("nouns"), dict),
        prices=_read_json(files.get("prices"), dict),
        goals=_read_json(files.get("goals"), list),
        names=tuple(sorted(file.name for file in files.values())),
    )


def _build(
    source: _Source,
    keep: Callable[[Product], None],
    kept: Callable[[], Iterable[Product]],
    kind: GoalKind,
    num_products: int | None,
    seed: int,
) -> tuple[SearchIndex, list[Goal]]:
    """Pass every product to `keep`; return the index and the goals of what was `kept`."""
    rng = random.Random(seed)
    asins: list[str] = []
    instructions = dict(source.attributes)
    human = dict(source.human)

    def texts() -> Iterator[str]:
        for record in _records(source, num_products):
            product = _product(record, source)
            asin = product["asin"]
            drawn = draw_price(product["pricing"], rng)
            product["price"] = drawn if source.prices is None else _of_product(source.prices, asin, source)
            if source.is_slim:
                instructions[asin], human[asin] = record, record.get("human") or ()
            asins.append(asin)
            keep(product)
            yield index_text(product)

    index = SearchIndex.build(asins, texts())
    if kind == "synthetic" and source.goals is not None and num_products is None:
        return index, _checked_goals(source.goals, set(asins), source)
    wanted = human if kind == "human" else instructions
    if not any(asin in wanted for asin in asins):
        companion = _PATTERNS["human" if kind == "human" else "attributes"]
        raise ValueError(
            f"None of the {len(asins)} products of {source.catalogue} has an entry for {kind} goals. There would be "
            f"nothing to shop for. Put the {companion} that belongs to it beside it."
        )
    goals = (make_human_goals if kind == "human" else make_goals)(kept(), wanted, rng)
    return index, goals


def _records(source: _Source, num_products: int | None) -> Iterator[dict[str, Any]]:
    """The records of the catalogue that are products, with the nouns of their titles."""
    raw = _slim_lines(source.catalogue) if source.is_slim else _official_items(source.catalogue)
    seen: set[str] = set()

    def distinct() -> Iterator[dict[str, Any]]:
        for number, record in enumerate(itertools.islice(raw, num_products)):
            asin = record.get("asin") if isinstance(record, dict) else None
            if not isinstance(asin, str):
                raise _damaged(source.catalogue, f"entry {number} is no product with an `asin`")
            if asin != "nan" and len(asin) <= 10 and asin not in seen:
                seen.add(asin)
                yield record

    try:
        yield from distinct() if source.is_slim or source.nouns is not None else _with_nouns(distinct(), source)
    except _DAMAGED as error:
        raise _damaged(source.catalogue, f"{type(error).__name__}: {error}") from error
    if not seen:
        raise _damaged(source.catalogue, "it holds no products")


def _slim_lines(path: Path) -> Iterator[Any]:
    with gzip.open(path, "rb") as file:
        while line := file.readline(_MAX_LINE):
            if len(line) == _MAX_LINE:
                raise _damaged(path, f"a line has more than {_MAX_LINE} bytes")
            yield json.loads(line)


def _official_items(path: Path) -> Iterator[Any]:
    with open(path, "rb") as file:
        yield from ijson.items(file, "item", use_float=True)


def _product(record: Mapping[str, Any], source: _Source) -> Product:
    """Bring a record into the form of `Product`, as WebShop's `load_products` does; the price is still missing."""
    try:
        if source.is_slim:
            names = Product.__required_keys__ - {"price"}
            return {**{name: record[name] for name in names}, "price": 0.0}  # type: ignore[typeddict-item]
        pricing = [_dollars(part) for part in (record.get("pricing") or "$100.0").split("$")[1:]]
        bullets = record["small_description"]
        asin = record["asin"]
        nouns = record["title_nouns"] if source.nouns is None else _of_product(source.nouns, asin, source)
        return {
            "asin": asin,
            "name": record["name"],
            "category": record["category"],
            "query": record["query"].lower().strip(),
            "product_category": record["product_category"],
            "Description": record["full_description"] or "",
            "BulletPoints": bullets if isinstance(bullets, list) else [bullets or ""],
            "pricing": pricing[:2],
            "Price": f"${pricing[0]}" if len(pricing) == 1 else f"${pricing[0]} to ${pricing[1]}",
            "options": {
                group.lower(): [value["value"].strip().replace("/", " | ").lower() for value in values]
                for group, values in (record["customization_options"] or {}).items()
                if values is not None
            },
            "Attributes": source.attributes.get(asin, {}).get("attributes", ["DUMMY_ATTR"]),
            "title_nouns": nouns,
            "price": 0.0,
        }
    except (KeyError, TypeError, AttributeError, IndexError, InvalidOperation) as error:
        raise _damaged(source.catalogue, f"product {record['asin']}: {type(error).__name__} {error}") from error


def _dollars(text: str) -> float:
    return float(Decimal(re.sub(r"[^\d.]", "", text)))


def _with_nouns(records: Iterable[dict[str, Any]], source: _Source) -> Iterator[dict[str, Any]]:
    """Tag the titles with spaCy, which is the slow part of a new catalogue."""
    try:
        import spacy

        tag = spacy.load(_SPACY_MODEL, exclude=["parser", "ner", "lemmatizer"])
    except (ImportError, OSError) as error:
        raise ValueError(
            f"There is no {_PATTERNS['nouns']} beside {source.catalogue}, and the nouns of its titles cannot be "
            f"computed ({error}). The reward compares them. Put the file there, or install spaCy: pip install spacy "
            f"&& python -m spacy download {_SPACY_MODEL}."
        ) from error
    for tagged, record in tag.pipe(((record["name"], record) for record in records), as_tuples=True):
        yield {**record, "title_nouns": [token.text.lower() for token in tagged if token.pos_ in _NOUN_TAGS]}


def _of_product(values: Mapping[str, Any], asin: str, source: _Source) -> Any:
    if asin not in values:
        raise ValueError(
            f"Product {asin} of {source.catalogue} is missing in a file beside it ({', '.join(source.names)}). Price "
            "and nouns are needed of every product. Put the files there that belong together."
        )
    return values[asin]


def _checked_goals(goals: list[Goal], asins: set[str], source: _Source) -> list[Goal]:
    for number, goal in enumerate(goals):
        missing = Goal.__required_keys__ - goal.keys() if isinstance(goal, dict) else Goal.__required_keys__
        if missing or goal["asin"] not in asins or goal["price_upper"] <= 0 or not goal["attributes"]:
            raise ValueError(
                f"Goal {number} in the files beside {source.catalogue} cannot be met: a field or its product is "
                "missing, it has no attributes, or its price cap is not above 0. Its reward would be undefined. Put "
                "the goals there that belong to this catalogue, or none, so that they are made."
            )
    return goals


def _human(instructions: Any) -> dict[str, Any]:
    """A dict by ASIN; some copies hold a list of pairs."""
    return dict(instructions or {})


def _read_json(path: Path | None, kind: type | tuple[type, ...]) -> Any:
    if path is None:
        return None
    try:
        content = json.loads(path.read_bytes())
    except _DAMAGED as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(content, kind) or not content:
        raise _damaged(path, f"it holds {type(content).__name__} of length {len(content) if content else 0}")
    return content


def _check_disk(catalogue: Path, target: Path) -> None:
    packed = 10 if catalogue.suffix == ".gz" else 1
    needed, free = _SIZE_FACTOR * packed * catalogue.stat().st_size, shutil.disk_usage(target.parent).free
    if needed > free:
        raise ValueError(
            f"The world of {catalogue} takes up to {needed / 1e9:.1f} GB, and {target.parent} has {free / 1e9:.1f} GB "
            "free. The file would be cut. Make room, or write elsewhere with --output."
        )


def _name(count: int, goals: GoalKind, seed: int) -> str:
    return f"webshop-{count} ({goals} goals, seed {seed})"


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(
        f"{path} is no complete file of WebShop: {why}. The shop would lack products or wishes. Get the file again, "
        "see docs/webshop.md."
    )
