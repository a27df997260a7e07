"""The pacer in virtual time against the simulator's token buckets, and its parts alone."""

import asyncio

import pytest
import virtual
from engine import through_desk
from hypothesis import given
from hypothesis import strategies as st
from paced import Call, busiest, study, table, workload

from claudescale.api.limits import Limits, read_headers
from claudescale.clock import Clock
from claudescale.pacing.buckets import Average, Bucket, Production
from claudescale.pacing.pacer import Outcome, Pacer

NOTHING = read_headers({})
LIMITS = table(1_000, 80_000, 16_000)


def pacer(limits=LIMITS, **options):
    """Of the running virtual loop."""
    return Pacer(limits, clock=Clock(1.0, 0.0, asyncio.get_running_loop().time), **options)


def bucket(rate=10.0, capacity=10.0):
    """With no slop, at time 0, full."""
    return Bucket(rate=rate, capacity=capacity, slop_seconds=0.0, at=0.0)


@pytest.mark.parametrize("bucket_seconds", [1.0, 60.0])
@pytest.mark.parametrize("binding", ["requests", "input_tokens", "output_tokens"])
@pytest.mark.parametrize("tier", ["2", "4", "start"])
def test_a_run_alone_is_close_to_the_bound_and_hardly_ever_refused(tier, binding, bucket_seconds):
    """At every tier, for every limit: the last call goes within 6% of the bound, 3 in 1,000 are refused."""
    limits = Limits.of(tier, "claude-haiku-4-5")
    calls = workload(limits, binding, 12 if binding == "output_tokens" else 5, seed=1)
    outcome = virtual.run(study(limits, calls, bucket_seconds=bucket_seconds))
    assert outcome.answered == len(calls)
    last_sent, _ = outcome.arrivals[-1]
    assert last_sent < 1.06 * outcome.bound_seconds
    assert outcome.refused <= max(0.003 * len(calls), 1)


@pytest.mark.parametrize("seed", range(4))
def test_no_minute_and_no_second_is_over_the_limit(seed):
    """What the API let in never exceeds the bucket and its refill, in any window of a second or a minute."""
    calls = workload(LIMITS, "input_tokens", 4, seed)
    outcome = virtual.run(study(LIMITS, calls, bucket_seconds=1.0, seed=seed))
    requests, tokens = busiest(outcome.arrivals, 60.0)
    largest = max(call.input_tokens for call in calls)
    assert requests <= 1_000 * 61 / 60
    assert tokens <= 80_000 * 61 / 60 + largest
    assert busiest(outcome.arrivals, 1.0)[0] <= 2 * 1_000 / 60


def test_another_user_of_the_account_is_left_room():
    """With 40% taken by somebody else a run still ends in time, and one call in a hundred is refused."""
    limits = Limits.of("start", "claude-haiku-5-5")
    calls = workload(limits, "requests", 6, seed=2)
    outcome = virtual.run(study(limits, calls, other_share=0.4))
    assert outcome.answered == len(calls)
    assert outcome.ratio < 1.1
    assert outcome.refused < 0.01 * len(calls)


def test_headers_correct_a_table_that_promises_too_much():
    """Told five times the true limits, the pacer learns the true ones from the first answers."""
    calls = workload(LIMITS, "requests", 3, seed=3)
    outcome = virtual.run(study(LIMITS, calls, bucket_seconds=60.0, table=table(5_000, 400_000, 80_000)))
    assert outcome.answered == len(calls)
    assert outcome.ratio < 1.1
    assert outcome.refused < 0.02 * len(calls)


def test_headers_correct_a_table_that_promises_too_little():
    """Told a fifth of the true limits, the run is nearly as fast as with the truth."""
    calls = workload(LIMITS, "requests", 5, seed=3)
    outcome = virtual.run(study(LIMITS, calls, bucket_seconds=1.0, table=table(200, 16_000, 3_200)))
    assert outcome.ratio < 1.1
    assert outcome.refused <= 3


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_a_share_uses_no_more_than_its_part(share):
    """With share=s a run takes 1/s times as long, whatever the account has left."""
    calls = workload(LIMITS, "requests", 3, seed=4)
    outcome = virtual.run(study(LIMITS, calls, share=share))
    requests, _ = busiest(outcome.arrivals, 60.0)
    assert requests <= 1_000 * share * 61 / 60 + 1
    assert outcome.seconds >= (len(calls) / (1_000 * share) - 1 / 60) * 60


