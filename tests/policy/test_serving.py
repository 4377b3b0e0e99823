"""A policy over a real websocket: the same actions as local calls, whatever the other clients do."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import msgpack
import numpy as np
import pytest
import torch

import dforce
from dforce.cli.commands.serve_policy import token_of
from dforce.core.denoiser import Precond
from dforce.data.normalize import Affine
from dforce.nets.recurrent import RecurrentNet
from dforce.policy import server as served
from dforce.policy.client import PolicyClient, packed_array
from dforce.policy.forcing import ForcingPolicy
from dforce.policy.messages import largest, unpacked
from tests.policy.serving import HASHES, local, serving

connect = pytest.importorskip("websockets.sync.client").connect
ConnectionClosed = pytest.importorskip("websockets.exceptions").ConnectionClosed
LEGACY = {"legacy": True} if "legacy" in inspect.signature(connect).parameters else {}  # without `with`
PARTS = {"eye": 4, "joint": 2}
LAYOUT = {"tokens": {"parts": PARTS, "action": 2, "chunk": 3}, "window": None, "first": False, "cut": 0.3}
TOKEN = "a-token-of-a-test-0"


@pytest.fixture(scope="module")
def policy():
    torch.manual_seed(0)
    schedule = dforce.linear(100)
    net = RecurrentNet((6,), token={"kind": 3}, width=16)
    normalizer = Affine([0.5, -1, 0, 2, 0.1, 0.2, 1, -1], [1, 2, 0.5, 1, 3, 1, 2, 0.5])
    return ForcingPolicy(Precond(net, schedule, "x0"), schedule, normalizer, LAYOUT, steps=1)


@pytest.fixture(scope="module")
def common(policy):
    """(server, url) that most tests share; none of them disturbs it."""
    with serving(policy, slow=0.5) as pair:
        yield pair


def observation(seed):
    rng = np.random.default_rng(seed)
    return {"eye": rng.normal(size=(2, 2)), "joint": rng.normal(size=2).astype(np.float32)}


def calls(client, steps):
    """What one client tells: observations, numbers of executed actions, masks."""
    rng = np.random.default_rng(client)
    return [(observation(100 * client + step), None if step == 0 else int(rng.integers(1, 4)),
             {"eye": bool(rng.random() < 0.3), "joint": False}) for step in range(steps)]


def asked(client, which):
    return [client.act(seen, executed=executed, missing=missing) for seen, executed, missing in which]


def raw(url, **how):
    """A connection that may say anything; what it is told first has been read."""
    link = connect(url, compression=None, **LEGACY, **how)
    link.recv(10)
    return link


def message(number=0, **fields):
    arrays = {name: packed_array(value) for name, value in observation(0).items()}
    return {"number": number, "observation": arrays, **fields}


def answer(url, *messages):
    """The last reply to these messages, or the code and the reason of the end of the connection."""
    link = raw(url)
    try:
        for each in messages:
            link.send(each if isinstance(each, (bytes, str)) else msgpack.packb(each))
            reply = msgpack.unpackb(link.recv(10))
        return reply
    except ConnectionClosed as closed:
        return closed.rcvd.code, closed.rcvd.reason
    finally:
        link.close()


def stubborn(url, frame):
    """Sends a frame again and again, and never reads what it is answered, until it is dropped."""
    link = socket.socket()
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    link.connect((urlsplit(url).hostname, urlsplit(url).port))
    link.settimeout(20)
    link.sendall(b"GET / HTTP/1.1\r\nHost: " + urlsplit(url).netloc.encode() + b"\r\nUpgrade: websocket\r\nConnection: "
                 b"Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n")
    try:
        while True:
            link.sendall(frame)
    except TimeoutError:
        raise
    except OSError:
        return "dropped"


def test_32_clients_one_killed_one_talking_garbage_one_never_reading(policy, common):
    server, url = common
    steps, good = 3, range(29)
    results, links = {}, [raw(url) for _ in range(2)]

    def robot(number):
        client = PolicyClient(url, deadline=60)
        results[number] = asked(client, calls(number, steps))
        client.close()

    refused = server.record.refused
    threads = [threading.Thread(target=robot, args=(number,)) for number in good]
    refused_message = msgpack.packb(message(deadline="never"))
    frame = b"\x82\xfe" + len(refused_message).to_bytes(2, "big") + bytes(4) + refused_message
    threads.append(threading.Thread(target=lambda: results.update(deaf=stubborn(url, frame))))
    for thread in threads:
        thread.start()
    links[0].send(msgpack.packb(message()))
    links[0].socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    links[0].socket.close()                                     # killed while its actions are computed
    with pytest.raises(ConnectionClosed, match="no msgpack"):
        links[1].send(b"\xc1" + os.urandom(64))
        links[1].recv(30)
    for thread in threads:
        thread.join(60)
    for number in good:
        assert all(map(np.array_equal, results[number], local(policy, calls(number, steps)))), number
    assert results["deaf"] == "dropped" and server.record.refused > refused + 100
    begin = time.monotonic()
    while server.connections and time.monotonic() < begin + 10:
        time.sleep(0.01)
    assert not server.connections


def test_several_rows_of_one_call_are_each_clients_own(policy):
    with serving(policy, rows=4, gather=0.1) as (server, url):
        clients, results = [PolicyClient(url) for _ in range(4)], {}
        mad = {"eye": np.full(4, 3e38), "joint": np.zeros(2)}
        calls_of = {number: calls(number, 3) for number in range(4)}

        def robot(number):
            results[number] = asked(clients[number], calls_of[number])
            if number == 0:
                with pytest.raises(ValueError, match="not finite"):
                    clients[0].act(mad)
            results[number] += asked(clients[number], calls_of[number][:1])

        threads = [threading.Thread(target=robot, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for number in range(4):                                 # the one that was refused has the state it had before
            np.testing.assert_allclose(results[number], local(policy, calls_of[number] + calls_of[number][:1]),
                                       rtol=1e-4, atol=1e-5)
            clients[number].close()


def test_a_client_learns_whom_it_talks_to(common):
    _, url = common
    with PolicyClient(url, expect=HASHES["normalizer"]) as client:
        about = client.about
    assert about["task"] == "a test" and about["parts"] == PARTS and about["actions"] == [3, 2]
    assert about["action_names"] == ["x", "y"] and about["hashes"] == HASHES and about["dt"] == 0.1
    with pytest.raises(ConnectionError, match="another policy is wanted, ccc; served is .*aaaa"):
        PolicyClient(url, expect="ccc")


def test_what_is_no_message_closes_the_connection_and_what_is_wrong_in_one_is_answered(policy, common):
    server, url = common
    nested = b"\x91" * 3000
    for nonsense, code, line in (
            ("{}", 1007, "text frame"), (b"", 1007, "no msgpack"), (b"\xc1", 1007, "no msgpack"),
            (nested, 1007, "no msgpack"), (b"\x81\xa1a" * 1000, 1007, "no msgpack"), (msgpack.packb([1]), 1007, "maps"),
            (msgpack.packb(message(seq=1)), 1007, "maps"), (b"\xdd\xff\xff\xff\xff", 1007, "no msgpack"),
            (msgpack.packb({"number": 1}), 1007, "maps"), (bytes(largest(PARTS) + 1), 1009, "")):
        got, reason = answer(url, nonsense)
        assert got == code and line in reason and "\n" not in reason, nonsense[:20]
    eye = packed_array(np.zeros(4))
    for wrong, line in (
            ({"number": -1}, "number -1 came, 0 or more"), ({"number": True}, "number"), ({"number": 2**63}, "number"),
            ({"deadline": float("nan")}, "deadline is 0 to"), ({"deadline": -1}, "deadline"), ({"time": "x"}, "time"),
            ({"executed": 4}, "executed is how many of the last 3"), ({"executed": 1.5}, "executed"),
            ({"reset": 1}, "reset is a bool"), ({"missing": {"nose": True}}, "maps some of eye, joint"),
            ({"missing": 3}, "missing"), ({"observation": []}, "arrays named eye, joint"),
            ({"observation": {"eye": eye}}, "arrays named eye, joint, got .eye"),
            *(({"observation": {"joint": packed_array(np.zeros(2)), "eye": each}}, line) for each, line in (
                (3, "is an array"), (packed_array(np.zeros(5)), r"eye has 4 numbers, got shape \[5\]"),
                (packed_array(np.zeros((2, 2), ">f4")), "dtype '>f4'"), ({**eye, "dtype": "|O"}, "dtype"),
                ({**eye, "dtype": ["<f4"]}, "dtype"), ({**eye, "shape": [-2, -2]}, "shape"),
                ({**eye, "shape": [2**40, 2**40]}, "shape"), ({**eye, "shape": [4.0]}, "shape"),
                ({**eye, "data": bytes(31)}, "needs 32 bytes, got 31"), ({**eye, "data": "x"}, "needs 32 bytes")))):
        reply = answer(url, {**message(), **wrong})
        assert isinstance(reply, dict), (wrong, reply)
        error = reply["error"]
        assert re.search(line, error) and "\n" not in error and len(error) < 300, error
    wanted = local(policy, [(observation(0), None, None)])[0]
    reply = answer(url, message(5, deadline=-1), message(5, time=7.0))  # a first message that is refused has no number
    assert reply["number"] == 5 and reply["time"] == 7.0 and reply["missing"] == [] and not reply["late"]
    assert reply["latency"] > 0 and reply["dt"] == 0.1 and reply["actions"] == packed_array(wanted)


def test_numbers_rise_by_one_and_a_refused_message_leaves_the_state_as_it_was(policy, common):
    _, url = common
    link, which = raw(url), calls(7, 3)
    sent = [message(number, executed=executed, missing=missing, observation={
        name: packed_array(value) for name, value in seen.items()})
        for number, (seen, executed, missing) in enumerate(which, 4)]
    replies = []
    for each in (sent[0], sent[0], {**sent[1], "number": 9}, {**sent[1], "executed": 9}, {**sent[1], "number": 6},
                 {**sent[2], "number": 7}):
        link.send(msgpack.packb(each))
        replies.append(msgpack.unpackb(link.recv(10)))
    link.close()
    assert "number 4 came, 5 is due" in replies[1]["error"] and "number 9 came, 5 is due" in replies[2]["error"]
    assert replies[3]["number"] == 5 and "executed" in replies[3]["error"]         # it had its turn
    wanted = local(policy, which)
    assert [replies[i]["actions"] for i in (0, 4, 5)] == [packed_array(each) for each in wanted]


def test_what_is_missing_need_not_be_sent_and_what_is_not_finite_is_missing(policy, common):
    _, url = common
    nan = {**observation(1), "eye": np.array([0, np.nan, 1e300, 0])}
    with PolicyClient(url) as client, np.errstate(over="ignore"):
        first, other = client.act({"joint": nan["joint"]}, missing={"eye": True}), observation(2)
        wanted = local(policy, [({**nan, "eye": np.zeros(4)}, None, {"eye": True, "joint": False}),
                                ({**other, "eye": np.full(4, np.inf)}, None, None), (observation(3), None, None)])
        assert np.array_equal(first, wanted[0])
        assert np.array_equal(client.act({**other, "eye": nan["eye"]}), wanted[1])
        assert np.array_equal(client.act(observation(3)), wanted[2])
        assert np.array_equal(client.act(observation(3), reset=True), local(policy, [(observation(3), None, None)])[0])
    link = raw(url)
    link.send(msgpack.packb(message(observation={name: packed_array(value) for name, value in nan.items()})))
    assert msgpack.unpackb(link.recv(10))["missing"] == ["eye"]
    link.close()


class Slow:
    """A policy whose calls of some numbers take half a second."""

    def __init__(self, policy, slow):
        self.policy, self.slow, self.calls = policy, slow, 0

    def __getattr__(self, name):
        return getattr(self.policy, name)

    def act(self, *args, **how):
        self.calls += 1
        time.sleep(0.5 * (self.calls in self.slow))
        return self.policy.act(*args, **how)


@pytest.mark.parametrize("hold", [None, [0.25, -0.5]])
def test_actions_that_come_late_are_held_and_were_not_executed(policy, hold):
    with serving(Slow(policy, {2}), deadline=0.3) as (server, url), PolicyClient(url, hold=hold) as client:
        which = [(observation(i), executed, None) for i, executed in enumerate((None, None, 0, None))]
        wanted = local(policy, which)
        assert np.array_equal(client.act(observation(0)), wanted[0]) and not client.late
        held = client.act(observation(1))
        assert client.late and client.latency >= 0.3
        assert np.array_equal(held, np.broadcast_to(wanted[0][-1] if hold is None else hold, (3, 2)))
        client.deadline = 30
        assert np.array_equal(client.act(observation(2)), wanted[2]) and not client.late    # executed: 0, by itself
        assert np.array_equal(client.act(observation(3)), wanted[3])
        assert server.record.late == 1 and server.health()["late"] == 1
    with serving(Slow(policy, {1})) as (_, url), PolicyClient(url, deadline=0.1) as client:
        with pytest.raises(TimeoutError, match="none before them to hold"):
            client.act(observation(0))


def test_who_is_refused_at_the_door(policy):
    with serving(policy, token=TOKEN, clients=2) as (server, url):
        page = url.replace("ws", "http", 1)
        for token in (None, "another-token", TOKEN + "x", TOKEN[:-1]):
            with pytest.raises(ConnectionError, match="this server wants its token"):
                PolicyClient(url, token=token)
        for headers, status in (({"Origin": page}, 403), ({"Host": "evil.example"}, 403), ({}, 401),
                                ({"Authorization": "Bearer \xfc" + TOKEN}, 401)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(urllib.request.Request(page, headers=headers))
            assert refused.value.code == status and refused.value.read().count(b"\n") == 1
        with PolicyClient(url, token=TOKEN) as client, PolicyClient(url, token=TOKEN):
            client.act(observation(0))
            with pytest.raises(ConnectionError, match="all 2 places are taken"):
                PolicyClient(url, token=TOKEN)
            health = json.loads(urllib.request.urlopen(page + "/healthz").read())
            assert health["alive"] and health["clients"] == 2 and health["replies"] == 1 and health["refused"] == 9
            assert health["p99"] >= health["p50"] > 0 and health["late"] == 0


def test_a_silent_client_is_dropped_and_the_others_are_told_when_the_server_ends(policy, monkeypatch):
    with serving(policy, idle=0.3) as (_, url):
        silent = raw(url)
        with pytest.raises(ConnectionClosed) as closed:
            silent.recv(10)
        assert closed.value.rcvd.code == 1008 and "no message for 0.3 s" in closed.value.rcvd.reason
    with serving(policy) as (_, url):
        client = PolicyClient(url)
        client.act(observation(0))
    with pytest.raises(ConnectionError, match=served.STOPPED):
        client.act(observation(0))


def test_a_ping_flood_whose_pongs_are_not_read_is_dropped(common):
    assert stubborn(common[1], (b"\x89\xfd\0\0\0\0" + bytes(125)) * 1000) == "dropped"


def test_a_token_is_long_and_another_address_needs_one(policy, tmp_path):
    (tmp_path / "token").write_text(TOKEN + "\n")
    assert token_of(str(tmp_path / "token"), None) == TOKEN and token_of(None, TOKEN) == TOKEN
    assert token_of(None, None) is None
    for short in ("", "x" * 15, "x" * 20 + "\nx", "ä" * 20):
        with pytest.raises(ValueError, match="DFORCE_TOKEN must have 16"):
            token_of(None, short)
    server = served.PolicyServer(policy, {"task": "t", "hashes": HASHES}, served.ServingLimits(deadline=1))
    with pytest.raises(ValueError, match=r"host=0.0.0.0 can be reached by others, so a token is needed"):
        served.serve_policy(server, host="0.0.0.0", port=0)


def test_the_client_needs_no_torch():
    program = ("import sys; sys.modules['torch'] = None; import dforce.policy.client as c; "
               "print(c.PolicyClient.__name__, [m for m in sys.modules if m.startswith('dforce')])")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "PolicyClient ['dforce', 'dforce.policy', 'dforce.policy.client']", done.stderr


def test_an_array_is_believed_up_to_its_size():
    assert unpacked(msgpack.packb(message()))["number"] == 0
    assert largest({"a": 10}) < largest({"a": 1000}) < 4096 + 8 * 1000 + 1000


@pytest.mark.slow
def test_the_shipped_policy_swaps_through_the_server_as_it_does_alone(tmp_path):
    """The command, a simulated robot, and SIGTERM."""
    import gymnasium

    import dforce.envs.robot
    from dforce.runs.imitation import load_policy

    def swap(act):
        env = gymnasium.make("dforce/Swap-v0")
        seen, info = env.reset(seed=77)
        done = []
        while not info["success"] and len(done) < 200:
            for action in act(seen):
                seen, _, _, _, info = env.step(action)
                done.append(action)
        env.close()
        return np.array(done), info["success"]

    words = [sys.executable, "-m", "dforce", "serve", "policy", "checkpoint=swap", "port=0", "deadline=60"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env={
        **os.environ, "PYTHONPATH": str(Path(dforce.__file__).parents[1])})
    try:
        url = re.search(r"ws://[\d.:]+", process.stdout.readline())[0]
        with PolicyClient(url) as client:
            remote, success = swap(lambda seen: client.act({"observation": seen}))
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
        replies = len(remote) // 5
        assert re.fullmatch(rf"dforce: {served.STOPPED}: {replies} replies, 0 late, 0 refused, p50 and p99 .* ms\n",
                            process.stderr.read())
    finally:
        process.kill()
    policy, _ = load_policy("swap")
    state = policy.reset(1)

    def alone(seen):
        nonlocal state
        actions, state = policy.act(seen[None], state)
        return actions[0]

    here, _ = swap(alone)
    assert success and np.array_equal(here, remote)
