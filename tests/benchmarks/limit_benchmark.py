"""The value of `cs.limit`: the SDK behind a semaphore, as people write it, and with a limited client.

Run: ``python tests/benchmarks/limit_benchmark.py`` with the package importable; it takes about six minutes.

- throttled: 600 rows of two turns, 64 tasks, tier start, its limits enforced by the second, at real speed, as
  the SDK waits in real seconds. Makespan over the bound that no client can beat plus one median latency;
  refusals by the server's own count; rows without both answers.
- unthrottled: the same calls with room for everything: processor time of the client's process, without the
  imports; and with an SDK middleware that does nothing, which is not free either.

Each client runs in its own process; the simulator runs in this one.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import time

from measured import used

ROWS, TURNS, TASKS = 600, 2, 64
REQUESTS_PER_MINUTE = 1_000
PLENTY = (1e7, 1e10, 1e10)
CLIENTS = {"semaphore, 2 retries": 2, "semaphore, 4 retries": 4, "cs.limit, 2 retries": 2}
IDLE = "idle middleware"


async def ask(client, number, seconds):
    """Hold one conversation of two turns and return whether it was completed."""
    import anthropic  # noqa: PLC0415

    messages = [
        {"role": "user", "content": f"Order {number} came late and the box was open. Name the complaint."}
    ]
    options = {"model": "claude-haiku-5-5", "max_tokens": 64, "thinking": {"type": "disabled"}}
    for _ in range(TURNS):
        begun = time.monotonic()
        try:
            message = await client.messages.create(messages=messages, **options)
        except anthropic.APIError:
            return False
        seconds.append(time.monotonic() - begun)
        messages += [
            {"role": "assistant", "content": message.content[0].text},
            {"role": "user", "content": "Shorter."},
        ]
    return True


async def idle(request, call_next):
    """Do nothing."""
    return await call_next(request)


async def child(url, name, tier):
    """Answer all rows as one client and print its figures."""
    import anthropic  # noqa: PLC0415

    import claudescale as cs  # noqa: PLC0415
    from claudescale.pacing.middleware import limiter_of  # noqa: PLC0415

    http = anthropic.DefaultAioHttpClient(trust_env=False)
    client = anthropic.AsyncAnthropic(
        base_url=url, api_key="simulated", max_retries=CLIENTS.get(name, 2), http_client=http
    )
    tier = tier if tier == "start" else cs.Limits(**dict(zip(cs.Limits.__slots__, PLENTY, strict=False)))
    client = cs.limit(client, tier=tier) if "limit" in name else client
    client = client.with_middleware(idle) if name == IDLE else client
    gate, seconds = asyncio.Semaphore(TASKS), []

    async def row(number):
        async with gate:
            return await ask(client, number, seconds)

    await ask(client, -1, [])  # opens connections, imports, learns limits
    await asyncio.sleep(2)  # the buckets are full again
    seconds.clear()
    cpu, begun = used(), time.monotonic()
    done = sum(await asyncio.gather(*map(row, range(ROWS))))
    took, cpu = time.monotonic() - begun, used() - cpu
    limiter = limiter_of(client)
    latency = limiter.calls["seconds"].median() if limiter else statistics.median(seconds)
    print(json.dumps({"done": done, "seconds": took, "cpu": cpu, "latency": latency}))
    await client.close()


def measure(name, tier, **simulator):
    """Return the figures of a client in its own process, and the server's counts."""
    import claudescale as cs  # noqa: PLC0415

    with cs.Simulator(tier, **simulator) as api:
        command = [sys.executable, __file__, api.url, name, "start" if tier == "start" else "plenty"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        return found | {"refused": sum(api.stats["refused"].values()), "calls": api.stats["calls"]}


def main():
    """Print both tables."""
    calls = ROWS * TURNS
    bound = (calls - REQUESTS_PER_MINUTE / 60) * 60 / REQUESTS_PER_MINUTE
    throttled = {name: measure(name, "start", bucket_seconds=1.0) for name in reversed(CLIENTS)}
    latency = throttled["cs.limit, 2 retries"]["latency"]
    print("throttled             rows lost  refused per 1,000 calls  time / (bound + latency)  CPU ms a call")
    for name in CLIENTS:
        found = throttled[name]
        refused, ratio = 1_000 * found["refused"] / found["calls"], found["seconds"] / (bound + latency)
        cpu = 1_000 * found["cpu"] / calls
        print(f"{name:22}{ROWS - found['done']:9}{refused:25.1f}{ratio:26.3f}{cpu:15.2f}")
    print("unthrottled           CPU ms a call, three rounds")
    names = ["semaphore, 2 retries", IDLE, "cs.limit, 2 retries"]
    rounds = [[measure(name, PLENTY, latency=0.5)["cpu"] / calls for name in names] for _ in range(3)]
    for name, figures in zip(names, zip(*rounds, strict=True), strict=True):
        print(f"{name:22}{'  '.join(f'{1_000 * cpu:.2f}' for cpu in figures)}")
    least = [min(figures) for figures in zip(*rounds, strict=True)]
    print(
        f"ratio of the least: idle middleware {least[1] / least[0]:.2f}, cs.limit {least[2] / least[0]:.2f}"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(child(*sys.argv[1:]))
    else:
        main()
