"""What is written is true: commands parse, links lead somewhere, configs load, versions and figures agree."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from turnppo_hf import TurnPPOConfig
from turnppo_hf.cli.doctor import _EXTRAS
from turnppo_hf.cli.main import COMMANDS, build_parser
from turnppo_hf.cli.train_arguments import AdapterArguments, TaskArguments, parse_run
from turnppo_hf.trainer import metrics

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "llms.txt", "docs/**/*.md", "trainer_configs/*.md", "spaces_demo/*.md")
    for path in ROOT.glob(pattern)
)
CONFIGS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "trainer_configs").glob("*.yaml"))
PLACEHOLDERS = {
    "CONFIG.yaml": "trainer_configs/sokoban_cpu.yaml",
    "lift.yaml": "trainer_configs/sokoban_cpu.yaml",
    "my_start.yaml": "trainer_configs/imitate/minigrid.yaml",
    "MODEL": "tiny",
    "FOLDER": "data",
    "RUN": "runs/sokoban_cpu",
}
MAIN_JOB = "turnppo train trainer_configs/sokoban_cpu.yaml"
TEST_JOB = 'pytest -n 2 -m "not gpu and not network"'  # all that neither an accelerator nor the Hub is needed for
_CHECKED = [
    ["python"],
    ["bash"],
    ["console"],
    ["yaml"],
    ["text"],
    ["json"],
]  # `text` is what something printed, or a drawing
FLAGS_OF_OTHERS = {"--find-links", "--mixed_precision", "--num_processes", "--target", "--torch-backend", "--with"}
KINDS = (TaskArguments, TurnPPOConfig, AdapterArguments)
FIELDS = {item.name: item for kind in KINDS for item in fields(kind) if item.init}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(text: str, *languages: str) -> list[str]:
    found = re.findall(r"^[ \t]*```(\w*)[^\n]*\n(.*?)^[ \t]*```", text, re.DOTALL | re.MULTILINE)
    return [body for language, body in found if language in languages]


def inline_code(text: str) -> list[str]:
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))


def commands(text: str) -> Iterator[list[str]]:
    """Every `turnppo ...` of a page, from blocks and from inline code, without the word `turnppo`."""
    lines = [
        line for block in blocks(text, "bash", "sh", "console") for line in block.replace("\\\n", " ").splitlines()
    ]
    for line in [*lines, *inline_code(text)]:
        for part in re.split(r"&&|;|\|", line):
            part = re.sub(r"^\s*(?:\w+=\S+ +)+", "", part).partition(" > ")[0]  # variables before, a file after
            words = shlex.split(part.removeprefix("$ "), comments=True) if "turnppo" in part else []
            if words[:1] == ["turnppo"] and len(words) > 1:
                yield words[1:]
            elif "turnppo_hf.train" in words and words[0] == "accelerate":
                yield ["train", *words[words.index("turnppo_hf.train") + 1 :]]


def check_command(words: list[str]) -> None:
    """Parse a command as the program would; `...`, `[` and a lone command name stand for themselves."""
    words = [word for word in words if word != "--debug"]
    assert not words or words[0] in (*COMMANDS, "COMMAND", "--help", "--version"), f"no command: {words}"
    if (
        len(words) < 2
        or words[0] == "COMMAND"
        or "--help" in words
        or any("[" in word or "..." in word for word in words)
    ):
        return
    arguments = [PLACEHOLDERS.get(word, word) for word in words]
    if arguments[0] == "train":
        parse_run(arguments[1:])
    else:
        _, unknown = build_parser(arguments[0]).parse_known_args(arguments)
        assert not unknown, f"unknown arguments: {unknown}"


@cache
def known_flags() -> set[str]:
    known = {*FLAGS_OF_OTHERS, "--help", "--debug", "--lambda", "--config", *(f"--{name}" for name in FIELDS)}
    for command in COMMANDS.keys() - {"train"}:  # its flags are the fields
        parser = build_parser(command)._subparsers._group_actions[0].choices[command]
        known |= set(re.findall(r"--[\w]+", parser.format_help()))
    return known


def unknown_flags(text: str) -> list[str]:
    """Flags that stand alone in inline code and belong to no command."""
    written = [code.split()[0].partition("=")[0] for code in inline_code(text) if code.startswith("--")]
    return [flag for flag in written if flag not in known_flags()]


def test_readme_is_short_and_its_first_screen_has_the_picture_and_the_first_command() -> None:
    lines = read("README.md").splitlines()
    assert len(lines) < 120
    screen = "\n".join(lines[:30])
    assert screen.count("![") == 1 and MAIN_JOB in screen
    assert all(f"**{word}.**" in screen for word in ("Why", "For whom", "How fast", "Evidence"))


@pytest.mark.parametrize(
    "page", ["README.md", "docs/README.md", "docs/tutorials/quickstart.md", "SECURITY.md", "llms.txt"]
)
def test_page_that_users_see_names_the_telemetry_switch(page: str) -> None:
    assert "HF_HUB_DISABLE_TELEMETRY=1" in read(page)


def test_table_of_commands_has_every_command() -> None:
    rows = table(read("docs/README.md"), "command", "what it does")
    assert {row[0].split("`")[1].split()[1] for row in rows} == set(COMMANDS)


def broken_links(page: str, text: str) -> list[str]:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file.read_text("utf-8"))):
            broken.append(target)
    return broken


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def missing_imports(source: str) -> list[str]:
    """Names that an example imports from this package and that do not exist."""
    missing = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "turnppo_hf":
            module = importlib.import_module(str(node.module))
            missing += [alias.name for alias in node.names if not hasattr(module, alias.name)]
    return missing


def repeated_defaults(values: dict[str, Any]) -> list[str]:
    return [name for name, value in values.items() if name in FIELDS and FIELDS[name].default == value]


def result_sections(text: str) -> str:
    """What stands under headings about results."""
    parts = re.split(r"^(#+ .+)$", text, flags=re.MULTILINE)
    return "\n".join(body for title, body in zip(parts[1::2], parts[2::2], strict=True) if "result" in title.lower())


def unsupported_figures(text: str, results: Any) -> list[str]:
    """Decimal numbers and percentages of a text that no number of the results rounds to."""
    leaves = list(numbers(results))
    prose = re.sub(r"95 ?%|\]\([^)]*\)|```.*?```", "", text, flags=re.DOTALL)
    wrong = []
    for figure, percent in re.findall(r"(?<![\w.])(\d+(?:\.\d+)?)( ?%)?(?![\w.]*\d)", prose):
        if "." not in figure and not percent:
            continue
        tolerance = 0.5 * 10.0 ** -len(figure.partition(".")[2]) + 1e-9
        scale = 100 if percent else 1
        if not any(abs(abs(leaf) * scale - float(figure)) <= tolerance for leaf in leaves):
            wrong.append(figure + percent)
    return wrong


def numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def versions() -> dict[str, str]:
    release = re.search(r"^## (\d\S*)", read("CHANGELOG.md"), re.MULTILINE)
    return {
        "pyproject.toml": tomllib.loads(read("pyproject.toml"))["project"]["version"],
        "CHANGELOG.md": release.group(1) if release else "no release",
    }


def table(text: str, *header: str) -> list[list[str]]:
    """Rows of the table with this header."""
    lines = iter(text.splitlines())
    for line in lines:
        if cells(line)[: len(header)] == list(header):
            next(lines)
            return [cells(row) for row in iter(lambda: next(lines, ""), "")]
    return []


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_readme_holds_the_two_commands_and_ci_ends_with_the_second() -> None:
    shell = blocks(read("README.md"), "bash")
    assert any(MAIN_JOB in block and "pip install" in block for block in shell)
    assert any(block.rstrip().endswith(f"OMP_NUM_THREADS=1 {TEST_JOB}") and "pip install" in block for block in shell)
    ci = [line for line in read(".ci/run").splitlines() if line.strip() and not line.startswith("#")]
    assert ci[-1] == TEST_JOB and "export OMP_NUM_THREADS=1" in ci
    assert f"test-all:\n\tOMP_NUM_THREADS=1 {TEST_JOB}\n" in read("Makefile")
    assert any(line.startswith(MAIN_JOB) for line in ci)
    check_ci = [line.removeprefix("turnppo ") for line in ci if line.startswith("turnppo ")]
    for line in check_ci:
        check_command(shlex.split(line))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_commands_of_a_page_parse(page: str) -> None:
    for words in commands(read(page)):
        check_command(words)
    assert unknown_flags(read(page)) == []


def test_unknown_command_and_flag_on_a_page_are_found() -> None:
    page = (
        "```bash\n# a comment\n$ turnppo evaluate MODEL --episode 3\n```\nor `turnppo fly`, with `--gama 1`, `--lam`."
    )
    found = list(commands(page))
    assert found == [["evaluate", "MODEL", "--episode", "3"], ["fly"]]
    for words in found:
        with pytest.raises(AssertionError):
            check_command(words)
    with pytest.raises(ValueError, match="gamma"):
        check_command(["train", "CONFIG.yaml", "--gama", "1"])
    assert unknown_flags(page) == ["--gama"]


@pytest.mark.parametrize("page", PAGES)
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    assert broken_links(page, read(page)) == []


def test_broken_link_and_anchor_are_found() -> None:
    text = "[a](docs/none.md) [b](https://example.org) [c](CHANGELOG.md#010) [d](CHANGELOG.md#none) [e](LICENSE)"
    assert broken_links("README.md", text) == ["docs/none.md", "CHANGELOG.md#none"]


@pytest.mark.parametrize("page", PAGES)
def test_examples_of_a_page_compile_and_import_what_exists(page: str) -> None:
    for source in blocks(read(page), "python"):
        assert missing_imports(source) == []
    for source in blocks(read(page), "bash", "sh", "console"):
        done = subprocess.run(
            ["bash", "-n"], input=source.replace("$ ", ""), capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    for source in blocks(read(page), "yaml"):
        found = yaml.safe_load(source)
        is_study = "blocks" in found  # read by tests/cli/test_study.py
        assert is_study or set(found) <= {*FIELDS, "lambda", "env"}


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_is_in_a_language_that_is_checked(page: str) -> None:
    assert unchecked_blocks(read(page)) == []


def unchecked_blocks(text: str) -> list[str]:
    """First lines of the blocks that no test parses: those of a language that none knows, or of none."""
    return [
        line
        for line in re.findall(r"^[ \t]*```+([^\n`]*)$", text, re.MULTILINE)[::2]
        if line.split()[:1] not in _CHECKED
    ]


def test_block_that_nothing_checks_is_found() -> None:
    assert unchecked_blocks('```python title="a.py"\n1\n```\n```\nls\n```\n```rust\n1\n```\n') == ["", "rust"]


def test_import_of_a_missing_name_is_found() -> None:
    assert missing_imports("from turnppo_hf import TurnPPOConfig, TurnPPOTrainr") == ["TurnPPOTrainr"]


@pytest.mark.parametrize("config", CONFIGS)
def test_config_loads_says_what_it_is_and_holds_deviations_only(config: str) -> None:
    assert read(config).startswith("# ")
    assert all(word in read(config).split("\nmodel:")[0].lower() for word in ("hardware:", "time"))
    parse_run([config])
    assert repeated_defaults(yaml.safe_load(read(config))) == []
    row = next(
        row for row in table(read("trainer_configs/README.md"), "config", "command") if Path(config).name in row[0]
    )
    launch = re.search(r"# (accelerate launch .*)", read(config))  # of a config for several accelerators
    assert row[1] == f"`{launch[1] if launch else f'turnppo train {config}'}`"


def test_default_repeated_in_a_config_is_found() -> None:
    assert repeated_defaults({"gamma": 0.99, "lam": 0.8, "environment": "x"}) == ["gamma"]


def test_version_of_the_newest_entry_of_the_changelog_is_that_of_pyproject() -> None:
    assert len(set(versions().values())) == 1, versions()


def test_metrics_page_is_current() -> None:
    assert read("docs/metrics.md") == metrics.page() + "\n"


def test_paper_index_states_the_defaults() -> None:
    rows = table(read("docs/paper_index.md"), "field", "default", "from", "why")
    assert len(rows) > 10
    for name, default, source, _ in rows:
        assert str(FIELDS[name.strip("`")].default) == default.strip("`"), name
        assert source in ("paper", "reading", "ours")


def test_table_reads_the_rows_below_its_header_only() -> None:
    assert table("| a | b |\n|---|---|\n| 1 | 2 |\n\n| 3 | 4 |", "a", "b") == [["1", "2"]]


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_figures_about_results_stand_in_the_results_file(page: str) -> None:
    results = json.loads(read("docs/results.json"))
    text = result_sections(read(page))
    assert text.strip(), f"{page} has no section about results"
    assert unsupported_figures(text, results) == []


def test_figure_that_no_result_supports_is_found() -> None:
    results = {"before": {"success_rate": 0.2187}, "after": [0.5703], "seconds": 312}
    text = "Success rose from 0.22 to 57.0 % (95 % interval), not 0.61 or 58 %, in 312 s on 2 cores; v1.2.3."
    assert unsupported_figures(text, results) == ["0.61", "58 %"]
    assert result_sections("# A\n1.5\n## Results\n2.5\n## B\n3.5").strip() == "2.5"


def test_figures_about_adapters_stand_in_their_file() -> None:
    measured = json.loads(read("docs/adapters.json"))
    text = read("docs/adapters.md").split("## What it takes")[1].split("\n## ")[0]
    rows = table(text, "actor", "critic", "trained parameters")
    assert len(rows) == len(measured[0]["variants"]) == len(measured[1]["variants"])
    millions = [{name: value / 1e6 for name, value in row.items()} for row in measured[0]["variants"].values()]
    assert unsupported_figures(text, [measured, millions]) == []
    assert unsupported_figures(text.replace("| 0.", "| 9."), [measured, millions]) != []


def test_figures_about_what_vllm_is_sent_stand_in_their_file() -> None:
    measured = json.loads(read("docs/adapter_transfer.json"))
    text = read("docs/adapters.md").split("## What vLLM is sent")[1].split("\n## ")[0]
    rows = [
        cells(line) for line in text.splitlines() if line.startswith("| the adapter") or line.startswith("| weights")
    ]
    expected = [
        [f"{way['bytes'] / 1e6:.1f}", f"{way['seconds']:.3f}", f"{way['gap']:.1e}"]
        for mode in measured.values()
        for way in mode["ways"].values()
    ]
    assert [row[2:] for row in rows] == expected
    shares = {mode: f"{report['seconds_ratio']:.0%}".replace("%", " %") for mode, report in measured.items()}
    assert f"takes {shares['colocate']} of the seconds in the same process, {shares['server']} on a server" in text
    for report in measured.values():
        assert report["bytes_ratio"] < 0.05
        assert f"{report['bytes_ratio']:.1%} of the bytes".replace("%", " %") in text
        assert f"`{report['command']}`" in text


def test_figures_about_critics_are_those_of_the_walk() -> None:
    walk = json.loads(read("benchmarks/results/critics.json"))
    text = " ".join(read("docs/critics.md").split())
    version = ".".join(walk["machine"]["versions"]["transformers"].split(".")[:2])
    assert f"transformers {version} lists {walk['types']} types of causal" in text
    assert f"a token classifier for {walk['before']} of them" in text
    assert f"compared on {walk['after']} of the {walk['types']} types; of {walk['not_built']} others" in text
    refused = {name for name, found in walk["others"].items() if "critic" in found and found["critic"] != "works"}
    assert refused == {"emu3", "mllama"}


def test_doctor_knows_every_extra() -> None:
    extras: Iterable[str] = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    assert set(extras) == set(_EXTRAS)
