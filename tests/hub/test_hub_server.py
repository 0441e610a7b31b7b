"""The test Hub against the real clients: what they send it understands, what it answers they take for the Hub's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from huggingface_hub import HfApi, HfFileSystem, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from tests.fake_hub import clients
from tests.fake_hub.fixture import Hub

every_mode = pytest.mark.parametrize("hub", ["lfs", "multipart", "xet"], indirect=True)
CARD = b"---\nlicense: apache-2.0\ntags:\n- turn-ppo\n---\n# Agent\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as a release looks: small text files, one large file at the root and one below."""
    place = tmp_path / "release"
    (place / "critic").mkdir(parents=True)
    (place / "README.md").write_bytes(CARD)
    (place / "config.json").write_bytes(b'{"model_type": "llama"}')
    (place / "empty.txt").write_bytes(b"")
    (place / "model.safetensors").write_bytes(bytes(range(256)) * 800)  # more than four parts of a multipart upload
    (place / "critic" / "model.safetensors").write_bytes(bytes(range(255, -1, -1)) * 300)
    return place


def contents(folder: Path | str) -> dict[str, bytes]:
    root = Path(folder)
    files = (path for path in root.rglob("*") if path.is_file() and ".cache" not in path.parts)
    return {str(path.relative_to(root)): path.read_bytes() for path in files if path.name != ".gitattributes"}


def push(folder: Path, repo_id: str = "alice/agent", **options: Any) -> Any:
    api = HfApi()
    api.create_repo(repo_id, exist_ok=True)
    return api.upload_folder(folder_path=folder, repo_id=repo_id, commit_message="release", **options)


@every_mode
def test_folder_pushed_and_fetched_is_the_same(hub: Hub, folder: Path) -> None:
    push(folder)
    assert hub.files("alice/agent") == contents(folder)
    assert [commit.title for commit in hub.commits("alice/agent")] == ["release", "initial commit"]
    assert set(hub.commits("alice/agent")[0].files) == set(contents(folder))
    assert contents(snapshot_download("alice/agent")) == contents(folder)
    large = hub.requests("PUT .*/alice/agent/")
    assert [len({request.path for request in large})] == [{"lfs": 2, "multipart": 7, "xet": 0}[hub.mode]]
    assert bool(hub.requests("xet-write-token")) == bool(hub.requests("xet-read-token")) == (hub.mode == "xet")


@every_mode
def test_unchanged_folder_makes_no_commit_and_changed_one_does(hub: Hub, folder: Path) -> None:
    first = push(folder)
    assert push(folder).oid == first.oid and len(hub.commits("alice/agent")) == 2
    (folder / "model.safetensors").write_bytes(b"\0" * 120_000)
    second = push(folder)
    newest = hub.commits("alice/agent")[0]
    assert newest.oid == second.oid != first.oid and newest.author == "alice"
    assert newest.files == {"model.safetensors": b"\0" * 120_000}
    HfApi().delete_folder("critic", "alice/agent")
    assert hub.commits("alice/agent")[0].files == {"critic/model.safetensors": None}


@every_mode
def test_revision_is_pinned_by_commit_tag_and_branch(hub: Hub, folder: Path) -> None:
    api, old = HfApi(), push(folder)
    before = contents(folder)
    api.create_tag("alice/agent", tag="v1", tag_message="first")
    api.create_branch("alice/agent", branch="frozen")
    (folder / "model.safetensors").write_bytes(b"\1" * 60_000)
    push(folder)
    for revision in ("v1", "frozen", old.oid):
        assert contents(snapshot_download("alice/agent", revision=revision)) == before
    assert contents(snapshot_download("alice/agent")) == contents(folder) != before
    refs = api.list_repo_refs("alice/agent")
    assert [tag.name for tag in refs.tags] == ["v1"] and [branch.name for branch in refs.branches] == [
        "main",
        "frozen",
    ]
    assert [commit.title for commit in api.list_repo_commits("alice/agent")] == [
        "release",
        "release",
        "initial commit",
    ]
    with pytest.raises(RevisionNotFoundError):
        snapshot_download("alice/agent", revision="v2")
    with pytest.raises(HfHubHTTPError, match="exists already"):
        api.create_tag("alice/agent", tag="v1")
    api.delete_tag("alice/agent", tag="v1")
    assert api.list_repo_refs("alice/agent").tags == []


