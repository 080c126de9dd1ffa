"""Keys of several parts that callers choose: whatever they choose, no two tuples of parts give one key."""

from __future__ import annotations

import hashlib
from urllib.parse import unquote

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from claude_contract import ledger
from claude_contract.keys import escaped, joined
from claude_contract.ledger import calls

# Few characters, so that examples meet: the separators, what escapes them, and what stands for them.
PARTS = st.text(st.sampled_from(":%3A25 \0é"), max_size=8) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=8
)
TUPLES = st.tuples(PARTS, PARTS, PARTS)


@given(one=TUPLES, other=TUPLES, separator=st.sampled_from(": \0"))
@example(one=("u", "k:z", ""), other=("u:k", "z", ""), separator=":")
@example(one=("u:k", "z", ""), other=("u%3Ak", "z", ""), separator=":")
def test_different_parts_give_different_keys(
    one: tuple[str, str, str], other: tuple[str, str, str], separator: str
) -> None:
    assume(one != other)
    assert joined(separator, *one) != joined(separator, *other)


@given(parts=TUPLES, separator=st.sampled_from(": \0"))
def test_a_key_can_be_taken_apart(parts: tuple[str, str, str], separator: str) -> None:
    first, second, last = joined(separator, *parts).split(separator, 2)
    assert (unquote(first), unquote(second), last) == parts
    assert unquote(escaped(separator, parts[0])) == parts[0]


def test_usual_parts_stay_as_they_are() -> None:
    assert joined(":", "idem", "alice@example.com", "review-4711") == "idem:alice@example.com:review-4711"


def test_control_plain_joining_is_ambiguous() -> None:
    assert ":".join(("u", "k:z")) == ":".join(("u:k", "z"))
    assert joined(":", "u", "k:z") != joined(":", "u:k", "z")


SUBJECTS = st.text(st.sampled_from("!:%{}* 12ab"), min_size=1, max_size=120) | st.text(
    st.characters(exclude_categories=["Cs"]), min_size=1, max_size=120
)
KINDS = st.sampled_from(["subject", "consumer", "credential", "ip", "header", "path"])


@given(one=st.tuples(KINDS, SUBJECTS), other=st.tuples(KINDS, SUBJECTS))
@example(one=("subject", "consumer:bob"), other=("consumer", "bob"))
def test_different_subjects_have_different_tags(one: tuple[str, str], other: tuple[str, str]) -> None:
    assume(one != other)
    assert ledger.subject_key(*one) != ledger.subject_key(*other)


@pytest.fixture(scope="module")
def long_and_its_double() -> tuple[str, str]:
    """A subject that is too long for a key, and one that escapes to `%` and the same digest: `!…` becomes `%21…`."""
    for number in range(100_000):
        long = f"{'x' * 200}{number}"
        digest = hashlib.blake2b(long.encode(), digest_size=16).hexdigest()
        if digest.startswith("21"):
            return long, "!" + digest[2:]
    raise AssertionError("no digest begins with 21")


def test_nobody_can_take_the_name_of_a_long_subjects_digest(long_and_its_double: tuple[str, str]) -> None:
    long, double = long_and_its_double
    assert ledger.subject_key("subject", long) != ledger.subject_key("subject", double)
    # The control: with `%` before the digest, as it was, the two were one subject.
    assert ledger.subject_key("subject", long).replace("*", "%") == ledger.subject_key("subject", double)


@given(subject=SUBJECTS)
@example(subject="jobs")
def test_a_subjects_ledger_and_the_jobs_share_no_key(subject: str) -> None:
    from claude_invoker.jobs import store

    call = calls.admit(ledger.Admit(ledger.NAMESPACE, ledger.subject_key("subject", subject)))
    lease = ledger.Lease.new(ledger.NAMESPACE, ledger.subject_key("subject", subject))
    ours = {*call.keys, *calls.settle(lease, 0).keys}
    fixed = {value for name, value in vars(store).items() if name.isupper() and isinstance(value, str)}
    kinds = tuple(
        store.PREFIX + word for word in ("job:", "idem:", "wait:", "ring:", "of:", "gone:", "events:", "losing:")
    )
    assert not ours & fixed
    assert not any(key.startswith(kinds) for key in ours)
