"""Frames from an enemy, frames in pieces, frames of any size: bounded, logged, and the server lives."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kong_claude.server.wire import STEP_METHODS
from tests.support.kong_driver import Driver, Event, Request, Server
from tests.support.waiting import HANG_S


def connect(server: Server) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(HANG_S)
    sock.connect(server.socket_path)
    return sock


def replies(sock: socket.socket) -> Iterator[list[object]]:
    unpacker = msgpack.Unpacker()
    while data := sock.recv(65536):
        unpacker.feed(data)
        yield from unpacker


def closed(sock: socket.socket) -> bool:
    """Whether the server closes the connection without an answer."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def alive(server: Server) -> bool:
    with server.driver(10) as kong:
        return kong.handle(kong.start_instance("battery", {"do": "nothing"}), "access") == Event()


STATUS = msgpack.packb([0, 1, "plugin.GetStatus", [None]])


def test_a_frame_in_single_bytes(ours: Server) -> None:
    with connect(ours) as sock:
        for byte in STATUS:
            sock.sendall(bytes([byte]))
        assert next(replies(sock))[:3] == [1, 1, None]


def test_frames_in_one_write_are_answered_in_order(ours: Server) -> None:
    with ours.driver() as kong:
        instance = kong.start_instance("battery", {"do": "sleep_100ms"})
    event = {"InstanceId": instance, "EventName": "access"}
    frames = [[0, 7, "plugin.HandleEvent", [event]], [0, 8, "plugin.GetStatus", [None]], [0, 9, "plugin.X", []]]
    with connect(ours) as sock:
        sock.sendall(b"".join(map(msgpack.packb, frames)))
        assert [frame[1] for frame in itertools.islice(replies(sock), 3)] == [7, 8, 9]


@pytest.mark.parametrize(
    "garbage",
    {
        "never used": b"\xc1",
        "text": b"GET / HTTP/1.1\r\n\r\n",
        "an integer": b"\x05",
        "a response": msgpack.packb([1, 1, None, None]),
        "a notification": msgpack.packb([2, "x", None]),
        "a float as id": msgpack.packb([0, 1.5, "plugin.GetStatus", []]),
        "a list as method": msgpack.packb([0, 1, ["plugin.Step"], []]),
        "no arguments": msgpack.packb([0, 1, "plugin.Step", None]),
        "an event of text": msgpack.packb([0, 1, "plugin.HandleEvent", ["x"]]),
        "a step of nil": msgpack.packb([0, 1, "plugin.Step", [None]]),
        "4 G elements": b"\x94\x00\x01\xdd\xff\xff\xff\xff",
        "4 G pairs": b"\x94\x00\x01\xdf\xff\xff\xff\xff",
        "100,000 levels": b"\x91" * 100_000,
        "100,000 maps": b"\x81\xa1a" * 100_000,
        "a list as key": b"\x94\x00\x01\xa1x\x91\x81\x91\x01\x01",
    }.items(),
    ids=lambda pair: pair[0],
)
def test_garbage_closes_its_connection_only(ours: Server, garbage: tuple[str, bytes]) -> None:
    with connect(ours) as sock:
        try:
            sock.sendall(garbage[1])
        except BrokenPipeError:
            pass  # closed before all of it was sent
        assert closed(sock)
    assert alive(ours)


@pytest.mark.parametrize("event_id", [None, "x", -1, 1.5, [1], {"a": 1}, 2**63, True], ids=str)
def test_a_step_with_any_id_is_refused(ours: Server, event_id: object) -> None:
    with ours.driver() as kong:
        result = kong.call("plugin.Step", {"EventId": event_id})
        assert result["Data"]["Method"] == "kong.response.exit"


@pytest.mark.parametrize("instance_id", [None, "x", -1, 1.5, [1], {"a": 1}, 2**63, True, 0], ids=str)
def test_an_event_with_any_instance_id_is_no_instance(ours: Server, instance_id: object) -> None:
    with ours.driver() as kong:
        with pytest.raises(Exception, match=r"^no plugin instance"):
            kong.call("plugin.HandleEvent", {"InstanceId": instance_id, "EventName": "access"})


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=300))
def test_random_bytes_never_end_the_server(ours: Server, data: bytes) -> None:
    with connect(ours) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        for frame in replies(sock):
            assert frame[0] == 1
    assert ours.process.poll() is None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    value=st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**63 - 1)
        | st.floats(allow_nan=False)
        | st.binary()
        # Cs: what surrogateescape makes of bytes that are not UTF-8 must survive too
        | st.binary(max_size=40).map(lambda b: b.decode("utf-8", "surrogateescape")),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
        max_leaves=8,
    ),
    cut=st.integers(0, 400),
    id_first=st.booleans(),
    method=st.sampled_from(STEP_METHODS),
)
def test_any_value_survives_the_way_to_the_plugin_and_back(
    ours: Server, value: object, cut: int, id_first: bool, method: str
) -> None:
    with Driver(ours.socket_path) as kong:
        instance = kong.start_instance("battery", {"do": "one_call"})
        result = kong.call("plugin.HandleEvent", {"InstanceId": instance, "EventName": "access"})
        assert kong.sock is not None
        step = {"EventId": result["EventId"], **({} if value is None else {"Data": value})}
        if not id_first:
            step = dict(reversed(step.items()))
        packed = msgpack.packb([0, 99, method, [step]], unicode_errors="surrogateescape")
        kong.sock.sendall(packed[:cut])
        kong.sock.sendall(packed[cut:])
        frame = kong.receive()
        assert frame[3]["Data"] == {"Method": "kong.ctx.shared.set", "Args": ["host", value]}


