"""What of a tool's calls passes, is asked about or denied: tables, and a real Bash that must not run what was not read."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from claude_contract.rules import (
    MAX_PATTERN,
    NO_RULES,
    PASSES,
    Decision,
    Rules,
    Verdict,
    parse,
    parse_all,
    strictest,
)

ALLOW, ASK, DENY = Verdict.ALLOW, Verdict.ASK, Verdict.DENY


def rules(ask: str = "", deny: str = "", allow: str = "") -> Rules:
    """Patterns apart by `;`."""
    asked, denied, allowed = (parse_all(filter(None, texts.split("; "))) for texts in (ask, deny, allow))
    return Rules(asked, denied, allowed)


def here(path: str) -> str | None:
    """As where nothing is a link, and the run works in /work."""
    if path.startswith("/work/"):
        path = path.removeprefix("/work/")
    return None if path.startswith("/") or ".." in path.split("/") else path


def verdict(asked: Rules, tool: str, **given: Any) -> Verdict:
    return asked.decide(tool, given, here).verdict


# Patterns


@pytest.mark.parametrize(
    "text",
    ["Bash", "Bash(git log:*)", "Bash(make test)", "Bash(npm run build:*)", "Edit(/src/**)", "Read(/docs/*.md)",
     "Edit(/**/secret/**)", "Write", "WebFetch(domain:example.com)", "WebFetch(domain:*.example.com)", "mcp__github",
     "mcp__github__*", "mcp__github__create_issue", "mcp__my-server__get_x", "Edit(/a b/c)"],
)  # fmt: skip
def test_a_pattern_is_written_as_it_is_read(text: str) -> None:
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Write(src/**)", r"matches nothing: Edit\(src/\*\*\) governs Write, too"),
        ("Write(/src/**)", r"matches nothing: Edit\(/src/\*\*\) governs Write, too"),
        ("NotebookEdit(/a)", "governs NotebookEdit, too"),
        ("Grep(/src/**)", r"matches nothing: Read\(/src/\*\*\) governs Grep, too"),
        ("Task(reviewer)", "of Task there are only all calls, as Task"),
        ("WebSearch(x)", "only all calls"),
        ("Bsh", "Bsh is not known"),
        ("bash", "bash is not known"),
        ("", "must be a tool"),
        ("Bash(", "must be a tool"),
        ("Bash()", "must be plain words"),
        ("Bash(*)", "must be plain words"),
        ("Bash(git *)", "must be plain words"),
        ("Bash(git  log)", "must be plain words"),
        ("Bash(a; b)", "must be plain words"),
        ("Bash(git:*:*)", "must be plain words"),
        ("Bash(echo $HOME)", "must be plain words"),
        ("Edit(src/**)", "must be a path from the run's directory on"),
        ("Edit(//etc/**)", "must be a path"),
        ("Edit(~/x)", "must be a path"),
        ("Edit(/a/../b)", "must be a path"),
        ("Edit(/a/./b)", "must be a path"),
        ("Edit(/a**)", "must be a path"),
        ("Edit(/*a*)", "one \\* or \\? in a name"),
        ("Edit(/**/a/**/b/**)", "at most two"),
        ("Edit(/[ab])", "must be a path"),
        ("Edit(/)", "must be a path"),
        ("WebFetch(example.com)", "must be a domain"),
        ("WebFetch(domain:localhost)", "must be a domain"),
        ("mcp__github__get_*", "must be a tool"),
        ("mcp__*", "must be a tool"),
        ("*", "must be a tool"),
        ("Bash(" + "a" * MAX_PATTERN + ")", "has more than 200 characters"),
    ],
)
def test_what_no_pattern_is(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse(text)


# Commands

GIT = rules(ask="Bash", allow="Bash(git log:*); Bash(git status); Bash(head:*)")


@pytest.mark.parametrize(
    "command",
    ["git log", "git log -3 --oneline", "git   log\t-3", " git log ", "git status", "git log | head -3",
     "git log && git status; git log", "git log\ngit status", "git log --grep 'a b; rm -rf /'", 'git log --grep "a | b"',
     "git log -- 'it''s'", '"git" log'],
)  # fmt: skip
def test_commands_that_plainly_are_what_is_allowed_pass(command: str) -> None:
    assert verdict(GIT, "Bash", command=command) is ALLOW


@pytest.mark.parametrize(
    "command",
    ["git", "git push", "git status -s", "gitlog", "./git log", "/usr/bin/git log", "git log; rm x", "git log & rm x",
     "git log | sh", "git log |& head", "git log > x", "git log < x", "git log $(rm x)", "git log `rm x`",
     "git log $HOME", "git log \"$HOME\"", "git log \"`rm x`\"", "git log *", "git log ~", "git log {a,b}", "git log !!",
     "git log \\; rm", "(git log)", "{ git log; }", "GIT_PAGER=x git log", "'A=b' git log", "! git log", "if git log",
     "git log # x", "git log 'open", 'git log "open', "git log\\\nx", "git log\rrm x", "git log \x00", "git log '\x00'",
     "git log é", "git log &", "git log [a]", "git log ?", "", " ", ";", "git log " + "x" * 30_000, "git log;" * 101, "git -C . log"],
)  # fmt: skip
def test_everything_else_is_asked_about(command: str) -> None:
    assert verdict(GIT, "Bash", command=command) is ASK


@pytest.mark.parametrize("command", [None, 3, ["git", "log"], {"a": 1}])
def test_a_command_that_is_no_text_is_asked_about(command: Any) -> None:
    assert verdict(GIT, "Bash", command=command) is ASK
    assert verdict(GIT, "Bash") is ASK


PUSH = rules(ask="Bash(git push:*)")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("git push", ASK),
        ("ls && git push origin main", ASK),
        ("/usr/bin/git push", ASK),
        ("git -C /x push", ASK),
        ("sudo git push", ASK),
        ("bash -c 'git push'", ASK),
        ("timeout 5 nice git push", ASK),
        ("echo push | xargs git", ASK),
        ("bash deploy.sh", ASK),
        ("trap 'git pu\"\"sh' EXIT", ASK),
        ("mapfile -C 'git pu\"\"sh' -c 1", ASK),
        (". ./deploy.sh", ASK),
        ("git $VERB", ASK),
        ("git log --grep push", ASK),  # rather once too often
        ("git log", ALLOW),
        ("echo push", ALLOW),
        ("ls", ALLOW),
        ("git pushx", ALLOW),
    ],
)
def test_some_commands_are_asked_about(command: str, expected: Verdict) -> None:
    assert verdict(PUSH, "Bash", command=command) is expected


RUNNERS = [
    ".",
    "alias",
    "ash",
    "bash",
    "compgen",
    "complete",
    "dash",
    "env",
    "eval",
    "exec",
    "ksh",
    "mapfile",
    "parallel",
    "readarray",
    "sh",
    "source",
    "trap",
    "xargs",
    "zsh",
]


@pytest.mark.parametrize("runner", RUNNERS)
def test_what_runs_commands_that_it_is_told_elsewhere_is_asked_about(runner: str) -> None:
    for command in (f"{runner} x", f"/bin/{runner} x", f"ls; {runner} x"):
        assert verdict(PUSH, "Bash", command=command) is ASK, command


def test_a_denied_command_is_denied_and_asked_about_where_it_only_may_be_it() -> None:
    denied = rules(deny="Bash(rm:*)", allow="Bash(rm x)")
    assert verdict(denied, "Bash", command="ls; rm x") is DENY
    assert verdict(denied, "Bash", command="sudo rm x") is ASK
    assert verdict(denied, "Bash", command="ls") is ALLOW
    assert denied.decide("Bash", {"command": "rm x"}, here) == Decision(DENY, "Bash(rm:*) is denied")
    assert (
        "cannot be told that it is not Bash(rm:*), which is denied"
        in denied.decide("Bash", {"command": "$x"}, here).why
    )


_PIECES = ("ok", "bad", "a", "-x", "x=1", " ", " ", "\n", ";", "&", "&&", "||", "|", "|&", ">", "<", "(", ")", "{", "}",
           "$", "`", "$(", "${", "'", '"', "\\", "*", "?", "[", "~", "#", "!", "if", "then", "fi", "for", "do", "done",
           "bad;", "é", "\r", "\t", "$'", '$"', "<<", "eval", "exec", "time", "=", ":", "/", "./bad", "coproc", "[[")  # fmt: skip


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`ok`, which does nothing, and others that leave a file where they were started."""
    folder = tmp_path_factory.mktemp("programs")
    for name in ("ok", "bad", "a", "x"):
        program = folder / name
        program.write_text("#!/bin/sh\n" + (f": > ran-{name}\n" if name != "ok" else ""))
        program.chmod(0o755)
    return folder


