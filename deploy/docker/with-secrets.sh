#!/bin/sh
# Turns the files of a secrets directory into the variables that Kong's env vault and the invoker read, then starts
# the command. A variable that is set already stays as it is.
set -eu
directory="${SECRETS_DIR:-/secrets}"
for pair in CLAUDE_JWT_SECRET:jwt-secret CLAUDE_ATTESTATION_SECRET:attestation-secret CLAUDE_REDIS_URL:redis-url; do
  name="${pair%%:*}"
  file="$directory/${pair#*:}"
  eval "set_already=\${$name:-}"
  if [ -z "$set_already" ] && [ -r "$file" ]; then
    export "$name=$(cat "$file")"
  fi
done
exec "$@"
