"""An event ends, always, and leaves nothing."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.kong_driver import Driver, Event, Request, Server
from tests.support.waiting import wait_for as wait_for


def traces(server: Server, kong: Driver) -> dict[str, float]:
    """What events could leave behind, as the process itself sees it."""
    status = kong.call("plugin.GetStatus")
    pid = server.process.pid
    return {
        "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": len(os.listdir(f"/proc/{pid}/task")),
        "events": status["EventsInFlight"],
    }


def at_rest(server: Server, *drivers: Driver) -> dict[str, float]:
    """`traces` once the server has noticed that all connections but the drivers' are gone."""

    def sockets() -> int:
        return sum(each.is_socket() for each in Path(f"/proc/{server.process.pid}/fd").iterdir())

    for driver in drivers:
        driver.call("plugin.GetStatus")  # a driver connects when it first speaks
    assert wait_for(lambda: sockets() == 1 + len(drivers)), "the listener's and the drivers'"
    return traces(server, drivers[0])


def is_503(event: Event) -> bool:
    return event.exit is not None and event.exit.status == 503


def test_exception_is_refused_and_logged_without_its_message(start: Callable[..., Server]) -> None:
    server = start("--no-lua-style")
    with server.driver() as kong:
        instance = kong.start_instance("battery", {"do": "raise_later"})
        request = Request(headers={"authorization": "Bearer secret-in-a-header"})
        assert is_503(kong.handle(instance, "access", request))
    assert re.search(r"plugin battery, access: uncaught RuntimeError at .*battery\.py:\d+ in raise_later", server.log)
    assert "secret-in-a" not in server.log  # the path of a checkout may hold the word alone


def test_in_log_a_failure_ends_the_event(ours: Server) -> None:
    with ours.driver() as kong:
        instance = kong.start_instance("battery", {"log": "raise_first"})
        event = kong.handle(instance, "log")
    assert event == Event()


def test_on_error_pass_lets_the_request_through(ours: Server) -> None:
    with ours.driver() as kong:
        assert kong.handle(kong.start_instance("battery-pass"), "access") == Event()
    assert "plugin battery-pass, access: uncaught RuntimeError" in ours.log


@pytest.mark.parametrize("do", ["sleep_long", "sleep_long_stubbornly", "burn"])
def test_event_timeout_refuses_and_leaves_nothing(start: Callable[..., Server], do: str) -> None:
    server = start("--event-timeout", "0.6")
    with server.driver() as kong, server.driver() as other:
        instance = kong.start_instance("battery", {"do": do})
        before = at_rest(server, other, kong)
        assert is_503(kong.handle(instance, "access"))
        assert wait_for(lambda: traces(server, other) == before)
        assert kong.handle(kong.start_instance("battery", {"do": "one_call"}), "access").exit is None


def test_event_timeout_with_on_error_pass(start: Callable[..., Server]) -> None:
    server = start("--event-timeout", "0.3")
    with server.driver() as kong:
        assert kong.handle(kong.start_instance("battery-pass", {"do": "sleep"}), "access") == Event()


def test_a_call_that_kong_never_answers_leaves_nothing(start: Callable[..., Server]) -> None:
    """A Lua error in a PDK call aborts the request: the Step never comes."""
    server = start("--event-timeout", "0.3")
    with server.driver() as kong, server.driver() as other:
        instance = kong.start_instance("battery", {"do": "one_call"})
        before = at_rest(server, other, kong)
        for _ in range(50):
            kong.call("plugin.HandleEvent", {"InstanceId": instance, "EventName": "access"})
        assert traces(server, other)["events"] == 50
        assert wait_for(lambda: traces(server, other) == before)
        # and what comes too late is refused
        result = kong.call("plugin.HandleEvent", {"InstanceId": instance, "EventName": "access"})
        assert wait_for(lambda: traces(server, other) == before)
        late = kong.call("plugin.Step", {"EventId": result["EventId"], "Data": "x"})
        assert late["Data"]["Method"] == "kong.response.exit"


def test_kong_closes_the_connection_while_plugin_code_waits(ours: Server) -> None:
    with ours.driver() as other:
        before = at_rest(ours, other)
        kong = ours.driver()
        instance = kong.start_instance("battery", {"do": "sleep_long"})
        kong.send("plugin.HandleEvent", {"InstanceId": instance, "EventName": "access"})
        assert wait_for(lambda: traces(ours, other)["events"] == 1)
        kong.close()
        assert wait_for(lambda: traces(ours, other) == before)


def test_a_frame_on_a_connection_with_an_open_call_replaces_the_call(ours: Server) -> None:
    """After a read time-out Kong puts the connection back into its pool: a late answer would meet the next event."""
    with ours.driver() as kong, ours.driver() as other:
        slow = kong.start_instance("battery", {"do": "sleep_long"})
        quick = kong.start_instance("battery", {"do": "nothing"})
        before = at_rest(ours, other, kong)
        kong.send("plugin.HandleEvent", {"InstanceId": slow, "EventName": "access"})
        assert wait_for(lambda: traces(ours, other)["events"] == 1)
        assert kong.handle(quick, "access") == Event()  # the driver checks the answer's msgid
        assert wait_for(lambda: traces(ours, other) == before)


