"""Registration and `make_environment`."""

from __future__ import annotations

import importlib
import subprocess
import sys
from typing import Any

import gymnasium
import pytest

from turnppo_hf.environments import make_environment
from turnppo_hf.environments.sokoban.environment import Sokoban
from turnppo_hf.trajectory import EnvironmentFailedError


def test_make_environment_returns_the_bare_environment() -> None:
    environment = make_environment("turnppo_hf/Sokoban-v0", size=5, max_turns=6)
    assert type(environment) is Sokoban
    assert (environment.size, environment.max_turns) == ((5, 5), 6)
    assert environment.spec is not None and environment.spec.id == "turnppo_hf/Sokoban-v0"


def test_large_preset_is_eight_by_eight_with_two_boxes() -> None:
    environment = make_environment("turnppo_hf/SokobanLarge-v0")
    assert isinstance(environment, Sokoban)
    assert (environment.size, environment.num_boxes) == ((8, 8), 2)
    environment.reset(seed=0)
    assert environment.state.num_boxes == 2 and environment.state.board.height == 8


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("turnppo_hf/Sokobann-v0", "'turnppo_hf/Sokoban-v0'"),
        ("Sokoban-v0", "'turnppo_hf/Sokoban-v0'"),
        ("sokobn", "'turnppo_hf/Sokoban-v0'"),
        ("turnppo_hf/sokobanlarge-v0", "'turnppo_hf/SokobanLarge-v0'"),
        ("turnppo_hf/Sokoban-v1", "'turnppo_hf/Sokoban-v0'"),
        ("CartPol-v1", "'CartPole-v1'"),
    ],
)
def test_unknown_name_gets_its_nearest_match(name: str, match: str) -> None:
    with pytest.raises(ValueError, match=rf"Unknown environment '{name}'\. Did you mean {match}"):
        make_environment(name)


@pytest.mark.parametrize(("name", "id"), [("sokoban", "Sokoban-v0"), ("webshop", "WebShop-v0")])
def test_short_names_open_our_environments(name: str, id: str) -> None:
    environment = make_environment(name)
    assert environment.spec is not None and environment.spec.id == f"turnppo_hf/{id}"
    environment.close()


def test_unknown_name_without_a_match_lists_what_exists() -> None:
    with pytest.raises(ValueError, match=r"Unknown environment 'zzzz'\. .*turnppo_hf/Sokoban-v0"):
        make_environment("zzzz")
    with pytest.raises(ValueError, match="module of the environment 'no_such_module:X-v0' cannot be imported"):
        make_environment("no_such_module:X-v0")


@pytest.mark.parametrize(("argument", "match"), [("num_box", "num_boxes"), ("maxturns", "max_turns")])
def test_unknown_argument_gets_its_nearest_match(argument: str, match: str) -> None:
    with pytest.raises(ValueError, match=f"Sokoban-v0 has no argument '{argument}'. Did you mean '{match}'"):
        make_environment("turnppo_hf/Sokoban-v0", **{argument: 1})


def test_environment_without_arguments_says_so() -> None:
    gymnasium.register("odd/A-v0", lambda: Sokoban())
    try:
        with pytest.raises(ValueError, match=r"odd/A-v0 has no argument 'size'\..* It takes none\.$"):
            make_environment("odd/A-v0", size=5)
    finally:
        del gymnasium.registry["odd/A-v0"]


def test_environment_without_text_is_refused() -> None:
    with pytest.raises(TypeError, match="observation space of 'CartPole-v1' is Box"):
        make_environment("CartPole-v1")


