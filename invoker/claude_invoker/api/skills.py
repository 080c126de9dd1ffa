"""`/catalog`: what the caller's runs may use."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from claude_contract.claims import Clamp
from claude_invoker.api.answers import problems
from claude_invoker.api.query import ONLY_KNOWN
from claude_invoker.caller import Caller
from claude_invoker.catalog import choosing
from claude_invoker.catalog.entry import Entry, Kind
from claude_invoker.catalog.server import CREDENTIAL_HEADER
from claude_invoker.model import InvokeRequest
from claude_invoker.plan import plan
from claude_invoker.problem import Problem
from claude_invoker.services import services
from claude_invoker.trust import attested

router = APIRouter(tags=["catalog"])
_FIELDS: dict[Kind, str] = {"skill": "skills", "agent": "agents", "server": "mcp"}


class Needs(BaseModel):
    """What a run has to have for an entry."""

    tools: list[str] = []
    egress: list[str] = []
    python: list[str] = []
    programs: list[str] = []
    model: list[str] = []
    mcp: list[str] = []


class AgentView(BaseModel):
    name: str
    description: str
    needs: Needs
    obstacle: str | None = Field(default=None, description="Why a run of yours that asks for it is refused")


class SkillView(AgentView):
    default: bool = Field(description="Whether a run has it that asks for none in particular")


class ServerView(AgentView):
    tools: list[str] = Field(description="What a run may call of it, as your tier allows it; rules name them so, too")
    token_header: str | None = Field(
        default=None, description="In which a request brings a token of your own for it; null: it wants none"
    )


class CatalogView(BaseModel):
    version: str = Field(description="The same on every machine that has the same entries")
    skills: list[SkillView]
    agents: list[AgentView]
    mcp: list[ServerView]


@router.get("/catalog", response_model=CatalogView, responses=problems(400, 401, 422), dependencies=[ONLY_KNOWN])
async def listed(request: Request, caller: Annotated[Caller, Depends(attested)]) -> CatalogView:
    """What the caller's tier allows, and why a run that asks for it would be refused."""
    catalog, clamp = services(request).engine.catalog, caller.clamp
    skills = [
        SkillView(**_view(request, caller, entry), default=name in clamp.default_skills)
        for name, entry in catalog.of("skill").items()
        if name in clamp.skills
    ]
    agents = [
        AgentView(**_view(request, caller, entry))
        for name, entry in catalog.of("agent").items()
        if name in clamp.agents
    ]
    servers = [
        ServerView(**_view(request, caller, entry), tools=_open(entry, caller.clamp), token_header=_header(entry))
        for name, entry in catalog.of("server").items()
        if name in clamp.mcp
    ]
    return CatalogView(version=catalog.version, skills=skills, agents=agents, mcp=servers)


def _header(entry: Entry) -> str | None:
    return f"{CREDENTIAL_HEADER}{entry.name}" if entry.server is not None and entry.server.of_caller else None


def _open(entry: Entry, clamp: Clamp) -> list[str]:
    try:
        return list(choosing.tools_of_servers([entry], None, clamp, [clamp.rules]))
    except Problem:
        return []


def _view(request: Request, caller: Caller, entry: Entry) -> dict[str, Any]:
    """`obstacle`: by the decision that a run would have."""
    engine = services(request).engine
    asked = {"skills": [], _FIELDS[entry.kind]: [entry.name]}
    obstacle = None
    try:
        plan(
            InvokeRequest.model_validate({"prompt": "what is there?", **asked}),
            caller.clamp,
            engine.settings,
            engine.boundary,
            catalog=engine.catalog,
        )
    except Problem as problem:
        obstacle = problem.detail
    needs = Needs.model_validate(entry.needs.to_json())
    return {"name": entry.name, "description": entry.description, "needs": needs, "obstacle": obstacle}
