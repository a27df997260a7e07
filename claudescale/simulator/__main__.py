"""Serve a simulated Claude API to any client: ``python -m claudescale.simulator``."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from claudescale.errors import UnknownTier
from claudescale.simulator import Simulator
from claudescale.simulator.faults import KINDS, LEVELS, Fault

if TYPE_CHECKING:
    from collections.abc import Sequence

LIMITS = {
    "requests-per-minute": "requests a minute",
    "input-tokens-per-minute": "input tokens a minute",
    "output-tokens-per-minute": "output tokens a minute",
    "batch-queue-requests": "requests of all batches that may wait",
    "batch-requests-per-minute": "calls a minute to the batch endpoints",
    "count-tokens-per-minute": "calls a minute to the token counter",
}


def fault(text: str) -> tuple[str, Any]:
    """Return a fault's kind and value from ``kind=value``, with ``@start-end`` or ``#try+try`` or both."""
    rest, _, tries = text.strip().partition("#")
    rest, _, span = rest.partition("@")
    kind, _, value = rest.partition("=")
    start, _, end = span.partition("-")
    try:
        if kind in LEVELS:
            return kind, float(value)
        return kind, Fault(
            probability=float(value or 1),
            starts=float(start or 0),
            ends=float(end or "inf"),
            tries=[int(each) for each in tries.split("+")] if tries else None,
        )
    except ValueError:
        msg = f"{text!r} is not kind=value[@start-end][#try], such as 529=0.1@30-60 or create_lost=1#1"
        raise argparse.ArgumentTypeError(msg) from None


def faults(text: str) -> dict[str, Any]:
    """Return faults from a list with commas between them."""
    return dict(fault(part) for part in text.split(",") if part.strip())


def arguments() -> argparse.ArgumentParser:
    """Return what the command line takes."""
    parser = argparse.ArgumentParser(
        prog="python -m claudescale.simulator",
        description="A local stand-in of the Claude API on 127.0.0.1: same wire and limits, synthetic "
        "replies, no cost. Any client can use it.",
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes any free one (default)")
    parser.add_argument("--tier", default="start", help="start, build, scale, 1 to 4")
    parser.add_argument("--speed", type=float, default=1.0, help="API seconds per second (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="decides replies and faults (default: 0)")
    parser.add_argument("--latency", type=float, help="API seconds of every reply (default: plausible)")
    parser.add_argument(
        "--faults",
        type=faults,
        default={},
        metavar="KIND=VALUE[@START-END][#TRY],...",
        help="probability (or level) by kind, between API seconds since the start, at some tries: "
        + ", ".join(KINDS),
    )
    parser.add_argument(
        "--bucket-seconds", type=float, default=60.0, help="of its limit a full bucket holds (default: 60)"
    )
    parser.add_argument(
        "--batch-seconds", type=float, help="API seconds that a batch takes (default: by size)"
    )
    for name, meaning in LIMITS.items():
        parser.add_argument(f"--{name}", type=float, metavar="N", help=f"{meaning} (default: the tier's)")
    return parser


def main(given: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or a signal to end, and return the exit status."""
    parser = arguments()
    chosen = vars(parser.parse_args(given))
    limits = {name.replace("-", "_") for name in LIMITS}
    options = {name: value for name, value in chosen.items() if name not in limits or value is not None}
    try:
        simulator = Simulator(options.pop("tier"), **options)
    except (UnknownTier, ValueError, OSError) as error:
        parser.error(str(error))
    over = threading.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: over.set())
    with simulator:
        print(  # noqa: T201
            f"Simulated Claude API: export ANTHROPIC_BASE_URL={simulator.url} ANTHROPIC_API_KEY=simulated",
            flush=True,
        )
        over.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
