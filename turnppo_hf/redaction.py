"""Settings, records and texts in; the same without the secrets in them out, before anything is written or printed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any

MASK = "<redacted>"

# words that make the last word of a name a secret's, and those before `token` and `key` that do so
_SECRETS = {
    *("password", "passwords", "passwd", "passphrase", "passcode", "pwd", "secret", "secrets", "jwt", "bearer"),
    *("credential", "credentials", "creds", "authorization", "auth", "apikey", "apikeys", "cookie", "cookies"),
}
_KEYS = {
    *("api", "access", "private", "secret", "auth", "signing", "encryption", "account", "ssh", "master", "session"),
    *("service", "storage", "subscription", "license", "app", "client", "deploy", "hf", "openai", "anthropic"),
    *("wandb", "aws", "azure", "google", "github", "comet", "kaggle"),
}
_PASSES = {"user", "db", "database", "smtp", "proxy", "http", "https", "login", "admin", "mail", "ftp", "redis"}
_PLURAL_TOKENS = {"api", "access", "auth", "bearer", "hf", "hub", "refresh", "service"}
# names of parts of a vocabulary, and of what is counted
_VOCABULARY = {
    *("pad", "eos", "bos", "unk", "sep", "cls", "mask", "image", "audio", "video", "boi", "eoi", "boa", "eoa", "sot"),
    *("eot", "special", "start", "end", "stop", "think", "thinking", "prompt", "last", "first", "next", "new", "per"),
    *("each", "extra", "prefix", "suffix", "middle", "space", "additional", "vision", "img", "pos", "by", "every"),
    *("newline", "pre", "post", "control", "tool", "response", "begin", "decoder", "suppress", "forced", "word"),
    *("vocabulary", "vocab", "turn", "fim", "target", "sample", "speech", "text", "object", "action", "reward"),
}
_ENDINGS = {"value", "str", "string", "text", "raw", "plain", "header", "b64", "base64"}
_ONE_WORD = re.compile(r"(?:api|access|auth|secret|private|hub|hf|bearer|session|refresh|id)(?:token|key|secret)s?")
_OF_VOCABULARY = re.compile(r"<[^<>]*>|\[[^\[\]]*\]|<\|.*\|>|\s*")
_SIBLINGS_IN_VOCABULARY = {
    "logprob",
    "logprobs",
    "id",
    "token_id",
    "rank",
    "score",
    "bytes",
    "count",
    "index",
    "start",
}
_IN_QUERIES = {"key", "sig", "signature", "x_amz_signature", "x_amz_credential"}
_HINT = re.compile(
    r"pass|pwd?\b|secret|token|key|cred|auth|jwt|bearer|cookie|sig", re.IGNORECASE
)  # of a secret's name

# every class is consumed to its end, so that each text is read once, whatever it holds
_FORMS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{10,}|api_org_[A-Za-z0-9]{10,}|hf_oauth_[\w.-]{10,}|sk-[\w-]{16,}|[srp]k_(?:live|test)_\w{10,}"
    r"|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}|glpat-[\w-]{16,}|(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}\b"
    r"|xox[abeoprs]-[\w-]{8,}|xapp-[\w-]{10,}|AIza[\w-]{30,}|ya29\.[\w-]{16,}|GOCSPX-[\w-]{16,}|wandb_v\d_\w{16,}"
    r"|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{16,}|dckr_pat_[\w-]{16,}|gsk_\w{20,}|r8_\w{20,}|nvapi-[\w-]{16,}|xai-[\w-]{20,}"
    r"|pplx-[\w-]{20,}|tgp_v\d_[\w-]{16,}|lsv2_\w{20,}|dop_v1_\w{20,}|SG\.[\w-]{16,}\.[\w-]{16,}"
    r"|eyJ[\w-]{10,}\.eyJ[\w-]{6,}\.[\w-]{6,}|\d{8,10}:AA[\w-]{30,})"
)
_HOOK = re.compile(r"(hooks\.slack\.com/(?:services|workflows)/|discord(?:app)?\.com/api/webhooks/)[\w/-]{10,}")
_SCHEME = re.compile(r"\b(Bearer|Basic)( +)([\w.~+/=-]{6,})")
_PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----[^-]*(?:-----END [A-Z ]{0,30}PRIVATE KEY-----)?")
_USER_INFO = re.compile(r"://([^\s/\"'<>`\\]+)@")
_QUERY = re.compile(r"([?&;#])([\w.-]{1,64})=([^&;\s#\"'<>`\\]+)")
_QUOTED = re.compile(r"(\\{0,8}[\"'])([\w. -]{1,64})\1(\s{0,4}:\s{0,4})(\\{0,8}[\"'])([^\s\"'\\]{6,})(?=[\\\"'])")
_ASSIGNED = re.compile(
    r"(?<![\w.-])([\w-]{0,64}?(?:pass|pwd?|secret|token|key|cred|auth|jwt|bearer|cookie)[\w-]{0,24})"
    r"(\s{0,2}=\s{0,2})(\\{0,8}[\"']?)([^\s\"'`\\,;&()]{6,})",
    re.IGNORECASE,
)
_FLAG = re.compile(r"(?<![\w-])(--[\w-]{1,64})(\s)([\"']?)([^\s\"'`\\]{6,})")
_PLAIN_WORD = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*[\][(){}:.]*")
_PLACEHOLDER = re.compile(
    r"[<$\[{%*].*|\W*|(?i:your.*|x+|none|null|true|false|hf_\W*|\w*\.\.\.)|.*<redacted>.*", re.DOTALL
)

_remembered: set[str] = set()  # values that stood under a secret's name, so that they are masked wherever they appear


def is_secret_name(name: str) -> bool:
    """Whether a key of this name holds a secret: `hub_token`, `db-password`; not `max_tokens`, `pad_token`."""
    return _is_secret_name(name) if len(name) <= 100 else False


def remember_secrets(settings: Any) -> None:
    """Remember what stands under the names of secrets, so that `redact` masks it in every text of this process."""
    for _, name, value in _secret_leaves(settings):
        if name is not None and isinstance(value, str) and _is_unusual(value):
            _remembered.add(value)


def redact(value: Any) -> Any:
    """
    Return settings, records or a text with `MASK` in the place of every secret; what is given stays as it is.

    A secret is what stands under the name of one, at any depth; what has the form of a token or a key, wherever it
    stands; user and password of an address; and every value that stood under the name of a secret, in this process's
    environment or in settings given to `remember_secrets`. Text that holds JSON is read as JSON.

    Args:
        value (`Any`): Mappings, lists, tuples, sets, texts and dataclasses are read through; a dataclass becomes a
            `dict`. Other objects stay.
    """
    return _redact(value, _used_secrets())


def redact_text(value: Any) -> str:
    """Return the text of an object without secrets: `default` of `json.dumps`."""
    return str(redact(str(value)))


def redacted_json(content: Mapping[str, Any], indent: int = 2) -> str:
    """Return what a file of settings or of a record holds: JSON without secrets, and a newline."""
    return json.dumps(redact(content), indent=indent, default=_json_of) + "\n"


def _json_of(value: Any) -> Any:
    """What stands for an object in a record: of NumPy's numbers and arrays their values, of others their text."""
    return redact(value.tolist()) if hasattr(value, "tolist") else redact_text(value)


