"""Ctrl-C that takes effect where a program can stop, and is never lost."""

import signal


class DeferredInterrupt:
    """Holds Ctrl-C back until the program asks for it.

    Python raises `KeyboardInterrupt` wherever it happens to be. While a model is
    traced that is often inside a weak reference's callback, which prints the
    exception and goes on: the interrupt is lost. Within this context the first
    Ctrl-C is only noted, and `check` raises it; a second one is raised at once, for
    a program that does not come to its next `check`.

    A program that was started to ignore Ctrl-C, as a shell's background jobs are,
    goes on ignoring it. Use it in the main thread, the only one that can handle
    signals.

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
        """Does nothing until Ctrl-C was pressed.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed since the context was entered.
        """
        if self._noted:
            raise KeyboardInterrupt

    def _note(self, number, frame):
        if self._noted:
            raise KeyboardInterrupt
        self._noted = True
