"""The runner itself: what it changes, and that a test that checks nothing lets mutants live."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.mutants import __main__ as runner
from tests.mutants import equivalents, of_lua, of_python
from tests.mutants.mutant import Mutant
from tests.mutants.targets import TARGETS

PYTHON = '''"""A docstring."""
from x import y

LIMIT = 3


def allowed(given: int, names: list[str], *, strict: bool = True) -> bool:
    """Whether, says a reader."""
    if given < LIMIT and not strict:
        return any(name == "root" for name in names if name)
    raise ValueError("is too large")
'''


def changes(found: list[Mutant]) -> set[tuple[str, str]]:
    return {(mutant.before, mutant.after) for mutant in found}


def test_mutants_of_python() -> None:
    assert changes(of_python.mutants("x.py", PYTHON)) == {
        ("LIMIT = 3", "LIMIT = 4"),
        (
            "def allowed(given: int, names: list[str], *, strict: bool = True) -> bool:",
            "def allowed(given: int, names: list[str], *, strict: bool = False) -> bool:",
        ),
        *(
            ("if given < LIMIT and not strict:", after)
            for after in (
                "if given <= LIMIT and not strict:",
                "if given >= LIMIT and not strict:",
                "if given < LIMIT or not strict:",
                "if given < LIMIT and (strict):",
                "if not (given < LIMIT and not strict):",
            )
        ),
        *(
            ('return any(name == "root" for name in names if name)', after)
            for after in (
                "return None",
                'return all(name == "root" for name in names if name)',
                'return any(name != "root" for name in names if name)',
                "return any(name == 'rootXX' for name in names if name)",
                'return any(name == "root" for name in names if True)',
            )
        ),
        ('raise ValueError("is too large")', "pass"),
    }


@pytest.mark.parametrize(
    ("compared", "others"),
    [
        ("(n := len(x)) is not None", ["(n := len(x)) is None"]),
        ("(a or b) == (c)", ["(a or b) != (c)"]),
        ("(a)not in(b)", ["(a) in (b)"]),
        ("(n := 0) <= LIMIT", ["(n := 0) < LIMIT", "(n := 0) > LIMIT"]),
    ],
)
def test_parentheses_around_what_is_compared_stay(compared: str, others: list[str]) -> None:
    """Without them `(limit := …) is not None` could not be parsed, and counted as noticed."""
    text = f"if {compared}:\n    pass\n"
    trees = {ast.dump(ast.parse(mutant.applied(text))) for mutant in of_python.mutants("x.py", text)}
    assert {ast.dump(ast.parse(f"if {other}:\n    pass\n")) for other in others} <= trees


LUA = """-- if 1 == 2 then
local limit = ARGV[2]  -- not ours
if held[1] ~= 'running' and n + 1 <= limit then redis.call('ZADD', KEYS[1], 5, 'x') end
"""


def test_mutants_of_lua() -> None:
    line = "if held[1] ~= 'running' and n + 1 <= limit then redis.call('ZADD', KEYS[1], 5, 'x') end"
    found = changes(of_lua.mutants("x.lua", LUA))
    assert {before for before, _ in found} == {line}
    assert {after for _, after in found} == {
        " ".join(line.replace(was, becomes).split())
        for was, becomes in (
            ("held[1]", "held[2]"),
            ("~=", "=="),
            ("and", "or"),
            ("n + 1", "n - 1"),
            ("n + 1", "n + 2"),
            ("<=", "<"),
            ("5", "6"),
            ("held[1] ~= 'running' and n + 1 <= limit", "not (held[1] ~= 'running' and n + 1 <= limit)"),
            ("redis.call('ZADD', KEYS[1], 5, 'x')", ""),
        )
    }


def test_mutants_of_python_can_be_parsed() -> None:
    """What cannot be parsed would count as noticed by tests that notice nothing."""
    for path in TARGETS:
        assert runner.mutants_of(path), path
    for mutant in runner.sampled([path for path in TARGETS if path.endswith(".py")], 8, 1):
        text = (runner.ROOT / mutant.path).read_text()
        assert mutant.applied(text) != text
        ast.parse(mutant.applied(text))


def test_a_sample_is_the_same_for_the_same_seed_and_takes_from_each_file() -> None:
    paths = list(TARGETS)[:5]
    first = runner.sampled(paths, 4, 1)
    assert first == runner.sampled(paths, 4, 1) != runner.sampled(paths, 4, 2)
    assert [mutant.path for mutant in first[:5]] == paths


def test_each_equivalent_fits_a_mutant_and_has_its_reason(tmp_path: Path) -> None:
    known = equivalents.read()
    assert not equivalents.stale(known, [mutant for path in TARGETS for mutant in runner.mutants_of(path)])
    sampled = runner.sampled(list(TARGETS), 0, 1)
    assert not [mutant for mutant in sampled if any(one.fits(mutant) for one in known)]
    listed = tmp_path / "equivalents.txt"
    listed.write_text("a.py: x = 1 → x = 2  # nobody reads it\n")
    assert [str(one) for one in equivalents.stale(equivalents.read(listed), [])] == ["a.py: x = 1 → x = 2"]
    listed.write_text("a.py: x = 1 → x = 2\n")
    with pytest.raises(ValueError, match="why"):
        equivalents.read(listed)


@pytest.mark.slow
@pytest.mark.parametrize("tests", ["weak", "strong"])
def test_a_mutant_lives_only_where_no_test_notices_it(
    tmp_path: Path, tests: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control of the whole: `joined` without its escapes, against a test that only imports it, and its own."""
    path = "contract/claude_contract/keys.py"
    weak = "tests/packaging/test_version.py"
    monkeypatch.setitem(TARGETS, path, (weak,) if tests == "weak" else ("tests/core/test_keys.py",))
    found = dict(runner.tried(runner.sampled([path], 0, 1), 1, float("inf")))
    assert found and set(found.values()) == {tests == "weak"}


def test_what_hangs_is_named_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "HANGS_S", 0.0)
    copy, mutant = runner.Copy(tmp_path), runner.mutants_of("contract/claude_contract/keys.py")[0]
    assert not copy.survives(mutant, ("tests/core/test_keys.py",))
    assert f"hung: {mutant}" in capfd.readouterr().out
    assert (tmp_path / mutant.path).read_text() == (runner.ROOT / mutant.path).read_text()
