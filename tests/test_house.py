"""The layout of et_optimizer: what each folder may import and contain."""

import ast
import importlib
import pathlib

import keras
import pytest

import et_optimizer
from et_optimizer.optimizers.rule import Rule

pytestmark = pytest.mark.one_backend

PACKAGE = pathlib.Path(et_optimizer.__path__[0])
FILES = sorted(PACKAGE.rglob("*.py"))
# The files with one paper each: its rule and its Keras classes.
PAPERS = ("adafactor", "extreme_tensoring", "shampoo", "sm3", "subset_norm")
# The files of papers on a momentum, whose optimizers have the rule of another paper.
MOMENTUM_PAPERS = ("muon",)
MAX_LINES = 300


def where(file):
    """The path of a file in the package."""
    return file.relative_to(PACKAGE).as_posix()


def tree_of(file):
    return ast.parse(file.read_text("utf-8"))


def imports(file):
    """The dotted names that a file imports, at its top or in a function."""
    package = ["et_optimizer", *file.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = [node.module] if node.module else []
            if node.level:
                base = package[: len(package) - node.level + 1] + base
            found |= {".".join([*base, alias.name]) for alias in node.names}
    return found


def is_below(name, module):
    return name == module or name.startswith(f"{module}.")


def forbidden_imports(files, modules):
    """`(file, import)` for each import of one of the modules or of a part of it."""
    return [
        (where(file), name)
        for file in files
        for name in sorted(imports(file))
        if any(is_below(name, module) for module in modules)
    ]


def names(file):
    """All names that a file uses, imports or defines, and all attributes."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.name.split(".")[-1]
        elif isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield node.name


def reads_the_backend(file):
    """Whether a file calls `keras.backend.backend()` or `keras.config.backend()`."""
    calls = (n for n in ast.walk(tree_of(file)) if isinstance(n, ast.Call))
    functions = {ast.unparse(call.func) for call in calls}
    imported = {"keras.backend.backend", "keras.config.backend"} & imports(file)
    return bool(imported) or any(
        f.endswith(("backend.backend", "config.backend")) for f in functions
    )


def test_only_compilers_and_tf_keras_ask_for_the_backend():
    readers = [where(file) for file in FILES if reads_the_backend(file)]
    assert "tf_keras.py" in readers and "compilers/tracing.py" in readers
    others = [file for file in readers if not file.startswith("compilers/")]
    assert others == ["tf_keras.py"]


def test_only_momenta_names_subspace_momentum():
    users = {where(file) for file in FILES if "SubspaceMomentum" in names(file)}
    assert "momenta/subspace.py" in users
    assert [file for file in users if not file.startswith("momenta/")] == []


def test_the_library_imports_no_tests_studies_or_benchmarks():
    assert forbidden_imports(FILES, ["tests", "tf_models", "benchmarks"]) == []


# Folder → the parts of et_optimizer that its files do not import.
LAYERS = {
    "views": ["optimizers", "momenta", "memory", "callbacks"],
    "momenta": ["optimizers", "memory", "callbacks"],
}


@pytest.mark.parametrize("folder", LAYERS)
def test_a_lower_layer_imports_no_higher_one(folder):
    files = sorted((PACKAGE / folder).rglob("*.py"))
    assert files
    higher = [f"et_optimizer.{part}" for part in LAYERS[folder]]
    assert forbidden_imports(files, higher) == []


def test_compilers_import_only_types_and_compilers_of_the_library():
    files = sorted((PACKAGE / "compilers").rglob("*.py"))
    own = forbidden_imports(files, ["et_optimizer"])
    allowed = ("et_optimizer.types", "et_optimizer.compilers")
    assert own
    assert [
        (file, name)
        for file, name in own
        if not any(is_below(name, module) for module in allowed)
    ] == []


def test_no_file_of_the_optimizers_but_those_of_the_papers_exceeds_300_lines():
    lengths = {
        file.stem: len(file.read_text("utf-8").splitlines())
        for file in (PACKAGE / "optimizers").glob("*.py")
        if file.stem not in PAPERS
    }
    assert len(lengths) > 5
    assert {stem: n for stem, n in lengths.items() if n > MAX_LINES} == {}


@pytest.mark.parametrize("paper", PAPERS)
def test_a_papers_rule_and_keras_class_are_defined_in_its_file(paper):
    module = importlib.import_module(f"et_optimizer.optimizers.{paper}")
    defined = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__
    ]
    optimizers = [c for c in defined if issubclass(c, keras.optimizers.Optimizer)]
    rules = [c for c in defined if issubclass(c, Rule)]
    assert optimizers and rules
    for optimizer in optimizers:
        if optimizer.__name__ in et_optimizer.__all__:
            assert type(optimizer()._rule) in rules


def test_every_exported_optimizer_is_defined_in_the_file_of_its_paper():
    exported = [getattr(et_optimizer, name) for name in et_optimizer.__all__]
    optimizers = {c for c in exported if hasattr(c, "update_step")}
    optimizers.remove(et_optimizer.PreconditionedOptimizer)
    modules = {optimizer.__module__ for optimizer in optimizers}
    papers = {*PAPERS, *MOMENTUM_PAPERS}
    assert modules == {f"et_optimizer.optimizers.{paper}" for paper in papers}
