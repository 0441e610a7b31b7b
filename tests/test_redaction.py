"""What is a secret and what only looks like one, by the name it stands under, by its form and by its value."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from turnppo_hf import TurnPPOConfig
from turnppo_hf.environments import make_environment
from turnppo_hf.redaction import (
    MASK,
    check_unmasked,
    find_mask,
    find_secret,
    is_secret_name,
    redact,
    redacted_json,
    remember_secrets,
)

HUGGING_FACE = "hf_" + "aB3" * 11 + "c"
TOKENS = [  # put together here, so that no file of this repository holds the form of one
    HUGGING_FACE,
    "hf_" + "abcdefghijklmnopqrstuvwxyzabcdefgh",
    "sk-" + "proj-abcDEF123456789012345",
    "sk-" + "ant-api03-abcDEF123456789012345",
    "gh" + "p_" + "A1" * 18,
    "github" + "_pat_11ABCDEFG0abcdefghijkl_xyz",
    "glp" + "at-abcDEF1234567890abcd",
    "AKI" + "AIOSFODNN7EXAMPLE",
    "xox" + "b-123456789012-abcdef",
    "AIz" + "a" + "Sy" * 17 + "x",
    "wandb" + "_v1_" + "aB1" * 12,
    "eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abcdefghi",
    "SG" + "." + "aB1" * 7 + "." + "aB1" * 14,
    "-----BEGIN RSA PRIVATE " + "KEY-----\nabc\n-----END RSA PRIVATE " + "KEY-----",
]


@dataclass
class Login:
    user: str
    hub_token: str


@pytest.mark.parametrize("token", TOKENS, ids=lambda token: token[:6])
def test_token_is_masked_by_its_form_wherever_it_stands(token: str) -> None:
    places: dict[str, Any] = {
        "list": ["a", [{"b": token}]],
        "text": f"login with {token}, please",
        "tuple": ("x", token),
        "json": json.dumps({"inner": json.dumps([token])}),
        "repr": f"Login({token!r})",
        "key": {token: 1},
        "set": {token},
        "bytes": token.encode(),
    }
    for place, value in places.items():
        assert token not in str(redact(value)), place
        assert find_secret({"at": value}) is not None or place == "bytes", place
    assert token in places["text"], "what is given stays as it is"


@pytest.mark.parametrize(
    "name",
    [
        *("token", "hub_token", "HF_TOKEN", "push_to_hub_token", "my_service_token", "accessToken"),
        *("password", "pwd"),
        *("db-password", "passwd", "user_pass", "dbPassword", "client_secret", "secret_key", "api_key", "apiKey"),
        *("X-API-Key", "OPENAI_API_KEY", "wandb_key", "authorization", "Authorization", "auth", "cookie"),
        *("token_value", "api_keys", "private_key", "apikey", "hftoken", "token2", "credentials"),
        *("environment.password", "aws_secret_access_key"),
    ],
)  # fmt: skip
def test_value_under_a_secrets_name_is_masked_at_any_depth(name: str) -> None:
    assert is_secret_name(name)
    for value in ("x", "swordfish", ["x", {"user": "y"}], {"user": "x", "key": "y"}):
        masked = redact({"deep": [{"er": {name: value, "size": 5}}]})
        left = json.dumps(masked["deep"][0]["er"][name])
        assert not {'"x"', '"y"', '"swordfish"'} & set(left.replace("]", ",").replace("}", ",").split(","))
        assert MASK in left and masked["deep"][0]["er"]["size"] == 5
    assert find_secret({"deep": [{name: "x"}]}) == f"deep[0].{name}"
    assert redact({name: None}) == {name: None} and redact({name: True}) == {name: True}


def test_what_only_looks_like_a_secret_stays() -> None:
    settings = {
        "max_tokens": 512, "num_tokens": 1.0, "token": 5, "token_ids": [1, 2], "pad_token": "!", "eos_token": "</s>",
        "image_token": "<image>", "tokenizer": "gpt2", "token_gamma": 1.0, "secret_word": "apple", "sort_key": "name",
        "key": "size", "token_path": "~/.cache/token", "api_key_env": "OPENAI_API_KEY", "password_length": 8,
        "logprobs": [{"token": "the", "logprob": -1.0}], "sha256": "d41d8cd98f00b204e9800998ecf8427e" * 2,
        "commit": "283658e" + "0" * 33, "url": "https://huggingface.co/a/b?x=1&page=2", "git": "ssh://git@github.com/x",
        "address": "http://127.0.0.1:8000", "mail": "me@example.org", "id2label": {"0": "B-PASSWORD"},
        "label2id": {"B-PASSWORD": 0}, "eval_token": None, "bos_token": {"content": "<s>", "lstrip": False},
    }  # fmt: skip
    assert redact(settings) == {**settings, "label2id": {"B-PASSWORD": MASK}}, "numbers may be passwords"
    assert find_secret(settings) is None, "a label is no secret in a file"
    for text in (
        "token: each token has an advantage", "model = load('x', token=token, password=getpass())", "HF_TOKEN=hf_...",
        "--secrets HF_TOKEN", "both --private and --secret belong to it",
        "export HF_TOKEN=$HF_TOKEN", "sk-learn-contrib-some-name", "hf_hub_download", "risk-averse-policy-of-agent-1",
        "Basic training of agents, Bearer tokens", "click[buy now] search[token ring=1]", "token=target['token']",
        "turnppo train runs/a.yaml --max_tokens_per_micro_batch 4096 --temperature 0.7", "{'pad_token': '<pad>'}",
    ):  # fmt: skip
        assert redact(text) == text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("http://user:p4ss@host:80/x", f"http://{MASK}@host:80/x"),
        ("see postgres://me:a#b@db/x and more", f"see postgres://{MASK}@db/x and more"),
        ("https://x.org/a?token=abc&n=1", f"https://x.org/a?token={MASK}&n=1"),
        ("wss://x.org/?n=1&api_key=abc#top", f"wss://x.org/?n=1&api_key={MASK}#top"),
        ("Login(user='me', password='hunter22')", f"Login(user='me', password='{MASK}')"),
        ("{'password': 'hunter22'}", f"{{'password': '{MASK}'}}"),
        ('--kwargs={"token": "hunter22"}', f'--kwargs={{"token": "{MASK}"}}'),
        ("args = my_token='hunter22'", f"args = my_token='{MASK}'"),
        ("x --token hunter22 --size 5", f"x --token {MASK} --size 5"),
        ("HF_TOKEN=hunter22 python x.py", f"HF_TOKEN={MASK} python x.py"),
        ("Authorization: Bearer abc.defg1", f"Authorization: {MASK}"),
        ('{"headers": {"token": "a"}}', f'{{"headers": {{"token": "{MASK}"}}}}'),
        ("https://hooks.slack.com/services/T0/B0/XXXXXX", f"https://hooks.slack.com/services/{MASK}"),
    ],
)
def test_secret_within_a_text_is_masked_and_the_rest_stays(text: str, masked: str) -> None:
    assert redact(text) == masked == redact(masked)
    assert find_secret([text]) is not None and find_secret([masked]) is None


def test_numbers_of_numpy_are_recorded_as_numbers() -> None:
    given = {"size": (np.int64(6), 5), "penalty": np.float32(-0.5), "rules": np.bool_(True), "board": np.eye(2)}
    expected = {"size": [6, 5], "penalty": -0.5, "rules": True, "board": [[1, 0], [0, 1]]}
    assert json.loads(redacted_json(given)) == expected


def test_dataclass_becomes_a_mapping_without_its_secrets() -> None:
    assert redact([Login("me", "swordfish")]) == [{"user": "me", "hub_token": MASK}]


def test_value_under_a_secrets_name_is_masked_in_every_text_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_PASSWORD", "Open-Sesame-1")
    monkeypatch.setenv("SHOP_PLACE", "Open-Door-1")
    assert redact("said Open-Sesame-1 at Open-Door-1") == f"said {MASK} at Open-Door-1"
    remember_secrets({"a": [{"token": "Swordfish-99", "password": "sokoban"}]})
    assert redact({"error": "Swordfish-99 was refused in sokoban"}) == {"error": f"{MASK} was refused in sokoban"}


def test_config_has_no_secret_in_what_trackers_and_logs_get() -> None:
    secret = {"token": HUGGING_FACE, "nested": [{"password": "swordfish"}]}
    config = TurnPPOConfig(
        "runs/x",
        use_cpu=True,
        hub_token=HUGGING_FACE,
        model_init_kwargs=secret,
        vllm_server_base_url="http://u:pw9@host",
    )
    for text in (
        str(config),
        repr(config),
        config.to_json_string(),
        str(config.to_dict()),
        str(config.to_sanitized_dict()),
    ):
        assert not [word for word in (HUGGING_FACE, "swordfish", "pw9") if word in text]
    assert config.model_init_kwargs == secret and config.hub_token == HUGGING_FACE
    assert config.to_dict()["learning_rate"] == config.learning_rate


def test_settings_without_their_secrets_are_refused() -> None:
    masked = redact({"model_init_kwargs": {"token": HUGGING_FACE}, "address": "http://a:b@c"})
    assert find_mask(masked) == "model_init_kwargs.token" and find_mask({"token": "x"}) is None
    sentence = r"`model_init_kwargs.token` holds <redacted>: .*Give the secret again: in its argument or flag"
    with pytest.raises(ValueError, match=sentence):
        TurnPPOConfig("runs/x", use_cpu=True, model_init_kwargs=masked["model_init_kwargs"])
    with pytest.raises(ValueError, match="`vllm_server_base_url` holds"):
        TurnPPOConfig("runs/x", use_cpu=True, vllm_server_base_url=masked["address"])
    with pytest.raises(ValueError, match=r"`server` holds <redacted>.*--environment_kwargs"):
        make_environment("openenv/Server-v0", server=masked["address"])
    check_unmasked({"token": "x"}, "")


@pytest.mark.parametrize(
    "piece", ["://", "a", "sk-", "hf_a", "'", "\\", "token=", "Bearer ", "[", '{"a":', "x.", "SG."]
)
def test_text_of_any_kind_is_read_once(piece: str) -> None:
    """Backtracking over a text of this length would not end within the suite's time."""
    text = piece * (200_000 // len(piece))
    assert redact(text) == text or piece == "token="
