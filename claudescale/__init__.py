"""Run Claude over Polars frames at scale: see the price and the time first, never pay twice.

A plan is a LazyFrame of Claude calls: free to build, it shows its price and its time, and one verb
spends money.

The house has a folder for each chapter, and imports run downward:

=========== ==========================================================================
errors      what can go wrong, and what to type then; `clock` API time, `loops` where work runs
api         what the API is, costs, allows and says; the only wire
prompts     rows into requests, and replies into typed columns
pacing      who may go now
ledger      what was paid for
views       frames into pictures and cards; Altair is imported only here
planning    what would happen
running     what happens
evidence    which model is good enough
widgets     choose before a run, follow one; ipywidgets are imported only here
helpers     level 1: a whole job in one line
lessons     real texts to practise on
simulator   the API's stand-in, for lessons and tests
cluster     a run on Dask
=========== ==========================================================================
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from claudescale import errors as errors

__version__ = "0.1.0"


@cache
def _homes() -> dict[str, str]:
    """Return the module of each public name. They stand in the stub alone (SPEC 1 of Scientific Python)."""
    import ast  # noqa: PLC0415 - import claudescale takes a few milliseconds
    from pathlib import Path  # noqa: PLC0415 - the same

    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [line for line in stub.body if isinstance(line, ast.ImportFrom)]
    return {alias.name: str(line.module) for line in imports for alias in line.names}


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first asked for: planning starts fast."""
    if name == "__all__":
        return sorted(_homes())
    if name not in _homes():
        msg = f"claudescale has no {name!r}. There is: {', '.join(sorted(_homes()))}."
        raise AttributeError(msg)
    globals()[name] = getattr(import_module(_homes()[name]), name)
    return globals()[name]


def __dir__() -> list[str]:
    return [*sorted(_homes()), "__version__"]
