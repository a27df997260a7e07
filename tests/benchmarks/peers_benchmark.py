"""claudescale next to common alternatives, each in its own process, on the same local server.

Run: ``python tests/benchmarks/peers_benchmark.py [--rows N] [--markdown] [--python PEER=PATH ...]`` with the
package importable. A peer that is not installed is skipped, and a line says so. A peer that needs other
versions than this package gets its own environment: ``pip install litellm tenacity`` there (it does not
retry without tenacity), and ``--python litellm=ENVIRONMENT/bin/python`` here. Its process needs nothing of
this package.

- unthrottled: a small server that answers at once with the same message. Processor time and rows per
  second of the peer's process, without imports and one warm-up row; its peak memory, imports included.
- throttled: the simulator with buckets that hold a second, once bound by requests, once by input tokens of
  rows of mixed size. Makespan over the bound that no client can beat; refusals; rows without an answer.
  LangChain's and chatlas' own limiters get the requests per minute that the binding limit allows on
  average, although for tokens a user would have to calculate that.
- faults: 5% of the calls answered 500, 2% answered 529, 2% billed and then dropped, no limits.
- outage: every call is answered 529 from the third second to the eighteenth.
- batches: built and collected as in `batch_benchmark`, next to the SDK's own methods.

All run at real speed, as peers wait in real seconds, with 32 in flight if the peer lets that be chosen. All
peers get 8 retries, more than their defaults, except "SDK loop", which keeps the SDK's 2. Rounds interleave
the peers; medians count.
"""

import argparse
import asyncio
import concurrent.futures
import functools
import importlib.metadata
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import batch_benchmark
from measured import megabytes, used

IN_FLIGHT, RETRIES = 32, 8
MODEL, MAX_TOKENS, LATENCY_SECONDS = "claude-haiku-5-5", 64, 0.5
PROMPT = "Name the complaint in one word: {text}"
THINKING = {"type": "disabled"}
PLENTY = (1e7, 1e10, 1e10)
REQUESTS_PER_MINUTE, INPUT_TOKENS_PER_MINUTE = 1_800, 900_000
SCENARIOS = ("unthrottled", "requests", "input tokens", "faults", "outage")


def texts(rows, mixed):
    """Return that many different texts, of one size or of 15 to 2,000 tokens per row drawn by seed."""
    drawn = random.Random(1)
    sizes = [min(int(drawn.lognormvariate(3.2, 1.0)) + 1, 130) if mixed else 4 for _ in range(rows)]
    passage = "the parcel came late and the box was open. "
    return [f"Order {number}: " + passage * size for number, size in enumerate(sizes)]


# ------------------------------------------------------------------------ the peers, each as its users use it


async def _gathered(ask, rows):
    """Return the number of rows that a semaphore loop around `ask` got an answer for."""
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def asked(text):
        async with gate:
            return await ask(PROMPT.replace("{text}", text))

    found = await asyncio.gather(*map(asked, rows), return_exceptions=True)
    return sum(not isinstance(each, BaseException) for each in found)


async def sdk(url, rows, told, max_retries):
    """Send rows through a semaphore around ``messages.create``."""
    from anthropic import AsyncAnthropic  # noqa: PLC0415  # only this peer, as below

    async with AsyncAnthropic(base_url=url, api_key="simulated", max_retries=max_retries) as client:

        async def ask(prompt):
            return await client.messages.create(
                model=MODEL,
                max_tokens=MAX_TOKENS,
                thinking=THINKING,
                messages=[{"role": "user", "content": prompt}],
            )

        return await _gathered(ask, rows)


async def ours(url, rows, told):
    """Run a plan with a ledger on disk."""
    import polars as pl  # noqa: PLC0415

    import claudescale as cs  # noqa: PLC0415

    plan = cs.plan(
        pl.DataFrame({"text": rows}), PROMPT, model=MODEL, max_tokens=MAX_TOKENS, thinking=THINKING,
        tier=cs.Limits(**told["limits"]), concurrency=IN_FLIGHT,
    )  # fmt: skip
    client = cs.connect(base_url=url, api_key="simulated")
    with tempfile.TemporaryDirectory() as folder:
        run = await plan.run(client, ledger=Path(folder) / "peers.ledger", progress=False)
        return run.results["reply"].count()


