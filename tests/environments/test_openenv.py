"""OpenEnv both ways: a server's environment trains, ours are served, and a server that restarts stops nobody."""

import http.server
import threading
import time

import pytest
from gymnasium.error import ResetNeeded

pytest.importorskip("openenv")

from openenv.core import EnvClient, GenericEnvClient
from openenv.core.client_types import StepResult
from openenv.core.env_server import Action

from tests.helpers.openenv_server import Server, serving
from tests.helpers.scripted import CountingEnvironment
from turnppo_hf.environments import adapt, check_environment, make_environment
from turnppo_hf.environments.integrations.openenv import OpenEnvSession, text_of_observation
from turnppo_hf.environments.integrations.openenv_server import ServedEnvironment, TextAction
from turnppo_hf.trajectory import StopReason

pytestmark = pytest.mark.slow  # a server in a process of its own

SESSIONS = 20
SOKOBAN = {"action_format": "bare"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    # room for a trainer's sessions, for one beside them and for none that is left over from earlier episodes
    log = tmp_path_factory.mktemp("server") / "log"
    server = Server(log, max_sessions=SESSIONS + 1, **SOKOBAN).start()
    yield server
    server.kill()


@pytest.fixture
def open_session(server):
    opened = []

    def make(**arguments):
        opened.append(make_environment("openenv/Server-v0", server=server.url, **arguments))
        return opened[-1]

    yield make
    for session in opened:
        session.close()


def test_served_environment_plays_as_it_does_here(open_session):
    session, local = open_session(), make_environment("turnppo_hf/Sokoban-v0", **SOKOBAN)
    answers = ["Up", "what?", "Left Down", "Right", "Down Down", "Left"]
    for seed in range(3):
        assert session.reset(seed=seed) == local.reset(seed=seed)
        for answer in answers:
            reply = session.step(answer)
            assert reply == local.step(answer)
            if reply[2] or reply[3]:
                break
        assert reply[2] or reply[3]
        with pytest.raises(ResetNeeded):
            session.step("Up")
    level = "#####\n#@$.#\n#####"
    assert session.reset(options={"level": level, "empty": None}) == local.reset(options={"level": level})
    assert session.step("Right")[1:3] == (local.step("Right")[1], True)


def test_sound_server_has_no_problem_and_a_generic_client_is_adapted(server, open_session):
    assert check_environment(open_session(), completions=["Up", "Left"]) == []
    session = adapt(GenericEnvClient(base_url=server.url))
    assert session.reset(seed=3) == open_session().reset(seed=3)
    session.close()


@pytest.mark.parametrize("answer", [b"<html>hi</html>", b"{}", b"[]", b'{"action": 3}'])
def test_server_of_something_else_says_so(answer):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments):
            """Keep the terminal quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        with pytest.raises(TypeError, match=r"so it is no OpenEnv server.*Correct the address"):
            make_environment("openenv/Server-v0", server=f"http://127.0.0.1:{other.server_port}", patience_s=1)
        other.shutdown()


@pytest.mark.parametrize("arguments", [{"server": "localhost:9"}, {"server": None}, {}])
def test_address_that_is_none_is_refused_at_once(arguments):
    with pytest.raises(ValueError, match=r"`server` is .*http://localhost:8000"):
        make_environment("openenv/Server-v0", **arguments)


def test_three_updates_on_a_server(server, make_trainer, embedded_actor):
    trainer = make_trainer(
        lambda: OpenEnvSession(server.url), model=embedded_actor, max_steps=3, max_turn_length=8
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 3
    played = trainer._last_trajectories
    assert len(played) == 8 and all(trajectory.turns for trajectory in played)
    assert StopReason.ERROR not in {trajectory.stop_reason for trajectory in played}
    assert any(turn.reward != 0 for trajectory in played for turn in trajectory.turns)


def test_twenty_sessions_survive_a_restart_of_the_server(server, make_trainer, embedded_actor, open_session):
    bystander, local = open_session(), make_environment("turnppo_hf/Sokoban-v0", **SOKOBAN)
    bystander.reset(seed=11)
    steps, lock, batches = {"seen": 0}, threading.Lock(), []

    class Restarting(OpenEnvSession):
        """Kills the server in the middle of the second batch; it comes back while the third is being opened."""

        def step(self, action):
            with lock:
                steps["seen"] += len(batches) == 1
                if steps["seen"] == SESSIONS // 2:
                    steps["seen"] = -1000
                    server.kill()
                    threading.Thread(target=server.start).start()
            return super().step(action)

    trainer = make_trainer(
        lambda: Restarting(server.url), model=embedded_actor, generation_batch_size=SESSIONS, max_steps=3,
        max_turn_length=8, max_failed_share=1.0,
    )  # fmt: skip
    collect = trainer._play_rollout_batch

    def collect_and_look(*arguments):
        collected = collect(*arguments)
        batches.append(list(trainer._last_trajectories))
        return collected

    trainer._play_rollout_batch = collect_and_look
    start = time.monotonic()
    trainer.train()
    failed = [[item for item in batch if item.stop_reason is StopReason.ERROR] for batch in batches]
    played = [len(batch) - len(lost) for batch, lost in zip(batches, failed, strict=True)]
    assert trainer.state.global_step == 3 and played == [SESSIONS] * 3, "others are played in place of the lost ones"
    assert not failed[0] and not failed[2], "every session but the lost ones is opened anew"
    assert len(failed[1]) >= SESSIONS // 2
    assert all("lost" in item.error or "opened no session" in item.error for item in failed[1])
    assert time.monotonic() - start < 120, "nobody waits for a session that is gone"
    # the client of a session that is gone connects anew by itself: what it would play then is no part of the episode
    with pytest.raises(ConnectionError, match="was lost, and the state of the episode"):
        bystander.step("Left")
    with pytest.raises(ResetNeeded):
        bystander.step("Left")
    assert bystander.reset(seed=2) == local.reset(seed=2)
    assert bystander.step("Left") == local.step("Left")


def test_connection_that_the_client_opens_anew_is_another_session():
    class Forgiving(CountingEnvironment):
        """Plays on without having been reset, as many servers' environments do."""

        turn, target = 0, "#"

    with serving(Forgiving) as url:
        session = OpenEnvSession(url)
        session.reset(seed=1)
        session.step("Down")
        session._client.disconnect()
        with pytest.raises(ConnectionError, match="was lost"):
            session.step("Down")
        session.close()


