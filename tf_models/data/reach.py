"""Whether a data set's host answers, before anything waits for it."""

import socket


def is_reachable(host, port=443, seconds=3.0):
    """Whether a connection to a host can be opened.

    Downloads try again and again: without a network it takes TFDS minutes to say so.
    This takes the time of one attempt.

    Args:
        host: The host's name, or its address.
        port: The port; that of HTTPS unless given.
        seconds: How long to wait for an answer. Finding the address of a name comes on
            top of that and takes as long as the system lets it.

    Returns:
        A `bool`. `True` says that something listens there, not that it has the data.
    """
    try:
        with socket.create_connection((host, port), timeout=seconds):
            return True
    except OSError:  # No such name, no route, refused, or no answer in time.
        return False
