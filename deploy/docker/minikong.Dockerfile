# minikong with the plugin server: the same paths as in Kong's image, so that the same settings work.
FROM python:3.12-slim

RUN python3 -m venv /opt/kong-claude
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY plugins/kong_claude plugins/kong_claude
COPY invoker/claude_invoker invoker/claude_invoker
COPY minikong minikong
RUN /opt/kong-claude/bin/pip install --no-cache-dir -c constraints.txt '.[minikong]' && rm -rf /src
COPY plugins/claude-*.py /opt/kong-claude/plugins/
# Leaves the bytecode of what is imported: the base image has none of the standard library's, `nobody` could not write
# it, and compiling at every start doubles it.
RUN /opt/kong-claude/bin/kong-claude-pluginserver -d /opt/kong-claude/plugins --dump-all-plugins > /dev/null
COPY kong.yml /etc/kong/kong.yml
COPY --chmod=0755 deploy/docker/with-secrets.sh /usr/local/bin/with-secrets

WORKDIR /
ENV PATH="/opt/kong-claude/bin:${PATH}" KONG_PREFIX=/tmp
USER nobody
ENTRYPOINT ["/usr/local/bin/with-secrets"]
CMD ["minikong"]
