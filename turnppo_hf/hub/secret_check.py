"""A folder in front of its push in; one error out where a file in it holds what looks like a secret."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import pyarrow
import pyarrow.parquet
import yaml
from huggingface_hub.utils import filter_repo_objects

from turnppo_hf.hub.exceptions import PushError
from turnppo_hf.redaction import find_form, find_secret, is_secret_name, redact

_OF_VOCABULARY = ("tokenizer.json", "vocab.json", "added_tokens.json", "special_tokens_map.json", "merges.txt")
_TEXTS = (".md", ".txt", ".py", ".toml", ".cfg", ".ini", ".csv", ".html", ".js", ".css", ".jinja", ".sh", ".log", "")
_PICKLES = (".pkl", ".pickle", ".bin", ".pt", ".pth", ".ckpt")
_PRINTABLE = re.compile(rb"[\x20-\x7e\t\r\n]{12,}")
_ROWS = 256  # of Parquet, read at a time


def check_no_secrets(
    folder: Path,
    *,
    called: str | None = None,
    allow_patterns: Sequence[str] | None = None,
    ignore_patterns: Sequence[str] | None = None,
) -> None:
    """
    Check every file that a push would upload.

    Args:
        folder (`Path`): What is pushed.
        called (`str`, *optional*): Its name in the message; its path by default.
        allow_patterns, ignore_patterns (`Sequence[str]`, *optional*): As in [`~huggingface_hub.HfApi.upload_folder`].

    Raises:
        `PushError`: names the file and the key or line, never the secret.
    """
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    never = [".git", ".git/*", "*/.git", "**/.git/**", ".cache/huggingface", ".cache/huggingface/*"]  # as the client
    ignored = [*(ignore_patterns or ()), *never]
    allowed = None if allow_patterns is None else list(allow_patterns)
    for name in filter_repo_objects(names, allow_patterns=allowed, ignore_patterns=ignored):
        place = _find_in_tensors(folder / name) if name.endswith(".safetensors") else None
        if not name.endswith(".safetensors"):
            place = _find_in_file(name, (folder / name).read_bytes())
        if place is not None:
            raise PushError(
                f"{called or folder} was not pushed, because {redact(name)} holds what looks like a secret at "
                f"{place}, which everyone who reads the repository could use: remove it there, or take the file out, "
                "and push again.",
                is_transient=False,
            )


def _find_in_file(name: str, content: bytes) -> str | None:
    """Return where the first secret stands in a file, `None` where it has none."""
    path = PurePosixPath(name)
    if path.name in _OF_VOCABULARY or name.endswith(".safetensors.index.json"):
        return find_form(content.decode("utf-8", "replace"))  # its keys are tokens, or names of weights
    if path.suffix == ".jsonl":
        return _find_in_lines(content)
    if path.suffix in (".json", ".yaml", ".yml"):
        found = _find_in_data(path.suffix, content)
        return found or _find_in_text(content.decode("utf-8", "replace"))
    if path.suffix == ".parquet":
        return _find_in_parquet(content)
    if content[:2] == b"PK" and zipfile.is_zipfile(io.BytesIO(content)):
        return _find_in_archive(content)
    if path.suffix in _PICKLES and (found := _find_in_pickle(content)):
        return found
    if path.suffix in _TEXTS:
        return _find_in_text(content.decode("utf-8", "replace"))
    texts = (run.decode("ascii") for run in _PRINTABLE.findall(content))
    return next((f"text within it ({found})" for text in texts if (found := _find_in_text(text))), None)


def _find_in_lines(content: bytes) -> str | None:
    """
    Look through lines of JSON by what they say, and as text through those that are none: escaped, two settings without
    values, one below the other, read as one with a value.
    """
    for number, line in enumerate(content.splitlines(), 1):
        try:
            place = find_secret(json.loads(line)) if line.strip() else None
            found = None if place is None else f"`{place}` of line {number}"
        except (ValueError, RecursionError):
            found = _find_in_text(line.decode("utf-8", "replace")) and f"line {number}"
        if found is not None:
            return found
    return None


def _find_in_data(suffix: str, content: bytes) -> str | None:
    try:
        data = json.loads(content) if suffix == ".json" else yaml.safe_load(content)
    except (ValueError, RecursionError, yaml.YAMLError):  # read as text then
        return None
    place = find_secret(data)
    return None if place is None else f"`{place}`"


def _find_in_text(text: str) -> str | None:
    changed = redact(text)
    if changed == text:
        return None
    if text.lstrip()[:1] in ("{", "[") and (place := find_secret(text)):
        return f"`{place}`"
    same = next((at for at, (old, new) in enumerate(zip(text, changed, strict=False)) if old != new), len(changed))
    return f"line {text.count(chr(10), 0, same) + 1}"


def _find_in_tensors(path: Path) -> str | None:
    """Look through what a file of safetensors holds beside its tensors."""
    with path.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = opened.read(min(size, path.stat().st_size))
    try:
        place = find_secret(json.loads(header).get("__metadata__", {}))
    except (ValueError, AttributeError, RecursionError):
        return None
    return None if place is None else f"`__metadata__.{place}`"


def _find_in_parquet(content: bytes) -> str | None:
    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(content))
        for number, batch in enumerate(file.iter_batches(batch_size=_ROWS)):
            place = find_secret(batch.to_pylist())
            if place is not None:
                return f"`{place}` (batch {number} of {_ROWS} rows)"
    except pyarrow.ArrowException:
        return None
    return None


def _find_in_archive(content: bytes) -> str | None:
    """Look through the files of a wheel, or of what torch saved, but for its tensors."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        for entry in archive.namelist():
            if not entry.endswith("/") and not re.search(r"(^|/)data/\d+$", entry):
                place = _find_in_file(entry, archive.read(entry))
                if place is not None:
                    return f"{place} of the {redact(entry)} in it"
    return None


def _find_in_pickle(content: bytes) -> str | None:
    """Look through the texts of a pickle, each under the one before it, which is its key; nothing of it is run."""
    for name, text in _pickled_pairs(content):
        if is_secret_name(name) and find_secret({name: text}) is not None:
            return f"`{redact(name)}`"
        if find_secret([text]) is not None:
            return f"the value after `{redact(name)}`"
    return None


def _pickled_pairs(content: bytes) -> Iterator[tuple[str, str]]:
    before = ""
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if isinstance(argument, str):
                yield before, argument
                before = argument
            elif opcode.name not in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"):
                before = ""
    except (ValueError, pickle.UnpicklingError):  # no pickle, or a torn one
        return