async def langchain(url, rows, told):
    """Send rows by ``abatch``, with its rate limiter if there is a limit."""
    of_core = importlib.import_module("langchain_core.rate_limiters")
    per_second = told["paced_per_minute"] and told["paced_per_minute"] / 60
    limiter = per_second and of_core.InMemoryRateLimiter(
        requests_per_second=per_second, check_every_n_seconds=0.05, max_bucket_size=per_second
    )
    model = importlib.import_module("langchain_anthropic").ChatAnthropic(
        model=MODEL, base_url=url, api_key="simulated", max_tokens=MAX_TOKENS, thinking=THINKING,
        max_retries=RETRIES, rate_limiter=limiter or None,
    )  # fmt: skip
    prompts = [PROMPT.replace("{text}", text) for text in rows]
    config = {"max_concurrency": IN_FLIGHT}
    found = await model.abatch(prompts, config=config, return_exceptions=True)
    return sum(not isinstance(each, BaseException) for each in found)


async def litellm(url, rows, told):
    """Send rows through a semaphore around ``acompletion``."""
    client = importlib.import_module("litellm")
    client.suppress_debug_info = True

    async def ask(prompt):
        return await client.acompletion(
            model=f"anthropic/{MODEL}",
            api_base=url,
            api_key="simulated",
            max_tokens=MAX_TOKENS,
            thinking=THINKING,
            num_retries=RETRIES,
            retry_strategy="exponential_backoff_retry",
            messages=[{"role": "user", "content": prompt}],
        )

    return await _gathered(ask, rows)


async def chatlas(url, rows, told):
    """Send rows by ``parallel_chat``, which by default stops at the first error."""
    import chatlas as client  # noqa: PLC0415

    options = {"base_url": url, "max_retries": RETRIES}
    chat = client.ChatAnthropic(
        model=MODEL, api_key="simulated", max_tokens=MAX_TOKENS, reasoning=THINKING, kwargs=options
    )
    found = await client.parallel_chat(
        chat,
        [PROMPT.replace("{text}", text) for text in rows],
        max_active=IN_FLIGHT,
        rpm=told["paced_per_minute"] or 10**7,
        on_error="continue",
    )
    return sum(not isinstance(each, BaseException | None) for each in found)


async def pydantic_ai(url, rows, told):
    """Send rows through a semaphore around ``Agent.run``."""
    from anthropic import AsyncAnthropic  # noqa: PLC0415

    agents = importlib.import_module("pydantic_ai")
    models = importlib.import_module("pydantic_ai.models.anthropic")
    providers = importlib.import_module("pydantic_ai.providers.anthropic")
    async with AsyncAnthropic(base_url=url, api_key="simulated", max_retries=RETRIES) as client:
        provider = providers.AnthropicProvider(anthropic_client=client)
        model = models.AnthropicModel(MODEL, provider=provider)
        settings = {"max_tokens": MAX_TOKENS, "anthropic_thinking": THINKING}
        return await _gathered(agents.Agent(model, model_settings=settings).run, rows)


PEERS = {  # by name: the function, the distribution whose version counts, and how it is used
    "claudescale": (ours, "claudescale", "`plan.run`, ledger on disk"),
    "SDK loop": (functools.partial(sdk, max_retries=2), "anthropic", "semaphore, its 2 retries"),
    "SDK loop, 8": (functools.partial(sdk, max_retries=RETRIES), "anthropic", "semaphore, 8 retries"),
    "langchain": (langchain, "langchain-anthropic", "`abatch`, rate limiter"),
    "litellm": (litellm, "litellm", "semaphore, `num_retries`"),
    "chatlas": (chatlas, "chatlas", "`parallel_chat`, `rpm`"),
    "pydantic-ai": (pydantic_ai, "pydantic-ai-slim", "semaphore, `Agent.run`"),
}


def child(name):
    """Warm up, report it, and then do the task: a line of JSON in, a line of JSON out."""
    ask, distribution, _ = PEERS[name]
    told = json.loads(sys.stdin.readline())
    asyncio.run(ask(told["warm_url"], texts(1, mixed=False), told | {"paced_per_minute": None}))
    print(json.dumps({"version": importlib.metadata.version(distribution)}), flush=True)
    url = json.loads(sys.stdin.readline())
    rows = texts(told["rows"], told["mixed"])
    before, start = used(), time.perf_counter()
    answered = asyncio.run(ask(url, rows, told))
    seconds, cpu = time.perf_counter() - start, used() - before
    print(json.dumps({"answered": answered, "seconds": seconds, "cpu": cpu, "peak": megabytes("VmHWM")}))


# ------------------------------------------------------------------------------------------- the servers


