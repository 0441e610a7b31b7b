"""What a factory may return: kept as it is, adapted, or refused with what to do; libraries load only for their own."""

import subprocess
import sys

import gymnasium
import pytest

from tests.helpers.scripted import CountingEnvironment
from turnppo_hf.environments import adapt, make_environment
from turnppo_hf.environments.factory import open_environments


class Duck:
    """No gymnasium.Env, but it has the two methods."""

    def reset(self, *, seed=None, options=None):
        return "quack", {}

    def step(self, action):
        return "quack", 0.0, True, False, {}


class NoOptions(gymnasium.Env):
    """Its `reset` is older than Gymnasium's."""

    def reset(self, seed=None):
        return "seen", {}


class NoMethods:
    """Nothing to play in."""


@pytest.mark.parametrize("kind", [CountingEnvironment, Duck])
def test_environment_is_kept_as_it_is(kind):
    environment = kind()
    assert adapt(environment) is environment


def test_wrapper_decides_what_its_reset_takes():
    class Mended(gymnasium.Wrapper):
        def reset(self, *, seed=None, options=None):
            return self.env.reset(seed=seed)

    class Broken(gymnasium.Wrapper):
        def reset(self, seed=None):
            return self.env.reset(seed=seed)

    mended = gymnasium.wrappers.OrderEnforcing(Mended(NoOptions()))
    assert adapt(mended) is mended
    with pytest.raises(TypeError, match="takes no `options`"):
        adapt(gymnasium.wrappers.OrderEnforcing(Broken(CountingEnvironment())))


def test_class_and_third_party_id_are_played(make_trainer):
    gymnasium.register("elsewhere/Counting-v0", CountingEnvironment, disable_env_checker=True)
    try:
        for factory in (CountingEnvironment, "elsewhere/Counting-v0"):
            pool, [name], record = open_environments(factory)
            environment = pool.take(name).environment
            assert isinstance(environment.unwrapped, CountingEnvironment)
            assert record["environment"] == (factory if isinstance(factory, str) else None)
            environment.reset(seed=1)
            assert environment.step("Up")[1] == 1.0
    finally:
        del gymnasium.registry["elsewhere/Counting-v0"]


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (gymnasium.make("CartPole-v1"), "observation space of 'CartPoleEnv' is Box.*Wrap the environment"),
        (NoMethods(), "returned NoMethods, which has no reset"),
        (CountingEnvironment, "returned the class CountingEnvironment"),
        ({"a": 1}, "returned dict"),
        (None, "returned NoneType"),
        (NoOptions(), r"reset\(\) of 'NoOptions' takes no `options`.*Define reset"),
    ],
)
def test_what_cannot_be_played_is_refused(environment, message):
    with pytest.raises(TypeError, match=message):
        adapt(environment)


def test_libraries_load_only_for_environments_of_theirs():
    check = (
        "import sys; from turnppo_hf.environments import adapt, make_environment; "
        "adapt(make_environment('sokoban')); "
        "sys.exit(bool({'openenv', 'textarena', 'torch', 'fastapi', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.mark.parametrize(("library", "name"), [("openenv", "openenv/Server-v0"), ("textarena", "textarena/Wordle-v0")])
def test_missing_library_says_what_to_install(monkeypatch, library, name):
    monkeypatch.setitem(sys.modules, library, None)
    for module in [module for module in sys.modules if module.startswith(f"{library}.")]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"turnppo_hf.environments.integrations.{library}", raising=False)
    with pytest.raises(ImportError, match=rf'pip install "turnppo-hf\[{library}\]"'):
        make_environment(name)
