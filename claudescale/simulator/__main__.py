"""Serve a simulated Claude API to any client: ``python -m claudescale.simulator``."""

from __future__ import annotations

import argparse
import json
import signal
import socket
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from claudescale.errors import UnknownTier
from claudescale.simulator import Simulator
from claudescale.simulator.account import LIMITS

if TYPE_CHECKING:
    from collections.abc import Sequence

CLASS = {"tier": "1", "speed": 10.0}
EVERYWHERE = "0.0.0.0"  # noqa: S104 - on request only
NUMBERS = ("speed", "latency", "bucket_seconds", "batch_seconds", *LIMITS)
OPTIONS: dict[str, Any] = {"port": int, "seed": int, "host": str, "tier": str, "faults": json.loads}
OPTIONS |= dict.fromkeys(NUMBERS, float)


def arguments() -> argparse.ArgumentParser:
    """Return the parser, with the parameters of `Simulator` that are numbers, strings or JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m claudescale.simulator",
        description=Simulator.__doc__,
        epilog="""--faults are JSON: '{"529": 0.1, "drop": [0.5, 30, 60]}'.""",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    for name, kind in OPTIONS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    what = "for a class: tier 1 shared by all, at speed 10, and a board of whose calls pass"
    parser.add_argument("--class", action="store_true", dest="is_class", help=what)
    return parser


def address(simulator: Simulator, host: str) -> str:
    """Return the URL at which other machines reach the simulator."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        if host == EVERYWHERE:
            out.connect(("192.0.2.1", 9))  # reserved by RFC 5737; a UDP connect sends nothing
            return simulator.url.replace("127.0.0.1", out.getsockname()[0])
    return simulator.url


def main(given: Sequence[str] | None = None) -> int:
    """Serve until SIGINT (Ctrl-C) or SIGTERM, and return the exit status."""
    parser = arguments()
    options = vars(parser.parse_args(given))
    is_class = options.pop("is_class", False)
    try:
        simulator = Simulator(**{**(CLASS if is_class else {}), **options})
    except (UnknownTier, ValueError, OSError) as error:
        parser.error(str(error))
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    with simulator:
        url = address(simulator, options.get("host", ""))
        environment = f"ANTHROPIC_BASE_URL={url} ANTHROPIC_API_KEY=simulated"
        print(f"Simulated Claude API: export {environment}", flush=True)  # noqa: T201
        if is_class:
            connect = f'cs.connect(base_url="{url}", api_key="your-name")'
            print(f"Everybody types: {connect}\nThe board: {url}/class", flush=True)  # noqa: T201
        over.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
