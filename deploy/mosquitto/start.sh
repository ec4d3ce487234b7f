#!/bin/sh
# Start Mosquitto in its container (deploy/compose.yaml): its passwords come from secrets, and are
# hashed before it reads them.
set -eu

config="${MOSQUITTO_CONFIG:-/etc/mosquitto}"
secrets="${MOSQUITTO_SECRETS:-/run/secrets}"
data="${MOSQUITTO_DATA:-/var/lib/mosquitto}"

umask 077
# The secret may or may not end with a line's end; the variable never does.
password="$(cat "$secrets/mqtt_password")"
{
    printf 'bridge:%s\n' "$password"
    grep ':' "$secrets/mqtt_users" || true
} >"$config/passwd"
mosquitto_passwd -U "$config/passwd"
cp "$config/acl.original" "$config/acl"
# Mosquitto gives up root before it reads these.
if [ "$(id -u)" = 0 ] && id mosquitto >/dev/null 2>&1; then
    chown -R mosquitto "$config/passwd" "$config/acl" "$data"
fi
exec mosquitto -c "$config/mosquitto.conf"
