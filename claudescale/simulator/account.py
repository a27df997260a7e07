"""The server's own account: what it billed and refused, and how hard it was pressed."""

from __future__ import annotations

from collections import Counter, deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from claudescale.api.catalog import USAGE, Mode, list_price
from claudescale.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from claudescale.simulator.replies import Reply
    from claudescale.simulator.tokens import Shares

PER_MILLION = 1_000_000
WEB_SEARCH_DOLLARS = 0.01  # each, in batches too
US_FACTOR = 1.1  # of every token
FAST_FACTOR = 2.0


class Peak:
    """The most that fell into any window of a length: sliding, not by the clock's minutes."""

    __slots__ = ("_events", "_seconds", "_sum", "most")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._events: deque[tuple[float, float]] = deque()
        self._sum = 0.0
        self.most = 0.0

    def add(self, now: float, amount: float) -> None:
        """Count `amount` at `now`."""
        events = self._events
        events.append((now, amount))
        self._sum += amount
        while events[0][0] <= now - self._seconds:
            self._sum -= events.popleft()[1]
        self.most = max(self.most, self._sum)


class Account:
    """Counts of everything since the simulator began."""

    def __init__(self) -> None:
        self.calls = 0
        self.free_refusals = 0
        self.web_searches = 0
        self.batches_created = 0
        self.refused: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.billed_rows: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter(dict.fromkeys(USAGE, 0))
        self.dollars: dict[Mode, float] = {"live": 0.0, "batch": 0.0}
        self.in_flight = 0
        self.peak_in_flight = 0
        self._keys: set[bytes] = set()
        self._peaks = {
            (name, unit): Peak(seconds)
            for name in ("requests", "input_tokens", "output_tokens")
            for unit, seconds in (("second", 1.0), ("minute", 60.0))
        }
        self._rates: dict[tuple[str, Mode, int], Mapping[str, tuple[tuple[int, float], ...]]] = {}

    def began(self, now: float, input_tokens: int) -> None:
        """Count a call that was admitted."""
        self.in_flight += 1
        self.peak_in_flight = max(self.peak_in_flight, self.in_flight)
        self._press(now, "requests", 1)
        self._press(now, "input_tokens", input_tokens)

    def ended(self, now: float, output_tokens: int) -> None:
        """Count the reply of a call that was admitted."""
        self.in_flight -= 1
        self._press(now, "output_tokens", output_tokens)

    def _press(self, now: float, name: str, amount: float) -> None:
        self._peaks[name, "second"].add(now, amount)
        self._peaks[name, "minute"].add(now, amount)

    def bill(  # noqa: PLR0917  # what a bill is made of
        self, now: float, model_id: str, mode: Mode, key: bytes, shares: Shares, reply: Reply
    ) -> float:
        """Add one reply to the bill, and return its dollars: none for most refusals, whose tokens count."""
        amounts = (
            shares.input_tokens,
            shares.cache_write_5m_input_tokens,
            shares.cache_write_1h_input_tokens,
            shares.cache_read_input_tokens,
            reply.output_tokens,
        )
        dollars = 0.0
        rates = self._prices(now, model_id, mode)
        whole = shares.total_input_tokens
        for steps, amount in zip(rates.values(), amounts, strict=True):
            if amount:
                price = next(price for above, price in reversed(steps) if whole > above)
                dollars += amount * price / PER_MILLION
        for name, amount in zip(USAGE, (*amounts, reply.thinking_tokens), strict=True):
            self.tokens[name] += amount
        if not reply.billed:
            self.free_refusals += 1
            return 0.0
        dollars *= US_FACTOR if reply.geo == "us" else 1.0
        dollars *= FAST_FACTOR if reply.speed == "fast" else 1.0
        dollars += WEB_SEARCH_DOLLARS * (reply.searches or 0)
        self.web_searches += reply.searches or 0
        self.dollars[mode] += dollars
        self.billed_rows[mode] += 1
        self._keys.add(key)
        return dollars

    def _prices(self, now: float, model_id: str, mode: Mode) -> Mapping[str, tuple[tuple[int, float], ...]]:
        day = int(now // 86_400)
        found = self._rates.get((model_id, mode, day))
        if found is None:
            try:
                exact = list_price(model_id, mode=mode, at=datetime.fromtimestamp(now, UTC))
            except PlanError:  # no price of that model, or none yet on the simulated day
                exact = {}
            found = {
                part: tuple((above, float(price)) for above, price in exact.get(part, ())) or ((-1, 0.0),)
                for part in ("input", "cache_write_5m", "cache_write_1h", "cache_read", "output")
            }
            self._rates[model_id, mode, day] = found
        return found

    def figures(self) -> dict[str, Any]:
        """Everything counted so far."""
        found: dict[str, Any] = {
            "calls": self.calls,
            "batches_created": self.batches_created,
            "refused": dict(self.refused),
            "faults": dict(self.faults),
            "billed_rows": self.billed_rows.total(),
            "billed_rows_by_mode": {mode: self.billed_rows[mode] for mode in self.dollars},
            "distinct_rows_billed": len(self._keys),
            "free_refusals": self.free_refusals,
            "web_searches": self.web_searches,
            **{name: self.tokens[name] for name in USAGE},
            "dollars": sum(self.dollars.values()),
            "dollars_by_mode": dict(self.dollars),
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
        }
        for (name, unit), peak in self._peaks.items():
            found[f"peak_{name}_per_{unit}"] = int(peak.most)
        return found
