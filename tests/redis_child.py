"""One of several processes that share a limit: the API's address, its first row, how many, the Redis server.

It says when it has imported what is slow, and begins when it is told to: so all run at the same time.
"""

import sys

from running import a_plan, reviews
from test_cluster_redis import LIMITS

import claudescale as cs

if __name__ == "__main__":
    url, first, rows, on = sys.argv[1:]
    client = cs.connect(base_url=url, api_key="simulated")
    plan = a_plan(reviews(int(first) + int(rows)).tail(int(rows)), tier=LIMITS)
    print("ready", flush=True)
    sys.stdin.readline()
    run = cs.wait(plan.run(client, ledger=None, progress=False, on=on or None))
    print(run.counts.answered)
