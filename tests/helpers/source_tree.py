"""Source files, each parsed once, and what they import: by statements, by strings and by `import_module`."""

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

PACKAGE = "turnppo_hf"
_MODULE = re.compile(rf"{PACKAGE}((?:\.\w+)*)(?::\w+)?")  # "turnppo_hf.x.y" or "turnppo_hf.x.y:Name"


class Source:
    """The text of a module, its syntax tree, and the nodes of the tree."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @cached_property
    def imports(self) -> list[tuple[str, str | None]]:
        """Every import statement as (module, name or None), those inside functions too."""
        found: list[tuple[str, str | None]] = []
        for node in self.nodes:
            if isinstance(node, ast.Import):
                found += [(alias.name, None) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found += [("." * node.level + (node.module or ""), alias.name) for alias in node.names]
        return found


Tree = Mapping[str, Source]  # module name below the package, such as "environments.sokoban" -> source


def parse(**texts: str) -> Tree:
    """Sources of a made-up package; `a__b` is the module a.b, `a____init__` the module a.__init__."""
    return {re.sub(r"(?<=[a-z])__(?=[a-z]|__init__$)", ".", name): Source(text) for name, text in texts.items()}


def read_tree(folder: Path) -> Tree:
    return {
        ".".join(path.relative_to(folder).with_suffix("").parts): Source(path.read_text(encoding="utf-8"))
        for path in sorted(folder.rglob("*.py"))
    }


def own_imports(tree: Tree, module: str) -> set[str]:
    """Modules of the package that a module imports; `from turnppo_hf.x import y` may name the module x.y."""
    targets = [(target, name) for target, name in tree[module].imports if target.split(".")[0] == PACKAGE]
    targets += [(f"{PACKAGE}{below}", None) for below in named_modules(module, tree[module])]
    found = set()
    for target, name in targets:
        below = target.removeprefix(PACKAGE).lstrip(".")
        longer = f"{below}.{name}".lstrip(".") if name else below
        known = (item for item in (longer, f"{longer}.__init__", below, f"{below}.__init__") if item in tree)
        found.add(next(known, below or "__init__"))
    return found - {module}


def named_modules(module: str, source: Source) -> Iterator[str]:
    """Modules named by strings: whole ones, and those that `import_module` builds behind `__name__`, as ".x.y"."""
    for node in source.nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            match = _MODULE.fullmatch(node.value)
            if match and match[1]:
                yield match[1]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            for argument in node.args[:1]:
                if isinstance(argument, ast.JoinedStr):
                    yield from _formatted(module, source, argument)


def _formatted(module: str, source: Source, text: ast.JoinedStr) -> Iterator[str]:
    first, *rest = text.values
    assert isinstance(first, ast.FormattedValue) and ast.unparse(first.value) == "__name__", (
        f"{module} imports {ast.unparse(text)}, which is not built from `__name__`, so no test can follow it"
    )
    here = "." + module.removesuffix("__init__").rstrip(".")
    for last in rest:
        if isinstance(last, ast.Constant) and last.value != ".":
            yield (here + last.value).replace("..", ".")
        elif isinstance(last, ast.FormattedValue):  # an entry of a table of this file
            table = ast.unparse(last.value).partition("[")[0]
            for node in source.tree.body:
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == table:
                    yield from (f"{here}.{name}".replace("..", ".") for name in ast.literal_eval(node.value).values())
