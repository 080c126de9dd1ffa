"""Runs with skills: the real CLI within the boundary. The stand-in calls a skill, and then runs what the SKILL.md says
that came over the API: so a broken example in one fails its test. What comes out is opened with another library."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docx
import httpx
import PIL.Image
import pypdf
import pypdfium2
import pytest

from tests.catalog.support import skip_where_python_differs, write_agent, write_skill
from tests.invoker.conftest import Invoker, StandInProcess, as_root, bash, defended_and_without, tool, wait_for
from tests.permissions.conftest import asking

pytestmark = [pytest.mark.xdist_group("catalog"), as_root]

TABLE = "# Requests of week 48\n\n| Tier | Requests |\n|---|---:|\n| free | 1,234 |\n| pro | 987 |\n"
CHART = "\n```chart bar By week\nweek,free,pro\n47,10,20\n48,30,15\n```\n"
DESIGN = '#set page(width: 200pt, height: 100pt)\n#rect(width: 100%, height: 100%, fill: rgb("#c8702a"))\n'
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Status</title></head>
<body><main><h1>All is well</h1><p>Gateway: up</p></main></body></html>
"""
KINDS = [
    pytest.param("namespaces", (), id="namespaces"),
    pytest.param("landlock", ("a_machine_without_bubblewrap",), id="landlock"),
]


