"""
Texts go in, a ranking comes out: BM25 exactly as Lucene computes it for WebShop's search.

The original asks Anserini (https://github.com/castorini/anserini) for `k1 = 0.9, b = 0.4` over English text. Matching
its ranking takes Lucene's words (Unicode's rules, Porter's stems), its rounding of document lengths to one byte, and
its arithmetic in single precision. Postings are kept in flat arrays, so that a million products fit into memory.
"""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from nltk.stem.porter import PorterStemmer

K1, B = np.float32(0.9), np.float32(0.4)
MAX_TOKEN_LENGTH = 255  # characters; Lucene cuts longer ones into pieces
_STOP_WORDS = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with".split()
)
_EXACT_LENGTHS = 24  # document lengths below it are stored exactly, longer ones with four significant bits
_stemmer = PorterStemmer(PorterStemmer.MARTIN_EXTENSIONS)

# Word boundaries of Unicode Standard Annex 29, as far as they occur in a shop.
_IDEOGRAPHS = "\u3005-\u3007\u3040-\u309f\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# numbers that are no digits, such as fractions: for Python letters, for Unicode's words nothing
_NO_WORDS = "\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u2079\u2080-\u2089\u2150-\u215f\u2460-\u249b\u24ea-\u24ff"
_MARKS = "\u0300-\u036f\u200d\ufe00-\ufe0f"
_LETTER = rf"[^\W\d_{_IDEOGRAPHS}{_NO_WORDS}]"
_PICTOGRAPH = (
    "[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u2199\u21a9\u21aa\u231a\u231b\u2328\u2388\u23cf\u23e9-\u23f3\u23f8-\u23fa"
    "\u24c2\u25aa\u25ab\u25b6\u25c0\u25fb-\u25fe\u2600-\u2605\u2607-\u2612\u2614-\u2685\u2690-\u2705\u2708-\u2712\u2714"
    "\u2716\u271d\u2721\u2728\u2733\u2734\u2744\u2747\u274c\u274e\u2753-\u2755\u2757\u2763-\u2767\u2795-\u2797\u27a1\u27b0"
    "\u27bf\u2934\u2935\u2b05-\u2b07\u2b1b\u2b1c\u2b50\u2b55\u3030\u303d\u3297\u3299\U0001f000-\U0001f1e5"
    "\U0001f201-\U0001f3fa\U0001f400-\U0001faff]"
)
_TOKEN = re.compile(
    rf"(?:[^\W{_IDEOGRAPHS}{_NO_WORDS}](?:[^\W{_IDEOGRAPHS}{_NO_WORDS}]|[{_MARKS}]"
    rf"|(?<={_LETTER})[:\u00b7\u2027.\u2018\u2019\u2024'\ufe55\uff1a\uff07\uff0e](?={_LETTER})"
    rf"|(?<=\d)[,;.\u2018\u2019\u2024'\u2044\uff0c\uff1b\uff07\uff0e](?=\d))*)"
    rf"|[{_IDEOGRAPHS}]|[\U0001f1e6-\U0001f1ff]{{2}}"
    rf"|{_PICTOGRAPH}(?:[\ufe0f\U0001f3fb-\U0001f3ff]|\u200d{_PICTOGRAPH})*"
)


def tokenize(text: str) -> list[str]:
    """
    Return the terms of a text, in order, as Lucene's English analysis makes them.

    Args:
        text (`str`): Any text; letter case does not matter.

    Source: StandardTokenizer, EnglishPossessiveFilter, LowerCaseFilter, StopFilter and PorterStemFilter of Lucene.
    """
    terms = []
    for token in _TOKEN.findall(text):
        for start in range(0, len(token), MAX_TOKEN_LENGTH):
            if term := _term(token[start : start + MAX_TOKEN_LENGTH]):
                terms.append(term)
    return terms


