"""Serve a simulated Claude API to any client: ``python -m claudescale.simulator``."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from claudescale.errors import UnknownTier
from claudescale.simulator import Simulator
from claudescale.simulator.faults import KINDS

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
    """Return a fault's kind and value from ``kind=value`` or ``kind=value@start-end``."""
    kind, mark, rest = text.strip().partition("=")
    value, window, span = rest.partition("@")
    try:
        if not window:
            return kind, float(value) if mark else 1.0
        start, _, end = span.partition("-")
        return kind, (float(value), float(start), float(end) if end else float("inf"))
    except ValueError:
        msg = f"{text!r} is not kind=value or kind=value@start-end, such as 529=0.1@30-60"
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
        metavar="KIND=VALUE[@START-END],...",
        help=f"probability (or level) by kind, between API seconds since the start: {', '.join(KINDS)}",
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
