/* The limit of MQTT request and reply on this machine: answers every request with its own payload.
 * Usage: echo HOST PORT PREFIX */
#include "common.h"

static void on_message(struct mosquitto *client, void *user, const struct mosquitto_message *request,
		       const mosquitto_property *properties)
{
	char *reply_topic = NULL;
	void *correlation = NULL;
	uint16_t length = 0;
	mosquitto_property *reply = NULL;

	(void)user;
	mosquitto_property_read_string(properties, MQTT_PROP_RESPONSE_TOPIC, &reply_topic, false);
	mosquitto_property_read_binary(properties, MQTT_PROP_CORRELATION_DATA, &correlation, &length,
				       false);
	if (reply_topic == NULL)
		return;
	if (correlation != NULL)
		mosquitto_property_add_binary(&reply, MQTT_PROP_CORRELATION_DATA, correlation, length);
	check(mosquitto_publish_v5(client, NULL, reply_topic, request->payloadlen, request->payload,
				   request->qos, false, reply),
	      "publish");
	mosquitto_property_free_all(&reply);
	free(reply_topic);
	free(correlation);
}

int main(int argc, char **argv)
{
	char topic[256];
	struct mosquitto *client;

	if (argc != 4)
		die("usage", "echo HOST PORT PREFIX");
	mosquitto_lib_init();
	client = bench_connect(argv[1], atoi(argv[2]), NULL);
	mosquitto_message_v5_callback_set(client, on_message);
	snprintf(topic, sizeof(topic), "%s/request/#", argv[3]);
	check(mosquitto_subscribe(client, NULL, topic, 1), "subscribe");
	check(mosquitto_loop_forever(client, -1, 1), "loop");
	return 0;
}