@lru_cache(maxsize=1 << 18)
def _term(token: str) -> str:
    word = re.sub(r"['\u2019\uff07][sS]$", "", token).lower()
    if word in _STOP_WORDS or not word.strip("_"):
        return ""
    return str(_stemmer.stem(word, to_lowercase=False)) if len(word) > 2 else word


class SearchIndex:
    """
    An inverted index over short texts; make it with `build`.

    Args:
        asins (`Sequence[str]`): Names of the documents.
        terms (`Sequence[str]`): The vocabulary.
        offsets (`numpy.ndarray` of shape `(terms + 1,)`): Where each term's postings begin.
        postings (`numpy.ndarray` of shape `(postings,)`): Document numbers, ascending within a term, int32.
        frequencies (`numpy.ndarray` of shape `(postings,)`): How often the term is in the document, uint16.
        lengths (`numpy.ndarray` of shape `(documents,)`): Lengths in terms as Lucene's byte, uint8.
        total_length (`int`): Terms of all documents.
    """

    def __init__(
        self,
        asins: Sequence[str],
        terms: Sequence[str],
        offsets: np.ndarray,
        postings: np.ndarray,
        frequencies: np.ndarray,
        lengths: np.ndarray,
        total_length: int,
    ) -> None:
        self.asins = list(asins)
        self.terms = {term: number for number, term in enumerate(terms)}
        self.offsets, self.postings, self.frequencies, self.lengths = offsets, postings, frequencies, lengths
        self.total_length = total_length
        # ties are broken by name
        self._rank = np.empty(len(asins), np.int32)
        self._rank[np.argsort(np.array(self.asins))] = np.arange(len(asins), dtype=np.int32)
        average = np.float32(total_length / len(asins))
        decoded = np.array([byte_to_length(byte) for byte in range(256)], np.float32)
        one = np.float32(1)
        self._inverse_norm = (one / (K1 * ((one - B) + B * decoded / average)))[lengths]

    @classmethod
    def build(cls, asins: Sequence[str], texts: Iterable[str]) -> SearchIndex:
        """
        Index texts.

        Args:
            asins (`Sequence[str]`): Names of the documents, distinct.
            texts (`Iterable[str]`): The document of each name; read once, in order, and not kept.
        Raises:
            `ValueError`: there is no document, a name twice, or another number of texts than of names.
        """
        numbers: dict[str, int] = {}
        term_numbers, frequencies, sizes, lengths = array("i"), array("H"), array("i"), array("i")
        for text in texts:
            terms = tokenize(text)
            counts = Counter(terms)
            term_numbers.extend(numbers.setdefault(term, len(numbers)) for term in counts)
            frequencies.extend(min(count, 65535) for count in counts.values())
            sizes.append(len(counts))
            lengths.append(len(terms))
        if not lengths or len(lengths) != len(asins):
            raise ValueError(
                f"There are {len(asins)} names for {len(lengths)} texts. A search needs at least one text, and a name "
                "for each. Pass as many names as texts."
            )
        if len(set(asins)) != len(asins):
            [(name, _)] = Counter(asins).most_common(1)
            raise ValueError(
                f"The name {name!r} stands for several texts. What a search finds would be ambiguous. Pass "
                "distinct names."
            )
        of_term = np.frombuffer(term_numbers, np.int32)
        order = np.argsort(of_term, kind="stable")
        documents = np.repeat(np.arange(len(lengths), dtype=np.int32), np.frombuffer(sizes, np.int32))
        offsets = np.zeros(len(numbers) + 1, np.int64)
        np.cumsum(np.bincount(of_term, minlength=len(numbers)), out=offsets[1:])
        return cls(
            asins,
            list(numbers),
            offsets,
            documents[order],
            np.frombuffer(frequencies, np.uint16)[order],
            np.array([length_to_byte(length) for length in lengths], np.uint8),
            sum(lengths),
        )

    def search(self, query: str, k: int = 50) -> list[str]:
        """Return the names of the `k` documents that match best, the best first; fewer where fewer match."""
        return [asin for asin, _ in self.scores(query, k)]

    def scores(self, query: str, k: int = 50) -> list[tuple[str, float]]:
        """
        Return the names and scores of the `k` documents that match best, the best first.

        Args:
            query (`str`): Words. Each occurrence counts.
            k (`int`, *optional*, defaults to `50`): Documents at most. Equal scores are in the order of the names.
        """
        total = np.zeros(len(self.asins), np.float64)
        for term, count in Counter(tokenize(query)).items():
            number = self.terms.get(term)
            if number is None:
                continue
            span = slice(self.offsets[number], self.offsets[number + 1])
            documents = self.postings[span]
            weight = np.float32(count) * self._idf(len(documents))
            saturation = np.float32(1) + self.frequencies[span].astype(np.float32) * self._inverse_norm[documents]
            total[documents] += weight - weight / saturation
        score = total.astype(np.float32)
        found = np.flatnonzero(score)
        if len(found) > k:
            found = found[score[found] >= np.partition(score[found], len(found) - k)[len(found) - k]]
        best = found[np.lexsort((self._rank[found], -score[found]))][:k]
        return [(self.asins[number], float(score[number])) for number in best]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what a file stores; `from_arrays` undoes it."""
        return {
            "asins": _joined(self.asins),
            "terms": _joined(self.terms),
            "offsets": self.offsets,
            "postings": self.postings,
            "frequencies": self.frequencies,
            "lengths": self.lengths,
            "total_length": np.array([self.total_length], np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> SearchIndex:
        """
        Make the index that `arrays` was taken from.

        Raises:
            `ValueError`: an array is missing, or they do not belong together.
        """
        names = ("asins", "terms", "offsets", "postings", "frequencies", "lengths", "total_length")
        missing = [name for name in names if name not in arrays]
        asins, terms = (_split(arrays[name]) if name in arrays else [] for name in ("asins", "terms"))
        if (
            missing
            or len(arrays["offsets"]) != len(terms) + 1
            or arrays["offsets"][-1] != len(arrays["postings"])
            or len(arrays["postings"]) != len(arrays["frequencies"])
            or len(arrays["lengths"]) != len(asins)
            or (len(arrays["postings"]) and arrays["postings"].max() >= len(asins))
        ):
            raise ValueError(
                f"The arrays of the search index do not belong together{f' ({missing} missing)' if missing else ''}. "
                "A search would find the wrong products. Make the world file again."
            )
        flat = (arrays[name] for name in names[2:6])
        return cls(asins, terms, *flat, int(arrays["total_length"][0]))  # type: ignore[call-arg, arg-type]

    def _idf(self, document_frequency: int) -> np.float32:
        rest = len(self.asins) - document_frequency + 0.5
        return np.float32(math.log(1 + rest / (document_frequency + 0.5)))


def length_to_byte(length: int) -> int:
    """Return Lucene's byte for a document length: exact below 24, then four significant bits of what is above."""
    if length < _EXACT_LENGTHS:
        return length
    rest = length - _EXACT_LENGTHS
    shift = rest.bit_length() - 4
    return _EXACT_LENGTHS + (rest if shift < 0 else (shift + 1) << 3 | rest >> shift & 7)


def byte_to_length(byte: int) -> int:
    """Return the length that Lucene's byte stands for, the shortest of those that share it."""
    if byte < _EXACT_LENGTHS:
        return byte
    exponent, digits = divmod(byte - _EXACT_LENGTHS, 8)
    return _EXACT_LENGTHS + (digits if exponent == 0 else (digits | 8) << exponent - 1)


def _joined(words: Iterable[str]) -> np.ndarray:
    return np.frombuffer("\n".join(words).encode(), np.uint8)


def _split(letters: np.ndarray) -> list[str]:
    text = letters.tobytes().decode()
    return text.split("\n") if text else []
