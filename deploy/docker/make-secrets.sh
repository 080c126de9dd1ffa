#!/bin/sh
# Makes the stack's secrets on its first start, never a default: one directory for each container, mounted into that one
# alone, with only what it needs. To use your own, put files of these names there before.
#
#   kong     jwt-secret, attestation-key, redis-url            read by the group SECRETS_GROUP, which Kong's container has
#   redis    redis-password, redis.conf                        of Redis' user
#   invoker  attestation-public-key, webhook-secret, redis-url of root; runs of tools are other users
#   tools    jwt-secret                                        of root
set -eu
umask 077
kong_group="${SECRETS_GROUP:-10001}"  # group_add of the service kong
redis_user=999                        # user of the service redis: that of its image
cd "${SECRETS_DIR:-/secrets}"
mkdir -p kong redis invoker tools

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
[ -s kong/attestation-key ] || openssl genpkey -algorithm ed25519 | keep kong/attestation-key
# Kong signs, the invoker verifies: it gets the public half only.
openssl pkey -in kong/attestation-key -pubout | keep invoker/attestation-public-key
keep tools/jwt-secret < kong/jwt-secret

password=$(cat redis/redis-password)
printf 'redis://:%s@redis:6379/0' "$password" | keep kong/redis-url
keep invoker/redis-url < kong/redis-url
keep redis/redis.conf <<CONF
requirepass $password
appendonly yes
appendfsync everysec
maxmemory-policy noeviction
dir /data
CONF

chown -R "0:$kong_group" kong
chown -R "$redis_user" redis
chown -R 0:0 invoker tools
chmod 0750 kong
chmod 0440 kong/*
chmod 0700 redis invoker tools
chmod 0400 redis/* invoker/* tools/*
