"""The sender does what it is given in order, puts off what can wait, and hands back the first error."""

from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fmnist_search.sender import Sender


class Fault(Exception):
    pass


def fail() -> None:
    raise Fault("the first")


def held(sender: Sender) -> threading.Event:
    """Keep the sender busy until the event is set, so that what is sent meanwhile waits in its queue."""
    begun, released = threading.Event(), threading.Event()

    def wait() -> None:
        begun.set()
        assert released.wait(10)

    sender.send(wait)
    assert begun.wait(10)
    return released


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "sender"]


@given(st.lists(st.booleans(), max_size=30))
def test_what_waits_is_done_in_order_and_what_was_put_off_after_all_else(later: list[bool]) -> None:
    done: list[int] = []
    with Sender() as sender:
        released = held(sender)
        for number, put_off in enumerate(later):
            sender.send(lambda n=number: done.append(n), later=put_off)  # type: ignore[misc]
        released.set()
    assert done == sorted(range(len(later)), key=lambda number: (later[number], number))


def test_what_was_put_off_is_done_as_soon_as_nothing_else_is_left() -> None:
    with Sender() as sender:
        done = sender.send(lambda: "a picture", later=True)
        assert done.result(10) == "a picture"


def test_whoever_sends_may_wait_for_the_answer_and_never_has_to() -> None:
    with Sender() as sender:
        released = held(sender)
        started = time.perf_counter()
        answer = sender.send(lambda: 42)
        assert time.perf_counter() - started < 1
        assert not answer.done()
        released.set()
        assert answer.result(10) == 42


def test_everything_is_done_in_one_other_thread() -> None:
    with Sender() as sender:
        at_work = {sender.send(threading.get_ident).result(10) for _ in range(5)}
    assert len(at_work) == 1
    assert threading.get_ident() not in at_work


def test_flushing_waits_for_all_that_was_sent() -> None:
    done: list[int] = []
    with Sender() as sender:
        for number in range(3):
            sender.send(lambda n=number: (time.sleep(0.05), done.append(n)), later=number == 1)  # type: ignore[misc]
        sender.flush()
        assert done == [0, 2, 1]


def test_the_first_error_ends_its_work_and_comes_back_from_everything_that_follows() -> None:
    done: list[str] = []
    sender = Sender()
    released = held(sender)
    sender.send(lambda: done.append("before"))
    failed = sender.send(fail)
    after = sender.send(lambda: done.append("after"))
    put_off = sender.send(lambda: done.append("put off"), later=True)
    released.set()
    for future in (failed, after, put_off):
        assert isinstance(future.exception(10), Fault)
    for act in (sender.check, sender.flush, lambda: sender.send(lambda: done.append("too late"))):
        with pytest.raises(Fault, match="the first"):
            act()
    sender.close()
    assert done == ["before"]


def test_an_error_comes_back_from_the_flush_that_waits_for_it() -> None:
    sender = Sender()
    released = held(sender)
    sender.send(fail)
    threading.Timer(0.1, released.set).start()
    with pytest.raises(Fault):
        sender.flush()
    sender.close()


@pytest.mark.parametrize("error", [False, True])
def test_closing_ends_the_thread_whether_or_not_there_was_an_error(error: bool) -> None:
    before = threads()
    sender = Sender()
    done = sender.send(fail if error else lambda: None)
    done.exception(10)
    sender.close()
    assert threads() == before


def test_closing_does_first_what_was_sent() -> None:
    done: list[str] = []
    sender = Sender()
    released = held(sender)
    sender.send(lambda: done.append("picture"), later=True)
    sender.send(lambda: done.append("epoch"))
    threading.Timer(0.1, released.set).start()
    sender.close()
    assert done == ["epoch", "picture"]


def test_leaving_raises_the_senders_error() -> None:
    with pytest.raises(Fault), Sender() as sender:
        sender.send(fail)


def test_an_error_that_is_on_its_way_is_not_replaced_by_the_senders() -> None:
    before = threads()
    with pytest.raises(ZeroDivisionError), Sender() as sender:
        _ = 1 / len(str(sender.send(fail).exception(10)).removeprefix("the first"))
    assert threads() == before
