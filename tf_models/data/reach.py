"""Checks whether the host of a data set is reachable."""

import socket


def is_reachable(host, port=443, seconds=3.0):
    """Whether a connection to a host can be opened.

    Without a network TFDS retries for minutes. This function takes one attempt.

    Args:
        host: The name or address of the host.
        port: The port. Defaults to that of HTTPS.
        seconds: The timeout, without the time of the name resolution.

    Returns:
        A `bool`: whether something listens there.
    """
    try:
        with socket.create_connection((host, port), timeout=seconds):
            return True
    except OSError:  # No such name, no route, refused, or no answer in time.
        return False