def test_full_server_unreachable_server_and_slow_server_are_told_apart(server, open_session):
    full = [open_session(patience_s=0.0) for _ in range(SESSIONS + 2)]
    for session in full[:-1]:
        session.reset(seed=0)
    with pytest.raises(ConnectionError, match="no session left: raise its `max_concurrent_envs`"):
        full[-1].reset(seed=0)
    full[0].close()
    full[-1].patience_s = 30.0
    full[-1].reset(seed=0)
    with pytest.raises(ConnectionError, match=r"opened no session within 0 s .* Start it, or correct the URL"):
        OpenEnvSession("http://127.0.0.1:9", patience_s=0.0)
    full[1].close()
    impatient = OpenEnvSession(GenericEnvClient(base_url=server.url, message_timeout_s=1e-5))
    with pytest.raises(TimeoutError):
        impatient.reset(seed=0)
    impatient.close()


class Say(Action):
    message: str


class Move(Action):
    row: int
    column: int


class Anything(Action):
    question: str
    answer: str


def client_of(action_type):
    class Client(EnvClient[action_type, dict, dict]):
        def _step_payload(self, action):
            return action.model_dump()

        def _parse_result(self, payload):
            return StepResult(payload["observation"], payload["reward"], payload["done"])

        def _parse_state(self, payload):
            return payload

    return Client(base_url="http://127.0.0.1:9")


def test_text_becomes_the_only_text_field_of_a_typed_action():
    session = adapt(client_of(Say))
    assert session._parse_action("Up") == Say(message="Up")
    own = OpenEnvSession(client_of(Move), parse_action=lambda text: Move(row=len(text), column=0))
    assert own._parse_action("ab") == Move(row=2, column=0)


@pytest.mark.parametrize(("action_type", "fields"), [(Move, "row, column"), (Anything, "question, answer")])
def test_action_that_is_no_text_asks_for_parse_action(action_type, fields):
    with pytest.raises(TypeError, match=f"fields {fields}, and the model writes one text.*parse_action"):
        adapt(client_of(action_type))


def test_checker_tells_what_an_openenv_client_lacks():
    [problem] = check_environment(client_of(Move))
    assert "and the model writes one text" in problem
    session = OpenEnvSession(client_of(Say), patience_s=0.0)
    [problem] = check_environment(session, completions=["x"])
    assert "raised ConnectionError" in problem and "opened no session" in problem


def test_observation_is_its_only_field_or_all_fields():
    assert text_of_observation("board") == "board"
    assert text_of_observation({"text": "board", "metadata": {"a": 1}}) == "board"
    assert text_of_observation({"board": "x_o", "legal": [1, 2]}) == "board: x_o\nlegal: [1, 2]"
    assert text_of_observation(Say(message="hello")) == "hello"


def test_server_marks_what_is_a_cut_and_refuses_a_wrong_environment(tmp_path, capsys):
    class Cut(CountingEnvironment):
        def step(self, action):
            return "over", 0.0, False, True, {"count": self.np_random.integers(1, 2)}

    served = ServedEnvironment(Cut)
    served.reset(seed=1)
    reply = served.step(TextAction(text="x"))
    assert reply.done and reply.metadata == {"truncation": "time_limit", "count": 1} and served.state.step_count == 1
    from turnppo_hf.cli.main import main

    assert main(["openenv-serve", "sokobann"]) == 2
    assert "Did you mean" in capsys.readouterr().err
    assert main(["openenv-serve", "sokoban", "--environment_kwargs", "[6]"]) == 2
    assert "must be a JSON object" in capsys.readouterr().err


@pytest.mark.parametrize(("done", "is_over"), [(True, True), (False, False), (1, True), ("False", None), (None, None)])
def test_end_of_a_server_that_is_no_truth_value_is_refused(done, is_over):
    session, result = OpenEnvSession(client_of(Say), patience_s=0.0), StepResult("board", 0.0, done)
    if is_over is None:
        with pytest.raises(TypeError, match=r"returned `done` as .* Let it return true or false"):
            session._is_over(result)
    else:
        assert session._is_over(result) is is_over
