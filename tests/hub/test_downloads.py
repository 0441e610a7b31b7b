"""What is read from the test Hub: agents, checked and cached, and cards; and copies of their folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi, constants

from tests.fake_hub.fixture import Hub
from tests.hub.test_client import CARD, LARGE, PUBLIC, files_in, push, released, write_release
from turnppo_hf.hub.background import stage
from turnppo_hf.hub.client import create_repository, fetch, is_writable, read_published
from turnppo_hf.hub.exceptions import PushError, ReleaseError


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("turnppo_hf.hub.client.RETRY_WAITS_S", (0, 0, 0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_release(tmp_path / "release")


def test_fetch_takes_one_commit_by_branch_tag_and_id(hub: Hub, folder: Path) -> None:
    first = push(folder)
    HfApi().create_tag("alice/agent", tag="v1")
    before = released(folder)
    (folder / "model.safetensors").write_bytes(LARGE[2:])
    push(folder)
    for revision, wanted in ((first.oid, before), ("v1", before), (None, released(folder))):
        path = fetch("alice/agent", revision=revision)
        assert {name: (path / name).read_bytes() for name in PUBLIC} == wanted
    with pytest.raises(ReleaseError, match=r"no such revision.*Name a branch"):
        fetch("alice/agent", revision="v9")
    with pytest.raises(ReleaseError, match=r"no such repository.*Check the name"):
        fetch("alice/nothing")


def test_fetch_leaves_what_no_agent_needs(hub: Hub, folder: Path) -> None:
    push(folder, names=files_in(folder))
    names = {path.relative_to(place).as_posix() for place in [fetch("alice/agent")] for path in place.rglob("*")}
    assert names >= PUBLIC and not {name for name in names if name.endswith((".bin", ".pt", ".pth", ".parquet"))}
    assert not {name for name in names if name.startswith("checkpoint-2/")}


def test_fetch_of_a_private_agent_needs_its_token(hub: Hub, folder: Path, tmp_path: Path) -> None:
    push(folder, private=True)
    for number, token in enumerate((hub.tokens["bob"], False)):
        with pytest.raises(ReleaseError, match="no such repository"):
            fetch("alice/agent", token=token, cache_dir=tmp_path / f"cache{number}")
    assert (fetch("alice/agent", token=hub.token, cache_dir=tmp_path / "mine") / "config.json").exists()
    assert (fetch("alice/agent") / "config.json").exists()


def test_fetch_from_the_cache_while_the_hub_fails(hub: Hub, folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    push(folder)
    place = fetch("alice/agent")
    for fault in ({"status": 500}, {"status": 429}, {"drop": True}):
        hub.heal()
        hub.inject("", times=None, **fault)
        assert fetch("alice/agent") == place
        with pytest.raises(ReleaseError, match=r"not wholly, in the cache, and the .*(Hub|connection)"):
            fetch("alice/agent", cache_dir=tmp_path / "empty")
    hub.heal()
    number = len(hub.log)
    assert fetch("alice/agent", local_files_only=True) == place
    with pytest.raises(ReleaseError, match="in the cache, and no request was allowed"):
        fetch("alice/other", local_files_only=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch("alice/agent") == place
    with pytest.raises(ReleaseError, match=r"HF_HUB_OFFLINE is set.*Unset it"):
        fetch("alice/other")
    assert len(hub.log) == number


def test_fetch_that_breaks_off_is_no_agent_and_goes_on_later(hub: Hub, folder: Path) -> None:
    push(folder)
    hub.inject("GET /models/", cut_after=20_000, times=None)
    with pytest.raises(ReleaseError, match="could not be had"):
        fetch("alice/agent")
    with pytest.raises(ReleaseError, match="not wholly, in the cache"):
        fetch("alice/agent", local_files_only=True)
    hub.heal()
    assert (fetch("alice/agent") / "model.safetensors").read_bytes() == LARGE


@pytest.mark.parametrize("name", ["../evil.json", "/etc/evil.json", "a/../../evil.json", "c:\\evil.json"])
def test_fetch_refuses_names_that_leave_the_folder_before_a_download(hub: Hub, folder: Path, name: str) -> None:
    push(folder)
    repository = hub.repos["model", "alice/agent"]
    main = repository.branches["main"]
    tree = {**main.tree, name: repository.add_regular(b"{}")}
    repository.branches["main"] = repository.new_commit(main, "evil", "", "alice", tree)
    for fault in (None, {"status": 503}):  # a Hub that fails for the listing alone does not get around it
        if fault:
            hub.inject("GET /api/models/alice/agent", **fault)
        with pytest.raises(ReleaseError, match=r"outside of its own folder|in the cache"):
            fetch("alice/agent")
        assert hub.requests("/resolve/") == []


def test_fetch_refuses_weights_that_are_pickles_alone(hub: Hub, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    push(folder, names=[name for name in files_in(folder) if "/" not in name and "rollout" not in name])
    with pytest.raises(ReleaseError, match="a pickle, which can run code"):
        fetch("alice/agent")
    assert hub.requests("/resolve/") == []


def test_read_published_tells_no_card_from_one_that_cannot_be_read(hub: Hub, folder: Path) -> None:
    assert read_published("alice/agent") is None
    create_repository("alice/agent", private=True)
    assert read_published("alice/agent") is None
    push(folder)
    assert read_published("alice/agent") == read_published("alice/agent", revision="not-yet") == CARD
    assert read_published("alice/agent", token=hub.tokens["bob"]) is None
    HfApi().upload_file(path_or_fileobj=b"# New\n", path_in_repo="README.md", repo_id="alice/agent")
    hub.inject("README.md", status=503)
    assert read_published("alice/agent") == "# New\n", "not the older one of the cache"
    hub.inject("README.md", status=503, times=None)
    with pytest.raises(PushError, match=r"README.md of 'alice/agent' was not read.*the Hub fails"):
        read_published("alice/agent")


def test_is_writable_where_the_hub_says_so(hub: Hub) -> None:
    for owner, token in (("alice", hub.token), ("guild", hub.token), ("bob", hub.tokens["bob"])):
        create_repository(f"{owner}/agent", token=token)
    assert [is_writable(f"{owner}/agent") for owner in ("alice", "guild", "bob")] == [True, True, False]
    assert is_writable("bob/agent", token=hub.tokens["bob"])
    assert not is_writable("alice/agent", token=hub.tokens["alice-read"])
    hub.inject("whoami", status=500, times=None)
    with pytest.raises(PushError, match=r"The Hub was not asked who pushes.*the Hub fails"):
        is_writable("alice/agent")


def test_stage_links_tensors_and_copies_the_rest(tmp_path: Path, folder: Path) -> None:
    copy = tmp_path / "copy"
    (copy / "left").mkdir(parents=True)
    stage(folder, copy)
    assert not (copy / "left").exists()
    assert (copy / "critic" / "model.safetensors").samefile(folder / "critic" / "model.safetensors")
    assert not (copy / "README.md").samefile(folder / "README.md")
    (copy / "README.md").write_text("other")
    assert (folder / "README.md").read_text() == CARD
    (folder / "model.safetensors").unlink()
    assert (copy / "model.safetensors").read_bytes() == LARGE


def test_stage_copies_where_links_are_impossible(tmp_path: Path, folder: Path, monkeypatch: Any) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("links are not supported here")

    monkeypatch.setattr(os, "link", refuse)
    stage(folder, tmp_path / "copy")
    copied = tmp_path / "copy" / "model.safetensors"
    assert copied.read_bytes() == LARGE and not copied.samefile(folder / "model.safetensors")


def test_stage_of_the_hubs_cache_copies_files_and_not_its_links(hub: Hub, tmp_path: Path, folder: Path) -> None:
    push(folder)
    place = fetch("alice/agent")
    assert (place / "model.safetensors").is_symlink()
    stage(place, tmp_path / "copy")
    names = [path for path in (tmp_path / "copy").rglob("*") if path.is_symlink()]
    assert not names and (tmp_path / "copy" / "model.safetensors").read_bytes() == LARGE