def ran(programs: Path, work: Path, line: str) -> list[str]:
    """What a real Bash leaves that runs the line."""
    (work / "bad").write_bytes((programs / "bad").read_bytes())
    (work / "bad").chmod(0o755)
    environment = {"PATH": str(programs), "HOME": str(work)}
    subprocess.run(
        ["/bin/bash", "-c", line],
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    found = sorted(path.name for path in work.iterdir() if path.name != "bad")
    for name in found:
        (work / name).unlink()
    return found


@settings(max_examples=150, deadline=None)
@given(pieces=st.lists(st.sampled_from(_PIECES), min_size=1, max_size=9))
@example(pieces=["ok", " ", "'", ";", "bad", "'"])
@example(pieces=["ok", "\n", "ok"])
def test_a_real_bash_runs_nothing_else_of_what_passes(
    pieces: list[str], programs: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    line = "ok " + "".join(pieces)
    if verdict(rules(ask="Bash", allow="Bash(ok:*)"), "Bash", command=line) is ALLOW:
        assert ran(programs, tmp_path_factory.mktemp("work"), line) == []


@pytest.mark.parametrize("line", ["ok; bad", "ok $(bad)", "ok > made", "ok | bad", "x=1 bad", "ok & bad"])
def test_the_control_a_real_bash_runs_what_does_not_pass(line: str, programs: Path, tmp_path: Path) -> None:
    assert verdict(rules(ask="Bash", allow="Bash(ok:*)"), "Bash", command=line) is ASK
    assert ran(programs, tmp_path, line)


@given(words=st.lists(st.text("ab./:=@%+,- ;|$", max_size=6), min_size=1, max_size=5))
def test_words_are_read_as_a_shell_reads_them(words: list[str]) -> None:
    line = shlex.join(["ok", *words])
    assert verdict(rules(ask="Bash", allow="Bash(ok:*)"), "Bash", command=line) is (
        ALLOW if "$" not in line or "'" in line else ASK
    )


# Files


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("/src/**", "src/a.py", ASK),
        ("/src/**", "/work/src/deep/a.py", ASK),
        ("/src/**", "src", ALLOW),
        ("/src/**", "srcs/a.py", ALLOW),
        ("/src/**", "lib/src/a.py", ALLOW),
        ("/src", "src/a.py", ASK),
        ("/src/*.py", "src/a.py", ASK),
        ("/src/*.py", "src/a.pyc", ALLOW),
        ("/src/*.py", "src/deep/a.py", ALLOW),
        ("/src/*.py", "src/a.py/b", ASK),
        ("/a?c", "abc", ASK),
        ("/a?c", "a/c", ALLOW),
        ("/**/key", "key", ASK),
        ("/**/key", "a/b/key", ASK),
        ("/**/key", "a/monkey", ALLOW),
        ("/**", "a\nb", ASK),
        ("/a.b", "axb", ALLOW),
        ("/src/**", "../elsewhere", ASK),
        ("/src/**", "/etc/passwd", ASK),
    ],
)
@pytest.mark.parametrize(
    ("tool", "member"), [("Edit", "file_path"), ("Write", "file_path"), ("NotebookEdit", "notebook_path")]
)
def test_paths_of_what_is_written(tool: str, member: str, pattern: str, path: str, expected: Verdict) -> None:
    asked = rules(ask=f"Edit({pattern})")
    assert verdict(asked, tool, **{member: path}) is expected
    assert verdict(asked, "Read", file_path=path) is ALLOW
    assert verdict(asked, "Bash", command="ls") is ALLOW


