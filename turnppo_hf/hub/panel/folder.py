"""A panel's name in, a dataset folder out; such a folder or repository in, the checked panel out."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import gymnasium
import pyarrow
import pyarrow.parquet
from datasets import Dataset, Features, Value
from huggingface_hub import CommitInfo, snapshot_download

from turnppo_hf.distribution import DISTRIBUTION, declared
from turnppo_hf.environments import make_environment
from turnppo_hf.environments.webshop.files import find_data, prepare_world
from turnppo_hf.environments.webshop.rules import World
from turnppo_hf.environments.webshop.world_file import is_world_file, write_world
from turnppo_hf.evaluation.json_fields import FieldError, read_fields
from turnppo_hf.evaluation.outcome import Outcome, Summary, summarize_outcomes
from turnppo_hf.evaluation.panels.build import PanelTask, build_tasks, canonical_checksum
from turnppo_hf.evaluation.panels.catalog import PanelSpec, find_spec
from turnppo_hf.hub.agent_record import DATA_ARGUMENTS
from turnppo_hf.hub.client import push_folder
from turnppo_hf.hub.exceptions import ReleaseError
from turnppo_hf.hub.http_errors import HUB_ERRORS, explain, redact
from turnppo_hf.hub.panel.card import CARD_SIGNATURE, render_panel_card

MANIFEST, DATA, WORLD, CARD = "panel.json", "data/test.parquet", "webshop.world", "README.md"
SCHEMA_VERSION = 1

_OUTCOME = {
    **{name: Value("float64") for name in ("total_reward", "penalty")},
    **{name: Value("int64") for name in ("turns", "invalid_turns")},
    **{name: Value("string") for name in ("stop_reason", "answers", "error")},
    "success": Value("bool"),
}
_TEXTS = ("task_id", "options", "state", "prompt")


@dataclass(frozen=True)
class Manifest:
    """The content of `panel.json`."""

    schema_version: int
    name: str
    about: str
    environment: str  # Gymnasium id, one of this package
    environment_version: str
    environment_kwargs: Mapping[str, Any]  # all that shape an episode; a shop's `data` is a file of the panel
    max_turn_length: int  # tokens of one answer
    temperature: float  # of the sampling; 0 is greedy
    num_tasks: int
    world: str | None  # checksum of the shop; None where there is none
    drawn_from: Mapping[str, Any]  # how the tasks were drawn; it takes no part in playing them
    made_with: Mapping[str, Any]  # package -> version
    protocol_checksum: str  # of all that a player meets, see `protocol_checksum`
    files: Mapping[str, Any]  # name -> SHA-256


@dataclass(frozen=True)
class Panel:
    """A panel that was read and checked."""

    folder: Path
    manifest: Manifest
    tasks: tuple[PanelTask, ...]

    def environment(self) -> partial[gymnasium.Env[str, str]]:
        """Return what builds its environment."""
        return partial(make_environment, self.manifest.environment, **_on_disk(self.manifest, self.folder))

    @property
    def players(self) -> dict[str, Summary]:
        """The reference players by their names."""
        return {
            name: summarize_outcomes([task.players[name] for task in self.tasks]) for name in self.tasks[0].players
        }


def write_panel(
    name: str,
    folder: str | Path,
    *,
    data: str | Path | None = None,
    workers: int = 1,
    order: Callable[[list[int]], list[int]] = list,
) -> Panel:
    """
    Make a panel and write it into a folder: `panel.json`, `data/test.parquet`, `README.md`, a shop's `webshop.world`.

    Args:
        name (`str`): One of [`~turnppo_hf.evaluation.panels.catalog.PANELS`].
        folder (`str` or `Path`): New, empty, or with an earlier panel, which is replaced.
        data (`str` or `Path`, *optional*): WebShop's own files or a world file, for a panel that is made of them.
        workers, order: See [`~turnppo_hf.evaluation.panels.build.build_tasks`].

    Raises:
        `ValueError`: an unknown name, data that is missing or not needed, or a folder that holds something else.
    """
    spec, place = find_spec(name), Path(folder)
    _check_data(name, spec, data)
    _check_folder(place)
    beside = place.resolve().parent
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside, prefix=f".{place.name}-") as made:  # the earlier one stays till then
        panel = _write(name, spec, Path(made), data, workers, order)
        for part in (DATA, CARD, *([WORLD] if panel.manifest.world else []), MANIFEST):
            (place / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(Path(made) / part, place / part)
    if not panel.manifest.world:
        (place / WORLD).unlink(missing_ok=True)  # of an earlier shop
    return replace(panel, folder=place)


def _write(
    name: str,
    spec: PanelSpec,
    place: Path,
    data: str | Path | None,
    workers: int,
    order: Callable[[list[int]], list[int]],
) -> Panel:
    """Make a panel in an empty folder."""
    (place / DATA).parent.mkdir(parents=True, exist_ok=True)
    kwargs = spec.arguments()
    world = _write_world(spec, data, place / WORLD) if spec.environment == "webshop" else None
    on_disk = {**kwargs, "data": str(place / WORLD)} if world else kwargs
    tasks = build_tasks(name, spec, on_disk, workers=workers, order=order)
    _write_rows(tasks, place / DATA)
    environment = make_environment(spec.environment_id, **on_disk)
    recorded = Manifest(
        schema_version=SCHEMA_VERSION,
        name=name,
        about=spec.about,
        environment=spec.environment_id,
        environment_version=str(environment.unwrapped.version),  # type: ignore[attr-defined]
        environment_kwargs={**kwargs, "data": WORLD} if world else kwargs,
        max_turn_length=spec.max_turn_length,
        temperature=0.0,
        num_tasks=len(tasks),
        world=world,
        drawn_from=dict(spec.drawn_from),
        made_with=versions(spec.environment_id),
        protocol_checksum="",
        files={file: _sha256(place / file) for file in (DATA, *([WORLD] if world else []))},
    )
    environment.close()
    manifest = Manifest(**{**asdict(recorded), "protocol_checksum": protocol_checksum(recorded, tasks)})
    panel = Panel(place, manifest, tuple(tasks))
    card = render_panel_card(asdict(manifest), panel.players, needs_rights=spec.num_products is not None)
    (place / CARD).write_text(card, encoding="utf-8")
    (place / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")
    return panel


def protocol_checksum(manifest: Manifest, tasks: Sequence[PanelTask]) -> str:
    """
    Return the SHA-256 of all that a player meets: environment, limits, temperature, shop, levels or goals, prompts.

    Results with the same one compare. File formats, versions and reference players take no part in it.
    """
    names = [*("schema_version", "environment", "environment_version", "environment_kwargs")]
    names += ["max_turn_length", "temperature", "world"]
    head = {name: getattr(manifest, name) for name in names}
    return canonical_checksum({**head, "tasks": [task.frozen() for task in tasks]})


def find_panel(source: str) -> Path:
    """
    Return the folder of a panel: a local one, or a snapshot of a dataset on the Hub.

    Raises:
        `ReleaseError`: there is neither.
    """
    if Path(source).is_dir():
        return Path(source)
    try:
        return Path(snapshot_download(source, repo_type="dataset", allow_patterns=[MANIFEST, DATA, WORLD, CARD]))
    except HUB_ERRORS as error:
        raise ReleaseError(
            f"There is no folder {source!r} here, and no panel of that name could be had from the Hub: "
            f"{redact(explain(error))} Make one: turnppo panel NAME --output FOLDER."
        ) from error


def read_panel(folder: str | Path) -> Panel:
    """
    Read a panel and check every part of it.

    Raises:
        `ValueError`: it is no panel, or a file is missing or was changed; the message has the file and both checksums.
    """
    place = Path(folder)
    manifest = _read_manifest(place / MANIFEST)
    for name, frozen in manifest.files.items():
        found = _sha256(place / name) if (place / name).is_file() else None
        if found != frozen:
            was = "is missing" if found is None else "was changed"
            raise ValueError(
                f"{name} of the panel {str(folder)!r} {was}: its SHA-256 is {found or 'none'}, and {MANIFEST} froze "
                f"{frozen}. A score on it would compare with no other. Download or make the panel again."
            )
    tasks = _read_rows(place / DATA)
    found = protocol_checksum(manifest, tasks)
    if found != manifest.protocol_checksum or len(tasks) != manifest.num_tasks:
        raise ValueError(
            f"{MANIFEST} of the panel {str(folder)!r} was changed: its content has the protocol checksum {found}, and "
            f"it names {manifest.protocol_checksum}. A score under other rules would compare with no other. Download "
            "or make the panel again."
        )
    return Panel(place, manifest, tasks)


def is_panel(folder: str | Path) -> bool:
    """Whether a folder holds a panel."""
    return (Path(folder) / MANIFEST).is_file()


def push_panel(folder: str | Path, repo_id: str, **upload: Any) -> CommitInfo:
    """
    Check a panel and push it as a dataset.

    Args:
        folder (`str` or `Path`): Of `write_panel`.
        repo_id (`str`): `"name"` or `"namespace/name"`.
        upload: `message`, `private`, `revision`, `create_pr` and `token` of
            [`~turnppo_hf.hub.client.push_folder`].

    Raises:
        `ValueError`: it is no panel, or was changed.
        `PushError`: nothing was committed.
    """
    panel = read_panel(folder)
    names = [MANIFEST, CARD, *panel.manifest.files]
    return push_folder(folder, repo_id, repo_type="dataset", names=names, **upload)


def _read_manifest(file: Path) -> Manifest:
    if not file.is_file():
        raise ValueError(
            f"{str(file.parent)!r} holds no {MANIFEST}, so it is no panel and nothing is frozen in it. Make one: "
            "turnppo panel NAME --output FOLDER."
        )
    try:
        manifest = read_fields(Manifest, json.loads(file.read_text(encoding="utf-8")))
        _check_manifest(manifest)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{file} is damaged, or of a newer version: {error} What is played is read from it. Download or make the "
            "panel again, or upgrade turnppo-hf."
        ) from error
    return manifest


def _check_manifest(manifest: Manifest) -> None:
    """A panel may be anybody's: it names an environment of this package, and no data but its own."""
    if manifest.schema_version != SCHEMA_VERSION:
        raise FieldError("schema_version", manifest.schema_version, str(SCHEMA_VERSION))
    if not manifest.environment.startswith("turnppo_hf/") or manifest.environment not in gymnasium.registry:
        raise FieldError("environment", manifest.environment, "an environment of this package")
    shop = {"data": WORLD} if WORLD in manifest.files else {}
    if not re.fullmatch(r"\w[\w.-]*", manifest.name):  # it names a folder of results
        raise FieldError("name", manifest.name, "letters, digits, _, . and -")
    for name in DATA_ARGUMENTS:
        if manifest.environment_kwargs.get(name) != shop.get(name):
            raise FieldError(f"environment_kwargs.{name}", manifest.environment_kwargs.get(name), repr(shop.get(name)))
    if ("WebShop" in manifest.environment) != bool(shop):
        raise FieldError("files", dict(manifest.files), f"with {WORLD} for a shop, without it for others")
    if DATA not in manifest.files or not set(manifest.files) <= {DATA, WORLD}:
        raise FieldError("files", sorted(manifest.files), f"{DATA}, and {WORLD} for a shop")
    for name, low in (("max_turn_length", 1), ("temperature", 0), ("num_tasks", 1)):
        if not low <= getattr(manifest, name) < 1e6:
            raise FieldError(name, getattr(manifest, name), f"a number from {low} on")