def small_server():
    """Return the address of a server, in a thread, that sends every client the same message at once."""
    from aiohttp import web  # noqa: PLC0415  # not needed by a child

    usage = {"input_tokens": 60, "output_tokens": 4, "cache_creation_input_tokens": 0,
             "cache_read_input_tokens": 0, "service_tier": "standard"}  # fmt: skip
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": MODEL, "usage": usage,
               "content": [{"type": "text", "text": "Lateness"}], "stop_reason": "end_turn",
               "stop_sequence": None}  # fmt: skip
    body = json.dumps(message).encode()

    async def create(request):
        await request.read()
        return web.Response(body=body, content_type="application/json", headers={"request-id": "req_1"})

    loop, found, ready = asyncio.new_event_loop(), [], threading.Event()

    async def start():
        app = web.Application()
        app.router.add_post("/v1/messages", create)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        found.append(f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}")
        ready.set()

    def serve():
        loop.run_until_complete(start())
        loop.run_forever()

    threading.Thread(target=serve, daemon=True).start()
    ready.wait()
    return found[0]


def simulator(scenario):
    """Return a simulator for a scenario, with its stats."""
    from claudescale import Simulator  # noqa: PLC0415  # not needed by a child
    from claudescale.simulator import Fault  # noqa: PLC0415

    limits, faults = {}, {}
    if scenario == "requests":
        limits = (REQUESTS_PER_MINUTE, *PLENTY[1:])
    elif scenario == "input tokens":
        limits = (PLENTY[0], INPUT_TOKENS_PER_MINUTE, PLENTY[2])
    elif scenario == "faults":
        faults = {500: 0.05, 529: 0.02, "drop_after": 0.02}
    elif scenario == "outage":
        faults = {529: Fault(probability=1.0, starts=3.0, ends=18.0)}
    return Simulator(limits or PLENTY, latency=LATENCY_SECONDS, faults=faults, bucket_seconds=1.0)


def told(scenario, rows, warm_url):
    """Return a child's task: its rows, the limits, and the pace that they allow on average."""
    limits = dict(
        zip(
            ("requests_per_minute", "input_tokens_per_minute", "output_tokens_per_minute"),
            PLENTY,
            strict=True,
        )
    )
    mixed, paced = scenario == "input tokens", None
    if scenario == "requests":
        limits["requests_per_minute"] = paced = REQUESTS_PER_MINUTE
    if mixed:
        limits["input_tokens_per_minute"] = INPUT_TOKENS_PER_MINUTE
        paced = round(INPUT_TOKENS_PER_MINUTE / mean_tokens(rows))
    return {"warm_url": warm_url, "rows": rows, "mixed": mixed, "limits": limits, "paced_per_minute": paced}


@functools.lru_cache
def mean_tokens(rows):
    """Return the input tokens of a mixed row, by the simulator's own count of a few hundred of them."""
    import anthropic  # noqa: PLC0415  # not needed by a child

    given = texts(rows, mixed=True)
    with simulator("") as server, anthropic.Anthropic(base_url=server.url, api_key="simulated") as client:
        message = [{"role": "user", "content": "".join(PROMPT.replace("{text}", text) for text in given)}]
        return client.messages.count_tokens(model=MODEL, messages=message).input_tokens / rows


