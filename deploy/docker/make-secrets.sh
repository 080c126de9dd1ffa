#!/bin/sh
# Makes the stack's secrets on its first start: one random file each, never a default. To use your own, put files of
# these names into the volume before, or set the variables of the services.
set -eu
umask 027
cd "${SECRETS_DIR:-/secrets}"
for name in jwt-secret attestation-secret webhook-secret redis-password; do
  [ -s "$name" ] || python3 -c 'import secrets; print(secrets.token_urlsafe(48))' > "$name"
done
password=$(cat redis-password)
printf 'redis://:%s@redis:6379/0' "$password" > redis-url
cat > redis.conf <<CONF
requirepass $password
appendonly yes
appendfsync everysec
maxmemory-policy noeviction
dir /data
CONF
# Kong (its own user), Redis (999) and the invoker read them; nobody writes them.
chmod 0755 .
chmod 0444 ./*