def find_secret(value: Any) -> str | None:
    """Return where the first secret stands, such as `model_init_kwargs.token`; `None` where there is none."""
    used = _used_secrets()
    for path, name, leaf in _secret_leaves(value):
        if isinstance(leaf, str) and (name is not None or _redact(leaf, used) != leaf):
            return path
    return None


def find_form(text: str) -> str | None:
    """Return the line of the first token that a text holds by its form, such as `line 3`; `None` without one."""
    found = (match for match in _FORMS.finditer(text) if _mask_form(match) == MASK)
    return next((f"line {text.count(chr(10), 0, match.start()) + 1}" for match in found), None)


def find_mask(value: Any) -> str | None:
    """Return where the first value stands that has lost its secret; `None` where there is none."""
    return next((path for path, _, leaf in _secret_leaves(value) if isinstance(leaf, str) and MASK in leaf), None)


def check_unmasked(settings: Any, example: str) -> None:
    """
    Refuse settings that were recorded without their secrets.

    Args:
        settings (`Any`): Settings.
        example (`str`): How a secret is given.

    Raises:
        `ValueError`: a value has lost its secret.
    """
    place = find_mask(settings)
    if place is not None:
        raise ValueError(
            f"`{place}` holds {MASK}: its secret was left out when these settings were recorded, and that text would "
            f"be sent in its place. Give the secret again: {example}."
        )