@pytest.fixture(scope="module")
def catalog() -> Iterator[Path]:
    """Not one of pytest's directories, which are closed to other users: so is not every operator's."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        write_skill(root, "acme", "allowed-tools: Bash\n")
        write_skill(root, "other")
        write_skill(root, "fetching", "metadata: {needs-egress: pypi.org}\n")
        write_skill(root, "lacking", "metadata: {needs-python: no-such-package, needs-programs: no-such-program}\n")
        write_agent(root, "reviewer", "tools: Read, Bash\nmodel: haiku\n")
        write_agent(root, "stranger", "model: opus\n")
        write_skill(root, "webby", "allowed-tools: WebFetch\n")
        with (write_skill(root, "inline") / "SKILL.md").open("a") as text:
            text.write("\nIt is this: !`cat $ARGUMENTS`\n")
        # The CLI's head ends at these, wherever they stand.
        write_agent(root, "dashed", "tools: Read\nmodel: haiku\n", "Reviews a change --- before it is handed in ----.")
        yield root


@pytest.fixture(scope="module")
def invoker(start_invoker: Callable[..., Invoker], catalog: Path) -> Invoker:
    return start_invoker(isolation="namespaces", catalog=catalog)


@pytest.fixture
def attacked(
    start_invoker: Callable[..., Invoker], invoker: Invoker, catalog: Path
) -> Callable[[tuple[str, ...]], Invoker]:
    """The invoker of all tests, or for a control one that lacks the defence."""

    def chosen(without: tuple[str, ...]) -> Invoker:
        return start_invoker(isolation="namespaces", catalog=catalog, without=without) if without else invoker

    return chosen


@pytest.fixture
def api(invoker: Invoker) -> Iterator[httpx.Client]:
    with invoker.client() as client:
        yield client


def done(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def follow(api: httpx.Client, skill: str, before: str = "", **more: Any) -> dict[str, Any]:
    """A run whose model does what a skill says."""
    answer = api.post("/invoke", json={"prompt": f"{before} [[skill {skill}]]", "skills": [skill], **more})
    skip_where_python_differs(answer)
    return done(answer)


def artifact(api: httpx.Client, run: dict[str, Any], path: str) -> bytes:
    assert path in [each["path"] for each in run["artifacts"]], run["result"]
    answer = api.get(f"/runs/{run['id']}/artifacts/{path}")
    assert answer.status_code == 200
    return answer.content


def sent(path: str, content: str) -> list[dict[str, str]]:
    return [{"path": path, "content": content}]


def colours(picture: PIL.Image.Image) -> set[Any]:
    return {colour for _, colour in picture.convert("RGB").getcolors(1 << 24) or ()}


def test_a_table_becomes_a_page_that_shows_it(api: httpx.Client) -> None:
    run = follow(api, "pdf", tool("Write", file_path="report.md", content=TABLE + CHART))
    content = artifact(api, run, "report.pdf")
    pages = pypdf.PdfReader(io.BytesIO(content)).pages
    assert len(pages) == 1 and run["permission_denials"] == []
    text = pages[0].extract_text()
    assert all(word in text for word in ("Requests of week 48", "free", "1,234", "pro", "987", "By week"))
    page = pypdfium2.PdfDocument(content)[0].render(scale=2).to_pil()
    seen = colours(page)
    assert {(47, 93, 138), (200, 112, 42)} <= seen, "the bars of both series"
    assert (0, 0, 0) in seen and (255, 255, 255) in seen


def test_the_document_is_the_answer_where_it_is_asked_for(api: httpx.Client) -> None:
    body = {"prompt": "[[skill pdf]]", "skills": ["pdf"], "files": sent("report.md", TABLE)}
    answer = api.post("/invoke", json=body, headers={"Accept": "image/png, application/pdf;q=0.9"})
    skip_where_python_differs(answer)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/pdf"), answer.text
    assert answer.headers["content-disposition"] == 'attachment; filename="report.pdf"'
    assert len(pypdf.PdfReader(io.BytesIO(answer.content)).pages) == 1


def test_a_word_document(api: httpx.Client) -> None:
    run = follow(api, "docx", files=sent("document.md", TABLE))
    document = docx.Document(io.BytesIO(artifact(api, run, "document.docx")))
    assert [paragraph.text for paragraph in document.paragraphs][:1] == ["Requests of week 48"]
    assert [[cell.text for cell in row.cells] for row in document.tables[0].rows] == [
        ["Tier", "Requests"],
        ["free", "1,234"],
        ["pro", "987"],
    ]


def test_a_picture_as_png_and_svg(api: httpx.Client) -> None:
    run = follow(api, "canvas-design", files=sent("design.typ", DESIGN))
    picture = PIL.Image.open(io.BytesIO(artifact(api, run, "design.png")))
    assert picture.format == "PNG" and picture.size == (400, 200)
    assert (200, 112, 42) in colours(picture)
    assert artifact(api, run, "design.svg").startswith(b"<svg")


def test_a_page_that_stands_by_itself(api: httpx.Client) -> None:
    run = follow(api, "frontend-design", files=sent("page.html", PAGE))
    assert "page.html: stands by itself" in run["result"]
    run = follow(api, "frontend-design", files=sent("page.html", PAGE.replace("</h1>", '</h1><img src="//cdn/x.png">')))
    assert "page.html:3: <img src> is loaded from //cdn/x.png" in run["result"]
    assert "<img> has no alt" in run["result"]


def test_red_then_green(api: httpx.Client) -> None:
    test = "import unittest, adding\nclass Adds(unittest.TestCase):\n    def test_two(self): self.assertEqual(adding.add(1, 2), 3)\n"
    files = [
        {"path": ".tdd/command", "content": "python3 -B -m unittest -q test_nothing"},
        {
            "path": "test_nothing.py",
            "content": "import unittest\nclass N(unittest.TestCase):\n    def test_it(self): pass\n",
        },
        {"path": "adding.py", "content": "def add(a, b):\n    return a - b\n"},
    ]
    # Between the skill's own steps what a model writes; and, out of turn, what the skill refuses.
    step = 'python3 "$(dirname "$PYTHONPATH")"/tdd/skills/tdd/scripts/step.py'
    write = f"echo 'python3 -B -m unittest -q test_adding' > .tdd/command; printf '%s' '{test}' > test_adding.py"
    script = [
        *("[[skill tdd]]", "[[step]]", tool("Bash", command=f"{step} red"), tool("Bash", command=write)),
        *("[[step]]", tool("Bash", command=f"{step} green; sed -i s/-/+/ adding.py"), "[[step]]", "[[step]]"),
    ]
    run = done(api.post("/invoke", json={"prompt": " ".join(script), "skills": ["tdd"], "files": files}))
    said = [line for line in run["result"].splitlines() if ": done" in line or ": not done" in line]
    assert said == [
        "start: done",
        "red: not done: no test was added or changed",
        "red: done",
        "green: not done: the tests fail still",
        "green: done",
        "refactor: done",
    ]


def test_a_skill_of_the_operators_is_read_in_its_whole_directory(api: httpx.Client, invoker: Invoker) -> None:
    run = follow(api, "acme")
    assert "the reference of acme" in run["result"]
    root = next((invoker.state / "trees/catalog").iterdir())
    inside = root / "acme/skills/acme/reference.md"
    run = done(api.post("/invoke", json={"prompt": tool("Read", file_path=str(inside)), "skills": ["acme"]}))
    assert "the reference of acme" in run["result"]


@pytest.mark.parametrize(
    ("skills", "more", "status", "says"),
    [
        (["fetching"], {}, 403, "skill fetching needs the host pypi.org, which is not open (egress); open: none"),
        (
            ["lacking"],
            {},
            403,
            "skill lacking cannot be used here: it needs the Python package no-such-package: it is not ",
        ),
        (["webby"], {}, 403, "no run of this invoker may have WebFetch: "),
        (["pdf"], {"tools": ["Read"]}, 422, "skill pdf needs the tool Bash: name it among tools, too"),
        (["nobody"], {}, 403, "skills not allowed by the tier at the gateway: nobody; allowed: acme, "),
        (["PDF"], {}, 422, ""),
        (["catalog:pdf"], {}, 422, ""),
        (["*"], {}, 422, ""),
        (["../pdf"], {}, 422, ""),
        ([""], {}, 422, ""),
    ],
)
def test_what_is_refused_says_why(
    api: httpx.Client, stand_in: StandInProcess, skills: list[str], more: dict[str, Any], status: int, says: str
) -> None:
    before = len(stand_in.lines())
    answer = api.post("/invoke", json={"prompt": "hi", "skills": skills, **more})
    assert answer.status_code == status, answer.text
    assert says in answer.json()["detail"]
    assert len(stand_in.lines()) == before, "it is refused before it costs anything"


def test_who_asks_sees_what_there_is(api: httpx.Client) -> None:
    found = api.get("/catalog").json()
    skills = {each["name"]: each for each in found["skills"]}
    assert set(skills) == {
        *("acme", "other", "fetching", "lacking", "webby", "inline"),
        *("pdf", "docx", "canvas-design", "frontend-design", "memory", "tdd"),
    }
    assert skills["pdf"]["obstacle"] is None and skills["pdf"]["needs"]["tools"] == ["Bash", "Read", "Write"]
    assert "pypi.org" in skills["fetching"]["obstacle"] and "no-such-program" in skills["lacking"]["obstacle"]
    assert len(found["version"]) == 12 and not any(each["default"] for each in found["skills"])


def test_what_was_laid_out_goes_with_its_invoker(start_invoker: Callable[..., Invoker]) -> None:
    """Also that of one that was killed, when the next one starts there."""
    first = start_invoker()
    [old] = (first.state / "trees/catalog").iterdir()
    os.kill(first.pid, signal.SIGKILL)
    second = start_invoker(after=first)
    wait_for(lambda: not old.exists(), what="the end of what a killed invoker has left")
    assert len(list((second.state / "trees/catalog").iterdir())) == 1
    second.stop()
    assert not list(second.state.glob("trees/catalog/*"))


def shown_to_the_model(stand_in: StandInProcess, since: int) -> str:
    return json.dumps([line for line in stand_in.lines()[since:] if line["path"] == "/v1/messages"])


def test_a_run_without_skills_has_none(api: httpx.Client, stand_in: StandInProcess) -> None:
    before = len(stand_in.lines())
    run = done(api.post("/invoke", json={"prompt": '[[tool Skill {"skill": "catalog:pdf"}]]'}))
    assert "No such tool available: Skill" in run["result"]
    assert "available for use with the Skill tool" not in shown_to_the_model(stand_in, before)


def hand_to(agent: str, prompt: str) -> str:
    return tool("Agent", subagent_type=agent, description="a part", prompt=prompt)


def requests(stand_in: StandInProcess, since: int) -> list[dict[str, Any]]:
    return [line for line in stand_in.lines()[since:] if line["path"] == "/v1/messages"]


def test_a_part_of_the_work_goes_to_an_agent(api: httpx.Client, stand_in: StandInProcess) -> None:
    before = len(stand_in.lines())
    prompt = hand_to("catalog:reviewer", tool("Bash", command="echo of-the-agent > found.txt"))
    run = done(api.post("/invoke", json={"prompt": prompt, "agents": ["reviewer"]}))
    assert artifact(api, run, "found.txt") == b"of-the-agent\n"
    its = [each for each in requests(stand_in, before) if "You are reviewer" in json.dumps(each["system"])]
    assert its and all("haiku" in each["model"] for each in its)
    assert all(sorted(each["tools"]) == ["Bash", "Read"] for each in its), (
        "neither the run's other tools nor agents of its own"
    )
    found = {each["name"]: each for each in api.get("/catalog").json()["agents"]}
    assert found["reviewer"]["needs"]["model"] == ["haiku"] and found["reviewer"]["obstacle"] is None


@pytest.mark.parametrize("decision", ["deny", "allow"])
def test_handing_work_to_an_agent_may_be_asked_about(
    api: httpx.Client, stand_in: StandInProcess, decision: str
) -> None:
    """Its tool comes with the agents and is none that a run is started with by name: the rules name it all the same."""
    before = len(stand_in.lines())
    prompt = hand_to("catalog:reviewer", tool("Bash", command="echo of-the-agent > found.txt"))
    with asking(api, prompt, ("Bash", "Read"), agents=["reviewer"], ask=["Agent"]) as stream:
        asked = stream.until("permission.requested", "run.finished")
        assert asked.get("tool") in ("Agent", "Task"), asked
        assert asked["input"]["subagent_type"] == "catalog:reviewer"
        assert api.post(stream.path(asked), json={"decision": decision}).status_code == 200
        run = stream.until("run.finished")
    called = any("You are reviewer" in json.dumps(each["system"]) for each in requests(stand_in, before))
    assert called is (decision == "allow"), run["result"]
    assert [artifact["path"] for artifact in run["artifacts"]] == (["found.txt"] if called else [])


# --- attacks ---------------------------------------------------------------------------------------------------------

OWN = ("simplify", "plugin-authoring", "doctor", "init", "verify", "security-review", "claude-api")


@pytest.mark.parametrize("without", defended_and_without("the_clis_own_skills"))
def test_the_clis_own_skills_are_not_to_be_had(
    attacked: Callable[..., Invoker], without: tuple[str, ...], stand_in: StandInProcess
) -> None:
    before = len(stand_in.lines())
    calls = " ".join(tool("Skill", skill=name) for name in OWN)
    with attacked(without).client() as api:
        run = done(api.post("/invoke", json={"prompt": calls, "skills": ["acme"]}))
    launched = "Launching skill" in run["result"]
    listed = "- simplify" in shown_to_the_model(stand_in, before)
    assert (launched, listed) == ((True, True) if without else (False, False))


def test_other_skills_and_other_names_of_one_are_not_to_be_had(api: httpx.Client, stand_in: StandInProcess) -> None:
    before = len(stand_in.lines())
    names = ("catalog:other", "other", "CATALOG:ACME", "catalog:*", "*", "catalog:../other", "catalog:acme:other")
    calls = " ".join(tool("Skill", skill=name) for name in names)
    run = done(api.post("/invoke", json={"prompt": calls, "skills": ["acme"]}))
    assert "Launching skill" not in run["result"]
    assert "catalog:acme: Says acme" in shown_to_the_model(stand_in, before)
    assert "Says other" not in shown_to_the_model(stand_in, before)


@pytest.mark.parametrize("without", defended_and_without("the_clis_own_agents"))
def test_the_clis_own_agents_and_those_of_others_are_not_to_be_had(
    attacked: Callable[..., Invoker], without: tuple[str, ...], stand_in: StandInProcess
) -> None:
    own = ("general-purpose", "claude", "Explore", "Plan", "statusline-setup")
    others = ("catalog:stranger", "stranger", "CATALOG:STRANGER", "catalog:*")
    before = len(stand_in.lines())
    with attacked(without).client() as api:
        calls = " ".join(hand_to(agent, "come in") for agent in (*own, *others))
        run = done(api.post("/invoke", json={"prompt": calls, "agents": ["reviewer"], "max_turns": 20}))
        assert run["result"].count("The prompt was: come in") == (len(own) if without else 0), run["result"]
        # Without agents there is no tool by which they are called.
        run = done(api.post("/invoke", json={"prompt": hand_to("general-purpose", "come in")}))
        assert "No such tool available: Agent" in run["result"]
    assert "You are stranger" not in shown_to_the_model(stand_in, before)


SECRET = "what nobody is to read"


def said_to(skill: str, words: str, **more: Any) -> dict[str, Any]:
    """A request whose model calls a skill, with a file of its own."""
    return {"prompt": tool("Skill", skill=f"catalog:{skill}", args=words), "skills": [skill], "tools": ["Bash"],
            "files": sent("keys/a", SECRET), **more}  # fmt: skip


@pytest.mark.parametrize("without", defended_and_without("files_that_words_name"))
def test_what_a_model_says_to_a_skill_names_no_file(
    attacked: Callable[..., Invoker], without: tuple[str, ...], stand_in: StandInProcess
) -> None:
    """It would read without a tool that reads, and past every rule about one."""
    before = len(stand_in.lines())
    with attacked(without).client() as api:
        done(api.post("/invoke", json=said_to("acme", "look at @keys/a", ask=["Read(/keys/**)"])))
    shown = shown_to_the_model(stand_in, before)
    assert "look at @keys/a" in shown and (SECRET in shown) is bool(without)


@pytest.mark.parametrize("ask", [["Bash"], ["Bash(git push:*)"], []])
def test_a_command_in_a_skills_text_is_not_run_where_commands_are_asked_about(
    api: httpx.Client, ask: list[str], stand_in: StandInProcess
) -> None:
    """The CLI asks nobody about it, and runs what it takes for reading. Without rules it is run: the control."""
    before = len(stand_in.lines())
    done(api.post("/invoke", json=said_to("inline", "keys/a", ask=ask)))
    shown = shown_to_the_model(stand_in, before)
    assert "It is this: " in shown and (SECRET in shown) is not bool(ask)


@pytest.mark.parametrize("without", defended_and_without("heads_as_they_are_written"))
def test_whatever_an_agents_description_says_it_has_its_tools_and_its_model(
    attacked: Callable[..., Invoker], without: tuple[str, ...], stand_in: StandInProcess
) -> None:
    before = len(stand_in.lines())
    with attacked(without).client() as api:
        prompt = hand_to("catalog:dashed", tool("Bash", command="touch made.txt"))
        body = {"prompt": prompt, "agents": ["dashed"], "tools": ["Read", "Bash"], "max_turns": 5}
        run = done(api.post("/invoke", json=body))
    assert [each["path"] for each in run["artifacts"]] == (["made.txt"] if without else [])
    its = [each for each in requests(stand_in, before) if each["tools"] == ["Read"] and "haiku" in each["model"]]
    shown = "Reviews a change --- before it is handed in ----." in shown_to_the_model(stand_in, before)
    assert (bool(its), shown) == (not without, not without)


def test_a_prompt_is_no_command_of_the_cli(api: httpx.Client, stand_in: StandInProcess) -> None:
    """Where a run has skills the CLI knows commands, too."""
    for prompt in ("/catalog:acme now", "/init", "/cost", "/acme"):
        before = len(stand_in.lines())
        run = done(api.post("/invoke", json={"prompt": prompt, "skills": ["acme"]}))
        assert f"The prompt was: {prompt}" in run["result"]
        assert "the reference of acme" not in shown_to_the_model(stand_in, before)


def test_skills_of_the_work_tree_are_none(api: httpx.Client, stand_in: StandInProcess) -> None:
    """A repository, or whoever sends files, says nothing about skills."""
    before = len(stand_in.lines())
    planted = "---\nname: {name}\ndescription: planted\n---\nPLANTED\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name in ("planted", "acme"):
            for place in (".claude/skills", "skills", ".agents/skills"):
                packed.writestr(f"{place}/{name}/SKILL.md", planted.format(name=name))
        packed.writestr(".claude/settings.json", '{"permissions": {"allow": ["Skill"]}, "disableBundledSkills": false}')
        packed.writestr(".claude-plugin/plugin.json", '{"name": "catalog"}')
    archive = base64.b64encode(buffer.getvalue()).decode()
    calls = " ".join(tool("Skill", skill=name) for name in ("planted", "catalog:planted", "catalog:acme", "acme"))
    run = done(api.post("/invoke", json={"prompt": calls, "skills": ["acme"], "archive": archive}))
    assert run["result"].count("Launching skill") == 2, "the operator's, by both of its names"
    assert "PLANTED" not in shown_to_the_model(stand_in, before)


WRITES = """
root=$(dirname "$PYTHONPATH"); skill=$root/acme/skills/acme
for path in "$skill/SKILL.md" "$skill/new" "$root/new" "$root/acme/.claude-plugin/plugin.json" "$PYTHONPATH/new.py" "$root/../new"; do
  (echo planted >> "$path") 2>/dev/null && echo "wrote $path"
