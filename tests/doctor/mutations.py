"""Doctors that lack one rule, or one thing that they must know. Each must be caught by the generated files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kong_claude.doctor import guards, kong, reach, rules, view
from kong_claude.doctor.opening import Opening

Change = Callable[[pytest.MonkeyPatch], None]


def without(rule: Callable[..., Any]) -> Change:
    """A doctor without one of its rules."""
    return lambda patch: patch.setattr(rules, "RULES", tuple(r for r in rules.RULES if r is not rule))


def silent_about(word: str) -> Change:
    """A doctor that never says it."""

    def change(patch: pytest.MonkeyPatch) -> None:
        examine = rules.examine
        patch.setattr(rules, "examine", lambda seen: [opening for opening in examine(seen) if opening.rule != word])

    return change


def put(value: Any, name: str, *modules: Any) -> Change:
    """One thing that it knows, otherwise; in each module that has it."""

    def change(patch: pytest.MonkeyPatch) -> None:
        for module in modules:
            patch.setattr(module, name, value)

    return change


def always(value: Any) -> Callable[..., Any]:
    return lambda *args, **options: value


def nothing(*args: Any) -> Iterator[Opening]:
    return iter(())


WORDS = """
    admin-limits answers-before-guard consumer-scope development-issuer doubled fails-open foreign-guard foreign-handler
    forged-mark late-change late-event-timeout mixed-scope no-authentication no-guard no-pluginserver no-scope
    not-enabled open-invoker protocols public-invoker refuses-all secret-in-clear shared-mark shared-secret
    small-body-buffer stock-pluginserver unbounded-timeout unset-secret untagged-consumer untrusted-lua weak-secret
    wrong-dump wrong-mark
    """.split()  # noqa: SIM905 -- a word list reads better

BUILD = view.build
EVERYWHERE = (view, guards, kong, rules)
KNOWLEDGE: dict[str, Change] = {
    "a plugin that is switched off runs": put(always(True), "runs", *EVERYWHERE),
    "only the switch counts, not the protocols": put(lambda p: p.get("enabled", True), "runs", *EVERYWHERE),
    "a plugin for https does not run on http": put(
        lambda p: p.get("enabled", True) and "http" in (p.get("protocols") or ["http"]), "runs", *EVERYWHERE
    ),
    "nothing displaces anything": put(list, "effective", view),
    "names have no ids": put(lambda kind, name: f"{kind}/{name}", "derived_id", view),
    "_plugin_configs is empty": put(always({}), "from_deck", view),
    "a consumer's plugin is everybody's": put(always(False), "of_consumer", view, guards, rules),
    "an upstream has no targets": put(lambda seen, route: (reach.host_of(route.service),), "hosts_of", reach),
    "one service is one host": put(lambda service: str(service.get("name")), "host_of", reach),
    "anonymous is no concern": put(always(None), "anonymous", reach, guards),
    "Kong's own plugins ask nobody": put((), "KONGS", reach, guards),
    "what asks is not looked at": put(always({"": ""}), "asks", reach, kong),
    "the tag public means nothing": put("", "PUBLIC", guards),
    "a termination does not shut a route": put(always(False), "shuts", guards),
    "any text is a guard": put(always("by route"), "compared", guards),
    "no text is a guard": put(always(None), "compared", guards),
    "a guard is for any plugin": put(always(True), "demands", guards),
    "a guard without its plugin is no concern": put(always(set()), "demanded", guards),
    "nothing is bound to anything": put(always(None), "scope", guards),
    "all is bound to routes": put(always("route"), "scope", guards),
    "functions for all run as others do": put((), "BEFORE_ROUTING", rules),
    "functions of routes run in rewrite": put(always(True), "unscoped", rules),
    "what is answered before a guard is no concern": put(nothing, "answers_before", guards),
    "unknown plugins are silent": put({*guards.SILENT, "house-answer"}, "SILENT", guards),
    "every address is this machine's": put(always(True), "own_machine", kong),
    "no address is this machine's": put(always(False), "own_machine", kong),
    "a service that is switched off is served": put(
        lambda flat, environment: BUILD({**flat, "services": [_on(s) for s in flat["services"]]}, environment),
        "build",
        view,
    ),
}


def _on(service: dict[str, Any]) -> dict[str, Any]:
    service.pop("enabled", None)  # in place: routes refer to it
    return service


MUTATIONS: dict[str, Change] = {
    **{f"without {getattr(rule, '__name__', rule)}": without(rule) for rule in rules.RULES},
    **{f"silent about {word}": silent_about(word) for word in WORDS},
    **KNOWLEDGE,
}


@contextmanager
def changed(change: Change) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        change(patch)
        yield
