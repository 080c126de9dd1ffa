"""`claude-jwt-claims`: who is calling, and may they. Refuses by default."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import redis
from msgspec.structs import replace

from claude_contract.claims import IDENTITY_ROOM, REPOSITORY_ROOM, Repository, size
from claude_contract.errors import ConfigError
from claude_contract.identity import Identity
from claude_contract.keys import joined
from kong_claude.decision import Decision, Pass, Refuse
from kong_claude.jwt_claims.bearer import BadRequest, Places, SeveralTokens
from kong_claude.jwt_claims.caller import SUBJECT, TIER, Caller, ClaimNames, caller, header_text, plain
from kong_claude.jwt_claims.challenge import Challenge, unavailable
from kong_claude.jwt_claims.issuers import CONSUMER_PREFIX, Issuer, issuers_from_config
from kong_claude.jwt_claims.keys import Unavailable
from kong_claude.jwt_claims.revocation import Revocation
from kong_claude.jwt_claims.rules import email_problem, has, lookup, repository_allowed, rules_from_config, values
from kong_claude.jwt_claims.schema import JwtClaimsConfig
from kong_claude.jwt_claims.token import Checks, InvalidToken, Token, parse, signed_by
from kong_claude.jwt_claims.verified import Entry, VerifiedTokens
from kong_claude.pipeline import plugin
from kong_claude.request import Request, answer, text
from kong_claude.stage import Shared, Stage

# What Kong's own jwt plugin sets (kong/plugins/jwt/handler.lua).
CONSUMER_HEADERS = (
    "X-Consumer-ID",
    "X-Consumer-Custom-ID",
    "X-Consumer-Username",
    "X-Credential-Identifier",
    "X-Anonymous-Consumer",
)
IDENTITY_HEADERS = frozenset(name.lower() for name in (SUBJECT, TIER))
OWN_HEADERS = IDENTITY_HEADERS | {name.lower() for name in CONSUMER_HEADERS}
_CREDENTIALS = uuid.UUID("5d0c7a8e-95a4-4b4e-8b6e-0d8f5a1c7f42")


class JwtClaims(Stage[JwtClaimsConfig]):
    """The stage. One per plugin instance, so a changed configuration starts with empty caches."""

    check = "jwt-claims"
    shared_key = "claude_identity"
    establishes_identity = True
    Config = JwtClaimsConfig

    def __init__(self, config: JwtClaimsConfig, shared: Shared, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._issuers = issuers_from_config(config)
        self._sources = list({id(issuer.keys): issuer.keys for issuer in self._issuers.values()}.values())
        if not config.audience:
            raise ConfigError("audience", "names no audience")
        if not config.audience_claims:
            raise ConfigError("audience_claims", "names no claim")
        self._checks = Checks(
            frozenset(config.audience), config.audience_claims, config.leeway, config.maximum_expiration
        )
        self._typ = frozenset(typ.lower().removeprefix("application/") for typ in config.typ)
        self._required = config.required_claims
        headers = tuple(name.lower() for name in config.header_names)
        raw_headers = tuple(name.lower() for name in config.raw_header_names)
        self._places = Places(headers, raw_headers, config.cookie_names, config.uri_param_names)
        if not (headers or raw_headers or config.cookie_names or config.uri_param_names):
            raise ConfigError("header_names", "is empty, and so are the other places where a token could be")
        self._names = ClaimNames(
            subject=config.subject_claim,
            tier=config.tier_claim,
            roles=config.roles_claim,
            permissions=config.permissions_claim,
            forward=config.forward_claims,
        )
        self._rules = rules_from_config(config.rules)
        self._domains = frozenset(domain.lower() for domain in config.email_domains)
        self._repo_claim = config.repo_claim
        self._push_claim = config.push_claim
        self._pull_request_claim = config.pull_request_claim
        for name, needed in (("push_claim", "repo_claim"), ("pull_request_claim", "push_claim")):
            if getattr(config, name) and not getattr(config, needed):
                raise ConfigError(name, f"allows nothing without {needed}, to whose repositories it belongs")
        self._repo_header = config.repo_header.lower()
        self._repo_capture = config.repo_capture
        self._ref_header = config.ref_header.lower()
        self._consumer_claim = config.consumer_claim
        self._anonymous = config.anonymous
        self._run_on_preflight = config.run_on_preflight
        # None: nothing is asked. "": an unresolved vault reference, a ConfigError.
        url = config.revocation_redis_url
        self._revocation = Revocation(url, config.revocation_key) if url is not None else None
        self._allow_unlisted = config.revocation_on_error == "allow"
        self._signed = shared.attestation is not None
        self._challenge = Challenge(config.realm)
        self._verified = VerifiedTokens(config.cache_size)

    def access(self, request: Request) -> Decision:
        kong = request.kong
        if not self._run_on_preflight and text(answer(kong.request.get_method())) == "OPTIONS":
            return Pass(upstream_headers=own_headers(request), checked=False)
        if self._anonymous and answer(kong.client.get_credential()):
            return self._other_credential(request)
        query_tokens = self._take_from_query(kong) if self._places.parameters else []
        refused = known = None
        try:
            token = self._places.token(request.headers, query_tokens)
            if token is None:
                refused = self._challenge.no_token()
            else:
                known = self.verify(token)
        except SeveralTokens:
            refused = self._challenge.invalid_token("the request carries several tokens", "several_tokens")
        except BadRequest as error:
            refused = self._challenge.invalid_request(str(error))
        except InvalidToken as error:
            refused = self._challenge.invalid_token(str(error), error.reason)
        except Unavailable:
            return unavailable("the keys of the token's issuer are not available", "keys_unavailable")
        finally:
            self._say_news(kong)
        if known is None:
            assert refused is not None
            return self._become_anonymous(request) if self._anonymous else refused
        if known.denial:
            return known.denial.of(known.identity)
        repository = self._repository(request, known)
        if isinstance(repository, Refuse):
            return repository.of(known.identity)
        refused = self._revocation_problem(kong, known)
        return refused.of(known.identity) if refused else self._pass(request, known, repository)

    def _take_from_query(self, kong: Any) -> list[str]:
        """The tokens in the query, which neither upstream nor log plugins get to see: so not left to the decision.

        nginx's own access log writes the request line before any plugin can change it: see the docs.
        """
        uri = text(answer(kong.nginx.get_var("request_uri")) or "")
        path, _, query = uri.partition("?")
        tokens, rest = self._places.split_query(query)
        if rest != query:
            kong.service.request.set_raw_query(rest)
            for name in ("request.uri", "request.url"):
                kong.log.set_serialize_value(name, f"{path}?{rest}" if rest else path)
        return tokens

    def _say_news(self, kong: Any) -> None:
        """To Kong's log, which shows `warn` by default, as it does not what a plugin server writes itself."""
        for source in self._sources:
            while source.news:
                try:
                    news = source.news.popleft()
                except IndexError:  # another thread was faster
                    break
                kong.log.warn(news)

    def verify(self, compact: str) -> Caller:
        """The caller of a valid token, allowed or not. Raises InvalidToken or Unavailable.

        A remembered token is verified anew as soon as its issuer's keys have changed.
        """
        now = self._now()
        digest = VerifiedTokens.digest(compact)
        entry = self._verified.get(digest, now)
        if entry is not None:
            issuer = self._issuers[entry.caller.identity.issuer]
            if issuer.keys.current() is entry.keys:
                return entry.caller
        token = parse(compact)
        issuer = self._issuer(token)
        keys = issuer.keys.current()
        candidates = issuer.candidates(keys, token)
        key = signed_by(token, candidates)
        if key is None and (token.kid is None or all(one.kid != token.kid for one in candidates)):
            # A known kid needs no newer keys.
            keys = issuer.keys.refreshed(keys)
            key = signed_by(token, issuer.candidates(keys, token))
        if key is None:
            raise InvalidToken("signature", "the token is not signed by a key of its issuer")
        expires = self._checks.check(token.claims, now)
        caller = self._caller(token, issuer)
        self._verified.put(digest, Entry(caller, keys, expires + self._checks.leeway))
        return caller

    def _issuer(self, token: Token) -> Issuer:
        """The token's issuer, if it may sign this way. Compared exactly: no case, no slash, no Unicode folding."""
        name = token.claims.get("iss")
        issuer = self._issuers.get(name) if isinstance(name, str) else None
        if issuer is None:
            raise InvalidToken("issuer", "the token's issuer is not accepted here")
        if token.algorithm not in issuer.algorithms:
            raise InvalidToken("algorithm", "the token's algorithm is not accepted from its issuer")
        if token.typ not in self._typ:
            raise InvalidToken("typ", "this type of token is not accepted here")
        return issuer

    def _caller(self, token: Token, issuer: Issuer) -> Caller:
        for path in self._required:
            if not has(token.claims, path):
                raise InvalidToken("claims", f"the token has no {path} claim")
        identity = self._names.identity(token.claims, issuer)
        return caller(identity, token.claims, self._denial(token.claims) or self._no_room(identity))

    def _denial(self, claims: Mapping[str, Any]) -> Refuse | None:
        for rule in self._rules:
            problem = rule.problem(claims)
            if problem:
                return self._challenge.insufficient_scope(problem, rule.scope)
        problem = email_problem(claims, self._domains) if self._domains else None
        return self._challenge.insufficient_scope(problem) if problem else None

    def _no_room(self, identity: Identity) -> Refuse | None:
        """The refusal of an identity that does not fit into an attestation."""
        if not self._signed or (taken := size(identity.to_claims())) <= IDENTITY_ROOM:
            return None
        return Refuse(
            403,
            f"the caller's identity takes {taken} bytes, at most {IDENTITY_ROOM} can be attested: "
            "the token has too many roles, permissions or forwarded claims, or they are too long",
            "identity_too_large",
            claims=identity,
        )

    def _repository(self, request: Request, caller: Caller) -> Repository | Refuse | None:
        """What the run works on. Every repository that the request names must be one that the token allows; attested is
        the only one that is named, by header or by path."""
        if not self._repo_claim:
            return None
        named = request.sent(self._repo_header)
        if self._repo_capture:
            captured = request.captures.get(self._repo_capture)
            named = [*named, captured] if captured else named
        globs = values(caller.claims, self._repo_claim)
        if not all(repository_allowed(name, globs) for name in named):
            return self._challenge.insufficient_scope("the token does not allow this repository")
        refs = set(request.sent(self._ref_header))
        if not self._signed or len(set(named)) != 1 or len(refs) > 1:
            return None  # nothing that could be told to anybody, or not which
        found = Repository(
            named[0],
            next(iter(refs), None) or None,
            push=self._allows(caller, self._push_claim, named[0]),
            pull_request=self._allows(caller, self._pull_request_claim, named[0]),
        )
        for what, header, value in (
            ("repository", self._repo_header, found.name),
            ("branch", self._ref_header, found.ref or ""),
        ):
            if not (value.isascii() and value.isprintable()) or size(value) - 2 > REPOSITORY_ROOM:
                return Refuse(
                    400,
                    f"{header}: the name of a {what} has {REPOSITORY_ROOM} characters at most, all of printable ASCII",
                    "unreadable_repository",
                )
        return found

    def _allows(self, caller: Caller, claim: str | None, repository: str) -> bool:
        """Whether a claim lists the repository; without one nobody's does."""
        return repository_allowed(repository, values(caller.claims, claim) if claim else ())

    def _revocation_problem(self, kong: Any, known: Caller) -> Refuse | None:
        if self._revocation is None:
            return None
        try:
            revoked = self._revocation.revoked(known.identity)
        except redis.RedisError as error:
            kong.log.warn(f"the revocation list is not available: {type(error).__name__}")
            if self._allow_unlisted:
                return None
            return unavailable("whether the token was revoked cannot be told now", "revocation_unavailable")
        return self._challenge.invalid_token("the token has been revoked", "revoked") if revoked else None

    def close(self) -> None:
        """Closes the connections to Redis. Keys are shared with other instances and need no closing."""
        if self._revocation is not None:
            self._revocation.close()

    def _pass(self, request: Request, caller: Caller, repository: Repository | None) -> Decision:
        removed = own_headers(request)
        if not removed and not self._consumer_claim and repository is None:
            return caller.passed
        identity, headers, consumer = caller.identity, {**removed, **caller.headers}, None
        if self._consumer_claim:
            name = lookup(caller.claims, self._consumer_claim)
            found = load_consumer(request.kong, name)
            if found:
                credential_id = str(uuid.uuid5(_CREDENTIALS, joined(" ", identity.issuer, identity.subject)))
                credential = {"id": credential_id, "key": identity.subject, "consumer": {"id": found["id"]}}
                consumer = (found, credential)
                headers |= {**consumer_headers(found), "X-Credential-Identifier": header_text(identity.subject)}
                identity = with_consumer(identity, found, credential_id)
                refused = self._no_room(identity)
                if refused:
                    return refused
        return Pass(
            upstream_headers=headers,
            consumer=consumer,
            claims=identity,
            repository=repository,
            shared=identity.to_claims(),
        )

    def _become_anonymous(self, request: Request) -> Decision:
        found = load_consumer(request.kong, self._anonymous)
        if not found:
            request.kong.log.err(f"anonymous consumer {self._anonymous!r} is configured but doesn't exist")
            return Refuse(500, "An unexpected error occurred", "config")
        headers = {**own_headers(request), **consumer_headers(found), "X-Anonymous-Consumer": "true"}
        return self._pass_consumer(found, headers, (found, None))

    def _other_credential(self, request: Request) -> Decision:
        """With `anonymous`, another authentication plugin may have been enough (Kong's "logical OR")."""
        if not request.consumer:
            return self._challenge.no_token()
        return self._pass_consumer(request.consumer, own_headers(request, IDENTITY_HEADERS), None)

    def _pass_consumer(
        self, found: Mapping[str, Any], headers: dict[str, str | None], consumer: tuple[Mapping[str, Any], None] | None
    ) -> Decision:
        identity = consumer_identity(found)
        headers = headers | {SUBJECT: header_text(identity.subject)}
        return self._no_room(identity) or Pass(
            upstream_headers=headers, consumer=consumer, claims=identity, shared=identity.to_claims()
        )


