"""What is wrong in a kong.yml, said before anything is started: each once, with file, line, entity and field."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from kong_claude_local import stack


def problems(layout: stack.Layout) -> list[str]:
    """First what Kong would refuse (a real one, which knows more plugins than minikong, is asked about all but ours by
    starting it), then what the plugins would. Raises Problem for a file that cannot be read at all."""
    from kong_claude.environment import PLUGINS
    from kong_claude.guard import LUA_PLUGINS

    found = list(refused_by_kong(layout))
    if layout.kong is not None:
        found = [line for line in found if any(f"(plugin {name}" in line for name in (*PLUGINS, *LUA_PLUGINS))]
    return found or list(refused_by_plugins(layout))


def refused_by_kong(layout: stack.Layout) -> Iterator[str]:
    # What `up.check` has found to be installed.
    from kong_claude.doctor import probe
    from kong_claude.environment import PLUGINS
    from minikong import conf, declarative, plugins
    from minikong.gateway import Gateway

    environment = dict(stack.gateway(replace(layout, kong=None)).environment)
    enabled = environment["KONG_PLUGINS"].split(",")
    # Without plugin servers: what they would be asked for is in this process.
    own = {name: value for name, value in environment.items() if not name.startswith("KONG_PLUGINSERVER")}
    own["KONG_PLUGINS"] = ",".join(name for name in enabled if name not in PLUGINS)
    schemas = plugins.schemas_in_lua(Gateway(conf.load(None, own), own))
    for name in PLUGINS:
        fields = probe.load(layout.plugins / f"{name}.py").Schema
        schemas[name] = {"name": name, "fields": [{"config": {"type": "record", "fields": fields}}]}
    try:
        declarative.load(
            layout.config.read_text(errors="surrogateescape"), declarative.Schema(schemas), layout.config.name
        )
    except declarative.DeclarativeError as error:
        yield from error.located(layout.config.name)


def refused_by_plugins(layout: stack.Layout) -> Iterator[str]:
    from kong_claude.doctor import probe, view

    seen = view.from_file(layout.config, stack.gateway(layout).environment)
    for opening in probe.configurations(seen, layout.plugins):
        line = f":{opening.line}" if opening.line else ""
        yield f"{layout.config.name}{line}: {opening.where}: {opening.problem}"
