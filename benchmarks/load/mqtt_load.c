/* Asks over MQTT 5, a fixed number of requests in flight, and checks every answer.
 *
 * A closed loop: each slot sends a request, waits for its reply, and sends the next. Devices take
 * turns. What ends inside the measured time counts; requests of the warm-up do not. At the end no
 * new request is sent and the open ones are waited for, so that the runner can compare the controls
 * answered with the commands that reached the devices. Prints one JSON object. */
#include "common.h"

#include <getopt.h>
#include <poll.h>

#define BATCH 100
#define MAX_SLOTS 4096
#define MAX_CONNECTIONS 64
#define STRIDE 7919 /* a prime: neighbours in time are not neighbours in the index */
#define LOST_AFTER_NS 5000000000ull
#define PROBE_EVERY_NS 10000000ull
#define PROBE_SLOTS 1024

enum operation { SENSOR, CONTROL, BATCH_READ };
enum check { CHECK_REPLY, CHECK_ECHO };

struct connection {
	struct mosquitto *client;
	char reply_topic[128];
	bool subscribed;
};

struct slot {
	struct connection *connection;
	uint32_t sequence;
	uint64_t started; /* 0: nothing in flight */
	uint64_t number;  /* of the request: decides operation and devices */
	enum operation operation;
};

static struct {
	const char *host;
	int port;
	const char *prefix;
	const char *sensor;
	enum operation load;
	enum check check;
	int qos, in_flight, connections;
	uint32_t devices;
	int parity; /* 0, 1: only even or odd devices; -1: all */
	double warm_up, seconds, probe;
} options = {.host = "127.0.0.1", .prefix = "plugin", .sensor = "温度", .qos = 1, .in_flight = 1, .connections = 1,
	     .devices = 10000, .parity = -1, .warm_up = 1, .seconds = 3};

static struct connection connections[MAX_CONNECTIONS];
static struct slot slots[MAX_SLOTS];
static uint32_t *latencies_us;
static size_t measured, room;
static uint64_t next_request, right, controls, wrong, lost;
static uint64_t measure_from, measure_until;
static uint32_t nonce; /* correlation data never repeats between runs: no answer is a stored one */
static bool sending = true;

/* --- what is asked -------------------------------------------------------------------------- */

static uint32_t device_at(uint64_t number)
{
	uint64_t index = nonce + number * STRIDE;

	if (options.parity < 0)
		return (uint32_t)(index % options.devices);
	return (uint32_t)(index % (options.devices / 2) * 2) + (uint32_t)options.parity;
}

static const char *topic_of(enum operation operation)
{
	static const char *const names[] = {"sensor-data", "control", "batch"};
	static char topics[3][128];

	if (topics[operation][0] == '\0')
		snprintf(topics[operation], sizeof(topics[operation]), "%s/request/%s", options.prefix,
			 names[operation]);
	return topics[operation];
}

/* The payload of request `number`, in a buffer that the next call overwrites. */
static const char *payload_of(const struct slot *slot, int *length)
{
	static char text[BATCH * 128];
	char uuid[37];
	size_t end = 0;

	if (slot->operation == BATCH_READ) {
		end += (size_t)sprintf(text, "{\"requests\":[");
		for (int i = 0; i < BATCH; i++) {
			device_uuid(uuid, device_at(slot->number * BATCH + (uint64_t)i));
			end += (size_t)sprintf(text + end,
					       "%s{\"operation\":\"sensor-data\",\"device_uuid\":\"%s\","
					       "\"sensor\":\"%s\"}",
					       i ? "," : "", uuid, options.sensor);
		}
		end += (size_t)sprintf(text + end, "]}");
	} else {
		device_uuid(uuid, device_at(slot->number));
		if (slot->operation == SENSOR)
			end = (size_t)sprintf(text, "{\"device_uuid\":\"%s\",\"sensor\":\"%s\"}",
					      uuid, options.sensor);
		else
			end = (size_t)sprintf(text,
					      "{\"device_uuid\":\"%s\",\"port_type\":\"led\","
					      "\"port_id\":1,\"action\":\"%s\"}",
					      uuid, slot->number & 1 ? "off" : "on");
	}
	*length = (int)end;
	return text;
}

