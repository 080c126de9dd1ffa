"""Webhooks: a CloudEvent (1.0, structured JSON) signed by Standard Webhooks, sent where it may go and nowhere else."""

from __future__ import annotations

import asyncio
import base64
import datetime
import ipaddress
import json
import socket
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx
from standardwebhooks import Webhook

from claude_contract.ledger.warnings import Notice
from claude_invoker.egress.addresses import is_public
from claude_invoker.hrefs import result_with_hrefs
from claude_invoker.jobs.record import Job
from claude_invoker.model import Permission
from claude_invoker.problem import Problem
from claude_invoker.settings import Settings

TIMEOUT_S = 15.0

Try = tuple[int | None, str | None]
"""(status, None) or (None, what went wrong)."""


class NotDelivered(Exception):
    """The receiver did not take it; SAQ tries again."""


def check_url(url: str, settings: Settings) -> None:
    """Checks a callback URL when a job is accepted. Raises Problem 422."""
    try:
        parts = urlsplit(url)
        host, _ = (parts.hostname or "").lower(), parts.port
        httpx.URL(url)
    except (ValueError, httpx.InvalidURL) as error:
        raise Problem(422, "invalid", "callback_url is not a URL") from error
    if not host or "@" in parts.netloc or "\\" in url or parts.fragment:
        raise Problem(422, "invalid", "callback_url needs a host, and neither credentials nor a fragment")
    if not any(host == name or (name.startswith("*.") and host.endswith(name[1:])) for name in settings.webhook_hosts):
        raise Problem(422, "invalid", f"callback_url: {host[:100]} is not among the allowed hosts")
    if parts.scheme != "https" and not settings.webhook_private:
        raise Problem(422, "invalid", "callback_url must be https")
    if settings.webhook_secret is None:
        raise Problem(422, "invalid", "callback_url: no secret to sign webhooks with is configured")


async def address(host: str, port: int, settings: Settings) -> str:
    """The address to connect to. Looked up once and used as it is, so that a name cannot change its mind (DNS
    rebinding). Raises NotDelivered for private addresses unless they are allowed."""
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise NotDelivered(f"{host} is not known") from error
    for *_, place in found:
        ip = ipaddress.ip_address(str(place[0]).partition("%")[0])
        if settings.webhook_private or is_public(ip):
            return str(ip)
    raise NotDelivered(f"{host} has a private address")


def event(job: Job, base: str) -> dict[str, Any]:
    """The CloudEvent for a job that is over. `base`: the prefix of its links."""
    view = job.view(base)
    if view.result is not None:
        view.result = result_with_hrefs(base, view.result)
    data = view.model_dump(mode="json", exclude_none=True, exclude={"deliveries", "progress"})
    return _of_job(job, str(job.attempt), job.state, job.finished_at or job.created_at, data)


def asking(job: Job, permission: Permission, base: str) -> dict[str, Any]:
    """The CloudEvent for a job that waits to be allowed a call of a tool. `base`: the prefix of its links."""
    asked = permission.model_dump(mode="json", exclude_none=True)
    data = {"id": job.id, "title": job.title, "permission": asked, "links": job.links(base)}
    return _of_job(job, permission.id, "waiting_for_approval", permission.asked_at, data)


def _of_job(job: Job, number: str, what: str, at: float, data: Mapping[str, Any]) -> dict[str, Any]:
    body = _cloud_event(f"{job.id}.{number}", "/claude/jobs", f"job.{what}", at, data) | {"subject": job.id}
    return body | ({"traceparent": job.traceparent} if job.traceparent else {})


def budget_event(notice: Notice) -> dict[str, Any]:
    """The CloudEvent for a budget that is nearly used up."""
    return _cloud_event(notice.id, "/claude/limits", "budget.warning", notice.at, notice.data)


def _cloud_event(id_: str, source: str, kind: str, at: float, data: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": id_,
        "source": source,
        "type": f"dev.kong-claude.{kind}",
        "time": datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat().replace("+00:00", "Z"),
        "datacontenttype": "application/json",
        "data": data,
    }


def signed(document: Mapping[str, Any], secret: str) -> tuple[dict[str, str], bytes]:
    """Headers and body of an event. The timestamp is of this try, the id of the event."""
    body = json.dumps(document, separators=(",", ":"))
    now = datetime.datetime.now(datetime.UTC)
    # As given where it is in the specification's own form, else any text.
    key = secret if secret.startswith("whsec_") else base64.b64encode(secret.encode()).decode()
    signature = Webhook(key).sign(document["id"], now, body)
    headers = {
        "Content-Type": "application/cloudevents+json",
        "User-Agent": "kong-claude",
        "webhook-id": document["id"],
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": signature,
    }
    traced = {name: document[name] for name in ("traceparent",) if name in document}
    return headers | traced, body.encode()


async def send(document: Mapping[str, Any], url: str, settings: Settings) -> Try:
    """One try to send an event to a URL of the caller's."""
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        check_url(url, settings)
        place = await address(host, port, settings)
    except (NotDelivered, Problem) as error:
        return None, str(error)
    return await _post(document, url, place, settings)


async def notify(notice: Notice, settings: Settings) -> Try:
    """One try at the operator's own URL, which may lead where he likes."""
    url = settings.budget_webhook
    if url is None:
        return None, "no INVOKER_BUDGET_WEBHOOK is configured"
    return await _post(budget_event(notice), url.get_secret_value(), None, settings)


async def _post(document: Mapping[str, Any], url: str, place: str | None, settings: Settings) -> Try:
    """`place`: the address to connect to; None: whichever the host's name has. Redirects are not followed: they could
    lead anywhere."""
    if settings.webhook_secret is None:
        return None, "no webhook secret is configured"
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        headers, body = signed(document, settings.webhook_secret.get_secret_value())
        target = httpx.URL(url).copy_with(host=place or host)
        headers["Host"] = parts.netloc
        async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False, follow_redirects=False) as client:
            request = client.build_request("POST", target, content=body, headers=headers)
            request.extensions["sni_hostname"] = host
            answer = await client.send(request, stream=True)
            await answer.aclose()
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
        return None, type(error).__name__
    return answer.status_code, None