def measure(python, name, scenario, rows, warm_url):
    """Return the figures of one peer in one scenario, or the reason for their absence."""
    environment = os.environ | {"NO_PROXY": "127.0.0.1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    command = [python.get(name, sys.executable), __file__, "--child", name]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, text=True, env=environment) as process:
        given = told(scenario, rows, warm_url)
        process.stdin.write(json.dumps(given) + "\n")
        process.stdin.flush()
        ready = _object(process.stdout)
        if ready is None:
            *_, why = process.communicate()[1].strip().splitlines() or ["it ended"]
            return {"missing": why}
        if scenario == "unthrottled":
            output, why = process.communicate(json.dumps(warm_url) + "\n")
            stats = {}
        else:
            with simulator(scenario) as server:
                output, why = process.communicate(json.dumps(server.url) + "\n")
                stats = server.stats
    lines = output.splitlines()
    if not lines:
        raise RuntimeError(f"{name}, {scenario}: " + why[-2_000:])
    return ready | json.loads(lines[-1]) | {"stats": stats}


def _object(stream):
    """Return the first line that is a JSON object, as libraries may print other lines."""
    for line in stream:
        if line.startswith("{"):
            return json.loads(line)
    return None


# ------------------------------------------------------------------------------------------------ figures


def bound_seconds(scenario, rows, stats):
    """Return the fewest seconds the limit allows: a full bucket at once, the rest at the limit's pace."""
    if scenario == "requests":
        total, per_second = rows, REQUESTS_PER_MINUTE / 60
    else:
        counted = stats["input_tokens"] + stats["cache_write_5m_input_tokens"]  # chatlas caches by default
        total = rows * counted / stats["billed_rows"]
        per_second = INPUT_TOKENS_PER_MINUTE / 60
    return (total - per_second) / per_second


def figures(scenario, rows, one):
    """Return the figures of one measurement by name."""
    stats, lost = one["stats"], (rows - one["answered"]) / rows * 1_000
    if scenario == "unthrottled":
        assert one["answered"] == rows, one
        return {
            "ms": one["cpu"] / rows * 1_000,
            "rows/s": rows / one["seconds"],
            "MB": one["peak"],
        }
    found = {"lost": lost, "seconds": one["seconds"]}
    if scenario in {"requests", "input tokens"}:
        found["ratio"] = (one["seconds"] - LATENCY_SECONDS) / bound_seconds(scenario, rows, stats)
        refused = sum(count for kind, count in stats["refused"].items() if kind.endswith("_per_minute"))
        found["429s"] = refused / rows * 1_000
    if scenario == "faults":
        found["twice"] = (stats["billed_rows"] - stats["distinct_rows_billed"]) / rows * 1_000
    return found


def medians(several):
    """Return the median of each figure."""
    return {name: statistics.median(each[name] for each in several) for name in several[0]}


def measured_all(arguments):
    """Return the figures by peer and scenario, and the versions."""
    warm_url, python = small_server(), dict(pair.split("=", 1) for pair in arguments.python)
    names, versions, taken = list(arguments.peers), {}, {}
    mean_tokens(arguments.rows)

    def take(name, scenario, rows):
        if name not in names:
            return
        one = measure(python, name, scenario, rows, warm_url)
        if "missing" in one:
            names.remove(name)
            print(f"{name} is skipped: {one['missing']}", file=sys.stderr)
            return
        versions[name] = one["version"]
        found = figures(scenario, rows, one)
        taken.setdefault((name, scenario), []).append(found)
        shown = ", ".join(f"{key} {value:.3g}" for key, value in found.items())
        print(f"{scenario:12} {name:12} {shown}", file=sys.stderr, flush=True)

    for _ in range(arguments.rounds):
        for name in list(names):
            take(name, "unthrottled", arguments.requests)
        # These mostly wait, so a few run at a time; each has its own server.
        for scenario in SCENARIOS[1:]:
            with concurrent.futures.ThreadPoolExecutor(arguments.at_once) as pool:
                list(pool.map(lambda name: take(name, scenario, arguments.rows), list(names)))  # noqa: B023
    found = {name: {s: medians(taken[name, s]) for s in SCENARIOS} for name in names}
    return found, versions


COLUMNS = {  # a column's heading; its scenario; its figures
    "CPU ms a row": ("unthrottled", "{ms:.2f}"),
    "rows/s": ("unthrottled", "{rows/s:.0f}"),
    "peak MB": ("unthrottled", "{MB:.0f}"),
    "requests bind: time over the bound; 429s; lost": ("requests", "{ratio:.2f}; {429s:.0f}; {lost:.0f}"),
    "input tokens bind": ("input tokens", "{ratio:.2f}; {429s:.0f}; {lost:.0f}"),
    "faults: seconds; lost; billed twice": ("faults", "{seconds:.0f}; {lost:.0f}; {twice:.0f}"),
    "outage: seconds; lost": ("outage", "{seconds:.0f}; {lost:.0f}"),
}


def table(found, versions):
    """Return the rows of the table, heading first."""
    rows = [["peer", *COLUMNS]]
    for name, by in found.items():
        cells = [words.format_map(by[scenario]) for scenario, words in COLUMNS.values()]
        rows.append([f"{PEERS[name][1]} {versions[name]}: {PEERS[name][2]}", *cells])
    return rows


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=600, help="of a throttled or faulty run")
    parser.add_argument("--requests", type=int, default=2_000, help="rows of an unthrottled run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at-once", type=int, default=2, help="peers in the runs that mostly wait")
    parser.add_argument("--python", action="append", default=[], metavar="PEER=PATH")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--batches", type=int, default=100_000, help="rows of a batch; 0 leaves it out")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--child", choices=PEERS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    given = arguments()
    if given.child:
        child(given.child)
        return
    found, versions = measured_all(given)
    print(
        f"{datetime.now(UTC):%Y-%m-%d}, Python {platform.python_version()}, {os.cpu_count()} cores, load "
        f"{os.getloadavg()[0]:.1f}; {given.requests:,} rows unthrottled, {given.rows:,} in the others, "
        f"medians of {given.rounds}; 429s, lost and billed twice per 1,000 rows"
    )
    rows = table(found, versions)
    if given.markdown:
        print(
            *("| " + " | ".join(row) + " |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:])), sep="\n"
        )
    else:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
    if given.batches:
        batch_benchmark.main(given.batches)


if __name__ == "__main__":
    main()
