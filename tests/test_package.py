"""The package as a whole: layers, public names, documentation, tooling, and dependencies."""

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import claudescale as cs
from claudescale.planning.choices import PlanPlots
from claudescale.running.plots import Plots

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "claudescale"

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


def folder_of(name):
    """Return the folder of a module, or the library that it belongs to."""
    return name.split(".")[0]


TREES = {name_of(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def imports(tree):
    """Yield the name of every module imported, at the top or later, except for types alone."""
    for node in ast.iter_child_nodes(tree):
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                pass
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                inside = [f"{node.module}.{alias.name}".removeprefix("claudescale.") for alias in node.names]
                modules = [name for name in inside if name in TREES]
                yield from modules or [node.module.removeprefix("claudescale.")]
            case _:
                yield from imports(node)


IMPORTS = {name: set(imports(tree)) for name, tree in TREES.items()}
OURS = {name: others & set(TREES) for name, others in IMPORTS.items()}


def test_imports_run_downward():
    """No module imports from a folder above its own, even inside a function, except for the named ones.

    Slow libraries, and those of the network, are imported by their own folders alone.
    """
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
    for library, folders in RESERVED.items():
        users = {name for name, others in IMPORTS.items() if library in map(folder_of, others)}
        assert set(map(folder_of, users)) <= folders


def test_importing_the_package_loads_nothing_slow():
    """`import claudescale` leaves SDK, widgets, pydantic and web server for later, and plans leave charts."""
    code = """
import sys, claudescale as cs
slow = {"anthropic", "altair", "ipywidgets", "pydantic", "aiohttp", "genai_prices", "anyio", "tqdm"}
print(slow & set(sys.modules))
cs.plan, cs.Run, cs.trial, cs.cascade
print({"altair", "vl_convert"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\nset()\n"


def test_public_names_are_there_and_say_what_they_spend():
    """Each has a description of its own; each callable has `Spends:`, and everything else is free to read."""
    face = {name: getattr(cs, name) for name in cs.__all__} | {"Plots": Plots, "PlanPlots": PlanPlots}
    kinds = [each for each in face.values() if isinstance(each, type) and not issubclass(each, Exception)]
    methods = {f"{kind.__name__}.{name}": getattr(kind, name) for kind in kinds for name in vars(kind)}
    face |= {name: method for name, method in methods.items() if "._" not in name and callable(method)}
    assert set(cs.__all__) <= set(dir(cs))
    assert {"plan", "Plan.run", "Run.stop", "Limits.of", "Plots.throughput"} <= set(face)
    calls = {name for name, thing in face.items() if inspect.isroutine(thing)}
    docs = {name: thing.__doc__ if name in calls else vars(thing)["__doc__"] for name, thing in face.items()}
    assert [name for name, doc in docs.items() if not doc or (name in calls and "Spends:" not in doc)] == []
    with pytest.raises(AttributeError, match="There is: "):
        cs.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", [name for name, tree in TREES.items() if ">>>" in ast.unparse(tree)])
def test_examples_in_docstrings_run(name):
    """Every docstring's examples give the output shown."""
    module = importlib.import_module(f"claudescale.{name}".rstrip("."))
    done = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert (done.failed, done.attempted > 0) == (0, True)


def test_conda_and_pip_install_the_same():
    """Conda installs the Python that pyproject.toml requires, and pip everything that it lists."""
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    listed = (ROOT / "environment.yml").read_text()
    assert f"- python{requires}\n" in listed
    assert "- --editable .[notebook]\n" in listed
