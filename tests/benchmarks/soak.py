"""Kill -9 for minutes: live, by batch and hybrid, two processes on one ledger, killed again and again.

Run: ``python tests/benchmarks/soak.py [minutes] [seed] [live|batch|hybrid ...]`` with the package importable.

Each round has its own simulator with its own faults, and two processes that run the same plan on the same
ledger. At random moments one of them is killed and started again, or paused for seconds like a sleeping
laptop (SIGSTOP). Within each process the event loop stalls for seconds and the time of day jumps by hours.
In the end a clean process collects the remaining rows, and the server's account is compared with the ledger.
"""

import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import polars as pl

import claudescale as cs
from claudescale import loops
from claudescale.ledger.store import Store
from claudescale.simulator import Fault

MODEL = "claude-haiku-5-5"
LIMITS = (30_000, 20_000_000, 4_000_000)
QUEUE = 150
CONCURRENCY = 24
ROWS = {"live": 700, "batch": 500, "hybrid": 400}
SPEED = {"live": 4, "batch": 300, "hybrid": 60}
LONGEST_ROUND_SECONDS = 300.0
PROCESSES = 2


def the_plan(mode, rows):
    """Return the plan that all processes of a round run."""
    frame = pl.DataFrame(
        {"text": [f"Order {number}: late again, the box was open." for number in range(rows)]}
    )
    tier = cs.Limits(
        requests_per_minute=LIMITS[0],
        input_tokens_per_minute=LIMITS[1],
        output_tokens_per_minute=LIMITS[2],
        batch_queue_requests=QUEUE,
        batch_requests_per_minute=6_000,
    )
    options = {"concurrency": CONCURRENCY, "max_tokens": 64, "mode": mode}
    if mode == "hybrid":
        options["deadline"] = 40
    return cs.plan(frame, "Name the complaint: {text}", model=MODEL, tier=tier, **options)


# the process under test


def trouble(seed):
    """Stall the event loop for up to three seconds and shift the time of day, every few seconds."""
    draws, real, shift = random.Random(seed), time.time, [0.0]
    time.time = lambda: real() + shift[0]
    home = loops.background().loop

    def stall():
        shift[0] = draws.choice((0.0, draws.uniform(-86_400.0, 86_400.0)))
        time.sleep(draws.choice((0.0, 0.05, 0.3, draws.uniform(0.5, 3.0))))
        home.call_later(draws.expovariate(0.5), stall)

    home.call_soon_threadsafe(stall)


def child(url, ledger, mode, rows, seed):
    """Run the plan; if its deadline has become impossible, the next process starts with its own."""
    import anthropic  # noqa: PLC0415 - only the process that sends

    trouble(int(seed))
    client = anthropic.AsyncAnthropic(base_url=url, api_key="simulated", max_retries=0)
    cs.wait(the_plan(mode, int(rows)).run(client, ledger=ledger, progress=False))


# the driver


