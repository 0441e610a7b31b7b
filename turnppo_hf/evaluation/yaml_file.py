"""A YAML file in, its mapping out: numbers as YAML 1.2 writes them, and no key that is set twice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml


class YamlFileError(ValueError):
    """A file that is no YAML, no mapping, or sets a key twice."""


def read_yaml_file(file: Path, shown: str = "") -> dict[str, Any]:
    """
    Read a file whose content is a mapping.

    Args:
        file (`Path`): It.
        shown (`str`, *optional*): What messages call it. Defaults to its path.

    Raises:
        `YamlFileError`: it is no YAML, no mapping, or sets a key twice.
        `OSError`: it cannot be read.
    """
    name = shown or str(file)
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except RecursionError as error:
        raise YamlFileError(f"{name} is nested too deeply to be read. Write it with fewer levels.") from error
    except (yaml.YAMLError, *_OF_ODD_VALUES) as error:
        raise YamlFileError(f"{name} is no YAML: {' '.join(str(error).split())}.") from error
    except _SetTwice as error:
        raise YamlFileError(f"{name} sets {error}") from error
    if not isinstance(content, dict):
        raise YamlFileError(
            f"{name} must be a mapping of field names to values, got {type(content).__name__}. Write one "
            "`field: value` a line."
        )
    return content


# what PyYAML lets through: of bytes that are no UTF-8, dates that are none, 5,000 digits, a tag on another kind
_OF_ODD_VALUES = (ValueError, TypeError, LookupError, AttributeError)


class _SetTwice(Exception):
    """A key of one mapping that stands in it twice."""


class _Loader(yaml.SafeLoader):
    """Reads `1e-7` as a number, as YAML 1.2 does, and refuses a key that is set twice and what holds itself."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        return super().construct_object(node, deep=True)  # else an alias inside of its own anchor is let through

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line, names = key.start_mark.line + 1, {key.value, self.construct_object(key)}  # 1e-3 is 0.001
                if known := names & lines.keys():
                    raise _SetTwice(
                        f"`{key.value}` twice, in lines {lines[known.pop()]} and {line}, and only one of them would "
                        "have an effect. Keep one of them."
                    )
                lines |= dict.fromkeys(names, line)
        return dict(super().construct_mapping(node, deep=deep))


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d{1,2}$"), list("-+.0123456789")
)