def test_what_reads_below_a_directory_is_in_doubt() -> None:
    asked = rules(ask="Read(/secret/**)")
    assert verdict(asked, "Read", file_path="secret/a") is ASK
    assert verdict(asked, "Read", file_path="a") is ALLOW
    assert verdict(asked, "Grep", pattern="x", path="a") is ASK
    assert verdict(asked, "Glob", pattern="*") is ASK


def test_what_is_allowed_of_files_is_what_plainly_is_there() -> None:
    asked = rules(ask="Edit; Write", allow="Edit(/docs/**)")
    assert verdict(asked, "Write", file_path="docs/a.md", content="") is ALLOW
    assert verdict(asked, "Edit", file_path="docs/a.md") is ALLOW
    assert verdict(asked, "Write", file_path="a.md", content="") is ASK
    assert verdict(asked, "Write", file_path="/docs/a.md", content="") is ASK
    assert verdict(asked, "Write", file_path=3, content="") is ASK
    assert verdict(asked, "Write", content="") is ASK


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://example.com/a?b=c#d", ASK),
        ("https://EXAMPLE.com.", ASK),
        ("http://example.com:8080", ASK),
        ("https://other.org/example.com", ALLOW),
        ("https://example.com.other.org", ALLOW),
        ("https://x@example.com/", ASK),
        ("https://example.com\\@other.org", ASK),
        ("https://exämple.com", ASK),
        ("ftp://example.org", ASK),
        (None, ASK),
    ],
)
def test_domains(url: Any, expected: Verdict) -> None:
    assert verdict(rules(ask="WebFetch(domain:example.com)"), "WebFetch", url=url) is expected


