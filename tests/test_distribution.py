"""One place declares the versions: pyproject.toml; a checkout that was never installed has it, too."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import turnppo_hf
from tests.test_documents import read
from turnppo_hf import distribution
from turnppo_hf.cli import doctor
from turnppo_hf.distribution import Declared, declared, is_tried, range_of, warning_of_untried

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# what runs in an environment where everything but this package is installed
NOT_INSTALLED = """
import json, sys
from importlib import metadata
real = metadata.distribution
def distribution(name):
    if name == "turnppo-hf":
        raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.distribution = distribution  # what `version` and `requires` call
sys.path.insert(0, sys.argv[1])
"""


def run(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretend that a Python and packages of these versions are there."""

    def pretend(python: tuple[int, int] | None = None, **versions: str | None) -> None:
        real = metadata.version

        def version(name: str) -> str:
            wanted = versions.get(name, "as it is")
            if wanted is None:
                raise metadata.PackageNotFoundError(name)
            return real(name) if wanted == "as it is" else wanted

        monkeypatch.setattr(metadata, "version", version)
        if python is not None:
            monkeypatch.setattr(sys, "version_info", (*python, 0, "final", 0))
            monkeypatch.setattr("platform.python_version", lambda: "{}.{}.0".format(*python))

    inside = {name: next(iter(ranges()[name])).version for name in ("torch", "transformers")}
    pretend((3, 11), **inside)
    return pretend


def ranges() -> dict[str, SpecifierSet]:
    bounds = {item.name: item.specifier for item in map(Requirement, PROJECT["dependencies"])}
    return {name: SpecifierSet(str(bounds[name]).split(",")[-1].replace(">=", "==")) for name in bounds}


def test_declarations_of_the_checkout_are_those_of_pyproject() -> None:
    own = declared()
    assert own.version == turnppo_hf.__version__ == PROJECT["version"]
    assert [str(item) for item in own.core] == [str(Requirement(line)) for line in PROJECT["dependencies"]]
    extras = [Requirement(line) for line in own.requires if ";" in line]
    assert {str(item.marker) for item in extras} == {f'extra == "{name}"' for name in PROJECT["optional-dependencies"]}
    assert own.pythons[0] == PROJECT["requires-python"].removeprefix(">=") and len(own.pythons) == 3


def test_declarations_of_an_installation_are_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from turnppo_hf.hub.wheel import build_wheel

    expected = declared()
    monkeypatch.syspath_prepend(str(build_wheel(tmp_path)))
    monkeypatch.setattr(distribution, "_CHECKOUT", tmp_path / "none.toml")
    found = declared.__wrapped__()
    assert found.version == expected.version and found.pythons == expected.pythons
    assert [*map(str, map(Requirement, found.requires))] == [*map(str, map(Requirement, expected.requires))]


