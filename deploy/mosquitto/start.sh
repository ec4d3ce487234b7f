#!/bin/sh
# Start Mosquitto in its container (deploy/compose.yaml). Its passwords come from secrets and are
# hashed before it reads them. If there is a certificate, it also listens with TLS, on port 8883.
set -eu

deploy="$(dirname "$0")"
config="${MOSQUITTO_CONFIG:-/etc/mosquitto}"
secrets="${MOSQUITTO_SECRETS:-/run/secrets}"
data="${MOSQUITTO_DATA:-/mosquitto/data}"
tls_port="${MOSQUITTO_TLS_PORT:-8883}"

umask 077
# The secret may or may not end with a line's end; the variable never does.
password="$(cat "$secrets/mqtt_password")"
{
    printf 'bridge:%s\n' "$password"
    grep ':' "$secrets/mqtt_users" || true
} >"$config/passwd"
mosquitto_passwd -U "$config/passwd"
cp "$deploy/acl" "$config/acl"
{
    cat "$deploy/mosquitto.conf"
    echo "persistence_location $data/"
    if [ -e "$secrets/mqtt_tls_certificate" ]; then
        echo "listener $tls_port"
        echo "certfile $secrets/mqtt_tls_certificate"
        echo "keyfile $secrets/mqtt_tls_key"
    fi
} >"$config/mosquitto.conf"
exec mosquitto -c "$config/mosquitto.conf"
