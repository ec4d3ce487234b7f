/* MQTT 5 load that costs less than what it asks for: one request at QoS 1, over a few connections.
 *
 *     mqtt_load HOST PORT TOPIC FILE CONNECTIONS AT_ONCE RATE SECONDS
 *
 * FILE holds the payload. Each request has Correlation Data of its own, and a Response Topic below
 * plugin/reply/ to which its connection is subscribed. With a RATE (a second) the loop is open:
 * requests are due at that pace however many are unanswered. With RATE 0 it is closed: AT_ONCE are
 * asked, and each answer is followed by the next request.
 *
 * Prints what http_load prints, but for `begun` and `closed`, as one phase; the status is the `code`
 * of the reply's body. A request that nobody is there to hear, or that the broker refuses, ends it
 * with status 1.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "load.h"

enum { MOST_CONNECTIONS = 64, MOST_PAYLOAD = 128 * 1024, READ_BYTES = 4 * 1024 * 1024 };
enum { CONNACK = 2, PUBLISH = 3, PUBACK = 4, SUBACK = 9, CORRELATION = 4 };

struct bytes {
    uint8_t *at;
    size_t length, room;
};

struct connection {
    int socket, granted;
    uint16_t packet_id;
    /* A whole PUBLISH, and where in it what differs from one to the next stands. */
    struct bytes request;
    size_t id_at, correlation_at;
    struct bytes unsent, unread;
};

static struct connection all[MOST_CONNECTIONS];
static int connections;
/* When each request was due, by number; 0 once it was answered. */
static double *due_times;
static long asked, answered, room;

static void add(struct bytes *bytes, const void *more, size_t length) {
    if (bytes->length + length > bytes->room) {
        bytes->room = 2 * (bytes->length + length);
        bytes->at = realloc(bytes->at, bytes->room);
        if (!bytes->at) fail("memory");
    }
    memcpy(bytes->at + bytes->length, more, length);
    bytes->length += length;
}

static void add_byte(struct bytes *bytes, unsigned value) {
    uint8_t byte = (uint8_t)value;
    add(bytes, &byte, 1);
}

static void add_varint(struct bytes *bytes, size_t value) {
    for (; value >= 0x80; value >>= 7) add_byte(bytes, (value & 0x7F) | 0x80);
    add_byte(bytes, (unsigned)value);
}

static void add_text(struct bytes *bytes, const char *text) {
    size_t length = strlen(text);
    add_byte(bytes, (unsigned)(length >> 8));
    add_byte(bytes, length & 0xFF);
    add(bytes, text, length);
}

static void drop(struct bytes *bytes, size_t length) {
    memmove(bytes->at, bytes->at + length, bytes->length - length);
    bytes->length -= length;
}

static void add_packet(struct bytes *to, unsigned first, const struct bytes *body) {
    add_byte(to, first);
    add_varint(to, body->length);
    add(to, body->at, body->length);
}

/* --- a connection ------------------------------------------------------------------------- */

static void greet(struct connection *one, const char *name, const char *reply_topic) {
    struct bytes connect = {0}, subscribe = {0};
    add(&connect, "\0\4MQTT\5\2\0\0\3\x21\xFF\xFF", 14);
    add_text(&connect, name);
    add_packet(&one->unsent, 0x10, &connect);
    add(&subscribe, "\0\1\0", 3);
    add_text(&subscribe, reply_topic);
    add_byte(&subscribe, 1);
    add_packet(&one->unsent, 0x82, &subscribe);
    free(connect.at);
    free(subscribe.at);
}

static void prepare(struct connection *one, const char *topic, const char *reply_topic,
                    const struct bytes *payload) {
    struct bytes properties = {0}, body = {0};
    add_byte(&properties, 0x08);
    add_text(&properties, reply_topic);
    add(&properties, "\x09\0\4....", 7);
    add_text(&body, topic);
    size_t id_at = body.length;
    add(&body, "..", 2);
    add_varint(&body, properties.length);
    add(&body, properties.at, properties.length);
    size_t correlation_at = body.length - CORRELATION;
    add(&body, payload->at, payload->length);
    add_packet(&one->request, 0x32, &body);
    size_t head = one->request.length - body.length;
    one->id_at = head + id_at;
    one->correlation_at = head + correlation_at;
    free(properties.at);
    free(body.at);
}