def test_pyproject_of_another_project_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = tmp_path / "pyproject.toml"
    other.write_text('[project]\nname = "other"\nversion = "9.9"\n')
    monkeypatch.setattr(distribution, "_CHECKOUT", other)
    assert declared.__wrapped__().version != "9.9"


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [
        "import turnppo_hf; print(turnppo_hf.__version__)",
        "from turnppo_hf.cli.main import main\ntry: main(['--version'])\nexcept SystemExit: pass",
        "from turnppo_hf.hub.run_record import package_version; print(package_version().version)",
        "from turnppo_hf.hub.wheel import build_wheel; print(build_wheel(sys.argv[2]).name)",
    ],
)
def test_checkout_that_was_never_installed_works(code: str, tmp_path: Path) -> None:
    done = run(NOT_INSTALLED + code, str(ROOT), str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert PROJECT["version"] in done.stdout


def test_folder_of_the_package_alone_imports_and_makes_no_wheel(tmp_path: Path) -> None:
    without_weights = shutil.ignore_patterns("*.safetensors", "__pycache__")
    shutil.copytree(ROOT / "turnppo_hf", tmp_path / "turnppo_hf", ignore=without_weights)
    code = """
import turnppo_hf, turnppo_hf.trainer
from turnppo_hf.hub.exceptions import ReleaseError
from turnppo_hf.hub.wheel import build_wheel
try:
    build_wheel(sys.argv[1])
except ReleaseError as error:
    print(turnppo_hf.__version__, error)
"""
    done = run(NOT_INSTALLED + code, str(tmp_path), PYTHONPATH="")
    assert done.stdout.startswith("0+unknown ") and "Install the package" in done.stdout, done.stderr
    assert done.stderr == ""


def test_versions_inside_the_ranges_give_no_warning(found: Any) -> None:
    assert declared().untried() == [] and warning_of_untried() is None
    found((3, 13), torch="2.15.0+cpu", transformers="5.24.3.post1")
    assert warning_of_untried() is None


@pytest.mark.parametrize(
    ("python", "versions", "words"),
    [
        ((3, 14), {}, ["Python 3.14.0 (tried: 3.11, 3.12, 3.13)"]),
        ((3, 10), {}, ["Python 3.10.0 (tried: "]),
        (None, {"torch": "2.10.1+cu130"}, ["torch 2.10.1+cu130 (tried: >=2.11,<2.16)"]),
        (None, {"torch": "2.16.0.dev20261101"}, ["torch 2.16.0.dev20261101 (tried: "]),
        (None, {"torch": "git-main"}, ["torch git-main (tried: "]),
        (None, {"transformers": "5.25.0"}, ["transformers 5.25.0 (tried: >=5.19,<5.25)"]),
        ((3, 15), {"torch": "3.0", "transformers": "4.57.1"}, ["Python 3.15.0", "torch 3.0", "transformers 4.57.1"]),
    ],
)
def test_versions_outside_are_named_with_those_tried(
    python: tuple[int, int] | None, versions: dict[str, str], words: list[str], found: Any
) -> None:
    found(python, **versions)
    warning = warning_of_untried()
    assert warning is not None and all(word in warning for word in words)
    assert warning.count("(tried: ") == len(words) and "Nothing is refused" in warning


def test_package_without_metadata_is_not_guessed(found: Any) -> None:
    found(torch=None)  # built by hand, or another packager's
    assert declared().untried() == []


def test_doctor_names_versions_outside_and_refuses_nothing(found: Any) -> None:
    assert doctor.diagnose().healthy
    found((3, 14), torch="2.16.0", transformers="5.18.0")
    page = doctor.diagnose()
    assert page.healthy
    for name, version, tried in [
        ("python", "3.14.0", "3.13"),
        ("torch", "2.16.0", "<2.16"),
        ("transformers", "5.18.0", ">=5"),
    ]:
        [line] = [line for line in page.page.splitlines() if line.split()[:1] == [name]]
        assert version in line and "NOT tried with" in line and tried in line


FIRST_IMPORT = """
import warnings
from importlib import metadata
real = metadata.version
metadata.version = lambda name: "2.99.0" if name == "torch" else real(name)
import turnppo_hf
import turnppo_hf.environments
print("before")
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import turnppo_hf.trainer
    from turnppo_hf.trainer import __all__
print([str(item.message) for item in caught if "turnppo_hf" in str(item.message)])
"""


def test_first_import_of_the_trainer_warns_once() -> None:
    done = run(FIRST_IMPORT, PYTHONPATH=str(ROOT))
    before, after = done.stdout.strip().splitlines()
    assert before == "before" and after.count("torch 2.99.0 (tried: ") == 1, done.stderr
    assert "2.99.0" not in done.stderr
    unchanged = run(FIRST_IMPORT.replace('"2.99.0"', 'real("torch")'), PYTHONPATH=str(ROOT))
    assert "torch" not in unchanged.stdout  # the control


def test_line_of_bitsandbytes_about_its_kernel_is_dropped_and_no_other() -> None:
    program = (
        "import logging, turnppo_hf; logger = logging.getLogger('bitsandbytes.backends.cpu.ops'); "
        "logger.warning('Failed to load CPU gemm_4bit_forward from kernels-community: %s.', OSError('offline')); "
        "logger.warning('Something else of %s', 'bitsandbytes')"
    )
    assert run(program, PYTHONPATH=str(ROOT)).stderr.splitlines() == ["Something else of bitsandbytes"]
    control = run(program.replace(", turnppo_hf", ""), PYTHONPATH=str(ROOT))
    assert len(control.stderr.splitlines()) == 2


def test_version_that_cannot_be_read_is_not_tried() -> None:
    assert not is_tried(Requirement("torch>=2,<3"), "main") and is_tried(Requirement("torch>=2,<3"), "2.1.0a0")
    assert range_of(Requirement("torch<3,>=2")) == ">=2,<3"
    assert Declared(
        "1", (), ("Programming Language :: Python :: 3", "Programming Language :: Python :: 3.11")
    ).pythons == ("3.11",)


def test_private_names_were_tried_with_the_declared_ranges() -> None:
    from turnppo_hf._trl import PRIVATE_NAMES

    for name, note in PRIVATE_NAMES.items():
        if name.startswith(("transformers.", "torch.")):
            assert note.endswith(span_of(name.partition(".")[0])), name


def span_of(name: str) -> str:
    oldest, newest = range_of(next(item for item in declared().core if item.name == name)).split(",")
    major, minor = newest.removeprefix("<").split(".")
    return f"{oldest.removeprefix('>=')} to {major}.{int(minor) - 1}"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/versions.md"])
def test_pages_name_the_declared_versions(page: str) -> None:
    pythons = declared().pythons
    words = [
        f"Python {pythons[0]} to {pythons[-1]}",
        *(f"{name} {span_of(name)}" for name in ("torch", "transformers")),
    ]
    text = " ".join(read(page).split())
    assert [word for word in words if word not in text] == []


def test_continuous_integration_has_declared_versions() -> None:
    script = read(".ci/run")
    assert f"python{declared().pythons[0]}" in script
    for name in ("torch", "transformers"):
        requirement = next(item for item in declared().core if item.name == name)
        pinned = re.findall(rf"\b{name}==([\d.]+\d)", script)
        assert pinned and all(is_tried(requirement, version) for version in pinned)
    assert f"transformers=={span_of('transformers').split()[0]}.0" in script  # the oldest


def test_page_of_what_ran_is_current() -> None:
    assert read("docs/versions.md") == load_matrix().page()


def test_every_declared_version_is_in_a_corner_that_ran_or_is_listed_as_not_run() -> None:
    matrix, own = load_matrix(), declared()
    expected = (set(own.pythons), minors(span_of("torch")), minors(span_of("transformers")))
    assert tuple(set(versions) for versions in zip(*matrix.CORNERS, strict=True)) == expected
    for corner, result in zip(matrix.CORNERS, matrix.results(), strict=True):
        if "not_run" in result:
            assert f"- Python {corner[0]}, torch {corner[1]}, transformers {corner[2]}: " in matrix.page()
        else:
            ran = [result["versions"][name] for name in ("python", "torch", "transformers")]
            assert [".".join(version.split(".")[:2]) for version in ran] == list(corner)


def minors(span: str) -> set[str]:
    (major, oldest), (_, newest) = (version.split(".") for version in span.split(" to "))
    return {f"{major}.{minor}" for minor in range(int(oldest), int(newest) + 1)}


def load_matrix() -> Any:
    spec = importlib.util.spec_from_file_location("matrix", ROOT / "benchmarks" / "matrix.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_report_of_a_corner_counts_and_keeps_the_reasons(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="tests.a.test_b" name="test_c[1]"/>'
        '<testcase classname="tests.a.test_b" name="test_d"><failure message="assert 1 == 2&#10; more"/></testcase>'
        '<testcase classname="tests.a.test_b" name="test_e"><skipped message="no vllm"/></testcase>'
        '<testcase classname="" name="tests.a.test_f"><error message="collection failure"/></testcase>'
        "</testsuite></testsuites>"
    )
    assert load_matrix().read_report(report) == {
        "passed": 1,
        "failed": 2,
        "skipped": 1,
        "failures": {"tests/a/test_b.py::test_d": "assert 1 == 2", "tests.a.test_f": "collection failure"},
    }


def test_corner_that_cannot_be_made_is_listed_as_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = load_matrix()
    (tmp_path / "bin").mkdir()
    uv = tmp_path / "bin" / "uv"
    uv.write_text("#!/bin/sh\necho 'error: No interpreter found for Python 3.13' >&2\nexit 2\n")
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", f"{uv.parent}{os.pathsep}{os.environ['PATH']}")
    result = matrix.run_corner(tmp_path / "corner", "3.13", "2.15", "5.24")
    assert result["not_run"] == "error: No interpreter found for Python 3.13" and not (tmp_path / "corner").exists()
    monkeypatch.setattr(matrix, "results", lambda: [result])
    assert "- Python 3.13, torch 2.15, transformers 5.24: error: No interpreter found" in matrix.page()


def test_import_reads_no_metadata() -> None:
    code = "import sys; loaded = set(sys.modules); import turnppo_hf; print(set(sys.modules) - loaded)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'turnppo_hf'" in done.stdout  # the control
    assert not {"'packaging'", "'importlib.metadata'", "'torch'"} & set(done.stdout.strip("{}\n").split(", "))