def test_environment_of_another_module_is_found_by_module_and_id(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / "my_world.py").write_text(
        "import gymnasium\nfrom turnppo_hf.environments.sokoban.environment import Sokoban\n"
        "def make(**kwargs):\n    return Sokoban(**kwargs)\n"
        "gymnasium.register('my_world/Box-v0', make, max_episode_steps=2, kwargs={'size': 5})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    environment = make_environment("my_world:my_world/Box-v0", num_boxes=1)
    try:
        assert isinstance(environment.unwrapped, Sokoban) and environment.unwrapped.size == (5, 5)
        environment.reset(seed=0)
        assert [environment.step("")[3] for _ in range(2)] == [False, True]  # its own TimeLimit stays
    finally:
        del gymnasium.registry["my_world/Box-v0"]


@pytest.mark.parametrize(
    ("place", "code", "error", "words"),
    [
        ("module", "import sys\nsys.exit(0)", EnvironmentFailedError, "The module of .* failed.*: SystemExit: 0"),
        ("module", "raise GeneratorExit", EnvironmentFailedError, "The module of .*: GeneratorExit"),
        (
            "module",
            "def broken(:",
            EnvironmentFailedError,
            r"The module of .*: SyntaxError: .*\(odd_world.py, line 1\)",
        ),
        (
            "module",
            "import math\nmath.nothing",
            EnvironmentFailedError,
            "The module of .*: AttributeError: .*'nothing'",
        ),
        ("module", "'1' + 1", EnvironmentFailedError, "The module of .*: TypeError"),
        ("module", "from math import nothing", EnvironmentFailedError, "The module of .*: ImportError"),
        ("module", "import no_such_module", ValueError, "cannot be imported: No module named 'no_such_module'"),
        ("module", "raise KeyboardInterrupt", KeyboardInterrupt, "^$"),
        ("constructor", "{}['size']", EnvironmentFailedError, "The environment .* failed.*: KeyError: 'size'"),
        ("constructor", "exit(0)", EnvironmentFailedError, "The environment .* failed.*: SystemExit: 0"),
        (
            "constructor",
            "raise OverflowError('one\\ntwo')",
            EnvironmentFailedError,
            "The environment .*: OverflowError: one$",
        ),
        ("constructor", "raise ValueError('`size` must be 5.')", ValueError, "^`size` must be 5.$"),
        ("constructor", "raise KeyboardInterrupt", KeyboardInterrupt, "^$"),
    ],
)
def test_fault_in_the_code_of_an_environment_is_told_as_its_own(
    place: str, code: str, error: type[BaseException], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    made = f"def make():\n    {code}\nimport gymnasium\ngymnasium.register('odd/A-v0', make)\n"
    (tmp_path / "odd_world.py").write_text(made if place == "constructor" else code)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        with pytest.raises(error, match=words):
            make_environment("odd_world:odd/A-v0")
    finally:
        gymnasium.registry.pop("odd/A-v0", None)
        sys.modules.pop("odd_world", None)


def test_no_module_loads_torch_or_the_hub() -> None:
    program = (
        "import importlib, pkgutil, sys, turnppo_hf.environments as package\n"
        "names = [item.name for item in pkgutil.walk_packages(package.__path__, package.__name__ + '.')]\n"
        "assert len(names) > 25, names\n"
        "for name in names:\n"
        "    if name.rpartition('.')[2] not in ('openenv', 'openenv_server', 'textarena'):\n"  # libraries of others
        "        importlib.import_module(name)\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'huggingface_hub', 'turnppo_hf.ppo'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize(
    "path",
    [
        *("adapt", "check_environment", "make_environment", "full_id", "SokobanTools", "WebShopTools"),
        *("sokoban.Sokoban", "webshop.WebShop", "integrations.trl_classes.SokobanTools"),
        *("integrations.tools.ToolEnvironment", "integrations.adapt.adapt"),
    ],
)
def test_public_path_is_found(path: str) -> None:
    module, _, name = f"turnppo_hf.environments.{path}".rpartition(".")
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("name", ["Sokoban", "SokobanTool"])
def test_other_attribute_is_missing(name: str) -> None:
    with pytest.raises(AttributeError, match=rf"module 'turnppo_hf\.environments' has no attribute '{name}'"):
        getattr(importlib.import_module("turnppo_hf.environments"), name)


WITH_RULES = [
    ("sokoban", {"size": 5}),
    ("minigrid", {}),
    ("textworld", {"settings": {"level": 1}}),
    ("webshop", {"data": "synthetic"}),
    ("webshop", {"data": "synthetic", "action_format": "bare"}),
]
WITHOUT_RULES = [
    ("sokoban", {"size": 5, "action_format": "bare"}),
    ("minigrid", {"env_id": "BabyAI-GoToLocal-v0", "action_format": "bare"}),
    ("textworld", {"settings": {"level": 1}, "action_format": "bare"}),
    ("webshop", {"data": "synthetic", "observation_mode": "text"}),
]


@pytest.mark.parametrize(("name", "kwargs"), WITH_RULES)
def test_rules_of_the_first_observation_can_be_repeated(name: str, kwargs: dict[str, Any]) -> None:
    if name in ("minigrid", "textworld"):
        pytest.importorskip(name)
    once, repeated = (make_environment(name, repeat_rules=flag, **kwargs) for flag in (False, True))
    first, _ = once.reset(seed=0)
    assert repeated.reset(seed=0)[0] == first
    later, later_with_rules = (environment.step("nothing to be understood")[0] for environment in (once, repeated))
    rules = later_with_rules.removesuffix(later)
    assert rules + later == later_with_rules and first.startswith(rules) and rules
    assert once.opens_with_rules and not repeated.opens_with_rules


@pytest.mark.parametrize(("name", "kwargs"), WITHOUT_RULES)
def test_rules_that_are_nowhere_cannot_be_repeated(name: str, kwargs: dict[str, Any]) -> None:
    if name in ("minigrid", "textworld"):
        pytest.importorskip(name)
    assert not make_environment(name, repeat_rules=False, **kwargs).opens_with_rules
    with pytest.raises(ValueError, match=r"`repeat_rules` is true, but .* no effect\. Leave it out, or set `\w+: "):
        make_environment(name, repeat_rules=True, **kwargs)
