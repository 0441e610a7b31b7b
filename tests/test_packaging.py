"""Both distributions are the same bytes each time, and the wheel alone does the main job where no checkout is."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_string
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAX_WHEEL_MB = 8
_BUILDERS = pytest.mark.skipif(
    not (find_spec("build") and find_spec("hatchling")),
    reason='build and hatchling are missing: pip install -e ".[dev]"',
)
pytestmark = [pytest.mark.slow, _BUILDERS]


def build(source: Path, target: Path, **environment: str) -> dict[str, Path]:
    """Build sdist and wheel of it with what is installed, without network: suffix -> file."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(source)]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return {file.suffix: file for file in target.iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return build(ROOT, tmp_path_factory.mktemp("dist"), SOURCE_DATE_EPOCH="1700000000")


@pytest.fixture(scope="module")
def names(built: dict[str, Path]) -> set[str]:
    return set(zipfile.ZipFile(built[".whl"]).namelist())


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def environment_on_this_one(folder: Path) -> Path:
    """Make an environment that finds this one's packages, but not what a .pth file in it points to: this checkout."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [site] = folder.glob("lib/python*/site-packages")
    (site / "main.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n")
    return folder


def copy_of_the_repository(target: Path) -> Path:
    unwanted = shutil.ignore_patterns(".git", "runs", "site", "dist", ".venv*", ".*_cache", "__pycache__")
    return Path(shutil.copytree(ROOT, target, ignore=unwanted))


def test_builds_of_another_day_place_and_file_dates_are_equal_to_the_byte(
    built: dict[str, Path], tmp_path: Path
) -> None:
    elsewhere = copy_of_the_repository(tmp_path / "another name")
    environment_on_this_one(elsewhere / "environment")  # with a link to an absolute path, which no sdist may hold
    (elsewhere / "notes.txt").write_text("of the user's own")
    for number, file in enumerate(sorted(elsewhere.rglob("*"))):
        os.utime(file, (1_600_000_000 + number, 1_600_000_000 + number))
    again = build(elsewhere, tmp_path / "dist", SOURCE_DATE_EPOCH="1700000000")
    assert {suffix: digest(file) for suffix, file in again.items()} == {
        suffix: digest(file) for suffix, file in built.items()
    }
    (elsewhere / "turnppo_hf" / "py.typed").write_text("changed")  # the control
    changed = build(elsewhere, tmp_path / "changed", SOURCE_DATE_EPOCH="1700000000")
    assert all(digest(changed[suffix]) != digest(file) for suffix, file in built.items())


def test_wheel_holds_all_of_the_package_and_the_configs_and_nothing_else(
    built: dict[str, Path], names: set[str]
) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("no git repository to list the files of")
    places = {"turnppo_hf/": "turnppo_hf/", "trainer_configs/": "turnppo_hf/trainer_configs/"}
    data = f"turnppo_hf-{PROJECT['version']}.data/data/share/turnppo_hf/spaces_demo/"
    places["spaces_demo/"] = data
    wanted = {
        place + file.removeprefix(folder)
        for folder, place in places.items()
        for file in tracked
        if file.startswith(folder) and (ROOT / file).exists()
    }
    packed = {name for name in names if ".dist-info/" not in name}
    assert wanted <= packed, wanted - packed
    assert not [name for name in packed if "__pycache__" in name or name.endswith(".pyc")]
    assert built[".whl"].stat().st_size < MAX_WHEEL_MB * 1e6


def test_sdist_holds_all_that_is_tracked_but_the_integration_s_own(built: dict[str, Path]) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("no git repository to list the files of")
    with tarfile.open(built[".gz"]) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()} - {"PKG-INFO"}
    present = {file for file in tracked if (ROOT / file).exists()}
    assert {file for file in present - packed if not file.startswith((".ci/", ".github/"))} == set()


def test_metadata_is_complete_and_of_one_version(built: dict[str, Path]) -> None:
    wheel = zipfile.ZipFile(built[".whl"])
    folder = f"turnppo_hf-{PROJECT['version']}.dist-info"
    about = message_from_string(wheel.read(f"{folder}/METADATA").decode())
    assert about["Version"] == PROJECT["version"] and about["License-Expression"] == "Apache-2.0"
    assert about["Keywords"] and about["Description-Content-Type"] == "text/markdown"
    assert {line.split(", ")[0] for line in about.get_all("Project-URL", [])} == set(PROJECT["urls"])
    assert set(about.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    assert set(about.get_all("Classifier", [])) == set(PROJECT["classifiers"])
    assert f"{folder}/licenses/LICENSE" in wheel.namelist()


def test_wheel_built_from_the_sdist_is_the_wheel(built: dict[str, Path], tmp_path: Path) -> None:
    with tarfile.open(built[".gz"]) as archive:
        archive.extractall(tmp_path)  # Python 3.11.2 knows no `filter`, and the archive is ours
    [source] = tmp_path.iterdir()
    again = build(source, tmp_path / "dist", SOURCE_DATE_EPOCH="1700000000")
    assert digest(again[".whl"]) == digest(built[".whl"])


@pytest.fixture(scope="module")
def bare(built: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel, and with this one's packages below it; nothing is downloaded."""
    folder = environment_on_this_one(tmp_path_factory.mktemp("bare") / "venv")
    install = [
        str(folder / "bin" / "python"),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--ignore-installed",
    ]
    subprocess.run([*install, str(built[".whl"])], check=True)
    return folder