def _on_disk(manifest: Manifest, folder: Path) -> dict[str, Any]:
    kwargs = dict(manifest.environment_kwargs)
    return {**kwargs, "data": str(folder / WORLD)} if WORLD in manifest.files else kwargs


def _write_rows(tasks: Sequence[PanelTask], file: Path) -> None:
    rows = []
    for task in tasks:
        players = {name: {key: getattr(item, key) for key in _OUTCOME} for name, item in task.players.items()}
        row = {**task.frozen(), **task.facts, **players, "options": json.dumps(task.options, ensure_ascii=False)}
        rows.append({name: value for name, value in row.items() if name != "facts"})
    texts = {name: Value("string") for name in _TEXTS}
    facts, players = dict.fromkeys(tasks[0].facts, Value("float64")), dict.fromkeys(tasks[0].players, _OUTCOME)
    features = Features({**texts, "seed": Value("int64"), **facts, **players})
    Dataset.from_list(rows, features=features).to_parquet(str(file))


def _read_rows(file: Path) -> tuple[PanelTask, ...]:
    try:
        # neither `datasets`, which would answer from a cache, nor a path, in which folders `a=1` would become columns
        with open(file, "rb") as content:
            rows = pyarrow.parquet.read_table(content)
        names = [column.name for column in rows.schema if pyarrow.types.is_struct(column.type)]
        facts = [column.name for column in rows.schema if pyarrow.types.is_float64(column.type)]
        return tuple(
            PanelTask(
                task_id=row["task_id"],
                seed=row["seed"],
                options=json.loads(row["options"]),
                state=row["state"],
                prompt=row["prompt"],
                facts={name: row[name] for name in facts},
                players={name: Outcome(task_id=row["task_id"], **row[name]) for name in names},
            )
            for row in rows.to_pylist()
        )
    except (KeyError, TypeError, ValueError, OSError, RecursionError, pyarrow.ArrowException) as error:
        raise ValueError(
            f"{file} holds no tasks ({type(error).__name__}: {error}). Nothing could be played. Make the panel again."
        ) from error