@pytest.mark.parametrize("keys", [("EventId", "Data"), ("Data", "EventId")], ids="-".join)
def test_a_value_that_looks_like_the_id_of_another_event(ours: Server, keys: tuple[str, ...]) -> None:
    with ours.driver() as kong, ours.driver() as other:
        event = {"InstanceId": kong.start_instance("battery", {"do": "one_call"}), "EventName": "access"}
        mine, theirs = (driver.call("plugin.HandleEvent", event)["EventId"] for driver in (kong, other))
        for driver, event_id, value in (
            (kong, mine, b"x" + msgpack.packb("EventId") + msgpack.packb(theirs)),
            (other, theirs, "theirs"),
        ):
            fields = {"EventId": event_id, "Data": value}
            result = driver.call("plugin.Step", {key: fields[key] for key in keys})
            assert result["EventId"] == event_id
            assert result["Data"] == {"Method": "kong.ctx.shared.set", "Args": ["host", value]}
            # The setter's answer is nil: no Data.
            assert driver.call("plugin.Step", {"EventId": event_id}) == {"EventId": event_id, "Data": "ret"}


@pytest.mark.parametrize("size", [100, 448, 600, 8 << 10, 9 << 10, 40 << 10], ids=str)
def test_an_answer_of_any_size_comes_whole(ours: Server, size: int) -> None:
    """Around what is read at once: a client's headers take more than most answers."""
    with ours.driver() as kong:
        event = {"InstanceId": kong.start_instance("battery", {"do": "one_call"}), "EventName": "access"}
        event_id, headers = kong.call("plugin.HandleEvent", event)["EventId"], {"cookie": ["x" * size]}
        result = kong.call("plugin.StepMultiMap", {"EventId": event_id, "Data": headers})
        assert result["Data"] == {"Method": "kong.ctx.shared.set", "Args": ["host", headers]}


def test_64_mb_to_the_plugin(ours: Server) -> None:
    request = Request(body=os.urandom(1 << 20) * 64)
    with ours.driver() as kong:
        kong.handle(kong.start_instance("battery", {"do": "body_length"}), "access", request)
    assert request.shared == {"length": 64 << 20}


def test_64_mb_to_kong_while_others_are_served(ours: Server) -> None:
    with ours.driver() as kong:
        instance = kong.start_instance("battery", {"do": "send_body"})
        result = kong.call("plugin.HandleEvent", {"InstanceId": instance, "EventName": "access"})
        kong.send("plugin.Step", {"EventId": result["EventId"], "Data": str(64 << 20)})
        assert alive(ours)  # while Kong reads nothing
        frame = kong.receive()
    assert frame[3]["Data"]["Args"] == [b"x" * (64 << 20)]


def test_a_large_reply_and_the_next_do_not_mix(ours: Server) -> None:
    """A peer that pipelines: the second answer waits for the end of the first."""
    with ours.driver() as kong:
        instance = kong.start_instance("battery", {"do": "send_body"})
        result = kong.call("plugin.HandleEvent", {"InstanceId": instance, "EventName": "access"})
        kong.send("plugin.Step", {"EventId": result["EventId"], "Data": str(4 << 20)})
        time.sleep(0.1)
        second = kong.send("plugin.GetStatus", None)
        assert kong.receive()[3]["Data"]["Args"] == [b"x" * (4 << 20)]
        assert kong.receive()[:3] == [1, second, None]


@pytest.mark.parametrize(
    "data",
    [STATUS[:-1], b"\x94\x00\x01\xdb\xff\xff\xff\xff", b"\x94\x00\x01\xc6\xff\xff\xff\xff" + bytes(1 << 20)],
    ids=["a byte is missing", "4 GB of text", "4 GB of bytes"],
)
def test_what_does_not_come_is_not_waited_for(start: Callable[..., Server], data: bytes) -> None:
    server = start("--event-timeout", "0.4")
    with connect(server) as sock:
        sock.sendall(data)
        assert closed(sock)
    assert "incomplete frame: the rest did not come in time, connection closed" in server.log


def test_a_frame_beyond_the_bound_is_closed_before_it_is_held(start: Callable[..., Server]) -> None:
    server = start()
    with connect(server) as sock:
        sock.sendall(b"\x94\x00\x01\xc6\xff\xff\xff\xff")
        with pytest.raises(OSError):
            for _ in range(200):
                sock.sendall(bytes(1 << 20))
    assert alive(server)
    assert "malformed frame: not MessagePack (BufferFull), connection closed" in server.log