static void send_request(struct slot *slot)
{
	mosquitto_property *properties = NULL;
	char correlation[32];
	const char *payload;
	int length;

	slot->sequence++;
	slot->number = next_request++;
	slot->operation = options.load;
	payload = payload_of(slot, &length);
	snprintf(correlation, sizeof(correlation), "%08x%04x%08x", nonce, (unsigned)(slot - slots),
		 slot->sequence);
	mosquitto_property_add_string(&properties, MQTT_PROP_RESPONSE_TOPIC,
				      slot->connection->reply_topic);
	mosquitto_property_add_binary(&properties, MQTT_PROP_CORRELATION_DATA, correlation, 20);
	slot->started = now_ns();
	check(mosquitto_publish_v5(slot->connection->client, NULL, topic_of(slot->operation), length,
				   payload, options.qos, false, properties),
	      "publish");
	mosquitto_property_free_all(&properties);
}

/* --- what comes back ------------------------------------------------------------------------ */

/* Whether the texts stand in the body, each after the one before. */
static const char *after(const char *body, const char *text)
{
	const char *found = body ? strstr(body, text) : NULL;

	return found ? found + strlen(text) : NULL;
}

static bool reading_is_right(const char *item, uint32_t device, const char **rest)
{
	char value[32], expected[64];

	temperature(value, sizeof(value), device);
	snprintf(expected, sizeof(expected), "\"value\":%s", value);
	*rest = after(after(item, "\"code\":200"), expected);
	/* 21.1 must not pass for 21.15 */
	return *rest != NULL && (**rest == ',' || **rest == '}');
}

static bool is_right(const struct slot *slot, const char *body)
{
	char uuid[37];
	const char *rest;

	if (options.check == CHECK_ECHO) {
		int length;

		return strcmp(body, payload_of(slot, &length)) == 0;
	}
	if (slot->operation == SENSOR)
		return reading_is_right(body, device_at(slot->number), &rest);
	if (slot->operation == CONTROL) {
		device_uuid(uuid, device_at(slot->number));
		return strstr(body, "\"code\":200") && strstr(body, "\"result\":\"success\"") &&
		       strstr(body, uuid);
	}
	rest = after(body, "\"code\":200");
	for (int i = 0; i < BATCH; i++)
		if (!reading_is_right(rest, device_at(slot->number * BATCH + (uint64_t)i), &rest))
			return false;
	return true;
}

static void count_wrong(const char *why, const char *body)
{
	if (wrong++ == 0)
		fprintf(stderr, "first wrong answer (%s): %.600s\n", why, body);
}

static void record(uint64_t started, uint64_t ended)
{
	if (ended < measure_from || ended >= measure_until)
		return;
	if (measured == room) {
		room = room ? room * 2 : 65536;
		latencies_us = realloc(latencies_us, room * sizeof(*latencies_us));
		if (latencies_us == NULL)
			die("latencies", "out of memory");
	}
	latencies_us[measured++] = (uint32_t)((ended - started) / 1000);
}

static struct slot *slot_of(const mosquitto_property *properties)
{
	char text[32] = "", run[9], index_text[5] = "";
	void *data = NULL;
	uint16_t length = 0;
	unsigned long index;

	mosquitto_property_read_binary(properties, MQTT_PROP_CORRELATION_DATA, &data, &length, false);
	if (data != NULL && length == 20)
		memcpy(text, data, 20);
	free(data);
	snprintf(run, sizeof(run), "%08x", nonce);
	if (strncmp(text, run, 8) != 0)
		return NULL;
	memcpy(index_text, text + 8, 4);
	index = strtoul(index_text, NULL, 16);
	if (index >= (unsigned long)options.in_flight || slots[index].started == 0 ||
	    slots[index].sequence != strtoul(text + 12, NULL, 16))
		return NULL;
	return &slots[index];
}

