"""A run beyond one process: on a Dask cluster, or with a limit that unrelated processes share through Redis.

``await plan.run(client, on=cluster)`` is the same plan, ledger and result as without ``on``. Rarely needed:
one process sends some 300 calls a second, which is more than most tiers allow.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claudescale.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Callable

    from anthropic import AsyncAnthropic
    from distributed import Client

    from claudescale.running.live import Live

REDIS = ("redis://", "rediss://", "unix://")
_SETTINGS: dict[str, Any] = {
    "distributed.scheduler.worker-ttl": "15 s",  # a worker that stands still so long is given up
    "distributed.scheduler.allowed-failures": 5,
    "distributed.worker.profile.enabled": False,  # half a millisecond of every call
    "distributed.worker.preload": ["claudescale.daskworker"],
}


@dataclass(frozen=True, kw_only=True)
class Dask:
    """A Dask cluster to run on, where its client alone does not say enough.

    Parameters
    ----------
    client : distributed.Client
        Of the cluster.
    connect : callable, optional
        Called in each worker, gives the `AsyncAnthropic` it sends with: where the key is not in the worker's
        ``ANTHROPIC_API_KEY`` but in a secret store, say. The key itself never travels.
    folder : str or Path, optional
        Where workers keep what they were answered until the driver has it. All of them and this process
        must see it; the default stands beside the ledger, which is right on one machine.
    """

    client: Client
    connect: Callable[[], AsyncAnthropic] | None = None
    folder: str | Path | None = None


def local(workers: int = 2, **options: Any) -> Client:
    """Return the client of a new Dask cluster on this machine; ``with`` or ``close()`` ends it.

    Its workers inherit this process's environment, so a key that is set there is set here.

    Spends: nothing.

    Parameters
    ----------
    workers : int
        Processes. One for each core is enough.
    **options
        For `distributed.Client` and its `LocalCluster`.

    Raises
    ------
    PlanError
        Dask is not installed.
    """
    dask, distributed = _imported("dask", "dask"), _imported("distributed", "dask")
    # With None Dask opens a port for its pages all the same; so any free one, on this machine only.
    given = {"n_workers": workers, "threads_per_worker": 2, "dashboard_address": "127.0.0.1:0"}
    with dask.config.set(_SETTINGS):
        client: Client = distributed.Client(**given, set_as_default=False, **options)
    return client


def engine(on: Any, client: AsyncAnthropic) -> Callable[..., Live]:
    """Return what makes the live engine of a run `on` a cluster, in the place of `engines.live_engine`.

    Raises
    ------
    PlanError
        Nothing can be run on that, or what it takes is not installed.
    """
    if isinstance(on, str) and on.startswith(REDIS):
        _imported("redis", "redis")
        from claudescale import redishome  # noqa: PLC0415 - optional

        return partial(redishome.engine, on, client)
    given = on if isinstance(on, Dask) else Dask(client=on)
    distributed = _imported("distributed", "dask")
    if not isinstance(given.client, distributed.Client):
        msg = (
            f"on= takes no {type(on).__name__}, but claudescale.cluster.local(2), any distributed.Client, or "
        )
        msg += '"redis://host:6379/0", which shares the limit alone'
        raise PlanError(msg)
    if given.client.asynchronous:
        msg = "on= takes a Dask client that is not asynchronous: distributed.Client(address)"
        raise PlanError(msg)
    from claudescale import daskhome  # noqa: PLC0415 - optional

    folder = None if given.folder is None else Path(given.folder).expanduser().absolute()
    return partial(daskhome.engine, given.client, given.connect, folder, client)


def _imported(name: str, extra: str) -> Any:
    import importlib  # noqa: PLC0415 - only here

    try:
        return importlib.import_module(name)
    except ImportError as error:
        msg = f"on= needs {name!r}, which is not installed: pip install 'claudescale[{extra}]'"
        raise PlanError(msg) from error
