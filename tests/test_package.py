"""The package as a whole: layers, public names, documentation, tooling, and what it needs installed."""

from __future__ import annotations

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
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

FOLDERS = ["errors", "clock", "text", "loops", "api", "prompts", "pacing", "ledger", "views", "planning"]
FOLDERS += ["running", "evidence", "widgets", "helpers", "lessons", "cluster"]
"""Imports run downward: a module may import from its own folder and from those named before it."""
UPWARD = {
    ("planning.plans", "running"),  # stays: a plan starts its run
    ("running.runs", "cluster"),  # stays: on a cluster a run is driven from there
    ("running.runs", "widgets"),  # stays: what a watcher needs is imported before the first call
}
"""What still imports upward."""
SIMULATOR_MAY_IMPORT = {"errors", "clock", "api.catalog", "api.media"}
# Which modules may import what is slow or reaches the network.
RESERVED = {
    # The simulator hands out a client of its own, and a worker has to make one.
    "anthropic": {"api", "running", "simulator", "cluster"},
    "altair": {"views", "widgets"},
    "vl_convert": {"views", "lessons"},
    "ipywidgets": {"widgets"},
    "nest_asyncio": {"loops"},
    "distributed": {"cluster"},
}


def name_of(path):
    """Return the module's name within the package: ``live``, ``api.prices``, or nothing for the root."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


TREES = {name_of(path): ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}


def nodes(tree):
    """Return every node that runs, also inside functions: all but the bodies of ``if TYPE_CHECKING``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from nodes(node)


def imports(tree):
    """Return the full name of every module that this one imports, at the top or later."""
    found = set()
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports are absolute here"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in inside if name.removeprefix("claudescale.") in TREES}
            found |= modules or {node.module}
    return found


IMPORTS = {name: imports(tree) for name, tree in TREES.items()}
OURS = {
    name: {each.removeprefix("claudescale").lstrip(".") for each in found if each.startswith("claudescale")}
    for name, found in IMPORTS.items()
}
IN_FOLDERS = [name for name in TREES if name and not name.startswith("simulator")]


def test_imports_run_downward():
    """No module imports from a folder above its own, not even inside a function, but for what is named."""
    found = set()
    for name in IN_FOLDERS:
        folder = name.split(".")[0]
        others = {other.split(".")[0] for other in OURS[name] if other}
        above = {*FOLDERS[FOLDERS.index(folder) + 1 :], "simulator"}
        found |= {(name, other) for other in others & above}
    assert found == UPWARD
    assert set(TREES) <= set(TopologicalSorter(OURS).static_order())  # no two import each other


def test_the_simulator_knows_facts_only():
    """The stand-in shares dates, prices and limits with the package, and no code that it is there to test."""
    others = set().union(*(OURS[name] for name in TREES if name.startswith("simulator")))
    assert {other for other in others if not other.startswith("simulator")} <= SIMULATOR_MAY_IMPORT


def test_slow_libraries_have_one_place():
    """What reaches the network or takes seconds to import is imported by its own modules alone."""
    for library, allowed in RESERVED.items():
        uses = {name for name, found in IMPORTS.items() if library in {each.split(".")[0] for each in found}}
        assert {name.split(".")[0] for name in uses} <= allowed, library


@pytest.mark.parametrize(
    ("names", "slow"),
    [
        ("", {"anthropic", "altair", "ipywidgets", "pydantic", "aiohttp", "genai_prices", "anyio", "tqdm"}),
        ("cs.plan, cs.Run, cs.trial, cs.cascade", {"altair", "vl_convert"}),
    ],
)
def test_importing_the_package_loads_nothing_slow(names, slow):
    """`import claudescale` leaves SDK, widgets, pydantic and web server for later, and plans leave charts."""
    code = f"import sys, claudescale as cs; {names}; print(sorted({slow!r} & set(sys.modules)))"
    code = code.replace("; ;", ";")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_public_names_are_there_and_explained():
    """Every name of `claudescale.__all__` resolves, says what it is, and is listed by `dir`."""
    assert sorted(cs.__all__) == cs.__all__
    assert set(cs.__all__) <= set(dir(cs))
    assert [name for name in cs.__all__ if not vars_doc(getattr(cs, name))] == []
    with pytest.raises(AttributeError, match="There is: "):
        cs.no_such_name  # noqa: B018


def vars_doc(thing):
    """Return the docstring of the thing itself, not one that a base class lends it."""
    return thing.__doc__ if inspect.isroutine(thing) else vars(thing).get("__doc__")


def public_face():
    """Return what a user can call: public functions, and the public methods of the classes one meets."""
    seen = {}
    for thing in [*(getattr(cs, name) for name in cs.__all__), Plots, PlanPlots]:
        if inspect.isroutine(thing):
            seen[thing.__name__] = thing
        elif isinstance(thing, type) and not issubclass(thing, BaseException):
            methods = {name: getattr(value, "__func__", value) for name, value in vars(thing).items()}
            seen |= {
                f"{thing.__name__}.{name}": value
                for name, value in methods.items()
                if inspect.isfunction(value) and not name.startswith("_")
            }
    return seen


def test_whatever_a_user_can_call_says_what_it_spends():
    """Each public function and method has `Spends:` in its docstring; to read an attribute is always free."""
    face = public_face()
    assert {"plan", "Plan.run", "Run.stop", "Limits.of", "Plots.throughput"} <= set(face)
    assert sorted(name for name, thing in face.items() if "Spends:" not in (thing.__doc__ or "")) == []


@pytest.mark.parametrize("name", [name for name, tree in TREES.items() if ">>>" in ast.unparse(tree)])
def test_examples_in_docstrings_run(name):
    """What a docstring shows is what one sees."""
    module = importlib.import_module(f"claudescale.{name}".rstrip("."))
    found = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert (found.failed, found.attempted > 0) == (0, True)


def test_every_test_says_in_one_sentence_what_it_proves():
    """A test's docstring begins with one sentence that ends with a full stop; below it there may be more."""
    sentence, unsaid = re.compile(r"\S(?:(?![.!?] [A-Z]).)*\."), []
    for path in TESTS.rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                said = (ast.get_docstring(node) or "").split("\n\n")[0].replace("\n", " ")
                unsaid += [] if sentence.fullmatch(said) else [f"{path.name}: {node.name}"]
    assert unsaid == []


def test_conda_and_pip_install_the_same():
    """Conda brings Python, as new as pyproject.toml wants it, and pip all that pyproject.toml asks for."""
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python = f"python{PROJECT['project']['requires-python']}"
    assert environment["dependencies"] == [python, "pip", {"pip": ["--editable .[notebook]"]}]
