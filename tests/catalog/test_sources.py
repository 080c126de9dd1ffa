"""Reading catalogs: what is broken, hostile or huge in one is named and left out, and nothing else is."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claude_contract import built_in
from claude_invoker.catalog import sources
from claude_invoker.catalog.catalog import OURS, load, version_of
from claude_invoker.catalog.entry import Broken, Entry, File, agent_of, skill_of
from claude_invoker.catalog.layout import Layout
from claude_invoker.catalog.sources import pack, read
from claude_invoker.mcp.memory import ENTRY
from claude_invoker.workspace import archive
from tests.catalog.support import SKILL, write_skill


def names(entries: tuple[Entry, ...]) -> list[str]:
    return [entry.name for entry in entries]


def _rename(folder: Path) -> None:
    folder.rename(folder.with_name("Bad_Name"))


def _link_out(folder: Path) -> None:
    (folder / "secret").symlink_to("/etc/shadow")


def _linked_skill_md(folder: Path) -> None:
    (folder / "SKILL.md").unlink()
    (folder / "SKILL.md").symlink_to("/etc/hostname")


def _is_a_link(folder: Path) -> None:
    folder.rename(folder.parents[1] / "elsewhere")
    folder.symlink_to(folder.parents[1] / "elsewhere")


def _links_in_a_circle(folder: Path) -> None:
    (folder / "again").symlink_to(folder)


def _a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe")


def _a_socket(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "sock"))


def _many_files(folder: Path) -> None:
    for number in range(100_000):
        os.close(os.open(folder / f"f{number}", os.O_CREAT | os.O_WRONLY))


def _deep(folder: Path) -> None:
    (folder / "/".join("d" * 20)).mkdir(parents=True)


def _large(folder: Path) -> None:
    with (folder / "large").open("wb") as file:
        file.write(b"x" * (17 << 20))


def _large_with_holes(folder: Path) -> None:
    with (folder / "large").open("wb") as file:
        file.truncate(1 << 40)


def _for_everybody(folder: Path) -> None:
    (folder / "reference.md").chmod(0o666)


def _a_line_in_its_name(folder: Path) -> None:
    (folder / "a\nb").write_text("x")


def _bytes_in_its_name(folder: Path) -> None:
    (Path(os.fsdecode(os.fsencode(folder) + b"/\xff"))).write_text("x")


def _of_git(folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git/config").write_text("[core]\n")


def _no_skill_md(folder: Path) -> None:
    (folder / "SKILL.md").unlink()


def _not_text(folder: Path) -> None:
    (folder / "SKILL.md").write_bytes(b"---\nname: bad\n---\n\xff\xfe")


def _head(*lines: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "SKILL.md").write_text("\n".join(("---", *lines, "---", "text", "")))

    return write


_BOMB = [
    "a: &a [x, x]",
    *(f"{new}: &{new} [*{old}, *{old}, *{old}, *{old}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)),
]
D = "description: d"
BROKEN = {
    "its name": (_rename, "skills/Bad_Name: must be called by lower-case letters"),
    "a link out of it": (_link_out, "secret is no regular file, but a link"),
    "its text is a link": (_linked_skill_md, "SKILL.md is no regular file, but a link"),
    "it is a link": (_is_a_link, "is a link"),
    "links in a circle": (_links_in_a_circle, "again is no regular file"),
    "a pipe": (_a_pipe, "pipe is no regular file"),
    "a socket": (_a_socket, "sock is no regular file"),
    "10^5 files": (_many_files, "has more than 500 entries"),
    "deep": (_deep, "has more than 8 directories deep"),
    "large": (_large, "has more than 16,777,216 bytes"),
    "large with holes": (_large_with_holes, "has more than 16 MiB"),
    "anybody may change it": (_for_everybody, "reference.md can be changed by every user"),
    "a line break in a name": (_a_line_in_its_name, r"a\nb: its path must be printable"),
    "bytes in a name": (_bytes_in_its_name, r"\udcff: its path must be printable"),
    "git's": (_of_git, ".git/config: its path must not lie in .git"),
    "no SKILL.md": (_no_skill_md, "has no SKILL.md"),
    "not text": (_not_text, "SKILL.md is not UTF-8 text"),
    "no head": (lambda folder: (folder / "SKILL.md").write_text("# bad\n"), "does not begin with a head"),
    "another name": (_head("name: good", D), "SKILL.md: name is 'good', its directory 'bad'"),
    "no description": (_head("name: bad"), "SKILL.md: Object missing required field `description`"),
    "an empty description": (_head("name: bad", "description: ''"), "description: Expected `str` of length >= 1"),
    "control characters": (_head("name: bad", r'description: "\e[2J"'), "description must be printable"),
    "a long description": (_head("name: bad", f"description: {'x' * 1025}"), "description: Expected `str` of length <= 1024"),
    "not YAML": (_head("name: bad", "description: a: b: c"), "SKILL.md:3: mapping values are not allowed here"),
    "an object of Python": (_head("name: bad", "description: !!python/name:os.system"), "SKILL.md:3: could not determine"),
    "a list": (_head("- name: bad"), "SKILL.md: Expected `object`, got `array`"),
    "brackets without end": (_head("x: " + "[" * 20_000), "SKILL.md: its head is not YAML"),
    "a bomb": (_head("name: bad", D, *_BOMB), "SKILL.md: Object contains unknown field"),
    "a line break in a member": (_head("name: bad", D, r'"a\nb": 1'), "unknown field `a?b`"),
    "hooks": (_head("name: bad", D, "hooks: {PreToolUse: []}"), "unknown field `hooks`"),
    "a model": (_head("name: bad", D, "model: opus"), "unknown field `model`"),
    "a fork": (_head("name: bad", D, "context: fork", "agent: Plan"), "unknown field `context`"),
    "no tool": (_head("name: bad", D, "allowed-tools: Bash; rm"), "allowed-tools: names of tools are needed"),
    "no host": (_head("name: bad", D, "metadata: {needs-egress: 10.0.0.1}"), "metadata.needs-egress: must be a host name"),
    "no package": (_head("name: bad", D, "metadata: {needs-python: ../b}"), "metadata.needs-python: '../b' is none"),
    "no program": (_head("name: bad", D, "metadata: {needs-programs: ../sh}"), "metadata.needs-programs: '../sh' is none"),
    "nothing to say": (lambda folder: (folder / "SKILL.md").write_text(f"---\nname: bad\n{D}\n---\n\n"), "says nothing below"),
}  # fmt: skip


@pytest.mark.parametrize(("breaks", "says"), BROKEN.values(), ids=BROKEN)
def test_a_broken_one_is_named_and_left_out(tmp_path: Path, breaks: Callable[[Path], None], says: str) -> None:
    write_skill(tmp_path, "good")
    folder = write_skill(tmp_path, "bad")
    if os.geteuid() != 0 and breaks is _a_pipe:
        pytest.skip("as root")
    breaks(folder)
    found = read(tmp_path)
    assert names(found.entries) == ["good"]
    assert len([each for each in found.refused if each.place.startswith("skills/")]) == 1
    assert says in str(found.refused[-1])
    assert str(found.refused[-1]).isprintable()


def test_a_good_one_says_what_it_needs(tmp_path: Path) -> None:
    more = 'license: MIT\nallowed-tools: Bash(git log:*), Read\nmetadata: {version: 1.0, needs-egress: "pypi.org *.npmjs.org", needs-python: a b, needs-programs: git}\n'
    write_skill(tmp_path, "good", more)
    [skill] = read(tmp_path).entries
    assert skill.needs.to_json() == {
        "tools": ["Bash", "Read"],
        "egress": ["*.npmjs.org", "pypi.org"],
        "python": ["a", "b"],
        "programs": ["git"],
    }
    head = skill.text.split("---")[1]
    assert head == '\nname: good\ndescription: "Says good, and nothing else."\n', (
        "no member that is a permission to the CLI"
    )


@pytest.mark.parametrize(
    ("breaks", "says"),
    [
        (
            lambda root: (root / "skills").rename(root / "skill"),
            "skill: is no kind of entry: there are skills, agents and mcp",
        ),
        (lambda root: (root / "skills").rename(root / "skill"), "skills: is not there"),
        (
            lambda root: [(root / "skills" / f"s{n}").mkdir() for n in range(2_001)],
            "skills: has more than 2,000 entries",
        ),
    ],
)
def test_a_catalog_with_nothing_in_it_says_so(tmp_path: Path, breaks: Callable[[Path], object], says: str) -> None:
    write_skill(tmp_path, "good")
    breaks(tmp_path)
    found = read(tmp_path)
    assert found.entries == () and says in "\n".join(map(str, found.refused))


def test_the_201st_is_left_out(tmp_path: Path) -> None:
    for number in range(202):
        write_skill(tmp_path, f"s{number:03}")
    found = read(tmp_path)
    assert len(found.entries) == 200 and [each.place for each in found.refused] == ["skills/s200", "skills/s201"]


def test_what_is_no_catalog_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is neither a directory nor an archive"):
        read(tmp_path / "missing")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match=r"it is neither a \.zip nor a \.tar\.gz"):
        read(tmp_path / "text")
    tmp_path.chmod(0o777)
    with pytest.raises(ValueError, match="can be changed by every user"):
        read(tmp_path)


def _tar(members: list[tuple[str, bytes | str]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
                continue
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


GOOD = ("skills/good/SKILL.md", SKILL.format(name="good", more="").encode())


@pytest.mark.parametrize(
    ("member", "says"),
    [
        (("skills/../../etc/cron.d/x", b"x"), "a path in it must be relative, without empty parts, . or .."),
        (("/etc/x", b"x"), "a path in it must be relative"),
        (("skills/good/link", "/etc/shadow"), "is no regular file"),
        (("skills/good/SKILL.md", b"x"), "a path in it is there twice"),
        (("skills/good/skill.MD", b"x"), "which is one name with"),
        (("README.md", b"x"), "is no part of an entry"),
        (("skills/README.md", b"x"), "is no part of an entry"),
    ],
)  # fmt: skip
def test_an_archive_that_pack_has_not_made_is_refused(
    tmp_path: Path, member: tuple[str, bytes | str], says: str
) -> None:
    path = tmp_path / "catalog.tar.gz"
    path.write_bytes(_tar([GOOD]))
    assert names(read(path).entries) == ["good"]
    path.write_bytes(_tar([GOOD, member]))
    with pytest.raises(ValueError, match=says):
        read(path)


def test_an_archive_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "catalog.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("skills/good/zeros", b"\0" * (129 << 20))
    with pytest.raises(ValueError, match="it has more than 134,217,728 bytes"):
        read(path)
    path.write_bytes(_tar([GOOD, *((f"skills/many/{n}", b"") for n in range(501))]))
    found = read(path)
    assert names(found.entries) == ["good"] and "has more than 500 files" in str(found.refused[0])


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), min_size=1, max_size=40).filter(
    str.strip
)
PATHS = st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}\.[a-z]{1,3}){0,2}", fullmatch=True).map(lambda path: f"x/{path}.bin")


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(PATHS, st.binary(max_size=200), max_size=5), TEXTS, st.booleans())
def test_a_packed_catalog_is_the_same_catalog(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], text: str, executable: bool
) -> None:
    folder = tmp_path_factory.mktemp("packed")
    head = f"---\nname: good\ndescription: d\n---\n{text}\n".encode()
    try:
        skill = skill_of(
            "good", [File("SKILL.md", head), *(File(path, content, executable) for path, content in files.items())]
        )
    except Broken:
        return
    first, second = folder / "a.tar.gz", folder / "b.tar.gz"
    pack([skill], first)
    pack(read(first).entries, second)
    assert first.read_bytes() == second.read_bytes()
    assert read(second).entries == (skill,)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.text(max_size=200).map(lambda text: f"---\n{text}\n---\nx".encode("utf-8", "surrogatepass")),
    )
)
def test_any_skill_md_is_a_skill_or_says_why_not(content: bytes) -> None:
    try:
        found = skill_of("good", [File("SKILL.md", content)])
    except Broken as error:
        assert str(error)
    else:
        assert found.name == "good" and found.description.isprintable()


def test_what_changes_a_skill_changes_its_version() -> None:
    head = b"---\nname: good\ndescription: d\n---\nx"
    given = [
        [File("SKILL.md", head)],
        [File("SKILL.md", head + b"y")],
        [File("SKILL.md", head), File("a", b"")],
        [File("SKILL.md", head), File("b", b"")],
        [File("SKILL.md", head), File("a", b"", is_executable=True)],
    ]
    assert len({version_of([skill_of("good", files)]) for files in given}) == len(given)


def test_ours_are_whole_and_one_of_the_operators_stands_in_the_place_of_ours(tmp_path: Path) -> None:
    assert read(OURS).refused == ()
    ours = load(None)
    assert set(ours.of("skill")) == {"pdf", "docx", "canvas-design", "frontend-design", "memory", "tdd"}
    write_skill(tmp_path, "pdf")
    assert load(tmp_path).of("skill")["pdf"].description == "Says pdf, and nothing else."
    assert load(tmp_path).version != ours.version


def test_a_gateway_knows_of_ours_what_they_are_called_and_need() -> None:
    """For `kong-claude doctor`, which sees no invoker."""
    ours = load(None, [ENTRY])
    needs = {name: built_in.Needs(entry.needs.tools, entry.needs.servers) for name, entry in ours.of("skill").items()}
    assert needs == built_in.SKILLS
    servers = {name: entry.server.tools for name, entry in ours.of("server").items() if entry.server is not None}
    assert servers == built_in.SERVERS and not ours.of("agent")


def test_what_runs_get_is_ours_and_closed_to_writers(tmp_path: Path) -> None:
    write_skill(
        tmp_path / "given", "good", "metadata: {needs-python: pypdf no-such-package, needs-programs: no-such-program}\n"
    )
    (tmp_path / "given/skills/good/run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "given/skills/good/run.sh").chmod(0o700)
    old = os.umask(0o077)
    try:
        layout = Layout(tmp_path / "root")
        made = layout.write(load(tmp_path / "given"))
        assert not list(layout.libraries.iterdir()), "until a run has skills"
        layout.bring_libraries()
    finally:
        os.umask(old)
    assert made.obstacles["skill", "good"].startswith(
        "it needs the Python package no-such-package: it is not installed: pip install"
    )
    assert (
        "needs the program no-such-program, which is not installed" in made.obstacles["skill", "good"]
        and "pypdf" not in made.obstacles["skill", "good"]
    )
    folder = tmp_path / "root/good"
    modes = {path.relative_to(folder).as_posix(): oct(path.stat().st_mode & 0o777) for path in folder.rglob("*")}
    assert (
        modes["skills/good/run.sh"] == "0o755"
        and modes["skills/good/SKILL.md"] == "0o644"
        and modes["skills"] == "0o755"
    )
    assert all(not path.stat().st_mode & 0o022 for path in (tmp_path / "root").rglob("*"))
    assert (layout.libraries / "pypdf/__init__.py").is_file()
    assert layout.of(["good"]).readable == (folder, tmp_path / "root/.libraries")
    assert layout.of([]).readable == ()


AGENT = "---\nname: reviewer\ndescription: Reviews.\n{more}---\nYou review.\n"


@pytest.mark.parametrize(
    ("more", "tools", "model", "shown"),
    [
        ("", ("Read",), None, 'tools: "Read"'),
        ("tools: Read, Grep\nmodel: haiku\n", ("Read", "Grep"), "haiku", 'tools: "Read, Grep"\nmodel: "haiku"'),
        ("model: inherit\ntools: [Bash]\n", ("Bash",), None, 'tools: "Bash"'),
    ],
)
def test_an_agent_has_the_tools_that_it_names(more: str, tools: tuple[str, ...], model: str | None, shown: str) -> None:
    found = agent_of("reviewer", AGENT.format(more=more).encode())
    assert (found.kind, found.needs.tools, found.needs.model) == ("agent", tools, model)
    assert found.text == f'---\nname: reviewer\ndescription: "Reviews."\n{shown}\n---\nYou review.\n'


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("reviewer.md", AGENT.format(more="permissionMode: bypassPermissions\n"), "unknown field `permissionMode`"),
        ("reviewer.md", AGENT.format(more="hooks: {}\n"), "unknown field `hooks`"),
        ("reviewer.md", AGENT.format(more="mcpServers: [x]\n"), "unknown field `mcpServers`"),
        ("reviewer.md", AGENT.format(more="model: 'x y'\n"), "reviewer.md: model: 'x y' is none"),
        ("reviewer.md", "no head", "reviewer.md does not begin with a head"),
        ("other.md", AGENT.format(more=""), "name is 'reviewer', its file 'other'"),
        ("reviewer.txt", AGENT.format(more=""), "is no agent: their files end in .md"),
        ("Reviewer.md", AGENT.format(more=""), "must be called by lower-case letters"),
        ("reviewer.md", AGENT.format(more="") + "x" * (65 << 10), "has more than 64 KiB"),
    ],
)
def test_a_broken_agent_is_named_and_left_out(tmp_path: Path, name: str, content: str, says: str) -> None:
    write_skill(tmp_path, "good")
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents/fine.md").write_text(AGENT.format(more="").replace("reviewer", "fine"))
    (tmp_path / "agents" / name).write_text(content)
    (tmp_path / "agents/linked.md").symlink_to("/etc/hostname")
    (tmp_path / "agents/folder.md").mkdir()
    found = read(tmp_path)
    assert names(found.entries) == ["good", "fine"]
    refused = {each.place: each.why for each in found.refused}
    assert says in refused.pop(f"agents/{name}")
    assert refused == {"agents/linked.md": "is no regular file", "agents/folder.md": "is no regular file"}


def test_agents_are_packed_too(tmp_path: Path) -> None:
    write_skill(tmp_path / "given", "good")
    (tmp_path / "given/agents").mkdir()
    (tmp_path / "given/agents/reviewer.md").write_text(AGENT.format(more=""))
    found = read(tmp_path / "given")
    pack(found.entries, tmp_path / "a.tar.gz")
    assert read(tmp_path / "a.tar.gz") == found and names(found.entries) == ["good", "reviewer"]


def command(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "claude_invoker", "catalog", *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_the_command(tmp_path: Path) -> None:
    root = tmp_path / "given"
    write_skill(root, "good", "allowed-tools: Bash\n")
    checked = command("check", root)
    assert checked.returncode == 0 and checked.stdout.startswith("1 entries, version ")
    version = checked.stdout.split()[-1]
    packed = command("pack", root, "--into", tmp_path)
    assert packed.stdout.strip() == str(tmp_path / f"catalog-{version}.tar.gz")
    listed = command("list", packed.stdout.strip())
    assert listed.stdout == "skill good  (tools: Bash)\n  Says good, and nothing else.\n"
    _link_out(write_skill(root, "bad"))
    for verb, code in (("check", 1), ("list", 1), ("pack", 1)):
        said = command(verb, root)
        assert said.returncode == code and "skills/bad: secret is no regular file, but a link" in said.stderr
    assert "nothing is packed while something would be left out" in said.stderr
    assert command("check", tmp_path / "nowhere").returncode == 2
    ours = json.loads(command("list", "--json").stdout)
    assert {"pdf", "memory"} <= {each["name"] for each in ours["entries"] if each["kind"] == "skill"}
    assert ours["version"] == load(None, [ENTRY]).version, "as GET /claude/catalog says it"
    assert "server memory  (needs nothing)\n" in (text := command("list").stdout)
    assert "  offers: remember, recall, forget, export\n" in text


def test_a_skill_whose_server_is_nowhere_is_named(tmp_path: Path) -> None:
    """It is there, and of no use: each request for it is refused."""
    write_skill(tmp_path, "keeping", "metadata: {needs-mcp: memory}\n")
    assert command("check", tmp_path).returncode == 0, "which comes with the invoker"
    write_skill(tmp_path, "filing", "metadata: {needs-mcp: tickets}\n")
    said = command("check", tmp_path)
    assert said.returncode == 1 and said.stdout.startswith("2 entries, version ")
    assert "skill filing: needs the MCP server tickets, which is not there (mcp/tickets.yaml)" in said.stderr
    (tmp_path / "mcp").mkdir()
    described = "name: tickets\ndescription: Tickets.\ntools: [search]\nurl: http://127.0.0.1:9/mcp\n"
    (tmp_path / "mcp/tickets.yaml").write_text(described)
    assert command("check", tmp_path).returncode == 0


def test_the_whole_catalog_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory, too: what comes last is left out, the same on every machine."""
    monkeypatch.setattr(sources, "ALL", archive.Bounds(entries=20_000, bytes=5_000))
    for name in ("a", "b", "c"):
        write_skill(tmp_path, name, big=b"x" * 2_000)
    found = read(tmp_path)
    assert names(found.entries) == ["a", "b"] and found.refused[0].place == "skills/c"
