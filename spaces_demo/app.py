"""The playground: watch an agent think, turn by turn. Layout and callbacks; the other files make what they show."""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import endpoints
import gradio as gr
from compare import MY_LEVEL, compare, contestants, score_game
from elements import element, page_head, page_theme
from leaderboard import leaderboard_tab
from levels import MAX_SEED, LevelError, checked_seed, judge_level, level_of_seed
from live import SHOP, SOKOBAN, limits_of, live_agents, load_agent, new_world, play_live, sokoban_agent, world_of
from player import REPLAYS, agents_of, episodes_of, read_replays
from starlette.middleware import Middleware
from wishes import chosen_wish, wishes

from turnppo_hf.environments.integrations.request_limit import RequestLimit

FIRST_SEED = 1_000_004  # of the held-out levels, one that takes some thought
AGENT_CALLS = {"concurrency_id": "agent", "concurrency_limit": 1}  # an episode at a time: they would share one core
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
AT_ONCE = {**PRIVATE, "queue": False}  # what takes milliseconds waits for no episode of others
MIN_MOVES = 4  # of a level that is offered
MAX_WAITING = 60  # visitors in the queue

try:  # on ZeroGPU the function that needs the device is marked; elsewhere there is no such package, or it does nothing
    import spaces

    on_device: Callable[[Any], Any] = spaces.GPU(duration=60)
except ImportError:

    def on_device(function: Any) -> Any:
        """Return the function as it is: there is no ZeroGPU here."""
        return function


def explained(function: Any) -> Any:
    """Show a visitor the message of an error that they caused, and nothing of the server's."""

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        try:
            return function(*arguments, **named)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from None

    return call


def choose_agent(agent: str) -> tuple[Any, Any]:
    """Return the menu of an agent's episodes and the first of them."""
    replays = read_replays()
    episodes = episodes_of(replays, agent)
    if not episodes:
        raise gr.Error("There is no recording of this agent. Choose one from the list.", print_exception=False)
    _, key = episodes[0]
    return gr.update(choices=episodes, value=key), replays[key].view


def choose_episode(key: str) -> dict[str, Any]:
    """Return a recorded episode."""
    return endpoints.replay(str(key))


def level_values(text: str, seed: int | None) -> list[Any]:
    """Return what the page shows of a level: the state, the game, then seed, editor, text and note of each picker."""
    max_actions = limits_of(sokoban_agent()).max_actions
    report = judge_level(text, max_actions)
    note = {"text": report.message, "kind": "good" if report.is_playable else "bad"}
    game: Any = gr.skip()
    if report.is_playable:
        game = {"level": text, "max_actions": max_actions}
    drawing = text if report.state is not None else gr.skip()
    return [text, game, *[seed, drawing, text, note] * 2]


def level_from_seed(seed: Any) -> list[Any]:
    """Return `level_values` of a held-out level."""
    try:
        return level_values(level_of_seed(checked_seed(seed)), int(seed))
    except LevelError as error:
        return [gr.skip(), gr.skip(), *[gr.skip(), gr.skip(), gr.skip(), {"text": str(error), "kind": "bad"}] * 2]


def level_from_chance() -> list[Any]:
    """Return `level_values` of any held-out level that takes some thought, or of the last one tried."""
    max_actions = limits_of(sokoban_agent()).max_actions
    for _ in range(30):
        seed = random.randrange(1_000_000, MAX_SEED)
        if MIN_MOVES <= (judge_level(level_of_seed(seed), MAX_SEED).moves or 0) <= max_actions:
            break
    return level_from_seed(seed)


def level_from_editor(drawn: gr.EventData) -> list[Any]:
    """Return `level_values` of what a visitor has drawn."""
    return level_values(str(details(drawn).get("level", ""))[:500], None)


def details(event: gr.EventData) -> dict[str, Any]:
    """Return what the browser sent with an event; whatever else was sent counts as nothing."""
    return event._data if isinstance(event._data, dict) else {}


def level_from_text(text: str) -> list[Any]:
    """Return `level_values` of what a visitor has typed."""
    return level_values(str(text)[:500], None)


@on_device
def watch_live(agent: str, level: str, seed: float | None, wish: int | None) -> Iterator[dict[str, Any]]:
    """Yield an episode while the agent plays it."""
    try:
        world = world_of(agent)
        options: dict[str, Any] = {}
        if world == SOKOBAN:
            report = judge_level(level, 10_000)
            if report.state is None:
                raise ValueError(report.message)
            options = {"level": report.state.to_text()}
        elif world == SHOP:
            options = {"goal": chosen_wish(agent, wish)}
        yield from play_live(agent, checked_seed(seed or 0), options)
    except (ValueError, RuntimeError) as error:
        raise gr.Error(str(error), print_exception=False) from None


def choose_live_agent(agent: str) -> tuple[Any, Any]:
    """Return which of level and wish is to be chosen."""
    world = world_of(agent)
    return gr.update(visible=world == SOKOBAN), gr.update(visible=world == SHOP)