class Round:
    """One plan, one server, one ledger, and the record of kills and pauses."""

    def __init__(self, mode, seed, folder):
        self.mode, self.seed, self.rows = mode, seed, ROWS[mode]
        self.draws = random.Random(seed)
        self.ledger = Path(folder) / f"{mode}-{seed}.ledger"
        self.done = Counter()
        self.lost_at_most = 0
        self.failures = []
        self.bills = []

    def server(self):
        """Return the simulator: batches that take minutes, answers that are lost before they are billed."""
        seconds = random.Random(self.seed)
        faults = {
            "live": {529: 0.02, "drop": 0.02, 500: 0.02},
            "batch": {
                "create_lost": 0.15, "create_failed_after": 0.1, "create_failed": 0.1, "results_cut": 0.2,
                "poll_failed": 0.1, "batch_errored": Fault(probability=0.05, tries=[1]),
                "batch_expired": Fault(probability=0.05, tries=[1]),
            },
        }  # fmt: skip
        faults["hybrid"] = {**faults["live"], "create_lost": 0.15, "results_cut": 0.2, "poll_failed": 0.1}
        simulator = cs.Simulator(
            LIMITS,
            speed=SPEED[self.mode],
            seed=self.seed,
            faults=faults[self.mode],
            batch_seconds=lambda _: seconds.choice((120.0, 600.0, 1_500.0)),
            batch_queue_requests=QUEUE,
            batch_requests_per_minute=6_000,
        )
        account = simulator.desk.account
        real = account.bill

        def bill(now, model, mode, key, reply):
            before = account.dollars[mode]
            real(now, model, mode, key, reply)
            self.bills.append((key, mode, account.dollars[mode] - before))

        account.bill = bill
        return simulator

    def begin(self, url):
        """Start one process."""
        self.done["starts"] += 1
        given = (url, self.ledger, self.mode, self.rows, self.draws.randrange(10**6))
        command = [sys.executable, __file__, "child", *map(str, given)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def hit(self, process, server):
        """Kill or pause the process, and return whether it has to be started again."""
        if self.draws.random() < 0.7:
            process.kill()
            process.communicate()
            self.done["kills"] += 1
            if self.mode != "batch":  # in flight, or arrived within the last twentieth of a second
                self.lost_at_most += min(server.stats["in_flight"], CONCURRENCY) + 50
            return True
        process.send_signal(signal.SIGSTOP)
        time.sleep(self.draws.choice((0.5, 2.0, self.draws.uniform(3.0, 12.0))))
        process.send_signal(signal.SIGCONT)
        self.done["sleeps"] += 1
        return False

    def play(self, server):
        """Kill or pause the processes at random moments for a while, then let them end."""
        hits = self.draws.randint(6, 12)
        running = [self.begin(server.url) for _ in range(PROCESSES)]
        end = time.monotonic() + LONGEST_ROUND_SECONDS
        while running:
            time.sleep(self.draws.choice((0.2, self.draws.uniform(0.8, 3.0), self.draws.uniform(1.5, 6.0))))
            for process in [each for each in running if each.poll() is not None]:
                running.remove(process)
                said = process.communicate()[1]
                if process.returncode:
                    self.failures.append(said[-2_000:])
            if hits and running:
                hits -= 1
                process = self.draws.choice(running)
                if process.poll() is None and self.hit(process, server):
                    running[running.index(process)] = self.begin(server.url)
            if time.monotonic() > end:
                self.failures.append(f"hangs: {len(running)} processes did not end")
                for process in running:
                    process.send_signal(signal.SIGABRT)
                    process.communicate()
                return

    async def finish(self, server):
        """Return the run of a clean process that has collected the remaining rows."""
        async with asyncio.timeout(LONGEST_ROUND_SECONDS):
            client = server.client()
            return await the_plan(self.mode, self.rows).run(client, ledger=self.ledger, progress=False)

    def account(self, server, run):
        """Return the figures of the round, and the violations among them."""
        with closing(Store(self.ledger)) as kept:
            attempts = kept.attempts()
            open_batches = [each for each in kept.batches() if each.state not in _OVER]
        stats = server.stats
        paid = attempts.filter(pl.col("output_tokens") > 0)
        figures = {
            "mode": self.mode,
            "seed": self.seed,
            **self.done,
            "rows": self.rows,
            "answered": run.results["reply"].count(),
            "billed": stats["billed_rows"],
            "distinct": stats["distinct_rows_billed"],
            "recorded": paid.height,
            "batches": stats["batches_created"],
            "lost_at_most": self.lost_at_most,
            "server_dollars": stats["dollars"],
            "ledger_dollars": float(attempts["dollars"].sum()),
        }
        lost = stats["billed_rows"] - paid.height
        by_batch = Counter(key for key, mode, _ in self.bills if mode == "batch")
        again = Counter(key for key, _, _ in self.bills)
        figures["dollars_lost"] = figures["server_dollars"] - figures["ledger_dollars"]
        figures["replies_lost"] = lost
        figures["rows_paid_again"] = sum(count - 1 for count in again.values())
        wrong = {
            "a row without its reply": figures["answered"] != self.rows,
            "a row paid twice in batches": any(count > 1 for count in by_batch.values()),
            "more lost than was in flight": lost > self.lost_at_most,
            "dollars differ though nothing was lost": lost == 0 and abs(figures["dollars_lost"]) > 1e-9,
            "the ledger has more than was billed": lost < 0 or figures["dollars_lost"] < -1e-9,
            "a batch is still open": bool(open_batches),
            "rows out of order": run.results["text"].to_list() != run.plan.frame["text"].to_list(),
        }
        self.failures += [words for words, is_so in wrong.items() if is_so]
        return figures


_OVER = {"collected", "absent", "gone"}
_SUMS = ("starts", "kills", "sleeps", "rows", "answered", "billed", "distinct", "recorded", "batches")
_SUMS += (
    "replies_lost",
    "rows_paid_again",
    "lost_at_most",
    "server_dollars",
    "ledger_dollars",
    "dollars_lost",
)


def main(minutes, seed, modes):
    """Run rounds until the time is over; print each, and the totals."""
    end = time.monotonic() + minutes * 60
    totals, failed, rounds = {mode: Counter() for mode in modes}, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        while time.monotonic() < end:
            played = Round(modes[rounds % len(modes)], seed + rounds, folder)
            with played.server() as server:
                played.play(server)
                try:
                    run = asyncio.run(played.finish(server))
                    figures = played.account(server, run)
                except (TimeoutError, cs.ClaudescaleError) as error:
                    played.failures.append(f"the clean process: {error!r}")
                    figures = {"mode": played.mode, "seed": played.seed}
            rounds += 1
            failed += bool(played.failures)
            totals[played.mode].update({name: figures.get(name, 0) for name in _SUMS})
            print(json.dumps({**figures, "wrong": played.failures}), flush=True)
    for mode, sums in totals.items():
        shown = ", ".join(f"{name} {sums[name]:,.6g}" for name in _SUMS)
        print(f"{mode}: {shown}")
    print(f"{rounds} rounds, {failed} of them wrong")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(*sys.argv[2:])
    else:
        given = dict(enumerate(sys.argv))
        main(float(given.get(1, 10)), int(given.get(2, 0)), sys.argv[3:] or list(ROWS))
