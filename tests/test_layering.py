"""Who may import whom, read from the sources: LAYERS says it, and nothing else is imported."""

import ast
import functools
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent

# Package -> the packages of jaxcold that its modules may import, beside its own. The contracts of
# `types` and the writing of `files` are for all but the mathematics. "" is jaxcold itself, which
# knows its version.
COMMON = {"types", "files"}
LAYERS = {
    "types": set(),
    "files": {"types"},
    "sparse": set(),
    "data": COMMON,
    "parallel": COMMON,
    "models": COMMON | {"sparse", "data", "parallel"},
    "train": COMMON | {"data", "parallel"},
    "eval": COMMON | {"data", "parallel"},
    "reporting": COMMON | {"eval"},
    "serving": COMMON | {"estimators"},
    "estimators": COMMON | {"", "data", "parallel", "models", "train", "eval", "reporting"},
}
# Package -> the dependencies that its modules may import; others may import any but `FLAGS`.
DEPENDENCIES = {"sparse": {"jax", "numpy"}}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax"}
FLAGS = {"absl", "ml_collections"}
STANDARD = {"__future__", *sys.stdlib_module_names}

LONGEST_FILE, LONGEST_FUNCTION = 500, 60

# What is against the rules today. These lists may only become shorter, down to nothing.
# Module of `data` -> what it imports.
DATA_WITH_JAX: set[tuple[str, str]] = set()
LONG_FILES: set[str] = set()


@functools.cache
def sources(package):
    """Name of a module -> its path."""
    result = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        result[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return result


@functools.cache
def tree(path):
    return ast.parse(path.read_text())


def imports(module, path, *, at_import=False):
    """The modules that one imports, names of modules after ``from`` included.

    Args:
        module: its name.
        path: its file.
        at_import: only those that are imported with it: not in functions, nor for types alone.
    """
    modules = sources("jaxcold") | sources("experiments")
    result = set()
    for node in _statements(tree(path)) if at_import else ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            result |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            inner = {f"{node.module}.{name.name}" for name in node.names}
            found = inner & modules.keys()
            result |= found
            if len(found) < len(node.names):
                result.add(node.module)
    return result


def _statements(node):
    """All nodes that run when a module is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _statements(child)


def layer(module):
    """ "data" of "jaxcold.data.readers"; "" of jaxcold itself."""
    return f"{module}.".split(".")[1]


def test_the_layers_are_all_there_are():
    assert {layer(module) for module in sources("jaxcold")} == LAYERS.keys() | {""}


@pytest.mark.parametrize("package", LAYERS)
def test_a_package_imports_only_those_below_it(package):
    found = {
        (module, name)
        for module, path in sources("jaxcold").items()
        if layer(module) == package
        for name in imports(module, path)
        if name.partition(".")[0] == "jaxcold" and layer(name) not in LAYERS[package] | {package}
    }
    assert found - DATA_WITH_JAX == set()


@pytest.mark.parametrize("package", DEPENDENCIES)
def test_a_package_needs_only_these_dependencies(package):
    found = {
        name.partition(".")[0]
        for module, path in sources("jaxcold").items()
        if layer(module) == package
        for name in imports(module, path)
    }
    assert found - STANDARD - {"jaxcold"} <= DEPENDENCIES[package]


def test_data_are_read_without_jax():
    found = {
        (module, name)
        for module, path in sources("jaxcold").items()
        if layer(module) in ("data", "types", "files")
        for name in imports(module, path)
        if name.partition(".")[0] in JAX
    }
    assert found - DATA_WITH_JAX == set()


def test_the_library_knows_no_flags_and_no_experiments():
    for module, path in sources("jaxcold").items():
        found = {name.partition(".")[0] for name in imports(module, path)}
        assert not found & (FLAGS | {"experiments", "tests"}), module


def test_no_modules_import_each_other():
    modules = sources("jaxcold")
    graph = {
        module: {name for name in imports(module, path, at_import=True) if name in modules}
        for module, path in modules.items()
    }
    finished, open_ = set(), []

    def visit(module):
        assert module not in open_, " -> ".join([*open_[open_.index(module) :], module])
        if module in finished:
            return
        open_.append(module)
        for name in sorted(graph[module] - {module}):
            visit(name)
        finished.add(open_.pop())

    for module in modules:
        visit(module)


def test_a_file_can_be_read_at_one_sitting():
    long = {
        str(path.relative_to(ROOT))
        for package in ("jaxcold", "experiments")
        for path in sources(package).values()
        if len(path.read_text().splitlines()) > LONGEST_FILE
    }
    assert long - LONG_FILES == set()


def test_functions_of_the_experiments_are_short_and_rebind_nothing():
    long, rebinding = {}, {}
    for module, path in sources("experiments").items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Nonlocal):
                rebinding[module] = node.lineno
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                length = node.end_lineno - node.lineno + 1
                if length > LONGEST_FUNCTION:
                    long[f"{module}.{node.name}"] = length
    assert long == {}
    assert rebinding == {}