@every_mode
def test_pull_request_changes_main_when_it_is_merged(hub: Hub, folder: Path) -> None:
    HfApi().create_repo("alice/agent")
    opened = push(folder, create_pr=True)
    assert opened.pr_num == 1 and opened.pr_revision == "refs/pr/1"
    assert hub.files("alice/agent") == {}
    assert hub.files("alice/agent", "refs/pr/1") == contents(folder)
    assert contents(snapshot_download("alice/agent", revision="refs/pr/1")) == contents(folder)
    stranger = HfApi(token=hub.tokens["bob"])
    with pytest.raises(HfHubHTTPError, match="403"):
        stranger.merge_pull_request("alice/agent", 1)
    HfApi().merge_pull_request("alice/agent", 1)
    assert hub.files("alice/agent") == contents(folder)
    details = HfApi().get_discussion_details("alice/agent", 1)
    assert details.status == "merged" and details.merge_commit_oid == hub.commits("alice/agent")[0].oid
    assert [talk.num for talk in HfApi().get_repo_discussions("alice/agent")] == [1]


def test_commit_upon_a_stale_parent_is_refused(hub: Hub, folder: Path) -> None:
    old = push(folder)
    new = HfApi().upload_file(path_or_fileobj=b"2", path_in_repo="a.txt", repo_id="alice/agent", parent_commit=old.oid)
    with pytest.raises(HfHubHTTPError, match="412"):
        HfApi().upload_file(path_or_fileobj=b"3", path_in_repo="a.txt", repo_id="alice/agent", parent_commit=old.oid)
    assert hub.commits("alice/agent")[0].oid == new.oid


def test_private_repository_is_seen_by_its_owner_only(hub: Hub, folder: Path, tmp_path: Path) -> None:
    for repo_id in ("alice/secret", "guild/secret"):
        HfApi().create_repo(repo_id, private=True)
        HfApi().upload_folder(folder_path=folder, repo_id=repo_id)
        assert contents(snapshot_download(repo_id)) == contents(folder)
        assert HfApi().repo_info(repo_id).private
        for token in (hub.tokens["bob"], False):
            with pytest.raises(RepositoryNotFoundError):
                snapshot_download(repo_id, token=token, cache_dir=tmp_path / "stranger")
    with pytest.raises(RepositoryNotFoundError):
        HfApi(token=hub.tokens["bob"]).upload_file(path_or_fileobj=b"", path_in_repo="x", repo_id="alice/secret")
    HfApi().update_repo_settings("alice/secret", private=False)
    assert contents(snapshot_download("alice/secret", token=False, cache_dir=tmp_path / "s")) == contents(folder)


def test_rights_follow_token_and_namespace(hub: Hub, folder: Path) -> None:
    api = HfApi()
    identity = api.whoami()
    assert (identity["name"], [one["name"] for one in identity["orgs"]]) == ("alice", ["guild"])
    assert api.create_repo("alice/agent") == f"{hub.url}/alice/agent"
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo("alice/agent")
    api.create_repo("alice/agent", exist_ok=True)
    for repo_id, token in (
        ("bob/agent", None),
        ("alice/other", hub.tokens["alice-read"]),
        ("guild/a", hub.tokens["bob"]),
    ):
        with pytest.raises(HfHubHTTPError, match="403"):
            api.create_repo(repo_id, token=token)
    with pytest.raises(HfHubHTTPError, match="403"):
        push(folder, token=hub.tokens["bob"])
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token="hf_unknown")
    with pytest.raises(HfHubHTTPError, match="401"):
        snapshot_download("alice/agent", token="hf_unknown")
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info("alice/missing")
    api.delete_repo("alice/agent")
    assert hub.repos == {}


@pytest.mark.parametrize(
    ("readme", "complaint"),
    [
        (b"---\n- a list\n---\n", "must be a mapping"),
        (b"---\nlicense: [a, {b: c}]\n---\n", '"license" must be'),
        (b"---\na: [\n---\n", "cannot be parsed"),
        (b"---\nmodel-index:\n- results: []\n---\n", "model-index"),
    ],
)
def test_card_with_bad_front_matter_is_refused(hub: Hub, folder: Path, readme: bytes, complaint: str) -> None:
    (folder / "README.md").write_bytes(readme)
    with pytest.raises(ValueError, match=complaint):
        push(folder)
    assert hub.files("alice/agent") == {}
    (folder / "README.md").write_bytes(CARD)
    push(folder)
    assert hub.files("alice/agent")["README.md"] == CARD


