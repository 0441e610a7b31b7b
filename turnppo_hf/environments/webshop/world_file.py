"""
A shop goes in, one file comes out, and the other way round: the frozen world that two runs can share.

The file is an SQLite database. Products stay in it until they are asked for, so a million of them need no memory;
goals and the search index are loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import struct
import threading
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from turnppo_hf.environments.webshop.data import Goal, Product, WorldData, canonical, checksum
from turnppo_hf.environments.webshop.search import SearchIndex

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x54505357
_MAGIC = b"SQLite format 3\x00"
_PART = 1 << 28  # bytes of an array in one row; SQLite takes less than 1e9
_CACHED_PRODUCTS = 1 << 13
_BYTES_PER_GOAL = 2700  # of memory; 691,000 goals took 1.8 GB
_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE products (place INTEGER PRIMARY KEY, asin TEXT NOT NULL UNIQUE, record TEXT NOT NULL);
CREATE TABLE goals (place INTEGER PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE arrays (name TEXT, part INTEGER, dtype TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (name, part));
"""


class ProductTable(Mapping[str, Product]):
    """
    The products of a world file, read when they are asked for; threads and forked processes may share it.

    Args:
        path (`Path`): The world file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._connection = _connect(path)
        self._process = os.getpid()
        [(self._length,)] = self._rows("SELECT count(*) FROM products")
        self._cached = lru_cache(_CACHED_PRODUCTS)(self._read)

    def __getitem__(self, asin: str) -> Product:
        return self._cached(asin)

    def __iter__(self) -> Iterator[str]:
        return (asin for (asin,) in self._rows("SELECT asin FROM products ORDER BY place"))

    def __len__(self) -> int:
        return int(self._length)

    def _read(self, asin: str) -> Product:
        rows = self._rows("SELECT record FROM products WHERE asin = ?", (asin,))
        if not rows:
            raise KeyError(asin)
        product: Product = json.loads(rows[0][0])
        return product

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            if os.getpid() != self._process:  # a connection must not cross a fork
                self._connection, self._process = _connect(self._path), os.getpid()
            return self._connection.execute(query, values).fetchall()


class WorldWriter:
    """
    Writes a world file piece by piece; it appears under its name when it is complete.

    Args:
        path (`Path`): Where to. A world file that is there is replaced, anything else is not.
    Raises:
        `ValueError`: something else stands there.
    """

    def __init__(self, path: Path) -> None:
        if path.exists() and not is_world_file(path):
            raise ValueError(
                f"{path} exists and is no world file, so it is not overwritten. Its content would be lost. Choose "
                "another name."
            )
        self._path, self._scratch = path, path.with_name(f".{path.name}.{os.getpid()}")
        self._connection = sqlite3.connect(self._scratch)
        self._connection.executescript(
            f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION}; "
            f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {_SCHEMA}"
        )
        self._num_products = 0

    def add_product(self, product: Product) -> None:
        """Append a product."""
        values = (self._num_products, product["asin"], canonical(product))
        self._connection.execute("INSERT INTO products VALUES (?, ?, ?)", values)
        self._num_products += 1

    def products(self) -> Iterator[Product]:
        """Read the products again, in order."""
        for (record,) in self._connection.execute("SELECT record FROM products ORDER BY place"):
            yield json.loads(record)

    def finish(self, goals: Iterable[Goal], index: SearchIndex, meta: Mapping[str, Any]) -> dict[str, Any]:
        """Write the rest and put the file in its place; return the meta data with counts and checksum."""
        lines = [canonical(goal) for goal in goals]
        self._connection.executemany("INSERT INTO goals VALUES (?, ?)", enumerate(lines))
        arrays = index.arrays()
        for name, values in arrays.items():
            data = values.tobytes()
            for part, start in enumerate(range(0, max(len(data), 1), _PART)):
                row = (name, part, values.dtype.str, data[start : start + _PART])
                self._connection.execute("INSERT INTO arrays VALUES (?, ?, ?, ?)", row)
        complete = {
            **meta,
            "products": self._num_products,
            "goals": len(lines),
            "checksum": checksum(_lines(self._connection)),
            "index_checksum": _checksum_of(arrays),
        }
        rows = [(name, json.dumps(value)) for name, value in complete.items()]
        self._connection.executemany("INSERT INTO meta VALUES (?, ?)", rows)
        self._connection.commit()
        self._connection.close()
        self._scratch.replace(self._path)
        return complete

    def abandon(self) -> None:
        """Leave no trace."""
        self._connection.close()
        self._scratch.unlink(missing_ok=True)


def write_world(data: WorldData, path: str | Path) -> dict[str, Any]:
    """
    Freeze a shop in a file.

    Returns:
        `dict`: the file's own description: name, whether it is synthetic, counts, checksum.
    Raises:
        `ValueError`: something that is no world file stands there.
    """
    writer = WorldWriter(Path(path))
    try:
        for product in data.products.values():
            writer.add_product(product)
        return writer.finish(data.goals, data.index, {"name": data.name, "synthetic": data.synthetic})
    except BaseException:
        writer.abandon()
        raise


def is_world_file(path: Path) -> bool:
    """Whether a file begins like a world file, whole or not."""
    header = _header(path)
    return header[:16] == _MAGIC and header[68:72] == struct.pack(">I", _APPLICATION_ID)


def read_world_file(path: Path) -> WorldData:
    """
    Open a frozen shop.

    Raises:
        `ValueError`: the file is truncated, changed or of another version, or the memory is too small.
    """
    header = _header(path)
    page_size, pages = *struct.unpack(">H", header[16:18]), *struct.unpack(">I", header[28:32])
    expected = (65536 if page_size == 1 else page_size) * pages
    if path.stat().st_size != expected:
        raise _damaged(path, f"it has {path.stat().st_size} bytes of {expected}")
    (version,) = struct.unpack(">I", header[60:64])
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{path} is a world file of version {version}; this program reads version {SCHEMA_VERSION}. Its content "
            "would be misread. Make it again with `turnppo webshop prepare`."
        )
    try:
        connection = _connect(path)
        _check_memory(path, connection)
        meta = {name: json.loads(value) for name, value in connection.execute("SELECT name, value FROM meta")}
        goals = [json.loads(record) for (record,) in connection.execute("SELECT record FROM goals ORDER BY place")]
        found = checksum(_lines(connection))
        parts: dict[str, list[tuple[str, bytes]]] = {}
        for name, dtype, data in connection.execute("SELECT name, dtype, data FROM arrays ORDER BY name, part"):
            parts.setdefault(name, []).append((dtype, data))
        arrays = {name: np.frombuffer(b"".join(data for _, data in rows), rows[0][0]) for name, rows in parts.items()}
        index = SearchIndex.from_arrays(arrays)
        connection.close()
    except (sqlite3.Error, json.JSONDecodeError, TypeError) as error:
        raise _damaged(path, str(error)) from error
    if found != meta.get("checksum") or _checksum_of(arrays) != meta.get("index_checksum"):
        raise _damaged(path, "its checksum does not fit")
    data = WorldData(ProductTable(path), goals, index, meta["name"], meta["synthetic"])
    vars(data)["checksum"] = found  # not to be computed again
    return data


def _header(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(100)


def _check_memory(path: Path, connection: sqlite3.Connection) -> None:
    """Products stay in the file; the goals and the search index do not."""
    (goals,) = connection.execute("SELECT count(*) FROM goals").fetchone()
    (index,) = connection.execute("SELECT coalesce(sum(length(data)), 0) FROM arrays").fetchone()
    needed, free = goals * _BYTES_PER_GOAL + 2 * index, psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"{path} needs about {needed / 1e9:.1f} GB of memory for its {goals:,} goals and its search index, and "
            f"{free / 1e9:.1f} GB are free. The process would be killed while it loads. Prepare one with fewer goals "
            "(`--goals human`) or fewer products (`--num_products`), or take a larger machine."
        )


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)
    connection.execute("PRAGMA trusted_schema = OFF")
    return connection


def _lines(connection: sqlite3.Connection) -> Iterator[str]:
    for table in ("products", "goals"):
        for (record,) in connection.execute(f"SELECT record FROM {table} ORDER BY place"):
            yield record


def _checksum_of(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).view(np.uint8).data)
    return digest.hexdigest()


def _damaged(path: Path, why: str) -> ValueError:
    return ValueError(
        f"The world file {path} is damaged: {why}. Runs on it could not be compared with others. Copy it again, or "
        "make it again with `turnppo webshop prepare`."
    )
