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
    *(
        f"tests/jobs/test_retry.py::test_{name}"
        for name in (
            "small_requests_are_kept_and_counted",
            "what_is_gone_is_not_written_to",
            "nothing_is_written_to_anothers_job",
        )
    ),
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
_SERVERS = "tests/catalog/test_servers.py"
_PLANNED = (*_PURE, "tests/catalog/test_choosing.py", _SERVERS)
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
_MONEY = ("tests/invoker/test_priced.py", "tests/invoker/test_metering.py")
_PURSE = tuple(
    f"tests/invoker/test_wall.py::test_{name}"
    for name in (
        "an_answer_is_as_long_as_the_narrowest_budget_allows",
        "a_request_waits_for_what_others_have_drawn_and_do_not_use",
        "it_is_asked_for_again_at_longer_and_longer_pauses",
        "a_request_waits_for_what_its_own_run_has_drawn_and_does_not_need",
        "requests_at_the_same_time_are_said_in_turn",
        "who_leaves_while_it_is_asked_for_gives_it_back",
        "a_ledger_that_cannot_say_holds_the_request_back",
    )
)
_LISTED = (
    "tests/replicas/test_listing.py",
    *(
        f"tests/replicas/test_held.py::test_{name}"
        for name in (
            "a_subjects_oldest_go_and_nobody_elses",
            "of_all_the_oldest_go",
            "within_the_bounds_all_stay",
            "one_alone_stays_however_large_it_is",
            "what_is_written_twice_counts_once_and_what_has_expired_not_at_all",
        )
    ),
)
_PUT_AWAY = ("tests/jobs/test_put_away.py", *_STORE)
# Of the tests of permissions those that need no CLI.
_ASKED = (
    "tests/permissions/test_decisions.py",
    *(
        f"tests/permissions/test_attacks.py::test_{name}"
        for name in (
            "a_path_is_where_it_leads",
            "what_leads_elsewhere_while_it_waits_is_not_allowed",
            "a_path_that_is_at_no_place",
            "many_links_take_no_time",
            "a_run_that_asks_and_asks_is_not_heard_for_ever",
            "what_cannot_be_shown_is_denied",
            "what_is_kept_of_decisions_is_bounded",
            "what_the_cli_asks_no_more_waits_no_more",
            "what_no_rule_names_is_the_clis_own_business",
            "a_changed_input_is_never_what_is_denied",
            "a_call_is_made_once_for_each_time_that_it_was_let_pass",
        )
    ),
    *(
        f"tests/permissions/test_questions.py::test_{name}"
        for name in (
            "an_answer_takes_the_place_of_what_the_model_says_it_is",
            "what_is_no_answer",
            "a_question_that_nobody_could_answer",
            "nobody_hears",
            "a_call_that_is_no_question_has_no_answers",
        )
    ),
    *(
        f"tests/permissions/test_deferral.py::test_{name}"
        for name in (
            "nothing_is_deferred_that_is_not_noted_first",
            "only_the_very_call_is_as_it_was_decided",
            "which_jobs_may_be_put_away",
            "a_call_is_the_last",
        )
    ),
)
_GRAPHQL = tuple(
    f"tests/invoker/test_graphql.py::test_{name}"
    for name in ("what_may_start_something", "no_mutation_goes_by_unseen", "what_may_name_the_limits")
)
_ATTESTED = (
    *(f"tests/core/test_{name}.py" for name in ("attestation", "claims", "signed")),
    *_LET_IN,
)
_CLAIMS = ("tests/core/test_claims.py", "tests/core/test_attestation.py", *_LET_IN)

