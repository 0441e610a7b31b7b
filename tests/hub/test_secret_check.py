"""The check in front of every push: what it refuses and names, and what it lets pass."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from safetensors.torch import save_file

import turnppo_hf
from tests.conftest import EMBEDDED
from tests.fake_hub.fixture import Hub
from turnppo_hf.hub.client import push_checkpoint, push_folder, push_release
from turnppo_hf.hub.exceptions import PushError
from turnppo_hf.hub.secret_check import check_no_secrets
from turnppo_hf.redaction import MASK, redact

TOKEN = "hf_" + "aB3" * 11 + "c"
ROOT = Path(turnppo_hf.__file__).parents[1]


def write(folder: Path, name: str, secret: str) -> None:
    """Write a file of the name's kind with a secret in it, or with what is in its place."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    data: dict[str, Any] = {"size": 5, "kwargs": {"token": secret}}
    match path.suffix:
        case ".yaml":
            path.write_text(yaml.safe_dump(data))
        case ".json":
            path.write_text(json.dumps(data))
        case ".jsonl":
            path.write_text(json.dumps({"size": 5}) + "\n" + json.dumps(data) + "\n")
        case ".safetensors":
            save_file({"a": torch.zeros(2)}, path, metadata={"token": secret})
        case ".parquet":
            Dataset.from_list([{"task": json.dumps(data), "n": 1}]).to_parquet(str(path))
        case ".whl":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("package/settings.py", f"SIZE = 5\nAPI_TOKEN = '{secret}'\n")
        case ".bin":
            torch.save({"hub_token": secret, "weights": torch.zeros(3)}, path)
        case ".pkl":
            path.write_bytes(pickle.dumps(data))
        case ".0":
            path.write_bytes(b"\x00\x01\x02" + f"args = token='{secret}'".encode() + b"\xff\x00")
        case _:
            path.write_text(f"# Agent\n\nRun it with `--token {secret}`.\n")


FILES = {
    "README.md": "line 3",
    "results.json": "`kwargs.token`",
    "train_config.yaml": "`kwargs.token`",
    "traces/a.jsonl": "`kwargs.token` of line 2",
    "model.safetensors": "`__metadata__.token`",
    "data/test.parquet": r"`\[0\].task.kwargs.token`",
    "wheels/a.whl": "line 2 of the package/settings.py in it",
    "training_args.bin": "`hub_token`.* in it",
    "state.pkl": "`token`",
    "runs/events.out.0": "text within it",
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("secret", [TOKEN, "Swordfish-99"])
def test_folder_with_a_secret_is_refused_by_file_and_key(tmp_path: Path, name: str, secret: str) -> None:
    write(tmp_path, name, secret)
    with pytest.raises(PushError, match=rf"not pushed, because {name} holds.*at {FILES[name]}.*remove it") as caught:
        check_no_secrets(tmp_path)
    assert secret not in str(caught.value) and not caught.value.is_transient
    check_no_secrets(tmp_path, ignore_patterns=[name])
    check_no_secrets(tmp_path, allow_patterns=["other.*"])
    write(tmp_path, name, MASK)
    check_no_secrets(tmp_path)


def test_settings_without_values_in_a_line_of_json_are_no_secret(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"observation": "HF_TOKEN=\nWANDB_API_KEY=\nPORT=80"}) + "\n{cut")
    check_no_secrets(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"observation": f"HF_TOKEN={TOKEN}\n"}))
    with pytest.raises(PushError, match="`observation` of line 1"):
        check_no_secrets(tmp_path)
    (tmp_path / "rows.jsonl").write_text(f'{{}}\n{{"token": "{TOKEN}"')  # cut
    with pytest.raises(PushError, match="at line 2"):
        check_no_secrets(tmp_path)


def test_packages_models_pages_and_configs_pass(tmp_path: Path) -> None:
    for part in ("docs", "trainer_configs", "spaces_demo", "turnppo_hf"):
        check_no_secrets(ROOT / part, ignore_patterns=["*__pycache__*"])
    agent = shutil.copytree(EMBEDDED, tmp_path / "agent")
    vocabulary = {"password": 3, "token": 4, "secret": 5, "hf_transformers": 6}
    (agent / "vocab.json").write_text(json.dumps(vocabulary))
    (agent / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary, "token": "some-text-1"}}))
    index = {"weight_map": {"embed.cls_token": "model-1.safetensors", "visual.my_token": "model-00001.safetensors"}}
    (agent / "model.safetensors.index.json").write_text(json.dumps(index))
    check_no_secrets(agent)


def test_every_push_is_checked_before_a_request(hub: Hub, tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED, tmp_path / "agent")
    write(tmp_path / "agent", "train_config.yaml", TOKEN)
    for push in (push_folder, push_release, lambda *a, **k: push_checkpoint(*a, "last-checkpoint", **k)):
        with pytest.raises(PushError, match=r"train_config.yaml holds what looks like a secret at `kwargs.token`"):
            push(tmp_path / "agent", "alice/agent", message="Upload")
    assert hub.log == []
    file = tmp_path / "agent" / "train_config.yaml"
    file.write_text(yaml.safe_dump(redact(yaml.safe_load(file.read_text()))))
    push_release(tmp_path / "agent", "alice/agent", message="Upload")
    assert "train_config.yaml" in hub.files("alice/agent")
