"""Which names a server on this machine answers to."""

from __future__ import annotations

import pytest

from dforce.core.loopback import asks_for, served_names


class Headers(dict):
    def get_all(self, name):
        return self.get(name, [])


@pytest.mark.parametrize("port, names, host, origin, answered", [
    (81, (), ["localhost:81"], [], True), (81, (), ["[::1]:81"], ["http://[::1]:81"], True),
    (81, (), ["localhost:80"], [], False), (81, (), ["localhost"], [], False), (80, (), ["localhost"], [], True),
    (81, (), ["lab.example:81"], [], False), (81, ("lab.example",), ["LAB.example:81"], [], True),
    (81, ("Lab.example:9",), ["lab.example:9"], [], True), (81, (), ["127.0.0.1:81"], ["http://evil.example"], False),
    (81, (), [], [], False), (81, (), ["localhost:81"] * 2, [], False)])
def test_the_host_and_every_origin_must_be_served(port, names, host, origin, answered):
    assert asks_for(served_names(port, names), Headers(Host=host, Origin=origin)) is answered