@pytest.mark.parametrize("concurrency", [1, 3, 40])
def test_concurrency_is_a_hard_cap(concurrency):
    """Never are more calls in flight than the user allows."""
    calls = [Call(20, 20, 60)] * 200
    outcome = virtual.run(study(table(60_000, 1e9, 1e9), calls, concurrency=concurrency))
    assert outcome.most_in_flight == concurrency


def test_calls_go_in_the_order_they_came():
    """First come, first served, also when a large call waits at the head."""

    async def order():
        paced, went = pacer(table(60, 6_000, 6_000)), []

        async def call(number, tokens):
            permit = await paced.acquire(tokens)
            went.append(number)
            paced.settle(permit, Outcome("answered", NOTHING, tokens, 1))

        await asyncio.gather(*(call(number, 400 if number == 2 else 1) for number in range(6)))
        return went

    assert virtual.run(order()) == list(range(6))


def test_nobody_goes_before_retry_after_has_passed():
    """A refusal holds the whole group for as long as the API says, and at most a tenth longer."""

    async def waited():
        paced = pacer()
        first = await paced.acquire(10)
        paced.settle(first, Outcome("refused", read_headers({"retry-after": "20"})))
        before = asyncio.get_running_loop().time()
        await paced.acquire(10)
        return asyncio.get_running_loop().time() - before

    assert 20 <= virtual.run(waited()) <= 22.1


def test_a_refusal_without_retry_after_still_waits():
    """A 429 without a word of when holds for at least a second."""

    async def waited():
        paced = pacer()
        paced.settle(await paced.acquire(10), Outcome("refused"))
        await paced.acquire(10)
        return asyncio.get_running_loop().time()

    assert virtual.run(waited()) >= 1


@pytest.mark.parametrize("seed", range(3))
def test_errors_that_come_singly_hardly_slow_a_run_down(seed):
    """Two calls in a hundred that fail by chance do not narrow the window for good."""
    engine = through_desk(1_500, seed=seed, faults={500: 0.02}, bucket_seconds=1, latency=3.0)
    assert engine.seconds < 1.5 * 60 * 1_500 / engine.pacer.limits.requests_per_minute


def test_a_ramp_refusal_lowers_the_concurrency():
    """When calls grew too fast for the API, fewer go at once from then on."""

    async def window():
        paced = pacer(table(1e6, 1e9, 1e9))
        permits = [await paced.acquire(1) for _ in range(12)]
        await asyncio.sleep(1)
        paced.settle(permits[0], Outcome("too_fast", read_headers({"retry-after": "5"})))
        return paced.window

    assert virtual.run(window()) < 12


def test_success_raises_the_concurrency_while_it_is_used():
    """A pacer whose window is full lets more in after each success, one that is idle does not."""

    async def windows():
        busy, idle = pacer(table(1e6, 1e9, 1e9)), pacer(table(1e6, 1e9, 1e9))
        start = busy.window
        permits = [await busy.acquire(1) for _ in range(start)]
        for permit in permits[:4]:
            busy.settle(permit, Outcome("answered", NOTHING, 1, 1))
        for _ in range(10):
            idle.settle(await idle.acquire(1), Outcome("answered", NOTHING, 1, 1))
        return start, busy.window, idle.window

    start, busy, idle = virtual.run(windows())
    assert busy == start + 4
    assert idle == start


def test_a_cancelled_wait_leaves_the_line_open():
    """Cancelling the one at the head lets the next one go."""

    async def second_goes():
        paced = pacer(table(1, 1e6, 1e6))
        await paced.acquire(1)
        head = asyncio.create_task(paced.acquire(1))
        await asyncio.sleep(1)
        head.cancel()
        await asyncio.gather(head, return_exceptions=True)
        await paced.acquire(1)
        return asyncio.get_running_loop().time()

    assert 55 < virtual.run(second_goes()) < 65


