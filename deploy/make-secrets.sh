#!/bin/sh
# Make what compose.yaml needs before its first start: passwords in secrets/, random names in .env.
# What is there already stays as it is, so that it may be run again at any time.
set -eu
cd "$(dirname "$0")"

random() { head -c 24 /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }

umask 077
mkdir -p secrets
for name in db_root_password db_password mqtt_password; do
    [ -s "secrets/$name" ] || random >"secrets/$name"
done
# The broker's further users: name:password, a line for the platform, each board and each plugin.
[ -e secrets/mqtt_users ] || : >secrets/mqtt_users
# Each container reads its files as a user of its own. The folder is closed to everyone else.
chmod 700 secrets
chmod a+r secrets/*
chmod a+rX mosquitto mosquitto/*

# Mosquitto binds neither a client id nor a shared subscription to a user. Whoever has a login and
# knows these names can disconnect the bridge or take turns with it (docs/security.md).
touch .env
# Its last line may have no end.
[ -z "$(tail -c 1 .env)" ] || echo >>.env
for name in MQTT_INSTANCE MQTT_SHARE; do
    grep -q "^$name=." .env || echo "$name=bridge-$(random)" >>.env
done
