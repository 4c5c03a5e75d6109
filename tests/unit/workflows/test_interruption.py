"""Interruption by signals: the first one asks to stop, a later SIGINT stops at once."""

from __future__ import annotations

import signal
import threading

import pytest

from fmnist_search.workflows.interruption import Interruption, interrupt_on_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_requests_an_interruption_while_the_context_is_open(number: signal.Signals) -> None:
    previous = signal.getsignal(number)
    with interrupt_on_signals() as interruption:
        assert not interruption.is_requested
        signal.raise_signal(number)
        assert interruption.is_requested
    assert signal.getsignal(number) is previous


def test_a_second_sigint_raises_after_the_grace_period_and_sigterm_never() -> None:
    interruption = Interruption(grace_seconds=60.0)
    interruption.on_signal(signal.SIGINT, None)
    interruption.on_signal(signal.SIGINT, None)
    impatient = Interruption(grace_seconds=-1.0)
    impatient.on_signal(signal.SIGTERM, None)
    impatient.on_signal(signal.SIGTERM, None)
    with pytest.raises(KeyboardInterrupt):
        impatient.on_signal(signal.SIGINT, None)


def test_another_thread_than_the_main_one_catches_no_signals() -> None:
    handlers: list[object] = []

    def run() -> None:
        with interrupt_on_signals() as interruption:
            handlers.append(signal.getsignal(signal.SIGINT))
            interruption.request()
            assert interruption.is_requested

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert handlers == [before]
