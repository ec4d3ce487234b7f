/* HTTP load that costs less than what it asks for: one request, over many keep-alive connections.
 *
 *     http_load HOST PORT FILE CONNECTIONS RATE SECONDS
 *
 * FILE holds the request, whole. With a RATE (a second) the loop is open: requests are due at that
 * pace however many are unanswered, and what has no free connection waits here, with its time
 * running. With RATE 0 it is closed: each connection asks again as soon as it is answered.
 *
 * Each connection is answered once before the clock starts, since a server may take its time to
 * accept them.
 *
 * Prints lines of `name value …`, times in ms from when a request was due:
 *     code STATUS COUNT P50 P99 MAX        for each status that was answered
 *     late P99 MAX                         how late requests left, because of us
 *     unanswered COUNT
 *     elapsed SECONDS
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "load.h"

enum { BUFFER = 256 * 1024, EVENTS = 512 };

struct connection {
    int socket, status;
    double due;
    long filled, expected; /* bytes of the answer: so far, and in all (-1: not known yet) */
    char *answer;
};

static char request[BUFFER];
static long request_bytes;

static int connected(const char *host, int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    inet_pton(AF_INET, host, &address.sin_addr);
    int one = 1, made = socket(AF_INET, SOCK_STREAM, 0);
    if (made < 0 || connect(made, (struct sockaddr *)&address, sizeof address)) fail("connect");
    setsockopt(made, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(made, F_SETFL, O_NONBLOCK);
    return made;
}

static void ask(struct connection *one, double due) {
    one->due = due;
    one->filled = 0;
    one->expected = -1;
    /* Requests are small, and one at a time: the socket has room for it. */
    if (send(one->socket, request, (size_t)request_bytes, MSG_NOSIGNAL) != request_bytes)
        fail("send");
}

/* Whether the answer is there, whole. */
static int answered(struct connection *one) {
    for (;;) {
        ssize_t got =
            recv(one->socket, one->answer + one->filled, (size_t)(BUFFER - one->filled - 1), 0);
        if (got < 0 && errno == EAGAIN) return 0;
        if (got <= 0) {
            fprintf(stderr, "a connection was closed\n");
            exit(1);
        }
        one->filled += got;
        one->answer[one->filled] = 0;
        if (one->expected < 0) {
            char *head_end = strstr(one->answer, "\r\n\r\n");
            if (!head_end) continue;
            char *length = strcasestr(one->answer, "content-length:");
            one->status = atoi(one->answer + strlen("HTTP/1.1 "));
            one->expected = head_end + 4 - one->answer + (length ? atol(length + 15) : 0);
        }
        if (one->filled >= one->expected) return 1;
    }
}

/* Wait until all have been answered once. */
static void warm_up(struct connection *all, long connections) {
    for (long number = 0; number < connections; number++) ask(&all[number], now());
    for (long number = 0; number < connections; number++)
        while (!answered(&all[number])) usleep(100);
}

int main(int count, char **words) {
    if (count != 7) {
        fprintf(stderr, "http_load HOST PORT FILE CONNECTIONS RATE SECONDS\n");
        return 2;
    }
    FILE *file = fopen(words[3], "rb");
    if (!file) fail(words[3]);
    request_bytes = (long)fread(request, 1, sizeof request, file);
    fclose(file);
    long connections = atol(words[4]);
    double rate = atof(words[5]), seconds = atof(words[6]);

    int poll = epoll_create1(0);
    struct connection *all = calloc((size_t)connections, sizeof *all);
    long *idle = calloc((size_t)connections, sizeof *idle), idle_count = 0;
    for (long number = 0; number < connections; number++) {
        all[number].socket = connected(words[1], atoi(words[2]));
        all[number].answer = malloc(BUFFER);
        struct epoll_event wanted = {.events = EPOLLIN, .data.u64 = (uint64_t)number};
        epoll_ctl(poll, EPOLL_CTL_ADD, all[number].socket, &wanted);
        idle[idle_count++] = number;
    }

    warm_up(all, connections);

    double began = now(), ends = began + seconds, last = began;
    long asked = 0, done = 0, total = rate > 0 ? (long)(rate * seconds) : -1;
    struct epoll_event events[EVENTS];
    for (;;) {
        double present = now();
        int more = rate > 0 ? asked < total : present < ends;
        if ((!more && done == asked) || present > ends + PATIENCE) break;
        while (more && idle_count) {
            double due = rate > 0 ? began + (double)asked / rate : present;
            if (due > present) break;
            ask(&all[idle[--idle_count]], due);
            note(&late, (now() - due) * 1000);
            asked++;
            more = rate <= 0 || asked < total;
        }
        double wait = TICK;
        if (rate > 0 && asked < total && idle_count) wait = began + (double)asked / rate - now();
        int ready = epoll_wait(poll, events, EVENTS, wait_ms(wait));
        for (int number = 0; number < ready; number++) {
            struct connection *one = &all[events[number].data.u64];
            if (!answered(one)) continue;
            last = now();
            note(&by_status[one->status % MOST_STATUS], (last - one->due) * 1000);
            idle[idle_count++] = (long)events[number].data.u64;
            done++;
        }
    }
    tell((total < 0 ? asked : total) - done, last - began);
    return 0;
}