@lru_cache(maxsize=4096)
def _is_secret_name(name: str) -> bool:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    words = [word.rstrip("0123456789") or word for word in re.split(r"[^A-Za-z0-9]+", spaced.lower()) if word]
    while len(words) > 1 and words[-1] in _ENDINGS:
        words.pop()
    if not words:
        return False
    last, before = words[-1], set(words[:-1])
    if last in _SECRETS or _ONE_WORD.fullmatch(last):
        return True
    if last in ("key", "keys"):
        return bool(before & _KEYS)
    if last == "tokens":
        return bool(before & _PLURAL_TOKENS)
    if last in ("pass", "pw"):
        return not before or bool(before & _PASSES)
    return last == "token" and (not before or words[-2] not in _VOCABULARY)


def _is_secret_value(name: str, value: Any) -> bool:
    """Whether the value under a secret's name is one: numbers only where they may be a password."""
    if isinstance(value, bool) or value is None:
        return False
    if isinstance(value, str):
        return not _OF_VOCABULARY.fullmatch(value)
    return isinstance(value, int | float) and "token" not in name.lower() and "key" not in name.lower()


def _redact(value: Any, used: tuple[str, ...], name: str | None = None) -> Any:
    """Redact a value; `name` is that of the secret which it belongs to."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, Mapping):
        names = _secret_names(value, name)
        return {_redact(key, used): _redact(inner, used, names.get(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        if name is None and all(type(item) in (int, float) for item in value):
            return value
        items = [_redact(item, used, name) for item in value]
        kept = type(value)
        return kept(*items) if hasattr(value, "_fields") else kept(items)
    if name is not None and _is_secret_value(name, value):
        return MASK
    if isinstance(value, bytes):
        return _redact(value.decode("utf-8", "replace"), used)
    return _redact_text(value, used) if isinstance(value, str) else value


def _secret_names(mapping: Mapping[Any, Any], name: str | None) -> dict[Any, str]:
    """For each key whose value is a secret, the name that makes it one: its own, or that of what it lies in."""
    if name is not None:
        return dict.fromkeys(mapping, name)
    in_vocabulary = bool(_SIBLINGS_IN_VOCABULARY & {key for key in mapping if isinstance(key, str)})
    secret = [key for key in mapping if isinstance(key, str) and is_secret_name(key)]
    return {key: key for key in secret if not (in_vocabulary and key.lower() == "token")}


def _secret_leaves(
    value: Any, path: str = "", name: str | None = None, used: tuple[str, ...] | None = None
) -> Iterator[tuple[str, str | None, Any]]:
    """Yield every leaf of settings with its place, and the name that makes it a secret, if one does."""
    used = _used_secrets() if used is None else used
    if is_dataclass(value) and not isinstance(value, type):
        value = {item.name: getattr(value, item.name) for item in fields(value)}
    if isinstance(value, Mapping):
        names = _secret_names(value, name)
        for key, inner in value.items():
            shown = f"{path}.{_redact(str(key), used)}".lstrip(".")
            yield shown, None, key
            yield from _secret_leaves(inner, shown, names.get(key), used)
    elif isinstance(value, list | tuple | set | frozenset):
        for number, inner in enumerate(value):
            yield from _secret_leaves(inner, f"{path}[{number}]", name, used)
    elif isinstance(value, str) and name is None and (inner := _read_json(value)) is not None:
        yield from _secret_leaves(inner, path, name, used)
    else:
        yield path, name if name is not None and _is_secret_value(name, value) else None, value


def _read_json(text: str) -> Any:
    """Return the object or list that a text is the JSON of; `None` where it is not."""
    if text.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return None
    return None


def _redact_text(text: str, used: tuple[str, ...]) -> str:
    inner = _read_json(text)
    if inner is not None:
        changed = _redact(inner, used)
        return text if changed == inner else json.dumps(changed, ensure_ascii=False)
    for secret in used:
        text = text.replace(secret, MASK)
    text = _PRIVATE_KEY.sub(MASK, text)
    text = _USER_INFO.sub(_mask_user, text)
    text = _HOOK.sub(rf"\1{MASK}", text)
    text = _SCHEME.sub(_mask_scheme, text)
    if _HINT.search(text):
        text = _QUERY.sub(_mask_query, text)
        text = _QUOTED.sub(_mask_quoted, text)
        text = _ASSIGNED.sub(_mask_assigned, text)
        text = _FLAG.sub(_mask_assigned, text)
    return _FORMS.sub(_mask_form, text)


def _mask_form(found: re.Match[str]) -> str:
    body = found.group().partition("_" if "_" in found.group()[:4] else "-")[2] or found.group()
    is_words = body.islower() and body.replace("-", "").replace("_", "").isalpha()  # a name such as sk-learn-contrib
    longest = max(map(len, re.split(r"[-_]", body)))
    return found.group() if is_words and longest < 20 else MASK


def _mask_scheme(found: re.Match[str]) -> str:
    return found.group() if _is_word(found.group(3)) else MASK


def _mask_user(found: re.Match[str]) -> str:
    user, colon, password = found.group(1).partition(":")
    is_port = re.match(r"\d{1,5}[?#]", password)
    is_login = len(user) < 16 and not colon  # git@, and the like
    is_placeholder = bool(colon) and _PLACEHOLDER.fullmatch(password) and password != "" and MASK not in password
    return found.group() if is_port or is_login or is_placeholder or "[" in user else f"://{MASK}@"


def _mask_query(found: re.Match[str]) -> str:
    start, name, value = found.groups()
    known = is_secret_name(name) or name.lower().replace("-", "_") in _IN_QUERIES
    return f"{start}{name}={MASK}" if known and not _PLACEHOLDER.fullmatch(value) else found.group()


def _mask_quoted(found: re.Match[str]) -> str:
    quote, name, colon, opening, value = found.groups()
    if not is_secret_name(name) or _PLACEHOLDER.fullmatch(value):
        return found.group()
    return f"{quote}{name}{quote}{colon}{opening}{MASK}"


def _mask_assigned(found: re.Match[str]) -> str:
    """Mask `name='value'`, `NAME=value` and `--name value`; not `token=token`, as programs write it."""
    name, equals, quote, value = found.groups()
    is_flag = name.startswith("--")
    is_bare = not quote and not is_flag and _PLAIN_WORD.fullmatch(value) is not None and not re.search(r"\d", value)
    is_variable = value.isupper() and is_secret_name(value)  # its name, as in `--secrets HF_TOKEN`
    is_bare = is_bare or (is_flag and equals == " " and _is_word(value.rstrip(".,:)")))  # prose about the flag
    if not is_secret_name(name.lstrip("-")) or _PLACEHOLDER.fullmatch(value) or is_bare or is_variable:
        return found.group()
    return f"{name}{equals}{quote}{MASK}"


def _used_secrets() -> tuple[str, ...]:
    """Secrets of this process, longest first: of its environment, and those that are remembered."""
    found = {value for name, value in os.environ.items() if _is_unusual(value) and is_secret_name(name)}
    return tuple(sorted(found | _remembered, key=len, reverse=True))


def _is_unusual(value: str) -> bool:
    """Whether a value is no ordinary word or path, so that it can be masked wherever it stands."""
    return len(value) >= 8 and not _is_word(value) and not value.startswith(("/", "<")) and not value.isspace()


def _is_word(value: str) -> bool:
    return value.isalpha() and (value.islower() or value.istitle())
