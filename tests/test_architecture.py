"""The rules of the code's shape: which way imports point, how long things get, where private names may be touched."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "turnppo_hf"
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_OWN_FIELDS = 500, 80, 40

# a unit, a package or a module of the top level, imports from those before it only
ORDER = (
    *("_trl", "trajectory", "environments", "generation", "rollout", "ppo", "evaluation", "hub"),
    *("models", "agent", "trainer", "cli", "__init__", "train"),
)
FORBIDDEN = {  # unit -> distributions it never imports, not even inside a function
    "environments": {"torch", "transformers", "trl", "accelerate"},
    "trajectory": {"torch", "transformers", "trl", "accelerate"},
    "ppo": {"transformers", "trl", "accelerate", "datasets"},
}
IMPORTERS_OF_CONFIG = {"trainer", "cli", "__init__"}
PRINTERS = {"cli"}  # what they print is their result
UPSTREAM = {"trl", "transformers", "accelerate", "vllm"}
# adding a field is a decision that shows here
OWN_FIELDS = {
    "algorithm",
    "bootstrap_truncated",
    "cliprange_value",
    "critic",
    "critic_lr_multiplier",
    "critic_trunk_gradient",
    "critic_warmup_steps",
    "eval_temperature",
    "gamma",
    "kl_estimator",
    "lam",
    "loss_aggregation",
    "max_failed_share",
    "max_parallel_episodes",
    "max_tokens_per_micro_batch",
    "max_turn_length",
    "max_turns",
    "num_minibatches",
    "oversampling_factor",
    "oversampling_rest",
    "token_gamma",
    "token_lam",
    "vllm_structured_outputs_choice",
    "whiten_advantages",
}

Tree = Mapping[str, str]  # module name below the package, such as "environments.sokoban" -> source


@pytest.fixture(scope="module")
def package() -> Tree:
    return read_tree(ROOT / PACKAGE)


def read_tree(folder: Path) -> Tree:
    return {
        ".".join(path.relative_to(folder).with_suffix("").parts): path.read_text(encoding="utf-8")
        for path in sorted(folder.rglob("*.py"))
    }


def unit(module: str) -> str:
    return module.split(".")[0]


def imports(source: str) -> Iterator[tuple[str, str | None]]:
    """Every import of a file as (module, name or None), those inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (("." * node.level + (node.module or ""), alias.name) for alias in node.names)


def own_imports(tree: Tree, module: str) -> set[str]:
    """Modules of the package that a module imports; `from turnppo_hf.x import y` may name the module x.y."""
    found = set()
    for target, name in imports(tree[module]):
        if target == PACKAGE or target.startswith(f"{PACKAGE}."):
            below = target.removeprefix(PACKAGE).lstrip(".")
            longer = f"{below}.{name}".lstrip(".") if name else below
            found.add(
                next((item for item in (longer, below, f"{below}.__init__") if item in tree), below or "__init__")
            )
    return found - {module}


def upward_imports(tree: Tree) -> list[str]:
    place = {name: number for number, name in enumerate(ORDER)}
    wrong = []
    for module in tree:
        if unit(module) not in place:
            wrong.append(f"{module} stands outside of the order")
            continue
        for target in own_imports(tree, module):
            if place.get(unit(target), len(ORDER)) > place[unit(module)]:
                wrong.append(f"{module} imports {target}")
    return wrong


def import_cycles(tree: Tree) -> list[str]:
    cycles, done = [], set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            cycles.append(" -> ".join([*path[path.index(module) :], module]))
        elif module not in done:
            for target in sorted(own_imports(tree, module) & set(tree)):
                visit(target, (*path, module))
            done.add(module)

    for module in tree:
        visit(module, ())
    return cycles


def forbidden_imports(tree: Tree) -> list[str]:
    return [
        f"{module} imports {target}"
        for module, source in tree.items()
        for target, _ in imports(source)
        if target.split(".")[0] in FORBIDDEN.get(unit(module), set())
    ]


def config_importers(tree: Tree) -> set[str]:
    return {unit(module) for module in tree if "trainer.turn_ppo_config" in own_imports(tree, module)}


def relative_imports(tree: Tree) -> list[str]:
    return [module for module, source in tree.items() for target, _ in imports(source) if target.startswith(".")]


def private_upstream_names(tree: Tree) -> list[str]:
    """TRL promises its top level only; in the others, names that begin with an underscore are private."""
    wrong = []
    for module, source in tree.items():
        for target, name in imports(source) if module != "_trl" else ():
            parts = [*target.split("."), *([name] if name else [])]
            is_private = any(part.startswith("_") for part in parts[1:])
            if parts[0] in UPSTREAM and (is_private or (parts[0] == "trl" and "." in target)):
                wrong.append(f"{module} imports {'.'.join(parts)}")
    return wrong


def long_files(tree: Tree) -> list[str]:
    return [
        f"{module}: {len(source.splitlines())} lines"
        for module, source in tree.items()
        if len(source.splitlines()) > MAX_FILE_LINES
    ]


