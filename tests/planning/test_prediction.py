"""A plan's predictions after a pilot, compared with the whole run; the benchmark has more of them."""

import pytest
from predicted import kept, resampled

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "rows", "wide"),
    [
        ("requests bind, refusals and cuts", 300, 0.25),
        ("input binds", 300, 0.25),
        ("input binds, cached", 300, 0.1),
        ("long tail, output binds", None, 0.8),  # few of the long replies are in a pilot
    ],
)
def test_pilots_foretell_dollars_and_minutes(name, rows, wide):
    """Whatever limit binds, the middle is near and the 90th percentiles hold and are narrow enough.

    The bounds are wide enough for so few pilots; the benchmark has hundreds.
    """
    for found in kept(resampled(name, worlds=2, pilots=10, rows=rows)).iter_rows(named=True):
        for figure in ("dollars", "minutes"):
            assert found[f"{figure}_covered"] >= 0.75, found
            assert abs(found[f"{figure}_median"]) < max(0.06, wide / 4), found
            assert found[f"{figure}_wide"] < wide, found
