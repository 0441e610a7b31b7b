"""The search engine, against Lucene's recorded rankings, a slow oracle and sums by hand."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnppo_hf.environments.webshop.data import index_text
from turnppo_hf.environments.webshop.search import SearchIndex, byte_to_length, length_to_byte, tokenize

TEXTS = ["red shoes for men", "red red wine", "green shoes, green socks"]
NAMES = ["B3", "B1", "B2"]


def oracle(names: list[str], documents: list[list[str]], query: list[str]) -> dict[str, float]:
    """BM25 with k1 0.9 and b 0.4 in double precision, straight from the formula; short documents only."""
    average = sum(map(len, documents)) / len(documents)
    scores: dict[str, float] = {}
    for name, document in zip(names, documents, strict=True):
        for term in query:
            containing = sum(term in other for other in documents)
            if term in document:
                idf = math.log(1 + (len(documents) - containing + 0.5) / (containing + 0.5))
                frequency = document.count(term)
                norm = 0.9 * (1 - 0.4 + 0.4 * len(document) / average)
                scores[name] = scores.get(name, 0.0) + idf * frequency / (frequency + norm)
    return scores


def shop(shared_data: Path) -> list[dict[str, Any]]:
    with gzip.open(shared_data / "webshop" / "catalogue_1000_slim.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def test_recorded_rankings_are_lucenes(shared_data: Path) -> None:
    products = shop(shared_data)
    index = SearchIndex.build([product["asin"] for product in products], map(index_text, products))
    cases = [json.loads(line) for line in open(shared_data / "cases" / "webshop_search.jsonl", encoding="utf-8")]
    ranked = [index.scores(case["query"]) for case in cases]
    assert sum([name for name, _ in found] == case["top50"] for found, case in zip(ranked, cases, strict=True)) == 100
    for found, case in zip(ranked, cases, strict=True):
        assert [score for _, score in found] == pytest.approx(case["scores"], abs=5e-4)
    # Lucene's mean length of a document is 107.608, to its three decimals; ours differs in the fifth
    assert index.total_length == pytest.approx(107_608, abs=5)


def test_another_length_rounding_gives_other_rankings(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above: exact document lengths, which are better information, match fewer rankings."""
    products = shop(shared_data)[:300]
    names, texts = [product["asin"] for product in products], [index_text(product) for product in products]
    index, exact = SearchIndex.build(names, texts), SearchIndex.build(names, texts)
    lengths = np.array([len(tokenize(text)) for text in texts], np.float32)
    exact._inverse_norm = 1 / (0.9 * (0.6 + 0.4 * lengths / lengths.mean())).astype(np.float32)
    queries = [product["name"] for product in products[:50]]
    assert any(index.search(query) != exact.search(query) for query in queries)


def test_score_of_one_term_by_hand() -> None:
    # "socks" is in one of three documents: idf = ln(1 + 2.5 / 1.5) = 0.980829; lengths 3, 3, 4, mean 10 / 3;
    # norm = 0.9 * (0.6 + 0.4 * 4 / (10 / 3)) = 0.972; score = 0.980829 * 1 / (1 + 0.972) = 0.497378
    index = SearchIndex.build(NAMES, TEXTS)
    assert index.total_length == 10
    [(name, score)] = index.scores("socks")
    assert name == "B2" and score == pytest.approx(0.497378, abs=1e-6)


@given(st.lists(st.lists(st.sampled_from("ab cd ef gh kl".split()), min_size=1, max_size=12), min_size=1, max_size=8),
       st.lists(st.sampled_from("ab cd ef gh kl".split()), min_size=1, max_size=6))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_scores_are_the_oracles(documents: list[list[str]], query: list[str]) -> None:
    names = [f"B{number}" for number in range(len(documents))]
    found = dict(SearchIndex.build(names, map(" ".join, documents)).scores(" ".join(query)))
    assert found == pytest.approx(oracle(names, documents, query), rel=1e-5)


def test_equal_scores_are_in_the_order_of_the_names() -> None:
    index = SearchIndex.build(["B9", "B1", "B5"], ["red shoe"] * 3)
    assert index.search("shoe") == ["B1", "B5", "B9"]
    assert index.search("shoe", k=2) == ["B1", "B5"]


def test_repeated_words_of_a_query_count() -> None:
    index = SearchIndex.build(NAMES, TEXTS)
    assert index.scores("socks socks")[0][1] == pytest.approx(2 * index.scores("socks")[0][1])


@pytest.mark.parametrize("query", ["", "   ", "the of and", "violin", "<r>"])
def test_query_without_a_known_word_finds_nothing(query: str) -> None:
    assert SearchIndex.build(NAMES, TEXTS).search(query) == []


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Running SHOES", ["run", "shoe"]),
        ("Women's shoes, girls\u2019 hats", ["women", "shoe", "girl", "hat"]),
        ("wi-fi 3.5mm 10,000 U.S.A", ["wi", "fi", "3.5mm", "10,000", "u.s.a"]),
        ("size:xl a_b _ fox.", ["size:xl", "a_b", "fox"]),
        ("中文 🔥🔥 ½ café", ["中", "文", "🔥", "🔥", "café"]),
        ("it is not for the", []),
        ("ties us", ["ti", "us"]),  # words of two letters are not stemmed
        ("x" * 600, ["x" * 255, "x" * 255, "x" * 90]),
    ],
)
def test_text_becomes_the_terms_of_lucene(text: str, tokens: list[str]) -> None:
    assert tokenize(text) == tokens


def test_lengths_are_stored_as_lucenes_bytes() -> None:
    # exact below 24 + 16, then steps of 2 to 24 + 32, of 4 to 24 + 64, ...: 24 + 107 - 24 = 83 -> 80
    assert [byte_to_length(length_to_byte(length)) for length in (0, 1, 23, 24, 39, 40, 41, 42, 57, 107)] == [
        0, 1, 23, 24, 39, 40, 40, 42, 56, 104,
    ]  # fmt: skip
    stored = [length_to_byte(length) for length in range(100_000)]
    assert stored == sorted(stored) and max(stored) < 256
    assert all(byte_to_length(byte) <= length for length, byte in enumerate(stored))


def test_arrays_make_the_same_index() -> None:
    index = SearchIndex.build(NAMES, TEXTS)
    again = SearchIndex.from_arrays(index.arrays())
    for query in ("red", "shoes", "green red", "nothing"):
        assert again.scores(query) == index.scores(query)


@pytest.mark.parametrize("broken", ["asins", "terms", "offsets", "postings", "frequencies", "lengths"])
def test_arrays_that_do_not_belong_together_are_refused(broken: str) -> None:
    arrays = SearchIndex.build(NAMES, TEXTS).arrays()
    with pytest.raises(ValueError, match="do not belong together"):
        SearchIndex.from_arrays({**arrays, broken: arrays[broken][: len(arrays[broken]) // 3]})
    del arrays[broken]
    with pytest.raises(ValueError, match=f"{broken}.*missing"):
        SearchIndex.from_arrays(arrays)


@pytest.mark.parametrize(
    ("names", "texts", "words"),
    [([], [], "0 names for 0 texts"), (["B1"], ["a", "b"], "1 names for 2 texts"), (["B1", "B1"], ["a", "b"], "'B1'")],
)
def test_unusable_collection_is_refused(names: list[str], texts: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SearchIndex.build(names, texts)
