"""Configurations as entities that know their parents, and every way in which a file may write them down."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass, field
from typing import Any

import yaml

from minikong.entities import derived_id

KINDS = ("services", "routes", "consumers", "consumer_groups", "upstreams", "targets", "plugins")
FORMATS = ("yaml", "yaml flow", "json", "json with tabs")
NAMINGS = ("name", "id", "name and id", "nameless")
SWITCHED_OFF = "anchors of a plugin that is switched off"
ANCHORS = ("anchors", "merge keys", SWITCHED_OFF)


@dataclass(eq=False)
class Entity:
    """One entity; `parents` by the field that refers to them. `said`: only the doctor's file has it, since minikong has
    no such kind or plugin."""

    kind: str
    fields: dict[str, Any]
    parents: dict[str, Entity] = field(default_factory=dict)
    said: bool = False

    @property
    def label(self) -> str:
        """What the doctor calls it."""
        own = self.fields
        known = [own.get(key) for key in ("name", "username", "id", "custom_id")]
        place = [own.get("url") or own.get("host"), *own.get("hosts", ()), *own.get("paths", ())]
        return next(filter(None, known), None) or " ".join(part for part in place if part)


@dataclass
class World:
    """A whole configuration, the environment that the doctor is told, and the forms that it has."""

    chance: random.Random
    environment: dict[str, str]
    entities: list[Entity] = field(default_factory=list)
    forms: set[str] = field(default_factory=set)
    numbers: int = 0

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    def identifier(self) -> str:
        return f"00000000-0000-4000-8000-{self.number():012d}"

    def choose(self, what: str, *among: str) -> str:
        """One of them; counted as a form."""
        chosen = self.chance.choice(among)
        self.forms.add(f"{what}: {chosen}")
        return chosen

    def add(self, kind: str, fields: dict[str, Any], said: bool = False, **parents: Entity) -> Entity:
        made = Entity(kind, fields, parents, said or any(p.said for p in parents.values()))
        self.entities.append(made)
        return made

    def named(self, kind: str, fields: dict[str, Any], said: bool = False, **parents: Entity) -> Entity:
        """With a name, an id, both or neither."""
        naming = self.choose(kind, *NAMINGS)
        own: dict[str, Any] = {}
        if "name" in naming.split():
            own["name"] = f"{kind[0]}{self.number()}"
        if "id" in naming.split():
            own["id"] = self.identifier()
        return self.add(kind, own | fields, said, **parents)

    def plugin(self, name: str, config: dict[str, Any] | None = None, *, said: bool = False, **more: Any) -> Entity:
        """`more`: parents, and other fields."""
        parents = {k: v for k, v in more.items() if isinstance(v, Entity)}
        fields = {k: v for k, v in more.items() if not isinstance(v, Entity)}
        made = {"name": name, **fields} | ({} if config is None else {"config": config})
        self.forms.add(f"plugin of: {' and '.join(sorted(parents)) or 'all'}")
        return self.add("plugins", made, said, **parents)

    def of(self, kind: str, **parents: Entity) -> list[Entity]:
        return [e for e in self.entities if e.kind == kind and parents.items() <= e.parents.items()]

    def plugins_of(self, parent: Entity, *names: str) -> list[Entity]:
        return [e for e in self.of("plugins") if parent in e.parents.values() and e.fields["name"] in names]

    def remove(self, *gone: Entity) -> None:
        self.entities = [e for e in self.entities if e not in gone]


class Merge(str):
    """The key `<<`."""


class Dumper(yaml.SafeDumper):
    pass


Dumper.add_representer(Merge, lambda dumper, key: dumper.represent_scalar("tag:yaml.org,2002:merge", "<<"))


@dataclass(frozen=True)
class Written:
    """`text` for the doctor, in a file of that suffix; `served` what a gateway loads: the same without what it lacks."""

    text: str
    suffix: str
    served: str
    served_as: str


def written(world: World) -> Written:
    """One way to write it down."""
    form = world.choose("format", *FORMATS)
    yamls = form.startswith("yaml")
    sharing = world.choose("sharing", "none", "_plugin_configs", *(ANCHORS if yamls else ()))
    if sharing == SWITCHED_OFF:
        carrier = next(
            e for e in world.of("plugins") if e.fields["name"].startswith("claude-") and "config" in e.fields
        )
        world.plugin(carrier.fields["name"], carrier.fields["config"], enabled=False, id=world.identifier())
        world.entities.insert(0, world.entities.pop())
    layout = {e: world.chance.random() < 0.5 for e in world.entities}  # flat, where it can be
    references = {e: world.chance.random() for e in world.entities}
    for entity in world.entities:
        by_table = nameless(entity) or entity.parents
        if entity.kind == "plugins" and (by_table or world.chance.random() < 0.5):
            entity.fields.setdefault("id", world.identifier())  # Kong derives equal ones for parents that are tables
    deck = sharing == "_plugin_configs"
    whole = document(world, world.entities, layout, references, deck=deck)
    shared(whole, sharing)
    loaded = [e for e in world.entities if not e.said]
    served = json.dumps(document(world, loaded, layout, references, deck=False))
    as_it_is = not deck and len(loaded) == len(world.entities)
    if yamls:
        text = yaml.dump(whole, Dumper=Dumper, sort_keys=False, default_flow_style=form == "yaml flow", width=10_000)
    else:
        text = json.dumps(whole, indent="\t" if "tabs" in form else None)
    suffix = "yml" if yamls else "json"
    return Written(text, suffix, text, suffix) if as_it_is else Written(text, suffix, served, "json")


def nameless(entity: Entity) -> bool:
    return "name" not in entity.fields


def document(
    world: World, entities: list[Entity], layout: dict[Entity, bool], references: dict[Entity, float], deck: bool
) -> dict[str, Any]:
    made: dict[str, Any] = {"_format_version": "3.0"}
    own = {e: copy.deepcopy(e.fields) for e in entities}
    for entity in entities:
        named = {key: referred(parent, references[entity], deck) for key, parent in entity.parents.items()}
        inside = next((key for key, found in named.items() if found is None), None)  # no way but to be nested
        if named and not inside and len(named) == 1 and not layout[entity]:
            (inside,) = named
        if inside:
            own[entity] |= {key: by_id(parent) for key, parent in entity.parents.items() if key != inside}
            own[entity.parents[inside]].setdefault(entity.kind, []).append(own[entity])
            world.forms.add("nested")
        else:
            own[entity] |= named
            made.setdefault(entity.kind, []).append(own[entity])
            if named:
                world.forms.add("flat")
    return made


def referred(parent: Entity, chance: float, deck: bool) -> Any:
    """One way to name a parent: by name, id, a table of it, or the id that Kong derives; None where there is none."""
    name, own = parent.fields.get("name") or parent.fields.get("username"), parent.fields.get("id")
    ways: list[Any] = []
    if name:
        ways += [name, {"name": name}] if deck and parent.kind != "consumers" else [name]
    if own or name:
        ways += [by_id(parent)["id"], by_id(parent)]
    return ways[int(chance * len(ways))] if ways else None


def by_id(entity: Entity) -> dict[str, str]:
    own = entity.fields
    return {"id": own.get("id") or derived_id(entity.kind, own.get("name") or own["username"])}


def shared(made: dict[str, Any], how: str) -> None:
    """What plugins have in common by anchors, merge keys or decK's own; as they run, it is the same."""
    holders = [p for p in plugins_in(made) if p.get("config")]
    if how == "none" or not holders:
        return
    first: dict[str, dict[str, Any]] = {}
    for plugin in holders:
        key = plugin["name"] + json.dumps(plugin["config"], sort_keys=True)
        common = first.setdefault(key, plugin["config"])
        if how == "merge keys":
            plugin["config"] = {Merge("<<"): common}
        elif how == "_plugin_configs":
            name = f"c{list(first).index(key)}"
            made.setdefault("_plugin_configs", {})[name] = common
            head = next(iter(plugin["config"].items()))
            plugin["_config"] = name
            plugin["config"] = dict([head])  # what a plugin says itself stands
        else:
            plugin["config"] = common
    if how == "merge keys":  # the first one is written out: the anchor
        for common in first.values():
            next(p for p in holders if p["config"].get(Merge("<<")) is common)["config"] = common


def plugins_in(made: Any) -> list[dict[str, Any]]:
    found = list(made.get("plugins", []))
    for kind in KINDS[:-1]:
        for entity in made.get(kind, []):
            found += plugins_in(entity)
    return found
