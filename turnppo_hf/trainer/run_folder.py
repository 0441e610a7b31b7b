"""A run's `output_dir` in; a folder that this run alone writes, and no other run's, out."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from turnppo_hf.hub.agent_record import RECORD_FILE
from turnppo_hf.trainer.checkpoints import (
    CheckpointRecord,
    find_checkpoint,
    finish_interrupted,
    on_first_rank,
    set_aside,
    try_write,
)
from turnppo_hf.trainer.run_settings import check_same_run, difference
from turnppo_hf.trainer.turn_ppo_config import TurnPPOConfig

_LOCK, _RUN = "_lock", "_run.json"  # a leading underscore keeps them from every push
_OF_AGENTS = (RECORD_FILE, "config.json", "adapter_config.json", "critic")
_held: set[int] = set()  # file descriptors of this process's locks


class RunFolderError(ValueError):
    """A folder that this run may not write to."""


class RunFolder:
    """
    The folder of one run; a launch's first process uses it for all.

    Args:
        path (`Path`): `output_dir`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """
        Keep other runs out for as long as this one writes; a killed process holds nothing.

        Raises:
            [`RunFolderError`]: another run writes.
        """
        opened = self._lock()
        _held.add(opened)
        try:
            yield
        finally:
            _held.discard(opened)
            os.close(opened)

    def _lock(self) -> int:
        self.path.mkdir(parents=True, exist_ok=True)
        opened = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(opened, 200).decode(errors="replace") or "unknown"
            os.close(opened)
            raise RunFolderError(
                f"Another run writes to {self.path} now (process {holder}), and two would write over each other. "
                "Wait for its end, or choose another `output_dir`."
            ) from None
        except OSError:
            os.close(opened)
            raise
        os.ftruncate(opened, 0)
        os.pwrite(opened, f"{os.getpid()} on {socket.gethostname()}".encode(), 0)
        return opened

    def claim(
        self, settings: Mapping[str, Any], *, is_resumed: bool, overwrite: bool, keep: Mapping[str, Path]
    ) -> None:
        """
        Make the folder this run's.

        Args:
            settings (`Mapping`): The run's, see [`~turnppo_hf.trainer.run_settings.run_settings`].
            is_resumed (`bool`): Whether the run goes on from a checkpoint in it.
            overwrite (`bool`): Whether to empty it first.
            keep (`Mapping[str, Path]`): What may not be emptied, by what it is.

        Raises:
            [`RunFolderError`]: it holds another run, or may not be emptied.
        """
        if overwrite:
            self._empty(keep)
        elif not is_resumed:
            self._check_other(settings)
        (self.path / _RUN).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def agent_files(self) -> list[str]:
        """Return the names of what an agent or a run left here."""
        found = [name for name in _OF_AGENTS if (self.path / name).exists()]
        saved = [item.name for item in self.path.glob("checkpoint-*") if item.is_dir()]
        return found + [name for name in saved if name != "checkpoint-0"][:1]  # nothing was learned until step 0

    def _check_other(self, settings: Mapping[str, Any]) -> None:
        found = self.agent_files()
        if not found:
            return
        try:
            then = json.loads((self.path / _RUN).read_text(encoding="utf-8"))
            differs = difference(settings, then)
        except (OSError, ValueError, AttributeError, TypeError):
            differs = "it has no record of its settings"
        if differs is not None:
            raise RunFolderError(
                f"`output_dir` {self.path} holds {found[-1]} of another run ({differs}), and this one would mix with "
                "it: its checkpoints and its critic would be taken for this run's. Choose another `output_dir`, set "
                "`resume_from_checkpoint` to go on with that run, or `overwrite_output_dir` to empty the folder."
            )

    def _empty(self, keep: Mapping[str, Path]) -> None:
        here = self.path.resolve()
        for what, path in keep.items():
            if path.exists() and path.resolve().is_relative_to(here):
                raise RunFolderError(
                    f"`overwrite_output_dir` would empty {self.path}, which holds {what} ({path}). Nothing was "
                    "deleted. Choose another `output_dir`."
                )
        for item in here.iterdir():
            if item.name == _LOCK:
                continue
            if item.is_dir() and not item.is_symlink():
                shutil.rmtree(item)
            else:
                item.unlink()


@contextmanager
def opened_run(
    args: TurnPPOConfig, settings: Mapping[str, Any], asked: str | bool | None, model: str
) -> Iterator[tuple[Path, CheckpointRecord] | None]:
    """
    Open a run's folder before anything is played, and keep other runs out until it is left; every rank enters it.

    Args:
        args ([`TurnPPOConfig`]): Names the folder, and whether it is emptied.
        settings (`Mapping`): The run's, see [`~turnppo_hf.trainer.run_settings.run_settings`].
        asked (`str` or `bool`, *optional*): `resume_from_checkpoint`.
        model (`str`): Id or folder that the model was loaded from.

    Yields:
        `tuple[Path, CheckpointRecord]`: the checkpoint to go on from; None where the run starts anew.

    Raises:
        [`~turnppo_hf.trainer.checkpoints.CheckpointError`], [`RunFolderError`]: on every rank, what the first finds.
    """
    folder = RunFolder(Path(str(args.output_dir)))
    with ExitStack() as stack:

        def open_folder() -> tuple[Path, CheckpointRecord] | None:
            try_write(folder.path)
            stack.enter_context(folder.locked())
            finish_interrupted(folder.path)
            found = find_checkpoint(asked, folder.path)
            if found is not None:
                check_same_run(settings, found[1].settings, str(found[0]))
                if args.overwrite_output_dir:
                    raise RunFolderError(
                        "`overwrite_output_dir` and `resume_from_checkpoint` are both set: what the run goes on from "
                        "would be deleted. Keep one of them."
                    )
            is_inside = found is not None and found[0].resolve().parent == folder.path.resolve()
            keep = {"the working directory": Path.cwd(), "your home": Path.home(), "the model": Path(model)}
            folder.claim(settings, is_resumed=is_inside, overwrite=args.overwrite_output_dir, keep=keep)
            set_aside(folder.path, found[1].step if found is not None and is_inside else -1)
            return found

        yield on_first_rank(args, open_folder)


def _close_in_child() -> None:
    """A forked process, such as one of a data loader, would hold the lock beyond its parent's end."""
    for opened in _held:
        os.close(opened)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)