done
rm -rf "$skill" 2>/dev/null; mv "$root/acme" "$root/gone" 2>/dev/null; chmod -R a+w "$root" 2>/dev/null
cat "$skill/reference.md"
cat "$root/other/skills/other/reference.md"
ls "$root"
"""


@pytest.mark.slow
def test_the_control_of_that(start_invoker: Callable[..., Invoker], catalog: Path) -> None:
    """With a user id for each run and nothing else, and a catalog that all may write."""
    below = ("a_kernel_without_landlock", "a_machine_without_bubblewrap", "a_catalog_for_everybody")
    invoker = start_invoker(isolation="user", catalog=catalog, without=below)
    with invoker.client() as api:
        run = bash(api, WRITES, skills=["acme"]).json()
    assert run["result"].count("wrote") >= 5 and "the reference of other" in run["result"]


@pytest.mark.parametrize(("kind", "without"), KINDS)
def test_a_run_writes_nothing_to_the_catalog_and_reads_its_own_skills_only(
    start_invoker: Callable[..., Invoker], invoker: Invoker, catalog: Path, kind: str, without: tuple[str, ...]
) -> None:
    if without:
        invoker = start_invoker(isolation=kind, catalog=catalog, without=without)
    root = next((invoker.state / "trees/catalog").iterdir())

    def everything() -> dict[str, tuple[int, int]]:
        return {str(path): (path.lstat().st_mode, path.lstat().st_size) for path in root.rglob("*")}

    with invoker.client() as api:
        bash(api, "true", skills=["acme"])  # the first run with skills has the libraries brought
        before = everything()
        run = bash(api, WRITES, skills=["acme"]).json()
        assert "wrote" not in run["result"] and "the reference of acme" in run["result"], run["result"]
        assert "the reference of other" not in run["result"]
        # The control: a run that may have it reads it by the same way.
        run = bash(api, WRITES, skills=["acme", "other"]).json()
        assert "wrote" not in run["result"] and "the reference of other" in run["result"]
        # And a check has what its run has.
        asked = {
            "prompt": "hi",
            "skills": ["acme"],
            "check": 'cat "$(dirname "$PYTHONPATH")"/acme/skills/acme/reference.md',
        }
        assert "the reference of acme" in done(api.post("/invoke", json=asked))["check"]["output"]
    assert everything() == before


def test_a_skill_gives_a_run_no_tool(start_invoker: Callable[..., Invoker]) -> None:
    """`allowed-tools` is a need, not a permission; and a command in its text is run where the run has Bash."""
    with tempfile.TemporaryDirectory() as folder:
        write_skill(Path(folder), "sly", "allowed-tools: Read\n")
        Path(folder).chmod(0o755)
        with (Path(folder) / "skills/sly/SKILL.md").open("a") as text:
            text.write("\n!`echo injected > injected.txt`\n")
        invoker = start_invoker(isolation="namespaces", catalog=folder, tools_allowed="Read,Write")
        with invoker.client() as api:
            run = done(api.post("/invoke", json={"prompt": "[[skill sly]]", "skills": ["sly"]}))
            assert run["artifacts"] == [] and "denied" in run["result"]
