"""The demo Space in a headless Chromium: every tab is driven; a console error or a request to elsewhere fails."""

from __future__ import annotations

import http.server
import json
import random
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from compare import best_view, recorded_limits
from levels import level_of_seed, read_level

from tests.spaces_demo.conftest import APP, CHROMIUM, WAIT_MS
from turnppo_hf.environments.sokoban.environment import ACTIONS
from turnppo_hf.environments.sokoban.rules import SokobanState
from turnppo_hf.hub.space import write_space
from turnppo_hf.trajectory import Trajectory

pytest.importorskip("gradio", reason='needs Gradio: pip install "turnppo-hf[space]"')
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium fonts-dejavu-core"),
]

KEYS = {"Up": "ArrowUp", "Down": "ArrowDown", "Left": "ArrowLeft", "Right": "ArrowRight"}
LEVEL = "######/#@   #/# $. #/#    #/######"
LEVEL_QUERY = f"level={urllib.parse.quote(LEVEL)}"
CORNERED = "#####\n#$ @#\n#   #\n# . #\n#####"


def open_tab(page: Any, name: str) -> None:
    """Choose a tab, also where a narrow page keeps it in a menu."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if not tab.first.is_visible():
        page.locator(".overflow-menu > button").first.click()
        page.locator(".overflow-dropdown").get_by_text(name, exact=True).click()
    else:
        tab.first.click()


def player(page: Any, name: str) -> Any:
    return page.locator(f"#{name} turn-player")


def expect(locator: Any) -> Any:
    playwright.expect.set_options(timeout=WAIT_MS)
    return playwright.expect(locator)


def test_replay_is_visible_and_stepped_without_the_server(visit: Callable[..., Any]) -> None:
    page = visit()
    replay = player(page, "replay-player")
    expect(replay.locator("sokoban-board svg")).to_be_visible()
    page.context.set_offline(True)
    replay.get_by_role("button", name="Next turn").click()
    expect(replay.locator("h3")).to_have_text("Turn 2 of 3")
    expect(replay.locator("sokoban-board svg")).not_to_have_attribute("aria-label", re_of("Boxes off target: none"))
    replay.get_by_role("slider").press("End")
    expect(replay.locator(".tp-chip")).to_contain_text("Solved")
    expect(replay.locator("sokoban-board svg")).to_have_attribute("aria-label", re_of("Boxes off target: none"))
    replay.get_by_role("slider").press("Home")
    expect(replay.locator("h3")).to_have_text("Turn 1 of 3")
    replay.get_by_role("button", name="Play", exact=True).click()
    expect(replay.get_by_role("button", name="Pause")).to_be_visible()
    expect(replay.locator(".tp-chip")).to_contain_text("Solved")
    page.context.set_offline(False)


def re_of(text: str) -> Any:
    return re.compile(re.escape(text))


def test_replay_shows_prompt_response_numbers_and_verdict(visit: Callable[..., Any]) -> None:
    page = visit()
    replay = player(page, "replay-player")
    expect(replay.locator(".tp-numbers dt")).to_have_text(["reward", "V(state)", "TD error", "advantage"])
    expect(replay.locator(".tp-verdict")).to_contain_text("critic said")
    expect(replay.locator(".tp-verdict")).to_contain_text("return was")
    replay.get_by_text("Prompt of turn 1").click()
    expect(replay.locator("details pre").first).to_contain_text("<|user|>")
    replay.get_by_text("Response of turn 1").click()
    expect(replay.locator("details pre").nth(1)).to_have_text("Up Up")
    page.get_by_role("radio", name="GRPO").click()
    expect(replay.locator(".tp-kind")).to_contain_text("GRPO")
    expect(replay.locator(".tp-numbers dt")).to_have_text(["reward"])


def test_replay_of_the_shop_is_drawn_from_data(visit: Callable[..., Any]) -> None:
    page = visit("?episode=webshop-1")
    replay = player(page, "replay-player")
    expect(replay.locator("shop-page .ws-wish")).to_be_visible()
    expect(replay.locator(".tp-note")).to_contain_text("synthetic")
    replay.get_by_role("button", name="Next turn").click()
    expect(replay.locator("shop-page .ws-results li").first).to_be_visible()


def test_markup_of_a_model_or_a_shop_stays_text(visit: Callable[..., Any]) -> None:
    page = visit()
    evil = "<img src=x onerror='window.bad = 1'><script>window.bad = 1</script>"
    turn = {"text": evil, "action": evil, "moves": [], "response": evil, "prompt": evil, "reward": 0, "penalty": 0}
    numbers = dict.fromkeys(("value", "td_error", "advantage", "return"))
    item = {"id": evil, "name": evil, "price": evil}
    shop = {
        "place": "search_results",
        "wish": evil,
        "query": evil,
        "products": [item],
        "page": 1,
        "pages": 1,
        "total": 1,
    }
    names = {"agent": evil, "world": evil, "seed": evil, "note": evil, "ending": evil, "why": evil, "level": None}
    rest = {"running": False, "solved": False, "total": 0, "has_critic": False, "last_page": None, "record": None}
    for seen in ({}, {"page": shop}):
        page.evaluate(
            "(episode) => document.querySelector('turn-player').show(episode)",
            {**names, **rest, "turns": [{**turn, **numbers, **seen}]},
        )
        assert evil in page.locator("turn-player").first.inner_text()
    assert page.locator("turn-player img, turn-player script").count() == 0
    assert page.evaluate("window.bad") is None


def test_live_agent_plays_turn_by_turn_to_the_end(visit: Callable[..., Any]) -> None:
    page = visit("?tab=live&seed=1000001")
    page.locator("#live-start").click()
    live = player(page, "live-player")
    expect(live.locator("sokoban-board svg")).to_be_visible()
    expect(live.locator(".tp-chip.is-good, .tp-chip.is-bad")).to_be_visible()
    expect(live.locator(".tp-verdict")).to_contain_text("return was")
    expect(live.get_by_role("button", name="Download trajectory (JSON)")).to_be_visible()
    assert "seed=1000001" in page.url


def test_live_shopper_plays_the_chosen_wish(visit: Callable[..., Any]) -> None:
    page = visit("?tab=live")
    page.get_by_role("radio", name="shopper before training").click()
    expect(page.locator("#live-wish")).to_be_visible()
    page.locator("#live-start").click()
    live = player(page, "live-player")
    expect(live.locator("shop-page")).to_be_visible()
    expect(live.locator(".tp-kind")).to_contain_text("WebShop")


def test_person_plays_to_a_win_against_the_agent_and_the_best(visit: Callable[..., Any]) -> None:
    page = visit("?tab=you&seed=1000004")
    best = best_view(read_level(level_of_seed(1_000_004)), recorded_limits())
    moves = [move for turn in best["turns"] for move in turn["moves"]]
    game = page.locator("#game")
    expect(game.locator(".sg-says")).to_contain_text("12 moves")
    field = game.locator(".sg-field")
    field.press("ArrowUp")
    field.press("u")
    expect(game.locator(".sg-says")).to_contain_text("12 moves")
    for move in moves[:-1]:
        field.press(KEYS[move])
    game.get_by_role("button", name=moves[-1], exact=True).click()
    expect(game.locator(".sg-says")).to_have_text(f"Solved in {len(moves)} moves!")
    rows = page.locator("#game-score tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.nth(0)).to_contain_text("solved")
    expect(rows.nth(2)).to_contain_text("Best play")
    page.locator("#game-duel").get_by_role("button", name="Play both").click()
    expect(page.locator("#game-duel turn-player").nth(1).locator(".tp-chip")).to_contain_text("Solved")


def test_rules_in_the_browser_are_the_servers(visit: Callable[..., Any]) -> None:
    page = visit()
    rng = random.Random(0)
    for seed in range(1_000_000, 1_000_012):
        state = SokobanState.from_text(level_of_seed(seed))
        moves = [rng.choice(list(ACTIONS)) for _ in range(40)]
        boards = []
        for move in moves:
            state = state.step(ACTIONS[move]).state
            boards.append(state.render().split("\n"))
        script = (
            "([level, moves]) => {"
            "let rows = sokobanRows(level); return moves.map((move) => rows = sokobanMove(rows, move)); }"
        )
        assert page.evaluate(script, [level_of_seed(seed), moves]) == boards


def test_editor_says_why_a_level_cannot_be_won_and_takes_a_good_one(visit: Callable[..., Any]) -> None:
    page = visit("?tab=live")
    page.get_by_text("Draw a level").first.click()
    text = page.get_by_label("The same as text (XSB)").first
    text.fill(CORNERED)
    text.blur()
    note = page.locator("page-note").first
    expect(note).to_contain_text("The box in row 2 and column 2 stands in a corner")
    page.get_by_role("radio", name="Crate").first.click()
    page.get_by_role("gridcell", name="row 3 column 3: Floor").first.click()
    page.get_by_role("radio", name="Floor").first.click()
    page.get_by_role("gridcell", name="row 2 column 2: Crate").first.click()
    expect(note).to_contain_text("Solvable in 2 moves")
    page.wait_for_url("**level=**")
    text.fill("no level at all")
    text.blur()
    expect(note).to_contain_text("cells, but this page takes")
    open_tab(page, "You play")
    expect(page.locator("#game .sg-says")).to_contain_text("12 moves")


def test_compare_shows_two_agents_and_plays_them(visit: Callable[..., Any]) -> None:
    page = visit("?tab=compare")
    duel = page.locator("#compare-duel turn-player")
    expect(duel.nth(0).locator(".tp-kind")).to_contain_text("Turn-PPO")
    expect(duel.nth(1).locator(".tp-kind")).to_contain_text("GRPO")
    expect(page.locator("#compare-score tbody tr")).to_have_count(2)
    page.locator("#compare-right input").click()
    page.get_by_role("option", name="Best play").click()
    expect(duel.nth(1).locator(".tp-kind")).to_contain_text("Best play")
    page.locator("#compare-duel").get_by_role("button", name="Play both").click()
    expect(duel.nth(1).locator(".tp-chip")).to_contain_text("Solved")


def test_training_shows_three_charts_with_words_and_tables(visit: Callable[..., Any]) -> None:
    page = visit("?tab=training")
    cards = page.locator("training-view .tv-card")
    expect(cards).to_have_count(3)
    for number in range(3):
        assert len(cards.nth(number).locator("svg").get_attribute("aria-label") or "") > 20
    cards.nth(0).get_by_text("As a table").click()
    expect(cards.nth(0).locator("td").first).to_have_text("Turn-PPO")


def test_link_opens_what_it_was_copied_from(visit: Callable[..., Any]) -> None:
    page = visit()
    page.locator("#replay-agent").get_by_role("radio", name="token PPO").click()
    expect(player(page, "replay-player").locator(".tp-kind")).to_contain_text("token PPO")
    page.wait_for_url("**episode=token_ppo-1**")
    other = visit(page.url[page.url.index("?") :])
    expect(player(other, "replay-player").locator(".tp-kind")).to_contain_text("token PPO")
    drawn = visit(f"?tab=you&{LEVEL_QUERY}")
    expect(drawn.locator("#game sokoban-board svg")).to_have_attribute("aria-label", re_of("Player at row 2 column 2"))
    broken = visit("?tab=nowhere&episode=none&seed=-5&level=%3Cimg%3E")
    expect(player(broken, "replay-player").locator(".tp-kind")).to_contain_text("Turn-PPO")


def test_downloaded_trajectory_is_the_recorded_one(visit: Callable[..., Any]) -> None:
    page = visit()
    with page.expect_download() as caught:
        page.get_by_role("button", name="Download trajectory (JSON)").first.click()
    record = json.loads(Path(caught.value.path()).read_text("utf-8"))
    trajectory = Trajectory.from_dict(record)
    assert caught.value.suggested_filename == f"trajectory-{trajectory.seed}.json"
    assert trajectory.turns and trajectory.turns[0].value is not None


def test_visitors_do_not_see_each_others_levels(visit: Callable[..., Any]) -> None:
    one, two = visit("?tab=live&seed=1000004"), visit(f"?tab=live&{LEVEL_QUERY}")
    for page in (one, two):
        page.locator("#live-start").click()
    for page, label in ((one, "5 by 5"), (two, "5 by 6")):
        expect(player(page, "live-player").locator("svg").first).to_have_attribute("aria-label", re_of(label))
        expect(player(page, "live-player").locator(".tp-chip.is-good, .tp-chip.is-bad")).to_be_visible()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_tab_fits_a_phone(visit: Callable[..., Any], theme: str) -> None:
    page = visit(f"?__theme={theme}", viewport={"width": 390, "height": 844}, reduced_motion="reduce")
    for name in ("Live", "You play", "Compare", "Training", "Leaderboard", "Replay"):
        open_tab(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    moving = page.evaluate("getComputedStyle(document.querySelector('.sb-player')).transitionDuration")
    assert moving == "0s"


def test_controls_have_names_and_contrast(visit: Callable[..., Any]) -> None:
    page = visit()
    unnamed = page.evaluate(
        "[...document.querySelectorAll('turn-player button, turn-player input')]"
        ".filter((node) => !(node.getAttribute('aria-label') || node.innerText.trim())).length"
    )
    assert unnamed == 0
    for theme in ("light", "dark"):
        dark = visit(f"?__theme={theme}")
        colors = dark.evaluate(
            "['--ink', '--muted', '--series-0', '--series-1', '--series-2', '--good', '--card', '--paper', '--soft']"
            ".map((name) => getComputedStyle(document.body).getPropertyValue(name).trim())"
        )
        *inks, card, paper, soft = colors
        for ink in inks:
            for ground in (card, paper, soft):
                assert contrast(ink, ground) >= 4.5, (theme, ink, ground)


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of two colors."""

    def light(color: str) -> float:
        parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_static_page_shows_everything_without_a_server_of_ours(
    visit: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_space(tmp_path, "static")
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    monkeypatch.setattr(handler.func, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as files:
        threading.Thread(target=files.serve_forever, daemon=True).start()
        page = visit(address=f"http://127.0.0.1:{files.server_port}/?episode=grpo-2", color_scheme="dark")
        expect(page.locator("turn-player .tp-kind")).to_contain_text("GRPO")
        page.get_by_role("tab", name="You play").click()
        for _ in range(12):
            page.locator(".sg-field").press("ArrowUp")
        expect(page.locator("score-table tbody tr")).to_have_count(5)
        page.get_by_role("tab", name="Compare").click()
        page.get_by_label("Right").select_option("Best play")
        expect(page.locator("turn-player .tp-kind").nth(1)).to_contain_text("Best play")
        page.get_by_role("tab", name="Training").click()
        expect(page.locator("training-view .tv-card")).to_have_count(3)
        assert page.evaluate("document.documentElement.classList.contains('dark')")
        files.shutdown()


def test_console_error_and_outside_request_are_found(visit: Callable[..., Any]) -> None:
    page = visit()
    page.evaluate("console.error('broken'); fetch('http://192.0.2.1/').catch(() => 0)")
    page.wait_for_function("true")
    found = visit.faults  # type: ignore[attr-defined]
    assert "console: broken" in found
    assert "request to http://192.0.2.1/" in found
    found.clear()


@pytest.mark.parametrize("path", ["/etc/passwd", str(APP), "../../etc/passwd"])
def test_files_of_the_server_are_not_served(server: str, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{server}/gradio_api/file={path}", timeout=30)
    assert refused.value.code in (403, 404)


def test_endpoints_are_tools_with_descriptions(server: str) -> None:
    pytest.importorskip("mcp")
    import asyncio

    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def talk() -> tuple[dict[str, str], str]:
        async with (
            streamable_http_client(f"{server}/gradio_api/mcp/") as (read, write, _),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool.description or "" for tool in (await session.list_tools()).tools}
            result = await session.call_tool("judge", {"level": CORNERED})
            return tools, result.content[0].text

    with ThreadPoolExecutor(1) as worker:  # the browser's driver has the event loop of this thread
        tools, answer = worker.submit(asyncio.run, talk()).result()
    assert set(tools) == {"reset", "step", "play", "values", "judge", "replay"}
    assert all(len(description) > 40 for description in tools.values())
    assert "stands in a corner" in answer