TARGETS: dict[str, tuple[str, ...]] = {
    f"{_CONTRACT}/attestation.py": _ATTESTED,
    f"{_CONTRACT}/claims.py": _CLAIMS,
    f"{_CONTRACT}/members.py": _CLAIMS,
    f"{_CONTRACT}/secret_file.py": ("tests/core/test_secret_file.py",),
    f"{_CONTRACT}/rules.py": ("tests/core/test_rules.py",),
    f"{_CONTRACT}/kinds.py": ("tests/core/test_kinds.py",),
    f"{_CONTRACT}/identity.py": (
        "tests/core/test_claims.py",
        "tests/core/test_attestation.py",
        "tests/jwt_claims/test_identity.py",
    ),
    f"{_CONTRACT}/destinations.py": ("tests/core/test_destinations.py",),
    f"{_CONTRACT}/graphql.py": _GRAPHQL,
    f"{_CONTRACT}/ledger/periods.py": (f"{_RATES}/test_periods.py",),
    f"{_CONTRACT}/keys.py": ("tests/core/test_keys.py",),
    f"{_CONTRACT}/compose.py": ("tests/prompt_context/test_compose.py", "tests/prompt_context/test_plugin.py"),
    **{
        f"{_CONTRACT}/ledger/{name}.lua": _LEDGER
        for name in ("common", "money", "admit", "settle", "book", "draw", "renew", "release", "live", "peek")
    },
    **{f"{_CONTRACT}/ledger/{name}.lua": (f"{_RATES}/test_live.py",) for name in ("change", "changes", "report")},
    **{
        f"{_CONTRACT}/ledger/{name}.py": (
            *(f"{_RATES}/test_{name}.py" for name in ("limits", "plugin", "warnings")),
            *_LEDGER,
        )
        for name in ("calls", "limits", "model")
    },
    f"{_CONTRACT}/ledger/live.py": tuple(f"{_RATES}/test_{name}.py" for name in ("limits", "live", "wishes", "admin")),
    f"{_CONTRACT}/redis_place.py": (
        "tests/core/test_redis_place.py",
        "tests/interop/test_redis.py::test_a_url_that_cannot_be_used_is_told_where_it_is_written",
    ),
    f"{_CONTRACT}/ledger/tell.lua": (f"{_RATES}/test_warnings.py",),
    f"{_GATEWAY}/guard/lua/kong/plugins/claude-guard/compare.lua": ("tests/guard/test_guard.py",),
    f"{_GATEWAY}/pipeline.py": ("tests/core/test_pipeline.py", "tests/gateway/test_table.py"),
    f"{_GATEWAY}/guard/pair/kong/plugins/claude-pair/partner.lua": ("tests/pair/test_partner.py",),
    f"{_GATEWAY}/signed.py": ("tests/core/test_signed.py",),
    f"{_GATEWAY}/request.py": (
        *(f"tests/core/test_{name}.py" for name in ("request", "pipeline")),
        *("tests/gateway/test_table.py", "tests/gateway/test_size.py"),
        *("tests/jwt_claims/test_identity.py", "tests/jwt_claims/test_authorization.py", f"{_RATES}/test_plugin.py"),
        f"--deselect={_RATES}/test_plugin.py::test_a_frozen_redis_holds_up_nobody_else",
    ),
    f"{_GATEWAY}/jwt_claims/plugin.py": (
        *(
            f"tests/jwt_claims/test_{name}.py"
            for name in ("verified", "authorization", "identity", "config", "attacks")
        ),
        *("tests/gateway/test_size.py", "tests/jwt_claims/test_revocation.py", "tests/jwt_claims/test_tenants.py"),
    ),
    f"{_GATEWAY}/jwt_claims/issuers.py": tuple(
        f"tests/jwt_claims/test_{name}.py" for name in ("config", "identity", "tenants", "attacks")
    ),
    f"{_GATEWAY}/jwt_claims/revocation.py": ("tests/jwt_claims/test_revocation.py", "tests/jwt_claims/test_config.py"),
    f"{_GATEWAY}/jwt_claims/keys.py": _tokens("key_sets"),
    f"{_GATEWAY}/jwt_claims/jwks.py": _tokens("key_sets"),
    f"{_GATEWAY}/jwt_claims/remote.py": tuple(f"tests/jwt_claims/test_{name}.py" for name in ("remote", "rotation")),
    f"{_GATEWAY}/jwt_claims/algorithms.py": _tokens("key_sets"),
    f"{_GATEWAY}/jwt_claims/token.py": _tokens("token"),
    f"{_GATEWAY}/jwt_claims/caller.py": _tokens("identity"),
    f"{_GATEWAY}/jwt_claims/rules.py": _tokens("authorization"),
    f"{_GATEWAY}/jwt_claims/bearer.py": (*_tokens("config"), "tests/jwt_claims/test_attacks.py"),
    f"{_GATEWAY}/jwt_claims/verified.py": ("tests/jwt_claims/test_verified.py",),
    f"{_GATEWAY}/strict_json.py": ("tests/prompt_context/test_strict_json.py", *_PROMPTS),
    **{
        f"{_GATEWAY}/rate_tiers/{name}.py": (
            f"{_RATES}/test_plugin.py",
            f"{_RATES}/test_pools.py",
            f"--deselect={_RATES}/test_plugin.py::test_a_frozen_redis_holds_up_nobody_else",
        )
        for name in ("named", "subjects", "pools")
    },
    **{
        f"{_GATEWAY}/rate_tiers/{name}.py": (
            *(f"{_RATES}/test_{name}.py" for name in ("schema", "pools", "warnings", "plugin")),
            "tests/gateway/test_size.py",
            f"--deselect={_RATES}/test_plugin.py::test_a_frozen_redis_holds_up_nobody_else",
        )
        for name in ("plugin", "tiers")
    },
    f"{_GATEWAY}/rate_tiers/wishes.py": (
        f"{_RATES}/test_wishes.py",
        f"{_RATES}/test_admin.py",
        f"--deselect={_RATES}/test_admin.py::test_limits_are_changed_on_a_cluster_of_three_nodes",
    ),
    f"{_GATEWAY}/rate_tiers/local_ledger.py": (
        f"{_RATES}/test_exactness.py::test_the_process_forgets_what_has_lapsed",
        f"{_RATES}/test_exactness.py::test_what_still_counts_is_not_forgotten_with_it",
        f"{_RATES}/test_warnings.py::test_each_day_and_each_month_is_told_once",
        *_LEDGER,
    ),
    f"{_GATEWAY}/prompt_context/plugin.py": (*_PROMPTS, "tests/prompt_context/test_any_request.py"),
    f"{_GATEWAY}/prompt_context/guards.py": _PROMPTS,
    f"{_GATEWAY}/prompt_context/inert.py": _PROMPTS,
    f"{_GATEWAY}/prompt_context/template.py": _PROMPTS,
    f"{_INVOKER}/additions.py": _LET_IN,
    f"{_INVOKER}/caller.py": ("tests/jobs/test_record.py", *_LET_IN),
    f"{_INVOKER}/plan.py": _PLANNED,
    f"{_INVOKER}/replay.py": _LET_IN,
    f"{_INVOKER}/trust.py": _LET_IN,
    f"{_INVOKER}/cli/outcome.py": _PURE,
    f"{_INVOKER}/catalog/choosing.py": _PLANNED,
    f"{_INVOKER}/catalog/server.py": (_SERVERS,),
    f"{_INVOKER}/mcp/relay.py": (_SERVERS,),
    f"{_INVOKER}/egress/addresses.py": ("tests/invoker/test_addresses.py", "tests/invoker/test_pure.py"),
    f"{_INVOKER}/isolation/strength.py": (
        *_PURE,
        "tests/invoker/test_boundary.py::test_one_missing_property_is_the_next_lower_strength",
        "tests/invoker/test_boundary.py::test_a_tool_that_the_boundary_rules_out_is_refused_and_not_left_out",
        "tests/invoker/test_boundary.py::test_hosts_that_a_tier_opens_are_reached_or_the_request_is_refused",
        "tests/invoker/test_boundary.py::test_without_a_tier_that_opens_hosts_there_are_none",
    ),
    **{
        f"{_INVOKER}/metering/{name}.py": _MONEY
        for name in ("request", "prices", "ownprice", "bill", "allowed", "usage")
    },
    **{f"{_INVOKER}/metering/{name}.py": (*_MONEY, *_PURSE) for name in ("account", "purse")},
    f"{_INVOKER}/runs/permissions.py": _ASKED,
    f"{_INVOKER}/jobs/again.py": (
        "tests/jobs/test_retry.py::test_whether_it_may_be_tried_again",
        "tests/jobs/test_retry.py::test_where_it_is_tried_again",
        "tests/jobs/test_retry.py::test_small_requests_are_kept_and_counted",
    ),
    **{
        f"{_INVOKER}/jobs/{name}.lua": _STORE
        for name in ("add", "append", "cancel", "claim", "finish", "forget", "held", "requeue", "update")
    },
    **{f"{_INVOKER}/jobs/{name}.lua": _PUT_AWAY for name in ("defer", "resume")},
    **{f"{_INVOKER}/replicas/{name}.lua": _LISTED for name in ("begin", "give_up", "keep", "listed", "page")},
}