def test_steps_may_come_over_another_connection(ours: Server) -> None:
    with ours.driver() as one, ours.driver() as two:
        instance = one.start_instance("battery", {"do": "one_call"})
        results = [one.call("plugin.HandleEvent", {"InstanceId": instance, "EventName": "access"}) for _ in range(2)]
        for number, result in enumerate(results):
            step = two.call("plugin.Step", {"EventId": result["EventId"], "Data": f"host {number}"})
            assert step["Data"] == {"Method": "kong.ctx.shared.set", "Args": ["host", f"host {number}"]}
        for number, result in enumerate(reversed(results)):
            assert one.call("plugin.Step", {"EventId": result["EventId"]})["Data"] == "ret", number


def test_overload_is_refused_and_log_events_are_not(start: Callable[..., Server]) -> None:
    server = start("--max-in-flight", "2", "--event-timeout", "5")
    with server.driver() as kong:
        instance = kong.start_instance("battery", {"do": "one_call", "log": "one_call"})
        lenient = kong.start_instance("battery-pass")
        for _ in range(2):
            kong.call("plugin.HandleEvent", {"InstanceId": instance, "EventName": "access"})
        assert is_503(kong.handle(instance, "access"))
        assert kong.handle(lenient, "access") == Event()
        assert kong.handle(instance, "log").methods == ["kong.request.get_header", "kong.ctx.shared.set"]


def test_who_keeps_the_loop_is_named(start: Callable[..., Server]) -> None:
    server = start()
    with server.driver() as kong:
        kong.handle(kong.start_instance("battery", {"do": "burn_400ms"}), "access")
    assert re.search(r"WARN - plugin battery, access \(.*battery\.py:\d+\) has kept the loop for 0\.\d s", server.log)


def test_a_stuck_constructor_is_an_error_and_does_not_hold_others(start: Callable[..., Server]) -> None:
    server = start()
    with server.driver() as slow, server.driver() as kong:
        message = slow.send("plugin.StartInstance", {"Name": "battery", "Config": '{"do": "slow constructor"}'})
        assert kong.handle(kong.start_instance("battery", {"do": "nothing"}), "access") == Event()
        frame = slow.receive()
        assert frame[:3] == [1, message, None] and frame[3]["Name"] == "battery"


@pytest.mark.parametrize(
    "argument",
    [None, 5, {}, {"Name": "battery"}, {"Name": "nobody", "Config": "{}"}, {"Name": "battery", "Config": "{"}],
    ids=str,
)
def test_a_start_that_cannot_be_is_an_error(ours: Server, argument: Any) -> None:
    with ours.driver() as kong, pytest.raises(Exception, match="plugin"):
        kong.call("plugin.StartInstance", argument)


def test_close_runs_the_plugins_own_close_after_its_last_event(ours: Server) -> None:
    with ours.driver() as kong:
        teller = kong.start_instance("battery-pass", {"do": "closed"})
        closing = kong.start_instance("battery-pass", {"do": "sleep"})
        with ours.driver() as busy:
            busy.send("plugin.HandleEvent", {"InstanceId": closing, "EventName": "access"})
            wait_for(lambda: kong.call("plugin.GetStatus")["EventsInFlight"] == 1)
            closed = kong.call("plugin.CloseInstance", closing)
            assert closed == {"Name": "battery-pass", "Id": closing, "Config": {"do": "sleep"}}
            request = Request()
            kong.handle(teller, "access", request)
            assert request.shared == {"closed": 0}
        assert wait_for(lambda: kong.handle(teller, "access", request) and request.shared == {"closed": 1})
        with pytest.raises(Exception, match=r"^no plugin instance"):
            kong.handle(closing, "access")


def test_kong_cannot_be_called_from_another_greenlet(ours: Server) -> None:
    request = Request()
    with ours.driver() as kong:
        kong.handle(kong.start_instance("battery", {"do": "keep_kong"}), "access", request)
    assert request.shared == {"kept": "kong.request.get_header called outside of the event's own greenlet"}


def test_context_variables_are_the_events_own(ours: Server) -> None:
    with ours.driver() as kong:
        instance = kong.start_instance("battery", {"do": "contextvar"})
        for _ in range(3):
            request = Request()
            kong.handle(instance, "access", request)
            assert request.shared == {"before": "clean"}


def test_the_answer_to_a_call_given_up_is_not_taken_for_the_next(ours: Server) -> None:
    def answer(name: str) -> str:
        if name == "slow":
            time.sleep(0.3)
        return f"answer to {name}"

    request = Request(answers={"kong.request.get_header": answer})
    with ours.driver() as kong:
        event = kong.handle(kong.start_instance("battery", {"do": "give_up_a_call"}), "access", request)
    assert event.exit is None
    assert request.shared == {"second": "answer to quick"}


def test_a_forged_wakeup_is_no_answer(ours: Server) -> None:
    def answer(name: str) -> str:
        time.sleep(0.1)
        return "true answer"

    request = Request(answers={"kong.request.get_header": answer})
    with ours.driver() as kong:
        kong.handle(kong.start_instance("battery", {"do": "spurious_wakeup"}), "access", request)
    assert request.shared == {"host": "true answer"}


def test_answers_never_cross_between_events(ours: Server) -> None:
    """Many connections at once, each event checks that it gets its own answers back."""
    wrong: list[Any] = []
    with ours.driver() as kong:
        instance = kong.start_instance("battery", {"do": "one_call"})

    def connection(name: int) -> None:
        with ours.driver() as kong:
            for number in range(200):
                request = Request(headers={"Host": f"{name}.{number}"})
                kong.handle(instance, "access", request)
                if request.shared != {"host": f"{name}.{number}"}:
                    wrong.append(request.shared)

    threads = [threading.Thread(target=connection, args=(name,)) for name in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