def long_functions(tree: Tree) -> list[str]:
    return [
        f"{module}.{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for module, source in tree.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]


def printing_modules(tree: Tree) -> set[str]:
    return {
        module
        for module, source in tree.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }


def undocumented_names(tree: Tree) -> list[str]:
    missing = []
    for module, source in tree.items():
        parsed = ast.parse(source)
        if source.strip() and not ast.get_docstring(parsed):
            missing.append(module)
        for node in parsed.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    missing.append(f"{module}.{node.name}")
    return missing


def test_imports_point_to_what_comes_before(package: Tree) -> None:
    assert upward_imports(package) == []


def test_imports_upward_or_outside_of_the_order_are_found() -> None:
    tree = {"ppo.losses": "from turnppo_hf.trainer.update import X", "trainer.update": ""}
    assert upward_imports(tree) == ["ppo.losses imports trainer.update"]
    assert upward_imports({"utils": ""}) == ["utils stands outside of the order"]


def test_imports_form_no_cycle(package: Tree) -> None:
    assert import_cycles(package) == []


def test_import_cycle_inside_a_package_is_found() -> None:
    tree = {
        "environments.a": "from turnppo_hf.environments import b",
        "environments.b": "def f():\n    import turnppo_hf.environments.a",
    }
    assert import_cycles(tree) == ["environments.a -> environments.b -> environments.a"]


def test_maths_and_environments_import_no_framework(package: Tree) -> None:
    assert forbidden_imports(package) == []


def test_framework_imported_inside_a_function_is_found() -> None:
    tree = {"environments.sokoban": "def f():\n    import torch.nn", "ppo.losses": "from transformers import X"}
    assert forbidden_imports(tree) == ["environments.sokoban imports torch.nn", "ppo.losses imports transformers"]


def test_config_stops_at_the_trainers_door(package: Tree) -> None:
    assert config_importers(package) <= IMPORTERS_OF_CONFIG


def test_config_imported_by_another_unit_is_found() -> None:
    tree = {
        "hub.client": "from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig",
        "trainer.turn_ppo_config": "",
    }
    assert config_importers(tree) - IMPORTERS_OF_CONFIG == {"hub"}


def test_imports_are_absolute(package: Tree) -> None:
    assert relative_imports(package) == []


def test_relative_import_is_found() -> None:
    assert relative_imports({"batch": "from .trajectory import Turn"}) == ["batch"]


def test_private_upstream_names_are_touched_in_one_file(package: Tree) -> None:
    assert private_upstream_names(package) == []


def test_private_upstream_name_elsewhere_is_found() -> None:
    tree = {
        "trainer": "from trl.trainer.base_trainer import _BaseTrainer",
        "loading": "from transformers.utils import _private",
        "_trl": "from trl.trainer.utils import pad",
    }
    assert private_upstream_names(tree) == [
        "trainer imports trl.trainer.base_trainer._BaseTrainer",
        "loading imports transformers.utils._private",
    ]


def test_files_and_functions_are_short(package: Tree) -> None:
    tests = read_tree(ROOT / "tests")
    assert long_files(package) + long_files(tests) == []
    assert long_functions(package) + long_functions(tests) == []


def test_long_file_and_long_function_are_found() -> None:
    body = "    pass\n" * MAX_FUNCTION_LINES
    assert long_functions({"a": f"class A:\n  def f(self):\n{body}"}) == ["a.f: 81 lines"]
    assert long_files({"a": "x = 1\n" * (MAX_FILE_LINES + 1)}) == ["a: 501 lines"]


def test_only_the_command_line_prints(package: Tree) -> None:
    assert {unit(module) for module in printing_modules(package)} <= PRINTERS


def test_print_in_a_library_module_is_found() -> None:
    assert printing_modules({"losses": "def f():\n    print(1)", "cli": "print(2)"}) - PRINTERS == {"losses"}


def test_public_names_have_docstrings(package: Tree) -> None:
    assert undocumented_names(package) == []


def test_public_name_without_docstring_is_found() -> None:
    tree = {"batch": "class Batch:\n    pass", "losses": '"""Maths."""\ndef _private():\n    pass'}
    assert undocumented_names(tree) == ["batch", "batch.Batch"]


def test_config_adds_only_the_listed_fields() -> None:
    from transformers import TrainingArguments
    from trl import GRPOConfig

    from turnppo_hf import TurnPPOConfig

    known = {item.name for kind in (TrainingArguments, GRPOConfig) for item in fields(kind)}
    assert {item.name for item in fields(TurnPPOConfig)} - known == OWN_FIELDS
    assert len(OWN_FIELDS) <= MAX_OWN_FIELDS


@pytest.mark.parametrize(
    ("module", "loads_torch"), [("turnppo_hf.environments", False), ("turnppo_hf.ppo.batch", True)]
)
def test_environments_load_without_torch(module: str, loads_torch: bool) -> None:
    check = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == int(loads_torch)