def own_headers(request: Request, names: frozenset[str] = OWN_HEADERS) -> dict[str, str | None]:
    """The removal of whatever the client sent under our names, in any spelling that an upstream may fold to them."""
    return dict.fromkeys(request.spellings_of(names))


def load_consumer(kong: Any, name: Any) -> Mapping[str, Any] | None:
    """A Kong consumer by username or id. Kong offers plugins no search by custom_id."""
    if not isinstance(name, str) or not plain(name):
        return None
    # Without the second argument a name that is no UUID is a Lua error, which Kong never answers.
    found = answer(kong.client.load_consumer(name, True))
    return found if isinstance(found, Mapping) and found.get("id") else None


def consumer_headers(consumer: Mapping[str, Any]) -> dict[str, str | None]:
    fields = (("X-Consumer-ID", "id"), ("X-Consumer-Custom-ID", "custom_id"), ("X-Consumer-Username", "username"))
    return {header: header_text(text(consumer[name])) for header, name in fields if consumer.get(name)}


def consumer_identity(consumer: Mapping[str, Any]) -> Identity:
    """A caller who is known as a Kong consumer only; no issuer's subjects begin with the prefix."""
    name = text(consumer.get("username") or consumer["id"])
    return Identity(subject=CONSUMER_PREFIX + name, consumer=name)


def with_consumer(identity: Identity, consumer: Mapping[str, Any], credential: str) -> Identity:
    return replace(identity, consumer=text(consumer.get("username") or consumer["id"]), credential=credential)


Plugin = plugin(JwtClaims)
