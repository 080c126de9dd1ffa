"""The two kinds of requests under a vendor's API, told apart by the name of the model in the body alone: a run
(`claude-code`, `claude-code-sonnet`, …), or a message of the model itself, which is passed on.

The gateway counts by it, and the invoker acts by it: both ask `kind_of` here, over the same bytes. No I/O.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["run", "message"]

RUN = "claude-code"


class _Named(msgspec.Struct):
    model: msgspec.Raw = msgspec.Raw()


_NAMED = msgspec.json.Decoder(_Named)


def names_run(model: str) -> bool:
    return model == RUN or model.startswith(f"{RUN}-")


def model_of(body: bytes) -> str | None:
    """The model that a body names; of several members `model` the last, which is also what goes on to the API (see
    `metering.request.Asked`). None where it is no JSON object, or names none."""
    try:
        return msgspec.json.decode(_NAMED.decode(body).model, type=str)
    except (ValueError, RecursionError):
        return None


def kind_of(body: bytes) -> Kind:
    return kind_named(model_of(body))


def kind_named(model: str | None) -> Kind:
    """By what `model_of` says. A run where nothing else is said: its limits are the narrower ones."""
    return "run" if model is None or names_run(model) else "message"