def test_model_info_tells_files_tags_and_results(hub: Hub, folder: Path) -> None:
    (folder / ".eval_results").mkdir()
    result = b"- dataset: {id: alice/levels, task_id: default}\n  value: 0.5\n  date: 2026-11-25\n"
    (folder / ".eval_results" / "sokoban.yaml").write_bytes(result)
    sha = push(folder).oid
    info = HfApi().model_info("alice/agent", files_metadata=True)
    assert info.sha == sha and info.card_data.license == "apache-2.0" and "turn-ppo" in info.tags
    sizes = {item.rfilename: (item.size, item.lfs is not None) for item in info.siblings}
    assert sizes["critic/model.safetensors"] == (76_800, True) and sizes["config.json"] == (23, False)
    assert [entry.value for entry in info.eval_results] == [0.5]
    hub.server.page_size = 2  # six files and two folders: four pages
    tree = HfApi().list_repo_tree("alice/agent", recursive=True)
    assert {item.path for item in tree} == {*contents(folder), ".gitattributes", "critic", ".eval_results"}
    paths = HfApi().get_paths_info("alice/agent", ["critic", "config.json", "missing"], expand=True)
    assert {item.path: item.last_commit and item.last_commit.oid for item in paths} == {
        "critic": None,
        "config.json": sha,
    }


@pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)
def test_actor_and_critic_load_by_transformers_at_a_pinned_commit(
    hub: Hub, tmp_path: Path, tiny_actor: Any, tiny_tokenizer: Any
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

    place = tmp_path / "agent"
    tiny_actor.save_pretrained(place)
    tiny_tokenizer.save_pretrained(place)
    AutoModelForTokenClassification.from_pretrained(place, num_labels=1).save_pretrained(place / "critic")
    pinned = push(place).oid
    local = AutoModelForTokenClassification.from_pretrained(place / "critic")
    with torch.no_grad():
        tiny_actor.lm_head.weight.zero_()
    tiny_actor.save_pretrained(place)
    push(place)
    actor = AutoModelForCausalLM.from_pretrained("alice/agent", revision=pinned)
    critic = AutoModelForTokenClassification.from_pretrained("alice/agent", subfolder="critic")
    assert len(AutoTokenizer.from_pretrained("alice/agent")) == len(tiny_tokenizer)
    assert actor.lm_head.weight.abs().sum() > 0
    assert AutoModelForCausalLM.from_pretrained("alice/agent").lm_head.weight.abs().sum() == 0
    assert all(torch.equal(value, local.state_dict()[name]) for name, value in critic.state_dict().items())
    before = len(hub.log)
    actor.push_to_hub("alice/copy")
    assert "model.safetensors" in hub.files("alice/copy") and len(hub.log) > before


def test_dataset_is_pushed_and_loaded(hub: Hub) -> None:
    from datasets import Dataset, load_dataset

    rows = [{"messages": [{"role": "user", "content": "left"}], "values": [0.5, 1.0]}, {"messages": [], "values": []}]
    Dataset.from_list(rows).push_to_hub("alice/episodes", private=True)
    assert load_dataset("alice/episodes", split="train").to_list() == rows
    assert {path.split("/")[0] for path in hub.files("alice/episodes", repo_type="dataset")} == {"README.md", "data"}


def test_space_is_created_with_secrets_that_cannot_be_read_back(hub: Hub) -> None:
    api, settings = HfApi(), {"repo_id": "alice/play", "repo_type": "space"}
    secret = [{"key": "HF_TOKEN", "value": "hf_hidden"}]
    variables = [{"key": "AGENT", "value": "alice/agent"}]
    api.create_repo(
        **settings, space_sdk="gradio", space_hardware="zero-a10g", space_secrets=secret, space_variables=variables
    )
    assert api.get_space_runtime("alice/play").stage == "NO_APP_FILE"
    api.add_space_secret("alice/play", "OTHER", "hf_too")
    api.add_space_variable("alice/play", "REVISION", "main")
    api.upload_file(path_or_fileobj=b"print()", path_in_repo="app.py", **settings)
    runtime = api.get_space_runtime("alice/play")
    assert (runtime.stage, runtime.hardware) == ("RUNNING", "zero-a10g")
    secrets = api.get_space_secrets("alice/play")
    assert set(secrets) == {"HF_TOKEN", "OTHER"} and "hf_" not in str(secrets)
    assert hub.repos["space", "alice/play"].space["secrets"]["OTHER"]["value"] == "hf_too"
    assert {key: item.value for key, item in api.get_space_variables("alice/play").items()} == {
        "AGENT": "alice/agent",
        "REVISION": "main",
    }
    assert api.space_info("alice/play").sdk == "gradio"
    readme = b"---\ncolorFrom: mauve\n---\n"
    with pytest.raises(ValueError, match="colorFrom"):
        api.upload_file(path_or_fileobj=readme, path_in_repo="README.md", **settings)


def test_collection_holds_what_is_added_to_it(hub: Hub, folder: Path) -> None:
    push(folder)
    api = HfApi()
    collection = api.create_collection("Turn PPO agents", namespace="guild")
    api.add_collection_item(collection.slug, "alice/agent", "model", note="first")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.add_collection_item(collection.slug, "alice/agent", "model")
    items = api.get_collection(collection.slug).items
    assert [(item.item_id, item.note) for item in items] == [("alice/agent", "first")]
    assert api.create_collection("Turn PPO agents", namespace="guild", exists_ok=True).slug == collection.slug


@every_mode
def test_token_stays_with_the_hub(hub: Hub, folder: Path) -> None:
    push(folder)
    snapshot_download("alice/agent")
    stored = [request for request in hub.log if request.host.startswith("localhost")]
    assert bool(stored) == (hub.mode != "xet")
    assert hub.sent_to_storage(hub.token) == [] == hub.saw_token(hub.token)
    # control: both are seen where they happen
    leak = httpx2.get(f"{hub.storage_url}/x", headers={"Authorization": f"Bearer {hub.token}"})
    assert leak.status_code == 400 and len(hub.sent_to_storage(hub.token)) == 1
    HfApi().upload_file(path_or_fileobj=hub.token.encode(), path_in_repo="x.log", repo_id="alice/agent")
    assert len(hub.saw_token(hub.token)) == 1 and "x.log" in hub.saw_token(hub.token)[0]


@every_mode
def test_cache_serves_while_the_hub_is_down(hub: Hub, folder: Path, tmp_path: Path) -> None:
    push(folder)
    snapshot_download("alice/agent")
    hub.inject("", status=500, times=None)
    assert contents(snapshot_download("alice/agent")) == contents(folder)
    with pytest.raises(Exception, match=r"500|Hub|cache"):  # control: an empty cache has nothing to serve
        snapshot_download("alice/agent", cache_dir=tmp_path / "empty")
    hub.heal()
    assert contents(snapshot_download("alice/agent", cache_dir=tmp_path / "empty")) == contents(folder)


COMMIT, UPLOAD, MODES = "POST .*/commit/", "PUT /models/", "POST .*/preupload/"


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ({"status": 401}, HfHubHTTPError, "401"),
        ({"status": 403, "message": "no rights"}, HfHubHTTPError, "403 Forbidden: no rights"),
        ({"status": 404, "error_code": "RepoNotFound"}, RepositoryNotFoundError, "Repository Not Found"),
        ({"status": 409}, HfHubHTTPError, "409"),
        ({"status": 413, "message": "too large"}, HfHubHTTPError, "413"),
        ({"status": 429, "retry_after": 7}, HfHubHTTPError, "429 Too Many Requests"),
        ({"status": 500}, HfHubHTTPError, "500"),
        ({"status": 503}, HfHubHTTPError, "503"),
        ({"drop": True}, httpx2.RemoteProtocolError, "disconnected"),
        ({"cut_after": 10}, httpx2.NetworkError, "reset|closed|Broken"),
    ],
)
def test_fault_at_the_commit_is_raised_at_once_and_a_second_push_goes_through(
    hub: Hub, folder: Path, fault: dict[str, Any], error: type[Exception], message: str
) -> None:
    hub.inject(COMMIT, **fault)
    with pytest.raises(error, match=message):
        push(folder)
    assert hub.files("alice/agent") == {} and hub.waits == []
    sent = len(hub.requests(UPLOAD))
    push(folder)
    assert hub.files("alice/agent") == contents(folder)
    assert len(hub.requests(UPLOAD)) == sent  # what had been uploaded was not uploaded again


@pytest.mark.parametrize("hub", ["lfs", "multipart"], indirect=True)
@pytest.mark.parametrize(
    ("fault", "waits"),
    [
        ({"status": 429, "retry_after": 7}, [8.0]),
        ({"status": 500, "times": 3}, [1, 2, 4]),
        ({"status": 503}, [1]),
        ({"drop": True}, [1]),
        ({"cut_after": 20_000}, [1]),
    ],
)
def test_fault_in_an_upload_is_tried_again(hub: Hub, folder: Path, fault: dict[str, Any], waits: list[float]) -> None:
    (folder / "critic" / "model.safetensors").unlink()
    hub.inject(UPLOAD, **fault)
    push(folder)
    assert hub.waits == waits and hub.files("alice/agent") == contents(folder)
    failed = [request.status for request in hub.requests(UPLOAD) if request.status != 200]
    assert failed == [fault.get("status")] * len(waits)


