"""Pushes and downloads against the test Hub, as it should be and with every fault; what the user sees of each."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants, get_session

import turnppo_hf.hub.client
import turnppo_hf.hub.http_errors
from tests.fake_hub.clients import Clock, forget_connections
from tests.fake_hub.fixture import Hub
from turnppo_hf.hub.background import BackgroundPushes
from turnppo_hf.hub.client import (
    RETRY_WAITS_S,
    create_repository,
    is_writable,
    push_checkpoint,
    push_folder,
    read_published,
    with_retries,
)
from turnppo_hf.hub.exceptions import PushError, ReleaseError
from turnppo_hf.hub.http_errors import explain, redact

every_mode = pytest.mark.parametrize("hub", ["lfs", "multipart", "xet"], indirect=True)
CARD = "---\nlicense: apache-2.0\n---\n# Agent\n"
LARGE = bytes(range(256)) * 400
COMMIT, UPLOAD = "POST .*/commit/", "PUT /models/"
TIMEOUT_S = 0.5

# name -> request it strikes, what the test Hub does, whether it passes, cause and remedy that the user reads
FAULTS: dict[str, tuple[str, dict[str, Any], bool, str]] = {
    "400 bad card": (COMMIT, {"status": 400, "message": "Invalid metadata"}, False, r"refuses.*400: Invalid.*Fix it"),
    "401 revoked token": (
        COMMIT,
        {"status": 401, "message": "Invalid credentials in Authorization header"},
        False,
        r"does not accept the token \(401.*hf auth login",
    ),
    "401 stranger": (
        COMMIT,
        {"status": 401, "error_code": "RepoNotFound"},
        False,
        r"no such repository to strangers \(401.*hf auth login",
    ),
    "403 no right": (
        COMMIT,
        {"status": 403, "message": "Quota used up"},
        False,
        r"may not write there.*403: Quota used up.*Use a",
    ),
    "404 deleted": (COMMIT, {"status": 404, "error_code": "RepoNotFound"}, False, r"no such repository.*404.*Check"),
    "409 concurrent": (COMMIT, {"status": 409}, True, r"changed by somebody else \(409.*Try again"),
    "412 moved on": (COMMIT, {"status": 412}, True, r"changed in between \(412.*Try again"),
    "413 too large": (COMMIT, {"status": 413}, False, r"too large \(413.*smaller shards"),
    "429 rate limit": (COMMIT, {"status": 429, "retry_after": 17}, True, r"too many requests \(429.*in some minutes"),
    "500 failing": (COMMIT, {"status": 500}, True, r"the Hub fails \(500.*status.huggingface.co"),
    "503 busy": (COMMIT, {"status": 503}, True, r"the Hub fails \(503.*status.huggingface.co"),
    "no answer": (
        COMMIT,
        {"delay": 2.0, "status": 504},
        True,
        rf"no answer within {TIMEOUT_S} s.*Check the connection",
    ),
    "dropped": (COMMIT, {"drop": True}, True, r"the connection failed.*HF_ENDPOINT"),
    "upload 403": (
        UPLOAD,
        {"status": 403},
        False,
        r"uploading '.*safetensors'.*may not write there \(403.*Use a token",
    ),
    "upload 413": (UPLOAD, {"status": 413}, False, r"uploading '.*safetensors'.*too large \(413.*smaller shards"),
    "upload 503": (UPLOAD, {"status": 503}, True, r"uploading '.*safetensors'.*the Hub fails \(503.*try again later"),
    "upload cut": (UPLOAD, {"cut_after": 20_000}, True, r"uploading '.*safetensors'.*connection failed.*try again"),
}


def wait_at_most(monkeypatch, seconds: float) -> None:
    for module in (turnppo_hf.hub.client, turnppo_hf.hub.http_errors):  # one waits, the other says how long it was
        monkeypatch.setattr(module, "REQUEST_TIMEOUT_S", seconds)


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that our own retries would have slept."""
    slept: list[float] = []
    monkeypatch.setattr(turnppo_hf.hub.client, "time", Clock(slept))
    return slept


