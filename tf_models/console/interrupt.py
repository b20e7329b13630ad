"""Delays Ctrl-C until the program can stop, without losing it."""

import signal


class DeferredInterrupt:
    """Delays Ctrl-C until the program checks for it.

    Python raises `KeyboardInterrupt` at any point of the program. While a model is
    traced, this is often a weak reference's callback, which prints the exception and
    continues, so that the interrupt is lost. In this context the first Ctrl-C takes
    effect at the next `check`. A second one is raised at once, in case the program
    does not reach its next `check`.

    A program that was started to ignore Ctrl-C, like a shell's background jobs,
    continues to ignore it. Use this context in the main thread, because only that can
    handle signals.

    Example:

    ```python
    with DeferredInterrupt() as interrupt:
        for step in range(steps):
            train_step()
            interrupt.check()
    ```
    """

    def __init__(self):
        self._noted = False

    def __enter__(self):
        self._previous = signal.getsignal(signal.SIGINT)
        if self._previous is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *exception):
        if self._previous is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._previous)

    def check(self):
        """Raises the interrupt if Ctrl-C was pressed.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed since the context was entered.
        """
        if self._noted:
            raise KeyboardInterrupt

    def _note(self, number, frame):
        if self._noted:
            raise KeyboardInterrupt
        self._noted = True