static void on_message(struct mosquitto *client, void *user, const struct mosquitto_message *message,
		       const mosquitto_property *properties)
{
	uint64_t ended = now_ns();
	const char *body = message->payload ? message->payload : ""; /* the library ends it with NUL */
	struct slot *slot = slot_of(properties);

	(void)client;
	if (slot == NULL || slot->connection != user) {
		count_wrong("nobody waits for it", body);
		return;
	}
	if (is_right(slot, body)) {
		right++;
		controls += slot->operation == CONTROL;
		record(slot->started, ended);
	} else {
		count_wrong("not what was asked for", body);
	}
	slot->started = 0;
	if (sending && options.probe == 0)
		send_request(slot);
}

static void on_subscribe(struct mosquitto *client, void *user, int mid, int count, const int *granted)
{
	(void)client;
	(void)mid;
	if (count != 1 || granted[0] > 2)
		die("subscribe", "refused");
	((struct connection *)user)->subscribed = true;
}

/* --- the loop ------------------------------------------------------------------------------- */

static void turn(int timeout_ms)
{
	struct pollfd ready[MAX_CONNECTIONS];

	for (int i = 0; i < options.connections; i++) {
		ready[i].fd = mosquitto_socket(connections[i].client);
		ready[i].events = POLLIN;
		if (mosquitto_want_write(connections[i].client))
			ready[i].events |= POLLOUT;
	}
	if (poll(ready, (nfds_t)options.connections, timeout_ms) < 0)
		die("poll", "failed");
	for (int i = 0; i < options.connections; i++) {
		struct mosquitto *client = connections[i].client;

		if (ready[i].revents & (POLLIN | POLLERR | POLLHUP))
			check(mosquitto_loop_read(client, 1), "read");
		/* Replies make new requests: they leave in the same turn. */
		if (mosquitto_want_write(client))
			check(mosquitto_loop_write(client, 1), "write");
	}
}

static void keep_alive(void)
{
	for (int i = 0; i < options.connections; i++)
		check(mosquitto_loop_misc(connections[i].client), "keepalive");
}

static int open_requests(void)
{
	int open = 0;

	for (int i = 0; i < options.in_flight; i++)
		open += slots[i].started != 0;
	return open;
}

/* A request that was never answered must not silence its slot for the rest of the run. */
static void give_up_lost(void)
{
	uint64_t now = now_ns();

	for (int i = 0; i < options.in_flight; i++)
		if (slots[i].started && now - slots[i].started > LOST_AFTER_NS) {
			lost++;
			send_request(&slots[i]);
		}
}

static void connect_all(void)
{
	for (int i = 0; i < options.connections; i++) {
		struct connection *connection = &connections[i];

		snprintf(connection->reply_topic, sizeof(connection->reply_topic), "%s/reply/load-%08x-%d",
			 options.prefix, nonce, i);
		connection->client = bench_connect(options.host, options.port, connection);
		mosquitto_subscribe_callback_set(connection->client, on_subscribe);
		mosquitto_message_v5_callback_set(connection->client, on_message);
		check(mosquitto_subscribe(connection->client, NULL, connection->reply_topic, 1),
		      "subscribe");
	}
	for (int i = 0; i < options.connections; i++)
		while (!connections[i].subscribed)
			turn(100);
	for (int i = 0; i < options.in_flight; i++)
		slots[i].connection = &connections[i % options.connections];
}

/* Asks every 10 ms until the first right answer: the end of "start to ready". Each request has a
 * slot of its own, since an answer may take longer than that. */
static int probe(void)
{
	uint32_t asked = 0;
	uint64_t end = now_ns() + (uint64_t)(options.probe * 1e9);

	while (right == 0) {
		uint64_t until = now_ns() + PROBE_EVERY_NS;

		if (now_ns() > end)
			die("probe", "no right answer");
		send_request(&slots[asked++ % PROBE_SLOTS]);
		while (right == 0 && now_ns() < until)
			turn(1);
	}
	return 0;
}