@pytest.fixture(autouse=True)
def no_threads_are_left() -> Iterator[None]:
    """What a test queues at the end of the program would otherwise wait there for its Hub."""
    registered = list(threading._threading_atexits)  # type: ignore[attr-defined]
    yield
    threading._threading_atexits[:] = registered  # type: ignore[attr-defined]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_release(tmp_path / "release")


def write_release(place: Path) -> Path:
    """Write a release with what a trainer leaves beside it."""
    for name, content in {
        "README.md": CARD.encode(),
        "config.json": b'{"model_type": "llama"}',
        "turnppo.json": b"{}",
        "model.safetensors": LARGE,
        "critic/config.json": b"{}",
        "critic/model.safetensors": LARGE[::-1],
        # what never leaves the machine
        "training_args.bin": b"pickle",
        "optimizer.pt": b"pickle",
        "critic/pytorch_model.bin": b"pickle",
        "rng_state.pth": b"pickle",
        "checkpoint-2/model.safetensors": LARGE[3:],
        "_push-2/model.safetensors": LARGE[4:],
        "rollout_0_of_1.safetensors": b"rollout",
        "trajectories/held_out.parquet": b"episodes",
        ".cache/huggingface/x.json": b"{}",
    }.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(content)
    return place


PUBLIC = {"README.md", "config.json", "turnppo.json", "model.safetensors", "critic/config.json"}
PUBLIC |= {"critic/model.safetensors"}


def released(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in PUBLIC}


def files_in(folder: Path) -> list[str]:
    """What `upload_folder` would take of a folder by itself."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return [name for name in names if not name.startswith(".cache/")]


def push(folder: Path, repo_id: str = "alice/agent", **options: Any) -> Any:
    return push_folder(folder, repo_id, message="release", **options)


@every_mode
def test_folder_pushed_is_a_commit_without_pickles_or_private_files(hub: Hub, folder: Path) -> None:
    commit = push(folder, "agent")
    assert hub.files("alice/agent") == released(folder)
    newest = hub.commits("alice/agent")[0]
    assert (newest.oid, newest.title, newest.author) == (commit.oid, "release", "alice")
    push(folder, "guild/agent", names=files_in(folder))  # the control: these files are kept back by their patterns
    assert {"training_args.bin", "optimizer.pt", "_push-2/model.safetensors"} <= set(hub.files("guild/agent"))


@every_mode
def test_second_push_commits_only_what_changed(hub: Hub, folder: Path) -> None:
    first = push(folder)
    assert push(folder).oid == first.oid
    (folder / "critic" / "model.safetensors").write_bytes(LARGE[1:])
    sent = len(hub.requests(UPLOAD))
    push(folder)
    assert hub.commits("alice/agent")[0].files == {"critic/model.safetensors": LARGE[1:]}
    assert len({request.path for request in hub.requests(UPLOAD)[sent:]}) == {"lfs": 1, "multipart": 3}.get(
        hub.mode, 0
    )


def test_push_goes_where_it_is_told_to(hub: Hub, folder: Path) -> None:
    push(folder, "guild/secret", private=True)
    assert hub.repos["model", "guild/secret"].private
    push(folder)
    assert not hub.repos["model", "alice/agent"].private
    (folder / "config.json").write_bytes(b'{"model_type": "gpt2"}')
    push(folder, revision="next")
    assert hub.files("alice/agent", "next") == released(folder) != hub.files("alice/agent")
    opened = push(folder, create_pr=True)
    assert opened.pr_revision == "refs/pr/1" and hub.files("alice/agent", "refs/pr/1") == released(folder)
    (folder / "turnppo.json").write_bytes(b'{"schema_version": 1}')
    push(folder, revision="refs/pr/1")
    assert hub.files("alice/agent", "refs/pr/1") == released(folder) != hub.files("alice/agent")
    assert set(hub.repos["model", "alice/agent"].branches) == {"main", "next"}
    push(folder, repo_type="dataset")
    assert hub.files("alice/agent", repo_type="dataset")["critic/model.safetensors"] == LARGE[::-1]
    push_checkpoint(folder, "alice/agent", "copies/a", message="checkpoint")
    copied = hub.files("alice/agent")
    assert copied["copies/a/critic/model.safetensors"] == LARGE[::-1] and copied["copies/a/optimizer.pt"] == b"pickle"


def inject(hub: Hub, name: str, times: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a fault of the table strike so many times, with a short time-out where it is about one."""
    pattern, what, *_ = FAULTS[name]
    wait_at_most(monkeypatch, TIMEOUT_S if name == "no answer" else 300.0)
    forget_connections()  # they keep the time-out that they began with
    hub.inject(pattern, times=times, **what)


