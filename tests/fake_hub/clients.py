"""Point the Hugging Face libraries of this process at a test Hub, and back: what they froze at import is patched."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


def environment(url: str, token: str, home: Path, *, xet: bool) -> dict[str, str]:
    """The variables that make a fresh process speak to the Hub at `url` with a cache of its own under `home`."""
    off = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
    on = ("HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_UPDATE_CHECK")
    return {
        "HF_ENDPOINT": url,
        "HF_TOKEN": token,
        "HF_HOME": str(home),
        "HF_HUB_CACHE": str(home / "hub"),
        "HF_XET_CACHE": str(home / "xet"),
        "HF_DATASETS_CACHE": str(home / "datasets"),
        "HF_HUB_DISABLE_XET": "0" if xet else "1",
        "NO_PROXY": "127.0.0.1,localhost",
        **dict.fromkeys(off, "0"),
        **dict.fromkeys(on, "1"),
    }


class Clock:
    """A module `time` whose `sleep` takes no time but is written down."""

    def __init__(self, waits: list[float]) -> None:
        self.sleep = waits.append

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def redirect(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], waits: list[float]) -> None:
    """Patch `os.environ`, huggingface_hub, transformers and datasets; back-offs go to `waits` and take no time."""
    # imported before the variables change, for all of them read some at import and would keep them after the test
    import datasets.config
    import transformers.dynamic_module_utils
    import transformers.utils.hub

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HUGGING_FACE_HUB_TOKEN", raising=False)
    url, home = variables["HF_ENDPOINT"], Path(variables["HF_HOME"])
    patch_huggingface_hub(monkeypatch, url, home, variables["HF_HUB_DISABLE_XET"] == "1")
    patch_clocks(monkeypatch, waits)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
    for module in (transformers.utils.hub, transformers.dynamic_module_utils):
        monkeypatch.setattr(module, "HF_MODULES_CACHE", str(home / "modules"))
    config: dict[str, Any] = {
        "HF_ENDPOINT": url,
        "HUB_DATASETS_URL": f"{url}/datasets/{{repo_id}}/resolve/{{revision}}/{{path}}",
        "HF_CACHE_HOME": str(home),
        "HF_DATASETS_CACHE": home / "datasets",
        "HF_MODULES_CACHE": home / "modules",
        "DOWNLOADED_DATASETS_PATH": home / "datasets" / "downloads",
        "EXTRACTED_DATASETS_PATH": home / "datasets" / "downloads" / "extracted",
        "HF_HUB_OFFLINE": False,
        "HF_DATASETS_OFFLINE": False,
        "HF_UPDATE_DOWNLOAD_COUNTS": False,
        "USE_PARQUET_EXPORT": False,  # of the dataset viewer, which is another host and is not played here
    }
    for name, value in config.items():
        monkeypatch.setattr(datasets.config, name, value)


def patch_huggingface_hub(monkeypatch: pytest.MonkeyPatch, url: str, home: Path, disable_xet: bool) -> None:
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import _cache_manager, _git_credential, _http

    cache, token = str(home / "hub"), str(home / "token")
    frozen: dict[str, Any] = {
        "ENDPOINT": url,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        "HF_URL_HOSTS": constants.HF_URL_HOSTS | {"127.0.0.1"},
        "HF_HOME": str(home),
        "HF_HUB_CACHE": cache,
        "HUGGINGFACE_HUB_CACHE": cache,
        "HF_ASSETS_CACHE": str(home / "assets"),
        "HF_TOKEN_PATH": token,
        "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        "HF_XET_CACHE": str(home / "xet"),
        "AGENT_HARNESSES_PATH": str(home / ".agent_harnesses.json"),
        "CHECK_FOR_UPDATE_DONE_PATH": str(home / ".check_for_update_done"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": disable_xet,
        "HF_HUB_DISABLE_TELEMETRY": True,
    }
    for name, value in frozen.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(hf_api.api, "endpoint", url)
    monkeypatch.setattr(hf_api.api, "_whoami_cache", {})
    monkeypatch.setattr(_cache_manager, "HF_HUB_CACHE", cache)
    monkeypatch.setattr(_git_credential, "ENDPOINT", url)
    monkeypatch.setattr(_http, "_HUB_ORIGINS", _http._HUB_ORIGINS | {_http._url_origin(url)})


def patch_clocks(monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> None:
    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", Clock(waits))


def forget_connections() -> None:
    """Drop what the clients share between calls: HTTP and Xet sessions, file systems with their listings."""
    from huggingface_hub import HfFileSystem, _tree_cache, close_session
    from huggingface_hub.utils import _xet

    close_session()
    HfFileSystem.clear_instance_cache()
    _tree_cache._IN_MEMORY_TREE_CACHE.clear()
    _xet.XET_CONNECTION_INFO_CACHE.clear()
    _xet._GLOBAL_XET_HOLDER._session = None


def xet_refusal() -> str | None:
    """Why Xet mode cannot be played here, or None."""
    try:
        import hf_xet
    except ImportError:
        return "hf_xet is not installed"
    needed = SimpleNamespace(XetSession=("new_upload_commit", "new_file_download_group"), XetFileInfo=())
    for name, methods in vars(needed).items():
        if not all(hasattr(getattr(hf_xet, name, None), method) for method in ("__new__", *methods)):
            return f"hf_xet has no {name} as this test Hub knows it"
    return None