def _check_data(name: str, spec: PanelSpec, data: str | Path | None) -> None:
    if spec.num_products is not None and data is None:
        raise ValueError(
            f"The panel {name!r} is made of WebShop's own files, and none are named. Its products are not part of "
            "this package. Name their folder with --data, or in TURNPPO_WEBSHOP_DATA; docs/webshop.md says where "
            "they come from."
        )
    if spec.num_products is None and data is not None:
        raise ValueError(
            f"The panel {name!r} is made without data, so {str(data)!r} would have no effect. Leave --data out, or "
            "name another panel."
        )


def _write_world(spec: PanelSpec, data: str | Path | None, target: Path) -> str:
    """Write the shop of a panel; return its checksum."""
    if data is None:
        write_world(World.generate().data, target)
    else:
        source = find_data(data)
        worlds = [source] if source.is_file() and is_world_file(source) else sorted(source.glob("*.world"))
        if len(worlds) == 1:
            shutil.copyfile(worlds[0], target)
        else:
            prepare_world(source, target)
    world = World.load(target)
    if spec.num_products is not None and (len(world.products) != spec.num_products or world.data.synthetic):
        count = len(world.products)
        del world
        target.unlink()
        raise ValueError(
            f"{str(data)!r} holds a shop of {count} products, and the panel is that of WebShop's {spec.num_products}. "
            "Goals and prices would be others. Name the folder of the small set, see docs/webshop.md."
        )
    return world.data.checksum


def versions(environment: str) -> dict[str, str]:
    """Return the versions of the packages that an environment's episodes come from."""
    packages = {DISTRIBUTION: declared().version}
    if "MiniGrid" in environment:
        packages["minigrid"] = metadata.version("minigrid")
    return packages


def _sha256(file: Path) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds anything but an earlier panel."""
    files = sorted(path for path in folder.rglob("*") if not path.is_dir()) if folder.exists() else []
    ours = {folder / name for name in (MANIFEST, DATA, WORLD, CARD)}
    card = folder / CARD
    foreign = [path for path in files if path not in ours]
    if card.exists() and CARD_SIGNATURE not in card.read_text(encoding="utf-8"):
        foreign.append(card)
    if foreign or (folder.exists() and not folder.is_dir()):
        name = foreign[0].relative_to(folder).as_posix() if foreign else folder.name
        raise ValueError(
            f"{str(folder)!r} already holds {name!r}, which is of no panel and would be pushed with it. Name a new "
            "folder."
        )