def run(bare: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PATH": f"{bare / 'bin'}{os.pathsep}{environment['PATH']}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_wheel_does_the_main_job_by_name_without_a_checkout(bare: Path, tmp_path: Path) -> None:
    where = run(
        bare, tmp_path, "python", "-c", "import turnppo_hf; print(turnppo_hf.__file__, turnppo_hf.__version__)"
    )
    assert str(bare) in where.stdout and PROJECT["version"] in where.stdout, where.stderr
    short = ("--max_steps", "2", "--eval_episodes", "8", "--generation_batch_size", "16")
    done = run(bare, tmp_path, "turnppo", "train", "sokoban_cpu", *short)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "runs" / "sokoban_cpu" / "critic" / "model.safetensors").is_file()
    assert "\noptimal " in done.stdout and "\nafter " in done.stdout
    for words in (("play", "runs/sokoban_cpu"), ("configs",), ("configs", "fsdp2"), ("--version",)):
        assert run(bare, tmp_path, "turnppo", *words).returncode == 0, words
    assert "Did you mean 'sokoban_cpu'?" in run(bare, tmp_path, "turnppo", "train", "sokoban_cqu").stderr


def test_study_in_the_wheel_writes_below_the_working_directory(bare: Path, tmp_path: Path) -> None:
    code = (
        "from turnppo_hf.evaluation.config_files import find_config; "
        "from turnppo_hf.evaluation.study.study_file import read_study; "
        "study = read_study(find_config('doorkey', 'studies')); print(study.results, study.work, sep='\\n')"
    )
    done = run(bare, tmp_path, "python", "-c", code)
    assert done.stdout.split() == [
        str(tmp_path / "benchmarks" / "results_study" / "doorkey"),
        str(tmp_path / "runs" / "studies" / "doorkey"),
    ], done.stderr


def test_wheel_that_a_release_carries_has_the_configs_too(bare: Path, tmp_path: Path) -> None:
    code = "import sys; from turnppo_hf.hub.wheel import build_wheel; print(build_wheel(sys.argv[1]))"
    inside = run(bare, tmp_path, "python", "-c", code, str(tmp_path / "installed")).stdout.strip()
    from turnppo_hf.hub.wheel import build_wheel

    configs = [
        {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("turnppo_hf/trainer_configs/")}
        for wheel in (inside, build_wheel(tmp_path / "checkout"))
    ]
    assert configs[0] == configs[1] and "turnppo_hf/trainer_configs/sokoban_cpu.yaml" in configs[0]


def test_version_stands_in_one_place() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert len(re.findall(rf'"{re.escape(PROJECT["version"])}"', text)) == 1
    written = [
        file.relative_to(ROOT).as_posix()
        for pattern in (
            "turnppo_hf/**/*.py",
            "docs/**/*.md",
            "*.md",
            "*.cff",
            "*.txt",
            "Dockerfile",
            "docs/**/*.ipynb",
        )
        for file in ROOT.glob(pattern)
        if re.search(rf"(?<![\d.<>=]){re.escape(PROJECT['version'])}(?![\d.])", file.read_text(encoding="utf-8"))
        and file.name != "CHANGELOG.md"  # whose newest heading is compared with it
    ]
    assert [name for name in written if not name.startswith("turnppo_hf/models/")] == []