static void open_connection(struct connection *one, const char *host, int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    inet_pton(AF_INET, host, &address.sin_addr);
    int yes = 1;
    one->socket = socket(AF_INET, SOCK_STREAM, 0);
    if (one->socket < 0 || connect(one->socket, (struct sockaddr *)&address, sizeof address))
        fail("connect");
    setsockopt(one->socket, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    fcntl(one->socket, F_SETFL, O_NONBLOCK);
}

static void flush(struct connection *one) {
    while (one->unsent.length) {
        ssize_t sent = send(one->socket, one->unsent.at, one->unsent.length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) return;
        if (sent < 0) fail("send");
        drop(&one->unsent, (size_t)sent);
    }
}

/* --- requests and replies ----------------------------------------------------------------- */

static void ask(double due) {
    struct connection *one = &all[asked % connections];
    if (asked == room) {
        room = room ? 2 * room : 65536;
        due_times = realloc(due_times, (size_t)room * sizeof *due_times);
        if (!due_times) fail("memory");
    }
    due_times[asked] = due;
    if (!++one->packet_id) one->packet_id = 1;
    uint16_t id = htons(one->packet_id);
    uint32_t number = htonl((uint32_t)asked++);
    memcpy(one->request.at + one->id_at, &id, sizeof id);
    memcpy(one->request.at + one->correlation_at, &number, sizeof number);
    add(&one->unsent, one->request.at, one->request.length);
}

static size_t read_varint(const uint8_t **at) {
    size_t value = 0;
    for (int shift = 0;; shift += 7) {
        uint8_t byte = *(*at)++;
        value |= (size_t)(byte & 0x7F) << shift;
        if (byte < 0x80) return value;
    }
}

static size_t read_uint16(const uint8_t **at) {
    *at += 2;
    return (size_t)(*at)[-2] << 8 | (*at)[-1];
}

/* The number in the Correlation Data among the properties; -1 if there is none. */
static long number_in(const uint8_t *at, const uint8_t *end) {
    while (at < end) {
        uint8_t kind = *at++;
        if (kind == 0x09) {
            uint32_t number;
            if (read_uint16(&at) != CORRELATION) return -1;
            memcpy(&number, at, sizeof number);
            return (long)ntohl(number);
        }
        if (kind == 0x01) at += 1;
        else if (kind == 0x02) at += 4;
        else {
            /* One text, or a pair of them: Content Type, Response Topic, a user property. */
            for (int texts = kind == 0x26 ? 2 : 1; texts; texts--) {
                size_t length = read_uint16(&at);
                at += length;
            }
        }
    }
    return -1;
}

static void take_reply(struct connection *one, const uint8_t *at, const uint8_t *end, double came) {
    size_t topic = read_uint16(&at);
    at += topic;
    uint8_t puback[] = {0x40, 2, at[0], at[1]};
    add(&one->unsent, puback, sizeof puback);
    at += 2;
    size_t properties = read_varint(&at);
    long number = number_in(at, at + properties);
    at += properties;
    /* One that comes twice counts once. */
    if (number < 0 || number >= asked || due_times[number] == 0) return;
    if (end - at < 11 || memcmp(at, "{\"code\":", 8)) {
        fprintf(stderr, "no reply body: %.*s\n", (int)(end - at), (const char *)at);
        exit(1);
    }
    int status = atoi((const char *)at + 8);
    note(&by_status[0][status % MOST_STATUS], (came - due_times[number]) * 1000);
    due_times[number] = 0;
    answered++;
}

static void take(struct connection *one, uint8_t first, const uint8_t *body, size_t length,
                 double came) {
    int kind = first >> 4;
    if (kind == PUBLISH && (first & 0x06)) take_reply(one, body, body + length, came);
    else if (kind == SUBACK) one->granted = 1;
    int reason = kind == CONNACK ? body[1] : kind == SUBACK ? body[length - 1] : 0;
    if (kind == PUBACK && length > 2) reason = body[2];
    if (reason && !(kind == SUBACK && reason <= 2)) {
        fprintf(stderr, "the broker says 0x%02x\n", reason);
        exit(1);
    }
}

/* Where the packet's body begins, and its length; NULL while it is not there whole. */
static const uint8_t *body_of(const uint8_t *at, const uint8_t *end, size_t *length) {
    *length = 0;
    for (int shift = 0; ++at < end; shift += 7) {
        *length |= (size_t)(*at & 0x7F) << shift;
        if (*at < 0x80) return (size_t)(end - at - 1) < *length ? NULL : at + 1;
    }
    return NULL;
}

static void read_some(struct connection *one) {
    static uint8_t piece[READ_BYTES];
    ssize_t got = recv(one->socket, piece, sizeof piece, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        fprintf(stderr, "a connection was closed\n");
        exit(1);
    }
    add(&one->unread, piece, (size_t)got);
    double came = now();
    const uint8_t *at = one->unread.at, *end = at + one->unread.length;
    size_t length;
    for (const uint8_t *body; (body = body_of(at, end, &length)); at = body + length)
        take(one, *at, body, length, came);
    drop(&one->unread, (size_t)(at - one->unread.at));
}

static void turn(double seconds) {
    struct pollfd ready[MOST_CONNECTIONS];
    for (int number = 0; number < connections; number++) {
        flush(&all[number]);
        ready[number].fd = all[number].socket;
        ready[number].events = all[number].unsent.length ? POLLIN | POLLOUT : POLLIN;
    }
    if (poll(ready, (nfds_t)connections, wait_ms(seconds)) < 0) fail("poll");
    for (int number = 0; number < connections; number++)
        if (ready[number].revents & (POLLIN | POLLERR | POLLHUP)) read_some(&all[number]);
}

static int all_subscribed(void) {
    for (int number = 0; number < connections; number++)
        if (!all[number].granted) return 0;
    return 1;
}

int main(int count, char **words) {
    if (count != 9) {
        fprintf(stderr, "mqtt_load HOST PORT TOPIC FILE CONNECTIONS AT_ONCE RATE SECONDS\n");
        return 2;
    }
    static uint8_t text[MOST_PAYLOAD];
    FILE *file = fopen(words[4], "rb");
    if (!file) fail(words[4]);
    struct bytes payload = {.at = text, .length = fread(text, 1, sizeof text, file)};
    fclose(file);
    connections = atoi(words[5]);
    if (connections < 1 || connections > MOST_CONNECTIONS) return 2;
    long at_once = atol(words[6]);
    double rate = atof(words[7]), seconds = atof(words[8]);
    for (int number = 0; number < connections; number++) {
        char name[32], reply_topic[64];
        snprintf(name, sizeof name, "load-%d-%d", getpid(), number);
        snprintf(reply_topic, sizeof reply_topic, "plugin/reply/%s", name);
        open_connection(&all[number], words[1], atoi(words[2]));
        greet(&all[number], name, reply_topic);
        prepare(&all[number], words[3], reply_topic, &payload);
    }
    while (!all_subscribed()) turn(TICK);

    double began = now(), ends = began + seconds, last = began;
    long total = rate > 0 ? (long)(rate * seconds) : -1;
    for (;;) {
        double present = now();
        int more = rate > 0 ? asked < total : present < ends;
        if ((!more && answered == asked) || stop_waiting(present, ends, last)) break;
        while (more && (rate > 0 || asked - answered < at_once)) {
            double due = rate > 0 ? began + (double)asked / rate : present;
            if (due > present) break;
            ask(due);
            note(&late, (now() - due) * 1000);
            more = rate <= 0 || asked < total;
        }
        long before = answered;
        turn(rate > 0 && asked < total ? began + (double)asked / rate - now() : TICK);
        if (answered > before) last = now();
    }
    tell_phase(0, last - began);
    tell_totals((total < 0 ? asked : total) - answered);
    return 0;
}
