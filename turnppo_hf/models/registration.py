"""Transformers' table of token classifiers in, the same table with one for every causal language model out.

Nothing of transformers is imported here: where it is not loaded yet, its table is extended as soon as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_TABLES = "transformers.models.auto.modeling_auto"


def register_token_classifiers() -> None:
    """
    Let `AutoModelForTokenClassification` load and build critics of architectures that transformers has none for.

    Each class is made at its first use, see [`~turnppo_hf.models.token_classifier.token_classifier`].
    """
    if _TABLES in sys.modules:
        _extend(sys.modules[_TABLES])
    elif not any(isinstance(finder, _Extension) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Extension())


class _Extension(MetaPathFinder):
    """Extends the table right after transformers made it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _TABLES:
            return None
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((found for found in others if found is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_extend(module: ModuleType) -> None:
                execute(module)
                _extend(module)

            spec.loader.exec_module = execute_and_extend  # type: ignore[method-assign]
        return spec


def _extend(tables: ModuleType) -> None:
    """Fill the gaps of the table of token classifiers from the table of causal language models."""
    table = tables.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING
    causal = tables.MODEL_FOR_CAUSAL_LM_MAPPING
    if type(table) is not type(causal):
        return  # it is extended already

    class WithCritics(type(table)):  # type: ignore[misc]
        """Transformers' own classes first; what others register goes before both, as everywhere."""

        def __getitem__(self, config_class: type) -> Any:
            try:
                return super().__getitem__(config_class)
            except KeyError:
                if config_class not in causal:
                    raise
            from turnppo_hf.models.token_classifier import token_classifier

            made = token_classifier(causal[config_class])
            self.register(config_class, made, exist_ok=True)
            return made

        def __contains__(self, config_class: object) -> bool:
            return super().__contains__(config_class) or config_class in causal

    table.__class__ = WithCritics
