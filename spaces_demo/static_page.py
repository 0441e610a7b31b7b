"""Write the playground without a server: recorded episodes, game, comparison and training, for a browser to open."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from compare import BEST, best_view, recorded_limits, score
from levels import read_level
from player import REPLAYS, read_replays

SPACE = Path(__file__).parent


def write_page(folder: Path) -> None:
    """Write index.html, the page's elements and one file with all that is shown."""
    shutil.copytree(SPACE / "assets", folder / "assets", dirs_exist_ok=True)
    for path in (SPACE / "static").iterdir():
        shutil.copyfile(path, folder / path.name)
    replays = read_replays()
    best, limits = {}, recorded_limits()
    for replay in replays.values():
        if replay.view["level"] and replay.task not in best:
            best[replay.task] = best_view(read_level(replay.view["level"]), limits)
    content = {
        "replays": [asdict(replay) for replay in replays.values()],
        "best": {"name": BEST, "views": best},
        "scores": {key: score(replay.view) for key, replay in replays.items()},
        "max_actions": limits.max_actions,
        "training": json.loads((REPLAYS / "training.json").read_text(encoding="utf-8")),
    }
    (folder / "content.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    write_page(Path(sys.argv[1]))