def without_tokens(hub: Hub, error: BaseException, log: str) -> bool:
    told = str(error) + "".join(traceback.format_exception(error)) + log
    return not any(token in told for token in hub.tokens.values())


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_survived_once_or_explained(
    hub: Hub, folder: Path, waits: list[float], caplog: Any, monkeypatch: Any, name: str
) -> None:
    """With `-s` it prints its row of the table: fault, what the user sees where it happens once, and always."""
    _, _, passes, sentence = FAULTS[name]
    rows = []
    for times in (1, None):
        repo_id, slept = f"alice/{'once' if times else 'always'}", len(waits)
        caplog.clear()
        inject(hub, name, times, monkeypatch)
        if passes and times:
            push(folder, repo_id)
            assert hub.files(repo_id) == released(folder)
            said = [record.getMessage() for record in caplog.records if record.name == "turnppo_hf.hub.client"]
            # an upload's own client tries again without a word
            assert len(said) == len(waits[slept:]) == (0 if name.startswith("upload") else 1)
            asked = FAULTS[name][1].get("retry_after", 0)
            assert not said or waits[slept:] == [max(RETRY_WAITS_S[0], asked)]
            rows.append((said or ["nothing: the client sends the file again."])[0] + " Then it succeeds.")
        else:
            with pytest.raises(PushError, match=sentence) as caught:
                push(folder, repo_id)
            assert caught.value.is_transient == passes
            assert len(waits) - slept == (len(RETRY_WAITS_S) if passes else 0)
            assert "after 4 attempts" in str(caught.value) or not passes
            assert without_tokens(hub, caught.value, caplog.text)
            assert hub.files(repo_id) == {}, "half a release is none"
            rows.append("the same" if times else f"`PushError`: {caught.value}")
        hub.heal()
        push(folder, repo_id)
        assert hub.files(repo_id) == released(folder), "nothing was lost: the same push succeeds afterwards"
    assert hub.saw_token(hub.token) == []
    print(
        "\n|",
        name,
        "|",
        " | ".join(
            row.replace(str(folder), "FOLDER").replace(repo_id, "me/agent").replace("alice/once", "me/agent")
            for row in rows
        ),
        "|",
    )


@every_mode
@pytest.mark.parametrize("name", ["403 no right", "409 concurrent", "500 failing", "dropped"])
def test_fault_ends_the_same_in_every_mode(hub: Hub, folder: Path, name: str, monkeypatch: Any) -> None:
    _, _, passes, sentence = FAULTS[name]
    inject(hub, name, None, monkeypatch)
    with pytest.raises(PushError, match=sentence) as caught:
        push(folder)
    assert caught.value.is_transient == passes and hub.files("alice/agent") == {}
    hub.heal()
    push(folder)
    assert hub.files("alice/agent") == released(folder)


@pytest.mark.parametrize("hub", ["multipart"], indirect=True)
def test_upload_in_parts_that_is_cut_arrives_whole(hub: Hub, folder: Path) -> None:
    hub.inject(UPLOAD + ".*part=2", cut_after=20_000, times=3)
    push(folder)
    assert hub.files("alice/agent") == released(folder)


def test_waits_follow_the_hub_up_to_a_limit(hub: Hub, folder: Path, waits: list[float]) -> None:
    hub.inject(COMMIT, status=429, retry_after=90)
    hub.inject(COMMIT, status=429, retry_after=9_000)
    hub.inject(COMMIT, status=503)
    push(folder)
    assert waits == [90.0, 300.0, 30.0]