static void run(void)
{
	uint64_t checked;

	checked = now_ns();
	measure_from = checked + (uint64_t)(options.warm_up * 1e9);
	measure_until = measure_from + (uint64_t)(options.seconds * 1e9);
	for (int i = 0; i < options.in_flight; i++)
		send_request(&slots[i]);
	while (now_ns() < measure_until) {
		turn(100);
		if (now_ns() - checked > 100000000u) {
			checked = now_ns();
			keep_alive();
			give_up_lost();
		}
	}
	sending = false;
	while (open_requests() && now_ns() < measure_until + LOST_AFTER_NS)
		turn(100);
	lost += (uint64_t)open_requests();
}

static int by_size(const void *a, const void *b)
{
	uint32_t left = *(const uint32_t *)a, right_ = *(const uint32_t *)b;

	return (left > right_) - (left < right_);
}

static double percentile_ms(double share)
{
	return measured ? latencies_us[(size_t)(share * (double)(measured - 1))] / 1000.0 : 0;
}

static void print_result(void)
{
	qsort(latencies_us, measured, sizeof(*latencies_us), by_size);
	printf("{\"per_second\":%.1f,\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"measured\":%zu,\"right\":%llu,"
	       "\"controls\":%llu,\"wrong\":%llu,\"lost\":%llu}\n",
	       (double)measured / options.seconds, percentile_ms(0.5), percentile_ms(0.99), measured,
	       (unsigned long long)right, (unsigned long long)controls, (unsigned long long)wrong,
	       (unsigned long long)lost);
}

/* --- options -------------------------------------------------------------------------------- */

static int one_of(const char *name, const char *const *names)
{
	for (int i = 0; names[i]; i++)
		if (strcmp(name, names[i]) == 0)
			return i;
	die("unknown choice", name);
	return -1;
}

static void parse(int argc, char **argv)
{
	static const char *const loads[] = {"sensor", "control", "batch", NULL};
	static const char *const checks[] = {"reply", "echo", NULL};
	static const struct option known[] = {
		{"host", 1, 0, 'h'},	   {"port", 1, 0, 'p'},	   {"prefix", 1, 0, 'x'},
		{"load", 1, 0, 'l'},	   {"check", 1, 0, 'k'},   {"qos", 1, 0, 'q'},
		{"in-flight", 1, 0, 'n'},  {"devices", 1, 0, 'd'}, {"connections", 1, 0, 'c'},
		{"warm-up", 1, 0, 'w'},	   {"seconds", 1, 0, 's'}, {"probe", 1, 0, 'o'},
		{"sensor", 1, 0, 'e'},	   {"parity", 1, 0, 'a'},
		{0, 0, 0, 0},
	};
	int option;

	while ((option = getopt_long(argc, argv, "", known, NULL)) != -1)
		switch (option) {
		case 'h': options.host = optarg; break;
		case 'p': options.port = atoi(optarg); break;
		case 'x': options.prefix = optarg; break;
		case 'l': options.load = (enum operation)one_of(optarg, loads); break;
		case 'k': options.check = (enum check)one_of(optarg, checks); break;
		case 'q': options.qos = atoi(optarg); break;
		case 'n': options.in_flight = atoi(optarg); break;
		case 'd': options.devices = (uint32_t)atoi(optarg); break;
		case 'c': options.connections = atoi(optarg); break;
		case 'w': options.warm_up = atof(optarg); break;
		case 's': options.seconds = atof(optarg); break;
		case 'e': options.sensor = optarg; break;
		case 'a': options.parity = atoi(optarg); break;
		case 'o': options.probe = atof(optarg); break;
		default: exit(2);
		}
	if (options.in_flight < 1 || options.in_flight > MAX_SLOTS)
		die("--in-flight", "1 to 4096");
	if (options.connections < 1 || options.connections > MAX_CONNECTIONS)
		die("--connections", "1 to 64");
	if (options.probe > 0)
		options.in_flight = PROBE_SLOTS;
	if (options.connections > options.in_flight)
		options.connections = options.in_flight;
}

int main(int argc, char **argv)
{
	parse(argc, argv);
	nonce = (uint32_t)(now_ns() / 1000);
	mosquitto_lib_init();
	connect_all();
	if (options.probe > 0)
		return probe();
	run();
	print_result();
	return 0;
}
