"""Whether a host answers."""

import socket

import pytest

from tf_models.data.reach import is_reachable


@pytest.fixture
def listening():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_a_listening_host_is_reachable(listening):
    host, port = listening.getsockname()
    assert is_reachable(host, port)


def test_a_port_without_a_listener_is_not_reachable():
    with socket.socket() as taken:  # So that nobody else begins to listen there.
        taken.bind(("127.0.0.1", 0))
        assert not is_reachable(*taken.getsockname())


def test_an_unknown_host_is_not_reachable():
    # RFC 2606 reserves this ending for names that do not exist.
    assert not is_reachable("et-optimizer.invalid")