@on_device
def judge_play(played: gr.EventData) -> tuple[Any, ...]:
    """Return how a visitor did beside an agent and the best play, and both of these to watch."""
    try:
        return score_game(details(played), sokoban_agent())
    except ValueError as error:
        raise gr.Error(str(error), print_exception=False) from None


def warm_up() -> None:
    """Load the agent that is most likely to be asked for."""
    load_agent(sokoban_agent())


def open_link(request: gr.Request) -> list[Any]:
    """Return what the address asks for: tab, recording, level."""
    query = dict(request.query_params)
    replays = read_replays()
    tab = gr.Tabs(selected=query["tab"]) if query.get("tab") in TABS else gr.skip()
    recording = [gr.skip(), gr.skip(), gr.skip()]
    if (replay := replays.get(query.get("episode", ""))) is not None:
        menu = gr.update(choices=episodes_of(replays, replay.agent), value=replay.key)
        recording = [replay.agent, menu, replay.view]
    level: list[Any] = [gr.skip()] * 10
    if query.get("level"):
        level = level_values(query["level"][:500].replace("/", "\n"), None)
    elif query.get("seed"):
        level = level_from_seed(query["seed"][:20])
    return [tab, *recording, *level]


TABS = {
    **{"replay": "Replay", "live": "Live", "you": "You play"},
    **{"compare": "Compare", "training": "Training", "board": "Leaderboard"},
}
LINK_LEVEL = "(level, seed) => setLink({ seed, level: seed ? null : level.replaceAll('\\n', '/') })"