def test_a_server_of_mcp() -> None:
    for pattern in ("mcp__github", "mcp__github__*", "mcp__github__create"):
        assert verdict(rules(ask=pattern), "mcp__github__create", a=1) is ASK
        assert rules(ask=pattern).names("mcp__github__create")
    assert verdict(rules(ask="mcp__github__create"), "mcp__github__creates") is ALLOW
    assert verdict(rules(ask="mcp__github__*"), "mcp__github2__create") is ALLOW
    assert verdict(rules(ask="mcp__github__*", allow="mcp__github__get"), "mcp__github__get") is ALLOW


def test_a_subagents_tool_has_two_names() -> None:
    for pattern in ("Task", "Agent"):
        assert verdict(rules(ask=pattern), "Task") is verdict(rules(ask=pattern), "Agent") is ASK
        assert rules(ask=pattern).names("Task")


# Rules


def test_without_rules_everything_passes() -> None:
    assert not NO_RULES
    assert NO_RULES.decide("Bash", {"command": "$x"}, here) == PASSES
    assert strictest([]) == PASSES
    assert not rules(allow="Bash")


def test_which_tools_are_named() -> None:
    asked = rules(ask="Edit(/src/**); mcp__a__*", deny="Bash(rm:*)", allow="Read")
    named = ("Edit", "Write", "MultiEdit", "NotebookEdit", "Bash", "mcp__a__b")
    assert [tool for tool in (*named, "Read", "Grep", "mcp__b__a", "WebFetch") if asked.names(tool)] == list(named)


_PATTERNS = st.sampled_from(
    ["Bash", "Bash(git log:*)", "Bash(ls)", "Edit(/src/**)", "Edit", "Write", "Read(/a)", "Grep", "mcp__a__*"]
).map(parse)
_CALLS: st.SearchStrategy[tuple[str, dict[str, Any]]] = st.one_of(
    st.tuples(st.just("Bash"), st.fixed_dictionaries({"command": st.text("gitlos &;|-$", max_size=12)})),
    st.tuples(
        st.sampled_from(["Edit", "Write", "Read"]),
        st.fixed_dictionaries({"file_path": st.sampled_from(["a", "src/a", "/x"])}),
    ),
    st.tuples(st.sampled_from(["Grep", "mcp__a__b", "Other"]), st.just({})),
)
_LISTS = st.lists(_PATTERNS, max_size=3).map(tuple)


@given(call=_CALLS, ask=_LISTS, deny=_LISTS, allow=_LISTS, more=_PATTERNS)
def test_more_rules_are_never_laxer_and_more_allowed_never_stricter(
    call: tuple[str, dict[str, Any]], ask: Any, deny: Any, allow: Any, more: Any
) -> None:
    before = Rules(ask, deny, allow).decide(*call, here).verdict
    assert Rules((*ask, more), deny, allow).decide(*call, here).verdict >= before
    assert Rules(ask, (*deny, more), allow).decide(*call, here).verdict >= before
    assert Rules(ask, deny, (*allow, more)).decide(*call, here).verdict <= before
    # What is denied stays so, whatever is allowed.
    if before is DENY:
        assert Rules(ask, deny, (*allow, more)).decide(*call, here).verdict is DENY
    if before is not ALLOW:
        assert Rules(ask, deny, allow).names(call[0])
