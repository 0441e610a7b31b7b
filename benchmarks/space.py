"""
Measure the demo Space: first board, live turns, twenty visitors at once, and a server that is sent nonsense.

    python benchmarks/space.py --visitors 20 --seconds 60 --fuzz 10000

Starts the page on loopback, opens it in a headless Chromium, plays live episodes, lets visitors (each a client of its
own) replay, step and play for a while, sends random levels, answers, moves and events, and measures the
visitors' steps once more. Prints one JSON object; exits with 1 where a visitor saw an error or another one's game, a
browser asked anything but the page's own server, or the server does not answer at the end.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import shutil
import socket
import statistics
import string
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradio_client import Client

SPACE = Path(__file__).parents[1] / "spaces_demo"
REQUEST_S, START_S = 120, 180
ACTIONS = ("Up", "Down", "Left", "Right")


def main() -> int:
    """Run every measurement and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--visitors", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--fuzz", type=int, default=10_000)
    arguments = parser.parse_args()
    with server() as (url, process):
        report: dict[str, Any] = {"first_board": first_board(url), "live": live_turns()}
        Client(url, verbose=False).predict(api_name="/play")  # loads the agent
        report["visitors"] = visitors(url, arguments.visitors, arguments.seconds)
        memory = resident_mb(process.pid)
        report["fuzz"] = fuzz(url, arguments.fuzz)
        report["after"] = visitors(url, min(arguments.visitors, 4), 5.0)
        report["memory_mb"] = {"before_fuzz": memory, "after_fuzz": resident_mb(process.pid)}
        report["is_alive"] = process.poll() is None
    print(json.dumps(report, indent=2))
    faults = report["first_board"]["outside_requests"] + report["visitors"]["errors"] + report["after"]["errors"]
    return 0 if report["is_alive"] and not faults and not report["fuzz"]["server_errors"] else 1


