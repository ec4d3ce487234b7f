/* Plays every device at once: takes what is sent to any device's control topic, and counts it.
 * Each line on standard input is answered with the count so far.
 * Usage: control_counter HOST PORT */
#include "common.h"

#include <poll.h>
#include <unistd.h>

static uint64_t commands;
static bool subscribed;

static void on_subscribe(struct mosquitto *client, void *user, int mid, int count, const int *granted)
{
	(void)client;
	(void)user;
	(void)mid;
	if (count != 1 || granted[0] > 2)
		die("subscribe", "refused");
	subscribed = true;
}

static void on_message(struct mosquitto *client, void *user, const struct mosquitto_message *message)
{
	(void)client;
	(void)user;
	(void)message;
	commands++;
}

int main(int argc, char **argv)
{
	struct mosquitto *client;
	char line[64];

	if (argc != 3)
		die("usage", "control_counter HOST PORT");
	mosquitto_lib_init();
	client = bench_connect(argv[1], atoi(argv[2]), NULL);
	mosquitto_subscribe_callback_set(client, on_subscribe);
	mosquitto_message_callback_set(client, on_message);
	check(mosquitto_subscribe(client, NULL, "devices/+/control", 1), "subscribe");
	for (;;) {
		struct pollfd ready[2] = {
			{.fd = mosquitto_socket(client), .events = POLLIN},
			/* Asked only once it can count: the runner's first question waits for that. */
			{.fd = subscribed ? STDIN_FILENO : -1, .events = POLLIN},
		};
		if (mosquitto_want_write(client))
			ready[0].events |= POLLOUT;
		if (poll(ready, 2, 1000) < 0)
			die("poll", "failed");
		if (ready[0].revents & POLLIN)
			check(mosquitto_loop_read(client, 1), "read");
		if (ready[0].revents & POLLOUT)
			check(mosquitto_loop_write(client, 1), "write");
		check(mosquitto_loop_misc(client), "keepalive");
		if (ready[1].revents) {
			if (read(STDIN_FILENO, line, sizeof(line)) <= 0)
				return 0;
			printf("%llu\n", (unsigned long long)commands);
			fflush(stdout);
		}
	}
}