def level_picker() -> tuple[list[Any], gr.Button]:
    """Lay out how a level is chosen; return seed, editor, text and note, and the button for another one."""
    first = level_of_seed(FIRST_SEED)
    with gr.Row(elem_classes="pg-low"):
        seed = gr.Number(FIRST_SEED, label="Level seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=140)
        another = gr.Button("Another level", scale=0, min_width=180)
    with gr.Accordion("Draw a level", open=False), gr.Row():
        with gr.Column(min_width=260):
            editor = element("level-editor", first, event="changed")
        text = gr.Textbox(first, label="The same as text (XSB)", lines=6, max_length=200, elem_classes="pg-text")
    report = judge_level(first, limits_of(sokoban_agent()).max_actions)
    says = {"text": report.message, "kind": "good" if report.is_playable else "bad"}
    note = element("page-note", says, elem_classes="pg-says")
    return [seed, editor, text, note], another


def replay_tab() -> list[Any]:
    """Lay out the Replay tab; return what a link sets."""
    replays = read_replays()
    agents = agents_of(replays)
    episodes = episodes_of(replays, agents[0])
    with gr.Row():
        agent = gr.Radio(agents, value=agents[0], label="Agent", scale=3, min_width=320, elem_id="replay-agent")
        episode = gr.Dropdown(
            episodes, value=episodes[0][1], label="Episode", scale=2, min_width=280, elem_id="replay-episode"
        )
    player = element("turn-player", replays[episodes[0][1]].view, elem_id="replay-player")
    chosen = agent.input(choose_agent, agent, [episode, player], **AT_ONCE)
    picked = episode.input(explained(choose_episode), episode, player, **AT_ONCE)
    for event in (chosen, picked):
        event.then(None, episode, js="(episode) => setLink({ tab: 'replay', episode })", **PRIVATE)
    return [agent, episode, player]


def live_tab(level: gr.State) -> tuple[list[Any], gr.Button]:
    """Lay out the Live tab."""
    agents = list(live_agents())
    with gr.Row(elem_classes="pg-low"):
        agent = gr.Radio(agents, value=agents[0], label="Agent", scale=4, min_width=320, elem_id="live-agent")
        start = gr.Button("Watch it play", variant="primary", scale=0, min_width=180, elem_id="live-start")
    world = world_of(agents[0])
    with gr.Column(visible=world == SOKOBAN) as of_sokoban:
        picker, another = level_picker()
    with gr.Column(visible=world == SHOP) as of_shop:
        menu = wish_menu(agents[0]) if world == SHOP else {}
        wish = gr.Dropdown(**menu, elem_id="live-wish")
    player = element("turn-player", None, elem_id="live-player")
    agent.input(choose_live_agent, agent, [of_sokoban, of_shop], **AT_ONCE)
    agent.input(offer_wishes, agent, wish, **AT_ONCE)
    start.click(watch_live, [agent, level, picker[0], wish], player, **PRIVATE, **AGENT_CALLS)
    return picker, another


def offer_wishes(agent: str) -> Any:
    """Return the menu of wishes where the agent shops."""
    if world_of(agent) != SHOP:
        return gr.skip()
    return gr.update(**wish_menu(agent))


def wish_menu(agent: str) -> dict[str, Any]:
    """Return what the menu of an agent's wishes holds, and says of the shop."""
    choices = [(text, number) for number, (text, _) in enumerate(wishes(agent))]
    is_synthetic = new_world(agent).world.data.synthetic
    return {"choices": choices, "value": 0, "label": f"Wish{' (a generated, synthetic shop)' * is_synthetic}"}


def you_tab() -> tuple[list[Any], gr.Button, gr.HTML]:
    """Lay out the tab in which a person plays."""
    picker, another = level_picker()
    first = {"level": level_of_seed(FIRST_SEED), "max_actions": limits_of(sokoban_agent()).max_actions}
    game = element("sokoban-game", first, event="finished", elem_id="game")
    table = element("score-table", [], elem_id="game-score")
    duel = element("turn-duel", None, elem_id="game-duel")
    game.submit(judge_play, None, [table, duel], **PRIVATE, **AGENT_CALLS)
    return picker, another, game


def compare_tab(level: gr.State) -> None:
    """Lay out the Compare tab."""
    agents = contestants()
    tasks = list(dict.fromkeys(replay.task for replay in read_replays().values() if replay.group == SOKOBAN))
    with gr.Row():
        left = gr.Dropdown(agents, value=agents[0], label="Left", elem_id="compare-left")
        right = gr.Dropdown(agents, value=agents[min(2, len(agents) - 1)], label="Right", elem_id="compare-right")
        task = gr.Dropdown([*tasks, MY_LEVEL], value=tasks[0], label="Level", elem_id="compare-task")
    pair, scores, note = compare(left.value, right.value, tasks[0], "")
    says = element("page-note", note, elem_classes="pg-says")
    table = element("score-table", scores, elem_id="compare-score")
    duel = element("turn-duel", pair, elem_id="compare-duel")
    for menu in (left, right, task):
        menu.input(
            explained(on_device(compare)), [left, right, task, level], [duel, table, says], **PRIVATE, **AGENT_CALLS
        )


def build() -> gr.Blocks:
    """Return the page."""
    with gr.Blocks(title="Turn-PPO playground") as page:
        level = gr.State(level_of_seed(FIRST_SEED))
        with gr.Row(elem_classes="pg-top"):
            gr.HTML(
                '<div class="pg-head"><h1>Turn-PPO playground</h1><p>Watch an agent think, turn by turn: what it saw, '
                "what it did, and what its critic expected.</p></div>",
                apply_default_css=False,
            )
            share = gr.Button("Copy link", size="sm", scale=0, min_width=110, elem_id="share")
        with gr.Tabs(selected="replay") as tabs:
            with gr.Tab(TABS["replay"], id="replay") as replay:
                recording = replay_tab()
            with gr.Tab(TABS["live"], id="live") as live:
                live_picker, live_another = live_tab(level)
            with gr.Tab(TABS["you"], id="you") as you:
                you_picker, you_another, game = you_tab()
            with gr.Tab(TABS["compare"], id="compare") as comparing:
                compare_tab(level)
            with gr.Tab(TABS["training"], id="training") as training:
                element("training-view", json.loads((REPLAYS / "training.json").read_text(encoding="utf-8")))
            with gr.Tab(TABS["board"], id="board") as leaders:
                leaderboard_tab(AT_ONCE)
        showing = [level, game, *live_picker, *you_picker]
        for picker, another in ((live_picker, live_another), (you_picker, you_another)):
            seed, editor, text, _ = picker
            for event in (
                another.click(level_from_chance, None, showing, **AT_ONCE),
                seed.input(level_from_seed, seed, showing, **AT_ONCE),
                editor.submit(level_from_editor, None, showing, **AT_ONCE),
                text.input(level_from_text, text, showing, **AT_ONCE),
                text.blur(level_from_text, text, showing, **AT_ONCE),  # a text that was pasted is no input
            ):
                event.then(None, [text, seed], js=LINK_LEVEL, **PRIVATE)
        for name, tab in zip(TABS, (replay, live, you, comparing, training, leaders), strict=True):
            tab.select(None, js=f"() => setLink({{ tab: '{name}' }})", **PRIVATE)
        for tab in (live, you):
            tab.select(warm_up, **PRIVATE, **AGENT_CALLS)
        share.click(None, None, share, js="async () => (await copyLink()) ? 'Copied' : 'See address'", **PRIVATE)
        opened = page.load(open_link, None, [tabs, *recording, *showing], **AT_ONCE)
        opened.then(None, js="() => openLink()", **PRIVATE)
        for function in (endpoints.reset, endpoints.step, endpoints.judge, endpoints.replay):
            gr.api(explained(function), api_name=function.__name__, queue=False)
        for function in (endpoints.play, endpoints.values):
            gr.api(explained(on_device(function)), api_name=function.__name__, **AGENT_CALLS)
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=8)
    return page


def launch(**arguments: Any) -> Any:
    """Start the page; the arguments are those of `gr.Blocks.launch`."""
    if os.environ.get("SPACES_ZERO_GPU"):
        warm_up()  # there the networks must be loaded before the first call
    sys.setswitchinterval(0.001)  # seconds: a small model's Python code leaves others their turn
    return build().launch(
        theme=page_theme(),
        head=page_head(),
        footer_links=["api"],
        ssr_mode=False,
        max_file_size="1kb",  # the page takes no files
        app_kwargs={"middleware": [Middleware(RequestLimit)]},
        mcp_server=importlib.util.find_spec("mcp") is not None,
        **arguments,
    )


if __name__ == "__main__":
    launch()
