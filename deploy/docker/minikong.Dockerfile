# minikong with the plugin server: the same paths as in Kong's image, so that the same settings work.
FROM python:3.12-slim

RUN python3 -m venv /opt/kong-claude
WORKDIR /src
COPY deploy/docker/minikong.lock LICENSE ./
COPY contract contract
COPY plugins plugins
COPY minikong minikong
COPY local local
# What the lock names, and nothing that is called the same, nor has to be built; ours by the build backend that it names.
RUN /opt/kong-claude/bin/pip install --no-cache-dir --require-hashes --only-binary :all: -r minikong.lock \
 && /opt/kong-claude/bin/pip install --no-cache-dir --no-deps --no-build-isolation ./contract './plugins[tools]' ./minikong ./local \
 && rm -rf /src
RUN ln -s "$(/opt/kong-claude/bin/python -c 'import kong_claude.guard as g; print(g.LUA)')" /opt/kong-claude/lua \
    && ln -s "$(/opt/kong-claude/bin/python -c 'import kong_claude.guard as g; print(g.PAIR)')" /opt/kong-claude/pair
# Leaves the bytecode of what is imported: the base image has none of the standard library's, `nobody` could not write
# it, and compiling at every start doubles it.
RUN /opt/kong-claude/bin/kong-claude-pluginserver --dump-all-plugins > /dev/null
COPY kong.yml /etc/kong/kong.yml
COPY --chmod=0755 deploy/docker/with-secrets.sh /usr/local/bin/with-secrets

WORKDIR /
ENV PATH="/opt/kong-claude/bin:${PATH}" KONG_PREFIX=/tmp
USER nobody
ENTRYPOINT ["/usr/local/bin/with-secrets"]
CMD ["minikong"]