@pytest.mark.parametrize("fault", [{"status": 500}, {"drop": True}, {"cut_after": 20_000}, {"status": 403}])
def test_fault_that_stays_fails_the_upload_and_leaves_no_commit(hub: Hub, folder: Path, fault: dict[str, Any]) -> None:
    (folder / "critic" / "model.safetensors").unlink()
    hub.inject(UPLOAD, **fault, times=None)
    with pytest.raises(RuntimeError, match=r"uploading 'model.safetensors'"):
        push(folder)
    assert hub.waits == ([] if fault == {"status": 403} else [1, 2, 4, 8, 8])
    assert [commit.title for commit in hub.commits("alice/agent")] == ["initial commit"]


@pytest.mark.parametrize("hub", ["xet"], indirect=True)
def test_xet_upload_tries_its_commit_again(hub: Hub, folder: Path) -> None:
    hub.inject(COMMIT, status=503, times=2)
    push(folder)
    assert hub.waits == [1, 2] and hub.files("alice/agent") == contents(folder)
    hub.inject(MODES, status=403)
    with pytest.raises(HfHubHTTPError, match="403"):
        push(folder)


def test_slow_answer_times_out_where_the_client_has_a_limit(hub: Hub, folder: Path, tmp_path: Path) -> None:
    from huggingface_hub import hf_hub_download

    push(folder)
    slow = hub.inject("HEAD ", delay=0.4)
    path = hf_hub_download("alice/agent", "config.json", etag_timeout=0.1)
    assert Path(path).read_bytes() == (folder / "config.json").read_bytes() and slow.times == 0
    hub.inject(COMMIT, delay=0.2)  # no limit: the client waits
    (folder / "config.json").write_bytes(b"{}")
    push(folder)
    assert hub.files("alice/agent")["config.json"] == b"{}"


def test_download_that_breaks_off_is_tried_again(hub: Hub, folder: Path) -> None:
    push(folder)
    hub.inject("GET /models/", cut_after=50_000)
    assert contents(snapshot_download("alice/agent")) == contents(folder)
    assert hub.waits == [1]


def test_part_of_a_file_is_served(hub: Hub, folder: Path) -> None:
    push(folder)
    with HfFileSystem().open("alice/agent/model.safetensors", block_size=1000) as file:
        file.seek(1000)
        assert file.read(10) == contents(folder)["model.safetensors"][1000:1010]
    assert all("range" in request.headers for request in hub.requests("GET /models/"))
    address = f"{hub.url}/alice/agent/resolve/main/config.json"
    for asked, status, content in (("bytes=-3", 206, b'a"}'), ("bytes=20-", 206, b'a"}'), ("bytes=99-", 416, None)):
        answer = httpx2.get(address, headers={"Range": asked})
        assert answer.status_code == status and content in (None, answer.content)


def test_command_line_speaks_to_the_hub(hub: Hub, folder: Path) -> None:
    def hf(*words: str) -> str:
        command = [Path(sys.executable).with_name("hf"), *words]
        return subprocess.run(command, env=hub.environment, capture_output=True, text=True, check=True).stdout

    hf("upload", "alice/agent", str(folder), "--private")
    assert hub.files("alice/agent") == contents(folder) and hub.repos["model", "alice/agent"].private
    assert {request.user for request in hub.requests("commit")} == {"alice"}


def test_clients_are_put_back(tmp_path: Path) -> None:
    import datasets.config
    import transformers.utils.hub
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import _http

    def state() -> list[Any]:
        modules = (constants, datasets.config, transformers.utils.hub, _http)
        settings = [vars(module)[name] for module in modules for name in sorted(vars(module)) if name.isupper()]
        return [*settings, hf_api.api.endpoint, _http.time, _http._HUB_ORIGINS, dict(os.environ)]

    before = state()
    with pytest.MonkeyPatch.context() as patch:
        variables = clients.environment("http://127.0.0.1:1", "hf_x", tmp_path, xet=False)
        clients.redirect(patch, variables, [])
        assert state() != before and constants.ENDPOINT == "http://127.0.0.1:1"
    assert state() == before and constants.HF_HUB_OFFLINE