def test_request_that_may_have_arrived_opens_no_second_pull_request(hub: Hub, folder: Path) -> None:
    create_repository("alice/agent")
    dropped = hub.inject(COMMIT, drop=True, times=9)
    with pytest.raises(PushError, match="the connection failed") as caught:
        push(folder, create_pr=True)
    assert dropped.times == 8 and "attempts" not in str(caught.value)
    hub.heal()
    refused = hub.inject(COMMIT, status=503)  # the control: here the Hub said that it did nothing
    push(folder, create_pr=True)
    assert refused.times == 0 and len(hub.repos["model", "alice/agent"].discussions) == 1


def test_commit_whose_answer_is_lost_is_not_made_twice(hub: Hub, folder: Path, monkeypatch: Any) -> None:
    wait_at_most(monkeypatch, TIMEOUT_S)
    hub.inject(COMMIT, delay=2 * TIMEOUT_S)  # it commits when nobody listens any more

    def sleep(_: float) -> None:
        while not hub.files("alice/agent"):
            time.sleep(0.01)

    monkeypatch.setattr(turnppo_hf.hub.client, "time", SimpleNamespace(sleep=sleep))
    commit = push(folder)
    assert [commit.title for commit in hub.commits("alice/agent")] == ["release", "initial commit"]
    assert commit.oid == hub.commits("alice/agent")[0].oid and hub.files("alice/agent") == released(folder)


def test_checkpoint_is_pushed_in_place_of_what_was_there(hub: Hub, folder: Path) -> None:
    push(folder)
    for name in ("last", "other"):
        push_checkpoint(folder, "alice/agent", name, message="checkpoint")
    whole = {f"other/{name}" for name in files_in(folder)}
    (folder / "turnppo.json").unlink()
    push(folder)
    push_checkpoint(folder, "alice/agent", "last", message="checkpoint")
    last = {f"last/{name}" for name in files_in(folder)}
    names = set(hub.files("alice/agent"))
    assert names == PUBLIC | whole | last, "the control: `push_folder` deletes nothing"


def test_offline_mode_makes_no_request(hub: Hub, folder: Path, monkeypatch: Any, waits: list[float]) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for action in (lambda: push(folder), lambda: read_published("alice/agent"), lambda: create_repository("agent")):
        with pytest.raises(PushError, match=r"HF_HUB_OFFLINE is set.*Unset it") as caught:
            action()
        assert not caught.value.is_transient
    assert hub.log == [] and waits == []


