"""Whether a host answers."""

import socket
import sys
import time

import pytest

from tf_models.data.reach import is_reachable


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_a_host_that_listens_is_reachable(listening):
    host, port = listening.getsockname()
    assert is_reachable(host, port)


def test_a_closed_port_is_not_reachable(listening):
    host, port = listening.getsockname()
    listening.close()
    assert not is_reachable(host, port)


def test_a_name_that_nobody_has_is_not_reachable():
    # RFC 2606 reserves this ending for names that do not exist.
    assert not is_reachable("et-optimizer.invalid")


@pytest.mark.skipif(sys.platform != "linux", reason="Queues of Linux.")
def test_a_host_that_does_not_answer_is_given_up_in_time():
    # Nobody accepts, and the queue holds one connection: those after it get no answer.
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        address = server.getsockname()
        waiting = []
        for _ in range(2):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(address)
            waiting.append(client)
        start = time.monotonic()
        assert not is_reachable(*address, seconds=0.3)
        assert time.monotonic() - start < 10
        for client in waiting:
            client.close()
