"""Run Claude over Polars frames at scale: see the price and the time first, never pay twice.

A plan is a LazyFrame of Claude calls: free to build, it shows its price and its time, and one verb
spends money.

Each topic has its own folder or file, and imports run downward:

=========== ==========================================================================
errors      what can go wrong, and what to type then
clock       API time; `loops` runs the work, `text` writes figures as words
api         models, prices, limits and answers of the API; the only access to it
prompts     from rows to requests, and from replies to typed columns
pacing      when each call may be sent
ledger      the record of what was paid for
views       pictures and cards of frames; Altair is imported only here
planning    what a run would cost, and how long it would take
running     runs, live or by batch
evidence    which model is good enough
widgets     controls to choose a plan and follow a run; ipywidgets is imported only here
helpers     level 1: a whole job in one line
lessons     real texts to practice on
simulator   a stand-in for the API, for lessons and tests
cluster     a run on Dask
=========== ==========================================================================

Facts and words stand in .toml files beside the code that reads them: models, tiers, limits and the meaning of
errors in `api/catalog.toml`, messages in `api/words.toml`.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

from claudescale import errors as errors

__version__ = "0.1.0"


@cache
def _homes() -> dict[str, str]:
    """Return the module of each public name, read from the stub (SPEC 1 of Scientific Python)."""
    import ast  # noqa: PLC0415 - keeps `import claudescale` fast
    from pathlib import Path  # noqa: PLC0415 - as above

    stub = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    imports = [line for line in stub.body if isinstance(line, ast.ImportFrom)]
    return {alias.name: str(line.module) for line in imports for alias in line.names}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first access, so that planning starts fast."""
    if name == "__all__":
        return sorted(_homes())
    if name not in _homes():
        msg = f"claudescale has no {name!r}. There is: {', '.join(sorted(_homes()))}."
        raise AttributeError(msg)
    globals()[name] = getattr(import_module(_homes()[name]), name)
    return globals()[name]


def __dir__() -> list[str]:
    return [*sorted(_homes()), "__version__"]
