"""The driver of a run on a cluster, as a process that can be interrupted or killed.

Arguments: the API's address, the ledger, the rows, and the address of a Dask scheduler, or how many workers
to start.
"""

import sys

from running import a_plan, reviews

import claudescale as cs
from claudescale import cluster


def main(url, ledger, rows, where):
    """Run the plan; an interrupt ends it as it ends any run."""
    from distributed import Client  # noqa: PLC0415 - a worker that is spawned from here need not

    client = cs.connect(base_url=url, api_key="simulated")
    with cluster.local(int(where)) if where.isdigit() else Client(where, set_as_default=False) as dask:
        run = a_plan(reviews(int(rows))).start(client, ledger=ledger, progress=False, on=dask)
        print("started", flush=True)
        try:
            run.result()
        except KeyboardInterrupt:
            print(f"interrupted, {run.state}, {run.counts.answered} answered", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
