#!/bin/sh
# Turns the files of a secrets directory into the variables that Kong's env vault and `kong-claude token` read, then
# starts the command. A variable that is set already stays as it is. A file that every user can read is refused.
set -eu
directory="${SECRETS_DIR:-/secrets}"
for pair in CLAUDE_JWT_SECRET:jwt-secret CLAUDE_ATTESTATION_KEY:attestation-key \
            CLAUDE_ATTESTATION_SECRET:attestation-secret CLAUDE_REDIS_URL:redis-url; do
  name="${pair%%:*}"
  file="$directory/${pair#*:}"
  eval "set_already=\${$name:-}"
  [ -z "$set_already" ] && [ -r "$file" ] || continue
  case $(stat -Lc %A "$file") in
    *---) export "$name=$(cat "$file")" ;;
    *) echo "with-secrets: $file can be read or changed by other users: chmod o-rwx $file" >&2; exit 2 ;;
  esac
done
exec "$@"
