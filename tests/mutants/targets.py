"""The decision code, and for each file the tests that have to notice a change of it, the quickest first."""

from __future__ import annotations

_CONTRACT = "contract/claude_contract"
_GATEWAY = "plugins/kong_claude"
_INVOKER = "invoker/claude_invoker"
_RATES = "tests/rate_tiers"

_LEDGER = tuple(
    f"{_RATES}/{name}.py"
    for name in (
        *("test_lifetimes", "test_store", "test_draw", "test_messages", "test_pools", "test_live", "test_periods"),
        *("test_upgrade", "test_model"),
    )
)
_STORE = (
    *("tests/jobs/test_scripts.py", "tests/jobs/test_store.py", "tests/jobs/test_record.py"),
    "tests/jobs/test_held.py::test_one_whose_webhook_is_owed_is_not_dropped",
)
# What runs long there is left out: any junk by hypothesis, and what goes through the plugin server.
_LONG_TOKENS = (
    "--deselect=tests/jwt_claims/test_key_sets.py::test_any_valid_key_among_any_junk_verifies_and_nothing_else_does",
    *(
        f"--deselect=tests/jwt_claims/test_token.py::test_{name}"
        for name in (
            "any_key_in_a_key_set",
            "any_document_as_key_set",
            "signed_nonsense_through_the_socket",
            "bytes_as_a_token_through_the_socket",
            "a_claim_of_any_kind_through_the_socket",
        )
    ),
)


def _tokens(own: str) -> tuple[str, ...]:
    """All tests of tokens, the file's own first."""
    others = [name for name in ("key_sets", "config", "authorization", "identity", "token") if name != own]
    return (*(f"tests/jwt_claims/test_{name}.py" for name in (own, *others)), *_LONG_TOKENS)


_PROMPTS = tuple(
    f"tests/prompt_context/{name}.py" for name in ("test_guards", "test_inert", "test_compose", "test_plugin")
)
_PURE = ("tests/invoker/test_decisions.py", "tests/invoker/test_pure.py")
# Of test_trust those that need no CLI.
_LET_IN = (
    "tests/invoker/test_let_in.py",
    *(
        f"tests/invoker/test_trust.py::test_{name}"
        for name in (
            "refused",
            "another_version_is_refused_by_name",
            "let_in_once",
            "a_body_that_was_changed",
            "checks_for_starting_a_run",
            "a_public_key_is_enough",
            "a_secret_has_32_bytes_at_least",
            "an_attestation_is_used_up_at_all_replicas",
        )
    ),
)
_ATTESTED = ("tests/core/test_attestation.py", "tests/core/test_claims.py", *_LET_IN)
_CLAIMS = ("tests/core/test_claims.py", "tests/core/test_attestation.py", *_LET_IN)

TARGETS: dict[str, tuple[str, ...]] = {
    f"{_CONTRACT}/attestation.py": _ATTESTED,
    f"{_CONTRACT}/claims.py": _CLAIMS,
    f"{_CONTRACT}/rules.py": ("tests/core/test_rules.py",),
    f"{_CONTRACT}/kinds.py": ("tests/core/test_kinds.py",),
    f"{_CONTRACT}/identity.py": (
        "tests/core/test_claims.py",
        "tests/core/test_attestation.py",
        "tests/jwt_claims/test_identity.py",
    ),
    f"{_CONTRACT}/keys.py": ("tests/core/test_keys.py",),
    f"{_CONTRACT}/compose.py": ("tests/prompt_context/test_compose.py", "tests/prompt_context/test_plugin.py"),
    **{
        f"{_CONTRACT}/ledger/{name}.lua": _LEDGER
        for name in ("common", "money", "admit", "settle", "book", "draw", "renew", "release", "live")
    },
    f"{_CONTRACT}/ledger/change.lua": (f"{_RATES}/test_live.py",),
    f"{_GATEWAY}/guard/lua/kong/plugins/claude-guard/compare.lua": ("tests/guard/test_guard.py",),
    f"{_GATEWAY}/pipeline.py": ("tests/core/test_pipeline.py", "tests/gateway/test_table.py"),
    f"{_GATEWAY}/jwt_claims/keys.py": _tokens("key_sets"),
    f"{_GATEWAY}/jwt_claims/jwks.py": _tokens("key_sets"),
    f"{_GATEWAY}/jwt_claims/algorithms.py": _tokens("key_sets"),
    f"{_GATEWAY}/jwt_claims/token.py": _tokens("token"),
    f"{_GATEWAY}/jwt_claims/caller.py": _tokens("identity"),
    f"{_GATEWAY}/jwt_claims/rules.py": _tokens("authorization"),
    f"{_GATEWAY}/rate_tiers/local_ledger.py": (
        f"{_RATES}/test_exactness.py::test_the_process_forgets_what_has_lapsed",
        f"{_RATES}/test_exactness.py::test_what_still_counts_is_not_forgotten_with_it",
        *_LEDGER,
    ),
    f"{_GATEWAY}/prompt_context/guards.py": _PROMPTS,
    f"{_GATEWAY}/prompt_context/inert.py": _PROMPTS,
    f"{_GATEWAY}/prompt_context/template.py": _PROMPTS,
    f"{_INVOKER}/additions.py": _LET_IN,
    f"{_INVOKER}/caller.py": ("tests/jobs/test_record.py", *_LET_IN),
    f"{_INVOKER}/plan.py": _PURE,
    f"{_INVOKER}/replay.py": _LET_IN,
    f"{_INVOKER}/trust.py": _LET_IN,
    f"{_INVOKER}/cli/outcome.py": _PURE,
    **{
        f"{_INVOKER}/jobs/{name}.lua": _STORE
        for name in ("add", "append", "cancel", "claim", "finish", "forget", "held", "requeue", "update")
    },
}