def test_push_without_or_with_a_bad_token_says_how_to_log_in(hub: Hub, folder: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("HF_TOKEN")
    for action in (lambda: push(folder), lambda: is_writable("alice/agent")):
        with pytest.raises(PushError, match="hf auth login"):
            action()
    for token, said in (
        ("hf_NobodysToken", "does not accept the token.*hf auth login"),
        (hub.tokens["alice-read"], "may not write there.*write permission"),
        (f"{hub.token}\n", "Check the token for spaces and line breaks"),
    ):
        with pytest.raises(PushError, match=said) as caught:
            push(folder, "alice/agent", token=token)
        assert token.strip() not in str(caught.value) and not caught.value.is_transient
    assert ("model", "alice/agent") not in hub.repos
    push(folder, token=hub.token)  # the control


@pytest.mark.parametrize("name", ["a/b/c", "..", "alice/with space", "alice/x--y", "-", "", "a" * 120])
def test_push_to_an_invalid_name_says_what_a_name_is(hub: Hub, folder: Path, name: str) -> None:
    with pytest.raises(PushError, match=r"`name` or `namespace/name`|refuses what was sent \(400: Invalid") as caught:
        push(folder, name)
    assert not caught.value.is_transient and not hub.repos


def test_push_of_no_folder_creates_no_repository(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(PushError, match=r"is no folder.*Check the path"):
        push(tmp_path / "nothing")
    assert hub.log == []


def test_address_that_is_none_is_not_tried_again(hub: Hub, waits: list[float]) -> None:
    for address in ("hub.example.org/api", "ftp://hub.example.org", "https://hub.example.org:port"):
        with pytest.raises(PushError, match="Set HF_ENDPOINT") as caught:
            with_retries(lambda address=address: get_session().get(address), "Nobody answered")
        assert not caught.value.is_transient
    assert waits == []


def test_errors_of_ours_are_neither_wrapped_nor_retried(waits: list[float]) -> None:
    for error in (PushError("told", is_transient=True), ReleaseError("told")):

        def fail(error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            with_retries(fail, "It failed")
        assert caught.value is error
    with pytest.raises(KeyboardInterrupt):
        with_retries(lambda: (_ for _ in ()).throw(KeyboardInterrupt()), "It failed")
    with pytest.raises(ZeroDivisionError):  # a mistake of ours is no fault of the Hub
        with_retries(lambda: 1 // 0, "It failed")
    assert waits == []


def test_redact_knows_tokens_by_form_and_by_use(monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret-of-a-proxy")
    told = redact(
        "Illegal header value b'Bearer abc.def\\n', hf_abcdefGHIJ, secret-of-a-proxy, argument-1", "argument-1"
    )
    assert told == "Illegal header value b'<redacted>\\n', <redacted>, <redacted>, <redacted>"
    assert redact("turnppo_hf is fine, and so is hf_") == "turnppo_hf is fine, and so is hf_"
    assert explain(OSError("no space for hf_abcdefGHIJ\nsecond line")) == "no space for <redacted>"


def test_background_pushes_run_in_order_and_report_once(caplog: Any) -> None:
    pushes, order, go = BackgroundPushes(), [], threading.Event()

    def job(name: str, error: Exception | None = None) -> Any:
        go.wait(10)
        order.append(name)
        if error is not None:
            raise error
        return SimpleNamespace(oid=name)

    futures = [
        pushes.submit(lambda: job("a")),
        pushes.submit(lambda: job("b", PushError("It failed.", is_transient=True))),
        pushes.submit(lambda: job("c", OSError("disk full for hf_abcdefGHIJ"))),
        pushes.submit(lambda: job("d")),
    ]
    assert pushes.is_busy
    go.set()
    number, errors = pushes.wait()
    assert order == ["a", "b", "c", "d"] and not pushes.is_busy
    assert number == 4 and [str(error) for error in errors] == [
        "It failed.",
        "Nothing was pushed: disk full for <redacted>",
    ]
    assert futures[0].result().oid == "a" and futures[3].result().oid == "d"
    with pytest.raises(PushError, match="disk full"):
        futures[2].result()
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "hf_abcdefGHIJ" not in caplog.text
    assert pushes.wait() == (0, [])


ENDS_EARLY = """
import sys
from turnppo_hf.hub.background import BackgroundPushes
from turnppo_hf.hub.client import push_folder
pushes = BackgroundPushes()
if sys.argv[2] == "unregistered":
    import threading
    import turnppo_hf.hub.client
    threading._threading_atexits.pop()
    turnppo_hf.hub.client.RETRY_WAITS_S = ()
for number in (1, 2):
    pushes.submit(lambda: push_folder(sys.argv[1], "alice/agent", message="last words"))
exec(sys.argv[3])
"""
FAILS = 'raise ValueError("training failed")'


@pytest.mark.parametrize(
    ("registered", "end", "code"),
    [
        ("registered", FAILS, 1),
        ("registered", "sys.exit(3)", 3),
        ("registered", "pass", 0),
        ("unregistered", FAILS, 1),
    ],
)
@pytest.mark.slow
def test_program_that_ends_still_ends_its_pushes(hub: Hub, folder: Path, registered: str, end: str, code: int) -> None:
    hub.inject("POST .*/preupload/", delay=1.0)  # so that the interpreter ends while the first is under way
    command = [sys.executable, "-c", ENDS_EARLY, str(folder), registered, end]
    ended = subprocess.run(command, env=hub.environment, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == code and ("ValueError: training failed" in ended.stderr) == (end == FAILS)
    if registered == "registered":
        assert "The program ends when its last pushes are through" in ended.stderr
        assert hub.files("alice/agent") == released(folder)
    else:  # the control: an upload cannot start its threads any more
        assert hub.files("alice/agent") == {}
