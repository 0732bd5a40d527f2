from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from functools import partial

import pytest
from jobcluster_worker.launcher.loop import READ, Loop, hold_signals, release_signals


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


def test_timers_come_in_the_order_of_their_time_and_cancelled_ones_never(loop: Loop) -> None:
    came: list[str] = []
    now = loop.clock()
    loop.at(now + 0.02, lambda: came.append("second"))
    loop.at(now + 0.01, lambda: came.append("first"))
    loop.at(now + 0.005, lambda: came.append("never")).cancel()
    while len(came) < 2:
        loop.step()
    assert came == ["first", "second"]


def test_cancelled_timers_are_not_kept_until_their_time(loop: Loop) -> None:
    came: list[int] = []
    for number in range(10_000):
        loop.after(1e6, partial(came.append, number)).cancel()
    kept = [loop.after(number * 1e-3, partial(came.append, number)) for number in range(5)]
    assert loop.timers < 200
    while len(came) < len(kept):
        loop.step()
    assert came == list(range(5))


def test_calls_from_other_threads_come_in_their_order(loop: Loop) -> None:
    came: list[int] = []

    def post_all() -> None:
        for number in range(100):
            loop.post(partial(came.append, number))

    thread = threading.Thread(target=post_all)
    thread.start()
    while len(came) < 100:
        loop.step()
    thread.join()
    assert came == list(range(100))


def test_a_callback_that_raises_is_told_and_the_others_are_called(
    loop: Loop, capfd: pytest.CaptureFixture[str]
) -> None:
    came: list[str] = []

    def fail() -> None:
        raise ZeroDivisionError

    loop.post(fail)
    loop.post(lambda: came.append("next"))
    while not came:
        loop.step()
    assert '"callback_failed"' in capfd.readouterr().err


def test_a_callback_of_a_turn_can_take_another_ones_descriptor_away(loop: Loop) -> None:
    pipes = [os.pipe(), os.pipe()]
    came: list[int] = []

    def take(mine: int, other: int, _events: int) -> None:
        came.append(mine)
        loop.unwatch(other)

    for (reader, _), (other, _) in (pipes, pipes[::-1]):
        loop.watch(reader, READ, partial(take, reader, other))
    for _, writer in pipes:
        os.write(writer, b"x")
    loop.step()
    assert len(came) == 1
    loop.unwatch(came[0])
    for ends in pipes:
        for fd in ends:
            os.close(fd)


def test_signals_that_come_while_they_are_held_are_acted_on_when_released(loop: Loop) -> None:
    came: list[str] = []
    before = signal.getsignal(signal.SIGHUP)
    hold_signals()
    # To this very thread: one of another test's threads would not hold it.
    signal.pthread_kill(threading.get_ident(), signal.SIGHUP)
    loop.on_signal(signal.SIGHUP, lambda: came.append("hup"))
    release_signals()
    try:
        while not came:
            loop.step()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert came == ["hup"]
