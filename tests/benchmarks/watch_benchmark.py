"""The cost of watching a run: kernel time per refresh, and the effect on the run's own pace.

Run: ``python tests/benchmarks/watch_benchmark.py [rows]`` with the package and ipykernel importable.

First the widgets are updated a hundred times as if 1,000, 10,000 and 100,000 rows of a run were done. The
kernel sends every message, but no page draws them. Then that kernel makes the same run, bound by the
processor alone, without and with a watcher in turns, against a simulator in its own process. It measures
pace, processor time, and the longest gap between two sends, which the first refresh, the pictures and the
imports must not lengthen. Ratios are taken within a round, and the medians are printed. On a machine busy
with other work, trust the processor time and not the pace.
"""

import json
import statistics
import subprocess
import sys

ROUNDS = 4
REFRESH = """
import json, statistics, time, types
import polars as pl
import claudescale as cs
from claudescale.ledger.records import Attempt
from claudescale.running.meter import Meter
from claudescale.running.job import Ends
from claudescale.running.runs import Run
from claudescale import views
from claudescale.widgets.watch import Panel, drawn

MODEL = "claude-haiku-5-5"
limits = cs.Limits(requests_per_minute=1_000, input_tokens_per_minute=90_000, output_tokens_per_minute=90_000)
one = dict.fromkeys(Attempt._fields) | dict(mode="live", model=MODEL, status=200, dollars=1e-5, seconds=1.3)
one |= {name: 70 for name in Attempt._fields if name.endswith("tokens")} | {"web_search_requests": 0}
meter, added, found = Meter(model=MODEL), 0, {}
meter.begin(pl.Series("key", [str(n) for n in range(100_000)]))
job = types.SimpleNamespace(
    simulated=False, asked="", estimate=None, expected=None, ends=None, is_open=False, meter=meter,
    minutes=0.0, clock=types.SimpleNamespace(speed=1.0), limits=limits,
    pacer=types.SimpleNamespace(in_flight=20, window=40, limits=limits),
)
run = Run.__new__(Run)
run.plan, run.job, run.path = cs.plan(["text"], "{text}", model=MODEL, tier=limits), job, None
run.state, run.stopped_by = "running", None
panel = Panel(run)
for rows in (1_000, 10_000, 100_000):
    begun = time.thread_time()
    while added < rows:
        meter.add(Attempt(**one | {"key": str(added), "sent_at": added * 0.06}), final=True)
        added += 1
    meter_us = (time.thread_time() - begun) / (rows * 0.9 if rows > 1_000 else rows) * 1e6
    took = []
    for number in range(100):
        start = time.thread_time()
        meter.failed = number  # something to tell each time
        job.minutes, job.ends = rows * 0.001, Ends(rows * 0.01, rows * 0.011)
        panel.show()
        json.dumps(views.bundle(drawn(run, limits), png=False))
        took.append((time.thread_time() - start) * 1e3)
    took = sorted(took)
    found[rows] = [statistics.median(took), took[-5], meter_us]
print("FOUND", json.dumps(found))
"""
PACE = """
import asyncio, json, time
import polars as pl
import claudescale as cs
wide = cs.Limits(requests_per_minute=1e7, input_tokens_per_minute=1e10, output_tokens_per_minute=1e10)
texts = pl.DataFrame({{"text": [f"Order {{n}}: the parcel came late. " * 4 for n in range({rows})]}})
plan = cs.plan(texts, "Why? {{text}}", model="claude-haiku-5-5", max_tokens=64, concurrency=50, tier=wide)
client = cs.connect(base_url={url!r}, api_key="simulated")
async def rate(watchers):
    begun, spent = time.perf_counter(), time.process_time()
    run = plan.start(client, ledger=None, progress=False)
    made = [cs.watch(run) for _ in range(watchers)]
    while (done := run.counts.done) < {rows} * 0.9:  # the picture that stays is made after the run
        await asyncio.sleep(0.05)
    took = time.perf_counter() - begun, time.process_time() - spent
    shown = sum(each.refreshes for each in made)
    await run
    gaps = run.attempts["sent_at"].sort().diff().dt.total_microseconds()
    return done / took[0], took[1] / done * 1e3, shown, gaps.max() / 1e6
await rate(0)
found = {{watchers: [] for watchers in (0, 1)}}
for turn in range({rounds}):
    for watchers in (sorted(found) if turn % 2 else sorted(found, reverse=True)):
        found[watchers].append(await rate(watchers))
print("FOUND", json.dumps(found))
"""


def in_kernel(code):
    """Return the printed output of code run as a cell of a fresh kernel."""
    import nbformat  # noqa: PLC0415  # only here
    from nbclient import NotebookClient  # noqa: PLC0415

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    NotebookClient(notebook, timeout=1_800, kernel_name="python3").execute()
    printed = "".join(output.get("text", "") for output in notebook.cells[0].outputs)
    return json.loads(printed.split("FOUND", 1)[1].splitlines()[0])


def main():
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000
    for done, (median, slow, meter_us) in in_kernel(REFRESH).items():
        told = f"{median:.2f} ms of the kernel's processor for a refresh, 95 of 100 within {slow:.2f}"
        print(f"{int(done):7,} rows done: {told}; {meter_us:.1f} us to count a row")
    unlimited = ["--requests-per-minute", "10000000", "--input-tokens-per-minute", "10000000000",
                 "--output-tokens-per-minute", "10000000000"]  # fmt: skip
    command = [sys.executable, "-m", "claudescale.simulator", "--port", "0", "--latency", "0.1", *unlimited]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            url = "http" + server.stdout.readline().split("http", 1)[1].split()[0].rstrip(".,;")
            found = in_kernel(PACE.format(rows=rows, url=url, rounds=ROUNDS))
        finally:
            server.terminate()
    print(f"{rows:,} rows, 50 in flight, {ROUNDS} rounds")
    for watchers, rounds in found.items():
        rate, cpu, shown, gap = (statistics.median(each) for each in zip(*rounds, strict=True))
        pace = statistics.median(one[0] / none[0] for one, none in zip(rounds, found["0"], strict=True))
        processor = statistics.median(one[1] / none[1] for one, none in zip(rounds, found["0"], strict=True))
        told = f"{rate:5.0f} rows/s ({pace:.3f} x unwatched), {cpu:.2f} ms CPU a row ({processor:.3f} x)"
        longest = ", ".join(f"{each[3]:.2f}" for each in rounds)
        print(
            f"{watchers} watchers: {told}; {shown:.0f} refreshes; longest gaps {longest} s, median {gap:.2f}"
        )


if __name__ == "__main__":
    main()
