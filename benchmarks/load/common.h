/* What the three MQTT programs share: connecting, waiting for events, and which device is which.
 * device_uuid() and temperature() repeat the formulas of benchmarks/dataset.py. */
#ifndef BENCH_COMMON_H
#define BENCH_COMMON_H

#include <mosquitto.h>
#include <mqtt_protocol.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static inline void die(const char *what, const char *why)
{
	fprintf(stderr, "%s: %s\n", what, why);
	exit(1);
}

static inline void check(int code, const char *what)
{
	if (code != MOSQ_ERR_SUCCESS)
		die(what, mosquitto_strerror(code));
}

static inline uint64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* `text` takes 37 bytes. */
static inline void device_uuid(char *text, uint32_t number)
{
	sprintf(text, "%08x-0000-4000-8000-%012x", (uint32_t)(number * 2654435761u), number);
}

static inline void temperature(char *text, size_t size, uint32_t number)
{
	snprintf(text, size, "%u.%u", 10 + number % 25, 1 + number % 9);
}

static inline void on_disconnect(struct mosquitto *client, void *user, int code)
{
	(void)client;
	(void)user;
	if (code != 0)
		die("connection lost", mosquitto_strerror(code));
}

/* A connected MQTT 5 client without Nagle's algorithm and without a limit of its own on what is
 * in flight. Callbacks are set by the caller afterwards: nothing is read before its loop turns. */
static inline struct mosquitto *bench_connect(const char *host, int port, void *user)
{
	mosquitto_property *properties = NULL;
	struct mosquitto *client = mosquitto_new(NULL, true, user);

	if (client == NULL)
		die("mosquitto_new", "out of memory");
	mosquitto_int_option(client, MOSQ_OPT_PROTOCOL_VERSION, MQTT_PROTOCOL_V5);
	mosquitto_int_option(client, MOSQ_OPT_TCP_NODELAY, 1);
	mosquitto_int_option(client, MOSQ_OPT_SEND_MAXIMUM, 65535);
	mosquitto_int_option(client, MOSQ_OPT_RECEIVE_MAXIMUM, 65535);
	mosquitto_disconnect_callback_set(client, on_disconnect);
	check(mosquitto_property_add_int16(&properties, MQTT_PROP_RECEIVE_MAXIMUM, 65535),
	      "receive maximum");
	check(mosquitto_connect_bind_v5(client, host, port, 60, NULL, properties), "connect");
	mosquitto_property_free_all(&properties);
	return client;
}

#endif
