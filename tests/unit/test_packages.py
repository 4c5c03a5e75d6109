"""Rules of the whole package: which modules read the test images, and which libraries its core needs."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import fmnist_search
from benchmarks import import_graph
from fmnist_search.data.files import DataSource

PACKAGE = Path(fmnist_search.__file__).parent
TEST_SET_READERS = {
    "data.__init__",
    "data.loading",
    "workflows.testing",
    "cli.models",
    "cli.predict",
}
TEST_SET_ACCESSORS = {"read_test_set", "TEST_IMAGES", "TEST_LABELS"}
FORBIDDEN_PACKAGES = (
    *("mlflow", "optuna", "pydantic", "typer", "torchinfo", "rich", "platformdirs"),
    *("sqlalchemy", "tomli_w", "matplotlib"),
)


def names_in(code: str) -> set[str]:
    """Return all names that the code defines, imports, uses or writes as a string, without comments and docstrings."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        match node:
            case (
                ast.Name(id=name)
                | ast.Attribute(attr=name)
                | ast.Constant(value=str(name))
                | ast.FunctionDef(name=name)
            ):
                names.add(name)
            case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
                names |= {alias.name for alias in aliases}
    return names


def modules_that_mention(names: set[str]) -> set[str]:
    return {
        ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
        for file in PACKAGE.rglob("*.py")
        if names & names_in(file.read_text())
    }


def test_only_these_modules_read_the_test_images() -> None:
    assert modules_that_mention({"read_test_set"}) == TEST_SET_READERS


def test_the_test_images_are_read_by_one_function() -> None:
    assert modules_that_mention(TEST_SET_ACCESSORS - {"read_test_set"}) == {"data.files", "data.loading"}


@pytest.mark.parametrize(
    "code",
    [
        "from fmnist_search.data.loading import read_test_set",
        "from fmnist_search.data.loading import read_test_set as images",
        "from fmnist_search.data import loading as data\ndata.read_test_set('fashion-mnist', source)",
        "getattr(data, 'read_test_set')",
    ],
)
def test_every_way_to_name_the_function_is_found(code: str) -> None:
    assert "read_test_set" in names_in(code)


def test_comments_and_docstrings_do_not_count() -> None:
    assert "read_test_set" not in names_in('"""Never `read_test_set` here."""\n# read_test_set\n')


@pytest.mark.slow
def test_the_core_runs_a_trial_where_only_torch_is_installed(source: DataSource, images: object) -> None:
    # `images` is asked for so that the cache is filled: without platformdirs the program below cannot find it.
    program = textwrap.dedent(f"""
        import sys
        for name in {FORBIDDEN_PACKAGES!r}:
            sys.modules[name] = None
        from pathlib import Path
        from fmnist_search.data.files import DataSource
        from fmnist_search.data.loading import load_images
        from fmnist_search.recipe.groups import Data
        from fmnist_search.recipe.recipe import Recipe
        from fmnist_search.recipe.execution import Execution
        from fmnist_search.training.trial import run_trial

        data = Data(train_images=100, validation=100)
        changes = {{"epochs": 1, "model.family": "mlp", "model.width": 8}}
        recipe = Recipe(data=data, batch_size=50).replace(changes)
        images = load_images(data, DataSource(Path(sys.argv[1]), download=False))
        result = run_trial(recipe, images, Execution(threads=1))
        print(result.state.value)
    """)
    done = subprocess.run(
        [sys.executable, "-c", program, str(source.cache)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("completed", 0), done.stderr


PACKAGES = sorted(file.parent.name for file in PACKAGE.glob("*/__init__.py"))


def test_every_name_of_a_public_face_can_be_imported() -> None:
    for name in PACKAGES:
        package = importlib.import_module(f"fmnist_search.{name}")
        for public in getattr(package, "__all__", ()):
            assert getattr(package, public) is not None, f"{name}.{public}"
            assert public in dir(package), f"{name}.{public}"


def test_importing_the_packages_loads_no_large_library() -> None:
    program = """
        import importlib, sys
        sys.modules.update(dict.fromkeys(("torch", "torchvision", "numpy", "mlflow", "optuna", "matplotlib")))
        for name in sys.argv[1:]:
            importlib.import_module(f"fmnist_search.{name}")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *PACKAGES], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_imports_have_no_circle_few_levels_and_modules_are_short() -> None:
    # All imports count, those under TYPE_CHECKING and inside functions too.
    files = import_graph.module_files(PACKAGE.parent, PACKAGE.name)
    graph = import_graph.module_graph(files)
    assert import_graph.circles(graph) == []
    assert len(import_graph.longest_chain(import_graph.package_graph(graph, PACKAGE.name))) <= 9
    assert import_graph.long_modules(files, 350) == {}
