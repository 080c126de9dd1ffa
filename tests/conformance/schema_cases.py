"""`schema-validation.jsonl`: plugin config, declarative config and bad plugin Schemas, without any socket."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from minikong import admin, cjson, declarative
from minikong.precedence import Precedence
from minikong.schema import bundled
from minikong.schema.metaschema import BadSchema
from tests.conformance.match import difference
from tests.conformance.stage import CONFIGS

_ENVIRON = {"MY_SECRET": "from-env"}  # what the recording's Kong had
_SEQ = {"__seq__": {"$volatile": 1}}  # counts over the life of a Kong that ran all cases


@cache
def _schema(sets: str) -> declarative.Schema:
    plugins = {dump["Name"]: dump["Schema"] for dump in json.loads(sets)}
    return declarative.Schema({**bundled.schemas(), **plugins})


def _set(name: str) -> str:
    return json.dumps(json.loads((CONFIGS / "schemas.json").read_text())[name])


def replay(case: dict[str, Any]) -> str | None:
    """What differs from the recording, or None."""
    kind = case["id"].partition("/")[0]
    if kind == "badschema":
        return _bad_schema(case)
    if kind == "startup":
        return _startup(case, _schema(_set(case["schema_set"])))
    return _post(case, _schema(_set(case["schema_set"])), case)


def _post(case: dict[str, Any], schema: declarative.Schema, want: dict[str, Any]) -> str | None:
    gateway = admin.Admin(schema, environ=_ENVIRON)
    status, _, body = gateway.handle("POST", "/config", case["kong_yml"].encode(), {})
    if status != want["admin_status"]:
        return f"admin_status: got {status}, want {want['admin_status']}: {body!r}"
    if isinstance(want["admin_body"], dict):
        found = difference(json.loads(body), want["admin_body"], "admin_body")
        if found:
            return found
    if status != 201 or "config" not in want:
        return None
    running = [p for p in Precedence(gateway.config).entities if p.name == "schemy"]
    if not running:
        return "no plugin instance would be started"
    made = json.loads(cjson.encode(running[0].instance_config()))
    return difference(made, {**want["config"], **_SEQ}, "config")


def _bad_schema(case: dict[str, Any]) -> str | None:
    config: dict[str, Any] = {"type": "record", "fields": case.get("schema_fields", [])}
    if "entity_checks" in case:
        config["entity_checks"] = case["entity_checks"]
    dump = [{"Name": "schemy", "Schema": {"name": "schemy", "fields": [{"config": config}]}}]
    try:
        schema = _schema(json.dumps(dump))
    except BadSchema as problem:
        if case["start_exit_code"] == 0:
            return f"refused: {problem}"
        output = case["output"]
        output = output["$volatile"] if isinstance(output, dict) else output
        want = output.partition("error loading plugin schemas: ")[2].partition("\nstack traceback")[0]
        return None if str(problem) == want else f"got {problem}\nwant {want}"
    if case["start_exit_code"] != 0:
        return f"accepted, want {case['output']}"
    kong_yml = (
        '_format_version: "3.0"\nservices:\n- name: up\n  url: http://127.0.0.1:9000\n  routes:\n  - name: r\n'
        '    paths: ["/"]\n    plugins:\n    - name: schemy\n      config: {}\n'
    )
    return _post({"kong_yml": kong_yml}, schema, case["then_post_empty_config"])


def _startup(case: dict[str, Any], schema: declarative.Schema) -> str | None:
    try:
        declarative.load(case["kong_yml"], schema, "bad.yml", _ENVIRON)
    except declarative.DeclarativeError as problem:
        output = case["output"]
        volatile = isinstance(output, dict)
        output = output["$volatile"] if volatile else output
        want = output.partition("error parsing declarative config file <cfg>/bad.yml:\n")[2]
        want = want.partition("\nstack traceback")[0]
        same = sorted if volatile else list  # the order of a Lua table varies
        got = problem.kong_text()
        return None if same(got.split("\n")) == same(want.split("\n")) else f"got {got}\nwant {want}"
    # `kong config parse` fails over every config with an external plugin (a bug of that command alone).
    return None if case["exit_code"] == 0 or case["id"].endswith("-parse") else f"accepted, want {case['output']}"
