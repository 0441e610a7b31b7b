"""Xet mode: hf_xet, given a `local://` address, keeps its store in a folder. What lies there is read here."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path

RECORD = 48  # bytes: all records of a shard's file section are this long
WITH_VERIFICATION, WITH_METADATA = 1 << 31, 1 << 30


def hex_of(words: bytes) -> str:
    """A hash as Xet prints it: four little-endian words of 64 bits."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", words))


def file_hashes(folder: Path) -> dict[str, str]:
    """
    sha256 -> Xet hash of every file in the shards of a store.

    A shard's file section follows its header: for each file a head (hash, flags, number of segments), its segments,
    with one flag as many verification records again, and with the other one record with the sha256.
    """
    found = {}
    for shard in sorted(folder.rglob("*.mdb")):
        data, position = shard.read_bytes(), RECORD
        while position + RECORD <= len(data):
            head = data[position : position + RECORD]
            if head[:32] == b"\xff" * 32:
                break
            flags, segments = struct.unpack("<II", head[32:40])
            position += RECORD * (1 + segments * (2 if flags & WITH_VERIFICATION else 1))
            if flags & WITH_METADATA:
                found[hex_of(data[position : position + 32])] = hex_of(head[:32])
                position += RECORD
    return found


def read_file(folder: Path, xet_hash: str) -> bytes:
    """A file's bytes, put together from its chunks by hf_xet itself."""
    import hf_xet

    with tempfile.TemporaryDirectory() as place:
        target = Path(place) / "file"
        with hf_xet.XetSession().new_file_download_group(endpoint=f"local://{folder}") as group:
            group.start_download_file(hf_xet.XetFileInfo(xet_hash), str(target))
        return target.read_bytes()
