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


def test_check_does_nothing_without_ctrl_c():
    with DeferredInterrupt() as interrupt:
        interrupt.check()


def test_the_first_ctrl_c_takes_effect_at_the_next_check():
    with pytest.raises(KeyboardInterrupt), DeferredInterrupt() as interrupt:
        press_ctrl_c()
        reached = True
        interrupt.check()
    assert reached


def test_a_second_ctrl_c_takes_effect_at_once():
    with DeferredInterrupt():
        press_ctrl_c()
        with pytest.raises(KeyboardInterrupt):
            press_ctrl_c()


def test_the_context_restores_the_handler_of_ctrl_c():
    with DeferredInterrupt():
        pass
    with pytest.raises(KeyboardInterrupt):
        press_ctrl_c()


def test_a_program_that_ignores_ctrl_c_continues_to_ignore_it():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with DeferredInterrupt() as interrupt:
        press_ctrl_c()
        press_ctrl_c()
        interrupt.check()
