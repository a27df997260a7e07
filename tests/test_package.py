"""The package as a whole: layers, public names, documentation, tooling, and dependencies."""

import ast
import doctest
import importlib
import inspect
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import yaml

import claudescale as cs
from claudescale.planning.choices import PlanPlots
from claudescale.running.plots import Plots

ROOT = Path(__file__).resolve().parent.parent
PACKAGE, TESTS = ROOT / "claudescale", ROOT / "tests"

FOLDERS = ["errors", "clock", "text", "loops", "api", "prompts", "pacing", "ledger", "views", "planning"]
FOLDERS += ["running", "evidence", "widgets", "helpers", "lessons", "cluster"]
"""Imports run downward: a module may import from its own folder and from those named before it."""
UPWARD = {
    ("planning.plans", "running"),  # stays: a plan starts its run
    ("running.runs", "cluster"),  # stays: on a cluster a run is driven from there
    ("running.runs", "widgets"),  # stays: a watcher's dependencies are imported before the first call
}
"""What still imports upward."""
SIMULATOR_MAY_IMPORT = {"errors", "clock", "api.catalog", "api.media"}
"""Facts: dates, prices and limits; no code that it is there to test."""
RESERVED = {
    # The simulator hands out a client of its own, and a worker has to make one.
    "anthropic": {"api", "running", "simulator", "cluster"},
    "altair": {"views", "widgets"},
    "vl_convert": {"views", "lessons"},
    "ipywidgets": {"widgets"},
    "nest_asyncio": {"loops"},
    "distributed": {"cluster"},
}
"""Which folders may import what is slow or reaches the network."""


def name_of(path):
    """Return the module's name within the package: ``live``, ``api.prices``, or nothing for the root."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


TREES = {name_of(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def imports(tree):
    """Return the full name of every module imported, at the top or later, except for types alone."""
    names = set()
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                pass
            case ast.Import():
                names |= {alias.name for alias in node.names}
            case ast.ImportFrom():
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                names |= {name for name in inside if name.removeprefix("claudescale.") in TREES} or {
                    node.module
                }
            case _:
                names |= imports(node)
    return names


IMPORTS = {name: imports(tree) for name, tree in TREES.items()}
OURS = {
    name: {
        other.removeprefix("claudescale").lstrip(".") for other in others if other.startswith("claudescale")
    }
    for name, others in IMPORTS.items()
}


def folder_of(name):
    """Return the folder of a module, or the library that it belongs to."""
    return name.split(".")[0]


def test_imports_run_downward():
    """No module imports from a folder above its own, even inside a function, except for the named ones."""
    upward = {
        (name, folder_of(other))
        for name in TREES
        for other in OURS[name]
        if name and other and folder_of(name) != "simulator"
        if folder_of(other) not in FOLDERS[: FOLDERS.index(folder_of(name)) + 1]
    }
    assert upward == UPWARD
    assert set(TREES) <= set(TopologicalSorter(OURS).static_order())  # no two import each other
    of_simulator = set().union(*(OURS[name] for name in TREES if folder_of(name) == "simulator"))
    assert {name for name in of_simulator if folder_of(name) != "simulator"} <= SIMULATOR_MAY_IMPORT


@pytest.mark.parametrize("library", RESERVED)
def test_slow_libraries_have_one_place(library):
    """Network libraries and those that take seconds to import are imported by their own modules alone."""
    users = {folder_of(name) for name, others in IMPORTS.items() if library in set(map(folder_of, others))}
    assert users <= RESERVED[library]


@pytest.mark.parametrize(
    ("names", "slow"),
    [
        ("cs", {"anthropic", "altair", "ipywidgets", "pydantic", "aiohttp", "genai_prices", "anyio", "tqdm"}),
        ("cs.plan, cs.Run, cs.trial, cs.cascade", {"altair", "vl_convert"}),
    ],
)
def test_importing_the_package_loads_nothing_slow(names, slow):
    """`import claudescale` leaves SDK, widgets, pydantic and web server for later, and plans leave charts."""
    code = f"import sys, claudescale as cs; {names}; print(sorted({slow!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def public_face():
    """Return the public face: public names, and the public methods of the classes among them."""
    face = {name: getattr(cs, name) for name in cs.__all__} | {"Plots": Plots, "PlanPlots": PlanPlots}
    for kind in [thing for thing in face.values() if isinstance(thing, type)]:
        methods = {name: getattr(method, "__func__", method) for name, method in vars(kind).items()}
        face |= {
            f"{kind.__name__}.{name}": method
            for name, method in methods.items()
            if inspect.isfunction(method) and not name.startswith("_") and not issubclass(kind, Exception)
        }
    return face


def test_public_names_are_there_and_say_what_they_spend():
    """Each has a description of its own; each callable has `Spends:`, and everything else is free to read."""
    face = public_face()
    docs = {
        name: thing.__doc__ if inspect.isroutine(thing) else vars(thing)["__doc__"]
        for name, thing in face.items()
    }
    assert set(cs.__all__) <= set(dir(cs))
    assert {"plan", "Plan.run", "Run.stop", "Limits.of", "Plots.throughput"} <= set(face)
    assert [name for name, doc in docs.items() if not doc] == []
    assert [
        name for name, doc in docs.items() if inspect.isroutine(face[name]) and "Spends:" not in doc
    ] == []
    with pytest.raises(AttributeError, match="There is: "):
        cs.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", [name for name, tree in TREES.items() if ">>>" in ast.unparse(tree)])
def test_examples_in_docstrings_run(name):
    """Every docstring's examples give the output shown."""
    module = importlib.import_module(f"claudescale.{name}".rstrip("."))
    done = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert (done.failed, done.attempted > 0) == (0, True)


def test_every_test_says_in_one_sentence_what_it_proves():
    """A test's docstring begins with one sentence that ends with a full stop; below it there may be more."""
    sentence, unsaid = re.compile(r"\S(?:(?![.!?] [A-Z]).)*\."), []
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                words = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
                unsaid += [] if sentence.fullmatch(words) else [f"{path.name}: {node.name}"]
    assert unsaid == []


def test_conda_and_pip_install_the_same():
    """Conda installs the Python that pyproject.toml requires, and pip everything that it lists."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    python = f"python{project['requires-python']}"
    assert environment["dependencies"] == [python, "pip", {"pip": ["--editable .[notebook]"]}]