@contextmanager
def server() -> Any:
    """Serve the page on a free port of loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"GRADIO_SERVER_PORT": str(port), "GRADIO_SERVER_NAME": "127.0.0.1", "HF_HUB_OFFLINE": "1"}
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, SPACE / "app.py"], env={**os.environ, **variables}, stdout=log, stderr=log
        )
        try:
            end = time.monotonic() + START_S
            while not answers(url):
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise RuntimeError(log.read())
                time.sleep(0.2)
            yield url, process
        finally:
            process.terminate()
            process.wait(timeout=20)


def answers(url: str) -> bool:
    """Whether the server describes its endpoints."""
    try:
        urllib.request.urlopen(f"{url}/gradio_api/info", timeout=5).close()
    except OSError:
        return False
    return True


def first_board(url: str) -> dict[str, Any]:
    """Open the page three times in a browser; seconds from the request to a visible board."""
    from playwright.sync_api import sync_playwright

    outside: list[str] = []
    seconds = []
    with sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        for _ in range(4):
            page = browser.new_context().new_page()
            page.on("request", lambda request: None if request.url.startswith(url) else outside.append(request.url))
            start = time.perf_counter()
            page.goto(url, wait_until="commit")
            page.wait_for_selector("sokoban-board svg", state="visible")
            seconds.append(time.perf_counter() - start)
            page.close()
        browser.close()
    outside = [address for address in outside if not address.startswith(("data:", "blob:"))]
    return {
        "seconds": [round(value, 2) for value in seconds[1:]],
        "outside_requests": outside,
    }  # the first one warms up


def live_turns() -> dict[str, Any]:
    """Play live episodes in this process, as the Live tab does; milliseconds of a turn."""
    sys.path.insert(0, str(SPACE))
    from levels import level_of_seed
    from live import load_agent, play_live

    load_agent("Turn-PPO")
    milliseconds = []
    for seed in range(1_000_000, 1_000_012):
        before = time.perf_counter()
        for view in play_live("Turn-PPO", seed, {"level": level_of_seed(seed)}):
            if len(view["turns"]) > 1 and view["running"]:
                milliseconds.append(1000 * (time.perf_counter() - before))
            before = time.perf_counter()
    return {"turns": len(milliseconds), "median_ms": round(statistics.median(milliseconds), 1)}


class Server:
    """The endpoints that wait for no queue, over one connection, as a browser calls them."""

    def __init__(self, url: str) -> None:
        self._connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=REQUEST_S)

    def call(self, name: str, *values: Any) -> Any:
        """Return an endpoint's answer; `RefusedError` with its message, `RuntimeError` where it has none."""
        body = json.dumps({"data": values})
        self._connection.request("POST", f"/gradio_api/run/{name}", body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        status, text = response.status, response.read()
        if status == 200:
            return json.loads(text)["data"][0]
        message = json.loads(text).get("error")
        if not message:
            raise RuntimeError(f"{name} answered {status}: {text[:200]!r}")
        raise RefusedError(message)


class RefusedError(Exception):
    """What was sent is not acceptable, as the server's message says."""


def visitors(url: str, count: int, seconds: float) -> dict[str, Any]:
    """Let visitors use the page at once; milliseconds of their steps by kind, and what went wrong."""
    with ThreadPoolExecutor(count) as crowd:
        jobs = [crowd.submit(visit, url, number, time.monotonic() + seconds) for number in range(count)]
        results = [job.result() for job in jobs]
    times: dict[str, list[float]] = {}
    for found, _ in results:
        for kind, values in found.items():
            times.setdefault(kind, []).extend(values)
    figures = {
        kind: {
            "count": len(values),
            "median_ms": round(statistics.median(values)),
            "p95_ms": round(sorted(values)[int(0.95 * (len(values) - 1))]),
        }
        for kind, values in times.items()
    }
    return {
        "visitors": count,
        "seconds": seconds,
        **figures,
        "errors": [error for _, faults in results for error in faults],
    }


def visit(url: str, number: int, end: float) -> tuple[dict[str, list[float]], list[str]]:
    """One visitor: replays, turns of an own game, now and then a live episode; their level must stay theirs."""
    rng = random.Random(number)
    server = Server(url)
    times: dict[str, list[float]] = {"replay": [], "step": [], "play": []}
    faults: list[str] = []
    names = {"turn_ppo": "Turn-PPO", "token_ppo": "token PPO", "grpo": "GRPO"}

    def timed(kind: str, call: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = call()
        times[kind].append(1000 * (time.perf_counter() - start))
        return result

    try:
        queued = Client(url, verbose=False)
        while time.monotonic() < end:
            agent, episode = rng.choice(list(names)), rng.randint(1, 6)
            view = timed("replay", lambda: server.call("replay", f"{agent}-{episode}"))  # noqa: B023 (called at once)
            if view["agent"] != names[agent]:
                faults.append(f"visitor {number} asked for {agent} and saw {view['agent']}")
            start = server.call("reset", 1_000_000 + number, "")
            given: list[str] = []
            told = {"terminated": False, "truncated": False}
            while not told["terminated"] and not told["truncated"]:
                answer = " ".join(rng.choices(ACTIONS, k=2))
                told = timed("step", lambda: server.call("step", start["level"], given, answer))  # noqa: B023
                given.append(answer)
                if start["level"].count("#") != told["observation"].count("#"):
                    faults.append(f"visitor {number} saw another level")
                time.sleep(rng.uniform(0.1, 0.5))  # a person looks
            if rng.random() < 0.2:
                record = timed("play", lambda: queued.predict(seed=1_000_000 + number, api_name="/play"))
                server = Server(url)  # the old connection may have been closed meanwhile
                if record["seed"] != 1_000_000 + number:
                    faults.append(f"visitor {number} got the episode of seed {record['seed']}")
    except Exception as error:
        faults.append(f"visitor {number}: {type(error).__name__}: {error}")
    return {kind: values for kind, values in times.items() if values}, faults


def fuzz(url: str, count: int) -> dict[str, Any]:
    """Send random input; a refusal with a message is fine, an error of the server's own is not."""

    def send(numbers: range) -> list[str]:
        server, outcomes = Server(url), []
        for number in numbers:
            rng = random.Random(number)
            arguments, name = rng.choice(NONSENSE)(rng)
            try:
                server.call(name, *arguments)
                outcomes.append("answered")
            except RefusedError:
                outcomes.append("refused")
            except RuntimeError as error:
                outcomes.append(str(error))
        return outcomes

    start, senders = time.perf_counter(), 4
    with ThreadPoolExecutor(senders) as crowd:
        parts = crowd.map(send, [range(first, count, senders) for first in range(senders)])
        outcomes = [outcome for part in parts for outcome in part]
    own = sorted({outcome for outcome in outcomes if outcome not in ("refused", "answered")})
    return {
        "sent": count,
        "refused": outcomes.count("refused"),
        "answered": outcomes.count("answered"),
        "server_errors": own[:10],
        "seconds": round(time.perf_counter() - start, 1),
    }


def random_text(rng: random.Random) -> str:
    """Letters of levels mostly, and of anything else."""
    letters = rng.choice(("#@$. \n", "#@$.*+_- \n", string.printable, "\u0000\u202e\U0001f4e6<>&\"'\n"))
    return "".join(rng.choices(letters, k=rng.choice((0, 1, 9, 30, 64, 2000))))


def random_level(rng: random.Random) -> str:
    """A walled room with anything in it, mostly of one player and as many boxes as targets."""
    height, width = rng.randint(3, 9), rng.randint(3, 9)
    rows = [["#" if y in (0, height - 1) or x in (0, width - 1) else " " for x in range(width)] for y in range(height)]
    boxes = rng.randint(0, 4)
    for symbol in "@" + "$" * boxes + "." * (boxes + rng.choice((0, 0, 0, 1))) + "#" * rng.randint(0, 6):
        rows[rng.randint(1, height - 2)][rng.randint(1, width - 2)] = symbol
    return "\n".join("".join(row) for row in rows)


Nonsense = tuple[list[Any], str]
NONSENSE: tuple[Callable[[random.Random], Nonsense], ...] = (
    lambda rng: ([rng.choice((-1, 10**12, rng.randrange(10**6), 3)), random_text(rng)], "reset"),
    lambda rng: ([0, random_level(rng)], "reset"),
    lambda rng: ([random_level(rng), [random_text(rng)] * rng.randint(0, 60), random_text(rng)], "step"),
    lambda rng: ([random_level(rng), rng.choices(ACTIONS, k=rng.randint(0, 8)), "Up Left"], "step"),
    lambda rng: ([random_text(rng), [], "Up"], "step"),
    lambda rng: ([random_text(rng)], "replay"),
    lambda rng: ([random_text(rng)], "judge"),
    lambda rng: ([random_level(rng)], "judge"),
)


def resident_mb(process: int) -> int:
    """Memory of a process."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) // 1024
    raise RuntimeError(f"process {process} has no memory")


if __name__ == "__main__":
    sys.exit(main())
