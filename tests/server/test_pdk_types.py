"""mypy sees PDK calls; and what is typed exists in the data of a real Kong or in kong-pdk's stubs."""

from __future__ import annotations

import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

from kong_pdk.pdk.kong import kong as stubs

from kong_claude.server import pdk

RIGHT = """
from kong_claude.server.pdk import Kong
class Plugin:
    def access(self, kong: Kong) -> None:
        token: str | None = kong.request.get_header("authorization")
        kong.ctx.shared.set("seen", token)
        kong.log.info("hello", 1)
        kong.log("plain")
        kong.response.exit(403, {"message": "no"}, {"x-a": "b"})
"""
WRONG = """
from kong_claude.server.pdk import Kong
def access(kong: Kong) -> None:
    kong.request.get_haeder("a")
    kong.request.get_header(1)
    length: int = kong.request.get_path()
"""


def test_mypy_sees_pdk_calls(tmp_path: Path) -> None:
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\nstrict = true\ncache_dir = /dev/null\nmypy_path = $MYPY_CONFIG_FILE_DIR\n")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", str(config), "right.py", "wrong.py"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "MYPYPATH": str(Path(pdk.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=100,
    )
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 3, done.stdout + done.stderr
    assert all(line.startswith("wrong.py") for line in errors)


def methods(protocol: type, prefix: str) -> Iterator[str]:
    for name, value in vars(protocol).items():
        if isinstance(value, property):
            inner = typing.get_type_hints(value.fget)["return"]
            yield from methods(inner, f"{prefix}.{name}")
        elif callable(value) and not name.startswith("_"):
            yield f"{prefix}.{name}"


def test_typed_methods_exist() -> None:
    missing = []
    for path in methods(pdk.Kong, "kong"):
        target: object = stubs
        for name in path.split(".")[1:]:
            target = getattr(target, name, None)
        if target is None:
            missing.append(path)
    # newer than the stubs (Kong 3.4): seen in the recorded matrix of Kong 3.9
    assert set(missing) <= {
        "kong.log.emerg",
        "kong.request.get_start_time",
        "kong.service.set_retries",
        "kong.service.set_timeouts",
    }
