#!/bin/sh
# Makes the stack's secrets on its first start, never a default: one directory for each container, mounted into that one
# alone, with only what it needs. To use your own, put files of these names there before.
#
#   kong               jwt-secret, attestation-key, redis-url   read by the group SECRETS_GROUP, which Kong's container has
#   redis, redis-runs  redis-password, redis.conf               of Redis' user
#   invoker            attestation-public-key, webhook-secret, redis-url, runs-redis-url
#                                                               of root; runs of tools are other users
#   tools              jwt-secret                               of root
set -eu
umask 077
kong_group="${SECRETS_GROUP:-10001}"  # group_add of the service kong
redis_user=999                        # user of the services redis and redis-runs: that of their image
cd "${SECRETS_DIR:-/secrets}"
mkdir -p kong redis redis-runs invoker tools

# Writes a file whole or not at all: a start that is cut off leaves no half of a secret.
keep() {
  cat > "$1.new"
  mv "$1.new" "$1"
}

random() {
  [ -s "$1" ] || python3 -c 'import secrets; print(secrets.token_urlsafe(48))' | keep "$1"
}

random kong/jwt-secret
random invoker/webhook-secret
random redis/redis-password
random redis-runs/redis-password
[ -s kong/attestation-key ] || openssl genpkey -algorithm ed25519 | keep kong/attestation-key
# Kong signs, the invoker verifies: it gets the public half only.
openssl pkey -in kong/attestation-key -pubout | keep invoker/attestation-public-key
keep tools/jwt-secret < kong/jwt-secret

for name in redis redis-runs; do
  password=$(cat $name/redis-password)
  # Below what the container may have, so that Redis says that it is full, and is not ended.
  keep $name/redis.conf <<CONF
requirepass $password
appendonly yes
appendfsync everysec
maxmemory 768mb
maxmemory-policy noeviction
dir /data
CONF
  printf 'redis://:%s@%s:6379/0' "$password" $name | keep $name.url
done
keep kong/redis-url < redis.url
mv redis.url invoker/redis-url
mv redis-runs.url invoker/runs-redis-url

chown -R "0:$kong_group" kong
chown -R "$redis_user" redis redis-runs
chown -R 0:0 invoker tools
chmod 0750 kong
chmod 0440 kong/*
chmod 0700 redis redis-runs invoker tools
chmod 0400 redis/* redis-runs/* invoker/* tools/*
