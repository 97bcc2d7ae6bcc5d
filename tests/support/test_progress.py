"""Progress in the package's log."""

import logging

from keras_igpt.support.progress import Progress, told


def test_the_time_left_is_told_now_and_then(caplog):
    caplog.set_level(logging.INFO, "keras_igpt")
    clock = iter([100.0, 104.0, 110.0, 112.0, 120.0, 130.0])
    progress = Progress("features", 6000, "pictures", seconds=lambda: next(clock))
    for done in range(1000, 7000, 1000):
        progress.update(done)
    # Not for the first, which compiles, nor within ten seconds, nor at the end.
    assert caplog.messages == [
        "features: 3,000 of 6,000 pictures, about 0.2 minutes left",
        "features: 5,000 of 6,000 pictures, about 0.1 minutes left",
    ]


def test_items_come_as_they_are(caplog):
    assert list(told((3, 1, 2), "probes", "depths")) == [3, 1, 2]
    assert not caplog.messages
