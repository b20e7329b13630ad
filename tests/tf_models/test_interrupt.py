"""Ctrl-C that takes effect where the program asks."""

import signal

import pytest

from tf_models.console.interrupt import DeferredInterrupt


@pytest.fixture(autouse=True)
def python_handles_ctrl_c():
    """As in a program started from a terminal, however these tests were started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


def test_nothing_is_raised_where_nothing_was_pressed():
    with DeferredInterrupt() as interrupt:
        interrupt.check()


def test_the_first_ctrl_c_waits_for_the_program_to_ask():
    with pytest.raises(KeyboardInterrupt), DeferredInterrupt() as interrupt:
        press_ctrl_c()
        reached = True
        interrupt.check()
    assert reached


def test_a_second_ctrl_c_does_not_wait():
    with DeferredInterrupt():
        press_ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()


def test_after_the_context_ctrl_c_is_what_it_was():
    with DeferredInterrupt():
        pass
    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()


def test_a_program_started_to_ignore_ctrl_c_goes_on_ignoring_it():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with DeferredInterrupt() as interrupt:
        press_ctrl_c()
        press_ctrl_c()
        interrupt.check()
