"""The driver of a run on its own cluster, to be interrupted; takes the API's address, ledger and rows."""

import os
import sys

from running import a_plan, reviews

import claudescale as cs


def main(url, ledger, rows):
    """Run the plan; an interrupt ends it like any run."""
    from distributed import Client  # noqa: PLC0415 - a worker that is spawned from here need not

    client = cs.connect(base_url=url, api_key="simulated")
    tier = cs.Limits(requests_per_minute=12_000, input_tokens_per_minute=1e8, output_tokens_per_minute=1e8)
    with Client(n_workers=2, threads_per_worker=1, dashboard_address=None, set_as_default=False) as dask:
        print(min(dask.run(os.getpid).values()), flush=True)
        run = a_plan(reviews(int(rows)), tier=tier).start(client, ledger=ledger, progress=False, on=dask)
        try:
            cs.wait(run)
        except KeyboardInterrupt:
            print(f"interrupted, {run.state}, {run.counts.answered} answered", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