def test_a_long_pause_gives_one_burst_and_no_more():
    """After an hour asleep the buckets are full once, not sixty times."""

    async def burst():
        paced = pacer(table(600, 1e9, 1e9))
        await paced.acquire(1)
        await asyncio.sleep(3_600)
        start = asyncio.get_running_loop().time()
        for _ in range(100):
            paced.settle(await paced.acquire(1), Outcome("answered", NOTHING, 1, 1))
        return asyncio.get_running_loop().time() - start

    assert virtual.run(burst()) >= 8.5


def test_the_expected_output_is_learned():
    """After some answers the pacer expects what they took."""

    async def learned():
        paced = pacer(table(1e6, 1e9, 1e9), output_tokens=1_000)
        for _ in range(200):
            paced.settle(await paced.acquire(10), Outcome("answered", NOTHING, 10, 40))
        return paced.expected_output_tokens

    assert virtual.run(learned()) == pytest.approx(40, abs=10)


steps = st.lists(
    st.tuples(st.floats(0, 5), st.floats(0.1, 30), st.floats(0, 10), st.floats(0.1, 30)), max_size=40
)


@given(steps)
def test_a_bucket_never_holds_more_than_its_capacity_and_its_doubt(moves):
    """However calls come and settle, the believed level stays below what there can be."""
    held, now = bucket(), 0.0
    for seconds, amount, deviation, real in moves:
        now += seconds
        held.refill(now)
        assert held.level <= held.full + held.doubt + 1e-9
        held.settle(held.take(amount, deviation), real)


@given(steps)
def test_waiting_as_long_as_a_bucket_says_is_enough(moves):
    """After `seconds_until` the same need has to wait no more."""
    held, now = bucket(), 0.0
    for seconds, amount, deviation, _ in moves:
        now += seconds
        held.refill(now)
        wait = held.seconds_until(amount)
        now += wait + 1e-9
        held.refill(now)
        assert held.seconds_until(amount) <= 1e-6
        held.take(amount, deviation)


def test_a_settled_call_gives_back_what_it_did_not_use():
    """What was set aside and not used is there again, and the doubt is gone."""
    held = bucket()
    taken = held.take(8.0, 1.0)
    assert held.doubt == 3.0
    held.settle(taken, 3.0)
    assert held.level == 7.0
    assert held.doubt == 0.0


def test_a_bucket_that_was_full_since_forgets_what_was_open():
    """A settlement that comes after the bucket was surely full again changes nothing."""
    held = bucket()
    taken = held.take(8.0, 0.1)
    held.refill(100.0)
    held.settle(taken, 0.0)
    assert held.level == held.full


@pytest.mark.parametrize(
    ("low", "high", "uncounted", "level"),
    [(2, 4, 0, 4), (8, 9, 0, 8), (8, 9, 3, 5), (0, 20, 0, 5), (-float("inf"), 5, 0, 5)],
)
def test_a_header_moves_the_level_only_as_far_as_it_must(low, high, uncounted, level):
    """The level goes to the near end of what the header allows, and stays where it is inside."""
    held = bucket()
    held.level = 5.0
    held.told(low, high, uncounted)
    assert held.level == level


def test_a_steady_loss_is_taken_for_others_and_forgotten_when_it_ends():
    """What keeps missing lowers the refill, and an hour without a loss restores it."""
    held, now = bucket(), 0.0
    for _ in range(50):
        now += 0.2
        held.refill(now)
        held.told(0, held.level - 1, 0)
    assert held.others > 2
    held.refill(now + 3_600)
    assert held.others < 0.01


def test_output_is_closed_while_in_debt():
    """While more is written than refills, the output bucket opens only when an answer ends."""
    production = Production(rate=10.0, capacity=10.0, at=0.0)
    production.writing = 1
    production.end(1.0, 1.0, 50.0)
    assert 4 < production.seconds_until_open() < 6
    production.writing = 3
    assert production.seconds_until_open() == float("inf")


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50))
def test_the_average_is_the_average(values):
    """Mean and deviation agree with the plain formulas."""
    average = Average(values[0])
    for value in values[1:]:
        average.add(value)
    mean = sum(values) / len(values)
    assert average.mean == pytest.approx(mean, abs=1e-6 * max(map(abs, values)) + 1e-9)
    spread = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
    assert average.deviation == pytest.approx(spread, rel=1e-6, abs=1e-4 * max(map(abs, values)) + 1e-9)
