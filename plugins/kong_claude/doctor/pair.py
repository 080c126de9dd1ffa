"""The Lua half of our plugins, as Kong will find it on its Lua path: the files that are there on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from kong_claude.doctor.opening import Opening
from kong_claude.doctor.settings import LUA_PATH
from kong_claude.doctor.view import View
from kong_claude.guard import PAIR_PATH, PAIRED

PARTNER = "kong/plugins/claude-pair/partner"


def handlers(view: View) -> Iterator[Opening]:
    """Kong takes a plugin's handler from its Lua path before it asks a plugin server: whatever has our plugin's name
    there runs in its place, with nothing but the guard behind it."""
    for plugin in PAIRED:
        for module in (f"kong/plugins/{plugin}/handler", PARTNER):
            found = first(view.settings.get(LUA_PATH) or "", module)
            if found is None:
                break  # no handler, so that nobody asks for the partner either; or a partner that is not there
            if found.read_text(errors="replace") != own(module).read_text():
                yield Opening(
                    "foreign-handler",
                    LUA_PATH,
                    f"{found} runs in the place of {plugin}, and is not this release's",
                    f'{LUA_PATH}="$(kong-claude guard --pair)", or --lua-path for single calls',
                )
                break


def first(package_path: str, module: str) -> Path | None:
    """The file that `require` finds."""
    names = (pattern.strip().replace("?", module) for pattern in package_path.split(";") if pattern.strip())
    return next((path for path in map(Path, names) if path.is_file()), None)


def own(module: str) -> Path:
    return Path(PAIR_PATH.replace("?", module))
