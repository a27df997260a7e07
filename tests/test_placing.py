"""Labels and scales in pixels: nothing lies upon anything else, and nothing leaves the frame."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claudescale.views.placing import CHARACTER, TALL, Box, Scale, flow, place

FRAME = Box(0, 0, 560, 300)
across, up = st.floats(0, 560), st.floats(0, 300)


def box_of(label):
    width = CHARACTER * len(label.text)
    left = label.x - width * {"left": 0, "center": 0.5, "right": 1}[label.align]
    return Box(left, label.y - TALL / 2, left + width, label.y + TALL / 2)


@given(
    st.lists(
        st.tuples(st.sampled_from(["live", "haiku-5-5 live start"]), across, up, st.booleans()), max_size=40
    )
)
def test_labels_lie_neither_on_one_another_nor_on_points(points):
    """Wherever the points are, whatever is placed is inside, apart from the others, and covers no point."""
    taken = [Box(x - 6, y - 6, x + 6, y + 6) for _, x, y, _ in points]
    boxes = [box_of(label) for label in place(points, FRAME, taken)]
    assert not any(one.covers(other) for one, other in itertools.combinations(boxes, 2))
    assert not any(box.covers(point) for box in boxes for point in taken)
    assert all(box.left >= 0 and box.right <= 560 and box.top >= 0 and box.bottom <= 300 for box in boxes)


def test_the_first_label_has_the_best_place_and_no_label_goes_without_need():
    """A lonely point has its name right above it; a second one in the same place has it elsewhere."""
    (lonely,) = place([("live", 100, 100, True)], FRAME, [])
    assert (lonely.x, lonely.y, lonely.leads) == (106, 86, False)
    first, second = place([("live", 100, 100, True), ("batch", 100, 100, True)], FRAME, [])
    assert first == lonely
    assert second.y != first.y


def test_a_label_without_room_is_left_out_unless_a_line_may_lead_to_it():
    """Where everything near is taken, only what may stand further away is placed."""
    wall = [Box(80, 60 + y, 260, 65 + y) for y in range(0, 80, 5)]
    assert place([("live", 100, 100, False)], FRAME, wall) == []
    (led,) = place([("live", 100, 100, True)], FRAME, wall)
    assert led.leads


@given(st.lists(st.floats(1e-4, 1e6), min_size=1, max_size=20))
def test_a_scale_holds_its_values_and_goes_there_and_back(values):
    """Every value has a pixel within the ends, in order; it is logarithmic exactly where they span much."""
    scale = Scale.over(values, 0, 560)
    assert scale.log == (max(values) >= 12 * min(values))
    pixels = [scale.pixel(value) for value in sorted(values)]
    assert pixels == sorted(pixels)
    assert all(0 <= pixel <= 560 for pixel in pixels)
    for value, pixel in zip(sorted(values), pixels, strict=True):
        assert scale.value(pixel) == pytest.approx(value, rel=1e-6)


def test_a_scale_of_nothing_is_still_a_scale():
    """Without a value above zero there are axes all the same."""
    scale = Scale.over([0.0], 300, 20)
    assert (scale.low, scale.log) == (0.0, False)
    assert scale.pixel(0.0) == 300
    assert scale.ticks([0.0, 0.5, 9.0]) == [0.0, 0.5]


def test_words_flow_into_lines():
    """What does not fit begins a new line, and only a first word may be wider than the line."""
    places = flow(["a" * 20, "b" * 20, "c" * 60], 300, 18, sign=16)
    assert [y for _, y in places] == [9, 9, 27]
    assert places[1][0] > 16 + CHARACTER * 20
    assert places[2][0] == 0
