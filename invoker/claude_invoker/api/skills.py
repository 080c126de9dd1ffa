"""`/catalog`: what the caller's runs may use."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, Field

from claude_invoker.api.answers import problems
from claude_invoker.caller import Caller
from claude_invoker.catalog.entry import Skill
from claude_invoker.model import InvokeRequest
from claude_invoker.plan import plan
from claude_invoker.problem import Problem
from claude_invoker.services import services
from claude_invoker.trust import attested

router = APIRouter(tags=["catalog"])


class Needs(BaseModel):
    """What a run has to have for a skill."""

    tools: list[str] = []
    egress: list[str] = []
    python: list[str] = []
    programs: list[str] = []


class SkillView(BaseModel):
    name: str
    description: str
    needs: Needs
    default: bool = Field(description="Whether a run has it that asks for none in particular")
    obstacle: str | None = Field(default=None, description="Why a run of yours that asks for it is refused")


class CatalogView(BaseModel):
    version: str = Field(description="The same on every machine that has the same skills")
    skills: list[SkillView]


@router.get("/catalog", response_model=CatalogView, responses=problems(401, 422))
async def listed(request: Request, caller: Annotated[Caller, Depends(attested)]) -> CatalogView:
    """The skills that the caller's tier allows, and why a run that asks for one would be refused."""
    catalog = services(request).engine.catalog
    views = [
        SkillView(
            name=skill.name,
            description=skill.description,
            needs=Needs(**skill.needs.to_json()),
            default=skill.name in caller.clamp.default_skills,
            obstacle=_obstacle(request, caller, skill),
        )
        for name, skill in catalog.skills.items()
        if name in caller.clamp.skills
    ]
    return CatalogView(version=catalog.version, skills=views)


def _obstacle(request: Request, caller: Caller, skill: Skill) -> str | None:
    """By the decision that a run would have."""
    engine = services(request).engine
    asked = InvokeRequest(prompt="which skills?", skills=[skill.name])
    try:
        plan(asked, caller.clamp, engine.settings, engine.boundary, catalog=engine.catalog)
    except Problem as problem:
        return problem.detail
    return None
