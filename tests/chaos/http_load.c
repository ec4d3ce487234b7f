/* HTTP load that costs less than what it asks for: one request, over many keep-alive connections.
 *
 *     http_load HOST PORT FILE CONNECTIONS RATE SECONDS [MARK…]
 *
 * FILE holds the request, whole. With a RATE (a second) the loop is open: requests are due at that
 * pace however many are unanswered, and what has no free connection waits here, which is told as
 * `late`; what has none half a minute after the end is never sent. With RATE 0 it is closed: each connection asks again as soon as it is answered.
 *
 * Each connection is answered once before the clock starts, since a server may take its time to
 * accept them. A connection that the server closes is opened again; the request on it, if there was
 * one, counts as unanswered.
 *
 * Each MARK, in seconds, begins another phase; an answer counts in the phase in which it comes.
 *
 * Prints lines of `name value …`, times in ms from when a request was sent:
 *     begun                                when the clock starts
 *     phase SECONDS                        for each phase: how long it took (the last one: up to
 *                                          its last answer), followed by
 *     code STATUS COUNT P50 P99 MAX        for each status that was answered
 *     late P99 MAX                         how long requests waited for a free connection
 *     unanswered COUNT                     of those that were sent
 *     unsent COUNT                         requests that never had a free connection
 *     closed COUNT                         connections closed by the server amid a request
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
    int socket, status, waiting, last; /* waiting for an answer; which is the last one on it */
    double sent;
    long filled, expected; /* bytes of the answer: so far, and in all (-1: not known yet) */
    char *answer;
};

static char request[BUFFER];
static long request_bytes;
static const char *host;
static int port, poll;
static long closed;

static void open_connection(struct connection *one, long number) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    inet_pton(AF_INET, host, &address.sin_addr);
    int yes = 1, made = socket(AF_INET, SOCK_STREAM, 0);
    if (made < 0 || connect(made, (struct sockaddr *)&address, sizeof address)) fail("connect");
    setsockopt(made, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    fcntl(made, F_SETFL, O_NONBLOCK);
    struct epoll_event wanted = {.events = EPOLLIN, .data.u64 = (uint64_t)number};
    epoll_ctl(poll, EPOLL_CTL_ADD, made, &wanted);
    one->socket = made;
}

static void open_again(struct connection *one, long number) {
    close(one->socket);
    open_connection(one, number);
}

static void ask(struct connection *one) {
    one->sent = now();
    one->filled = 0;
    one->expected = -1;
    one->waiting = 1;
    /* Requests are small, and one at a time: the socket has room for it. A connection that was
     * closed meanwhile is noticed when it is read. */
    ssize_t sent = send(one->socket, request, (size_t)request_bytes, MSG_NOSIGNAL);
    if (sent >= 0 && sent != request_bytes) fail("send");
}

enum state { PENDING, ANSWERED, CLOSED };

static void read_head(struct connection *one) {
    char *head_end = strstr(one->answer, "\r\n\r\n");
    if (!head_end) return;
    *head_end = 0;
    char *length = strcasestr(one->answer, "content-length:");
    one->status = atoi(one->answer + strlen("HTTP/1.1 "));
    one->last = strcasestr(one->answer, "connection: close") != NULL;
    one->expected = head_end + 4 - one->answer + (length ? atol(length + 15) : 0);
}

static enum state take(struct connection *one) {
    for (;;) {
        ssize_t got =
            recv(one->socket, one->answer + one->filled, (size_t)(BUFFER - one->filled - 1), 0);
        if (got < 0 && errno == EAGAIN) return PENDING;
        if (got <= 0) return CLOSED;
        one->filled += got;
        one->answer[one->filled] = 0;
        if (one->expected < 0) read_head(one);
        if (one->expected >= 0 && one->filled >= one->expected) return ANSWERED;
    }
}

/* Wait until all have been answered once. */
static void warm_up(struct connection *all, long connections) {
    double began = now();
    for (long number = 0; number < connections; number++) ask(&all[number]);
    for (long number = 0; number < connections; number++) {
        struct connection *one = &all[number];
        enum state state;
        while ((state = take(one)) == PENDING && now() < began + LAST_WAIT) usleep(100);
        if (state == PENDING) {
            fprintf(stderr, "a connection was never answered\n");
            exit(1);
        }
        if (state == CLOSED) closed++;
        if (state == CLOSED || one->last) open_again(one, number);
        one->waiting = 0;
    }
}

int main(int count, char **words) {
    if (count < 7 || count - 7 >= MOST_PHASES) {
        fprintf(stderr, "http_load HOST PORT FILE CONNECTIONS RATE SECONDS [MARK...]\n");
        return 2;
    }
    FILE *file = fopen(words[3], "rb");
    if (!file) fail(words[3]);
    request_bytes = (long)fread(request, 1, sizeof request, file);
    fclose(file);
    host = words[1];
    port = atoi(words[2]);
    long connections = atol(words[4]);
    double rate = atof(words[5]), seconds = atof(words[6]);
    int phases = count - 6, phase = 0;

    poll = epoll_create1(0);
    struct connection *all = calloc((size_t)connections, sizeof *all);
    long *idle = calloc((size_t)connections, sizeof *idle), idle_count = 0;
    for (long number = 0; number < connections; number++) {
        all[number].answer = malloc(BUFFER);
        open_connection(&all[number], number);
        idle[idle_count++] = number;
    }

    warm_up(all, connections);
    printf("begun\n");
    fflush(stdout);

    double began = now(), ends = began + seconds, last = began, phase_began[MOST_PHASES] = {began};
    long asked = 0, done = 0, unsent = 0, total = rate > 0 ? (long)(rate * seconds) : -1;
    struct epoll_event events[EVENTS];
    for (;;) {
        double present = now();
        int more = rate > 0 ? asked < total : present < ends;
        if ((!more && done == asked) || (!more && stop_waiting(present, ends, last))) break;
        if (more && rate > 0 && present > ends + LAST_WAIT) {
            unsent = total - asked;
            total = asked;
            ends = present;
            continue;
        }
        while (more && idle_count) {
            double due = rate > 0 ? began + (double)asked / rate : present;
            if (due > present) break;
            ask(&all[idle[--idle_count]]);
            note(&late, (now() - due) * 1000);
            asked++;
            more = rate <= 0 || asked < total;
        }
        double wait = TICK;
        if (rate > 0 && asked < total && idle_count) wait = began + (double)asked / rate - now();
        int ready = epoll_wait(poll, events, EVENTS, wait_ms(wait));
        for (int event = 0; event < ready; event++) {
            long number = (long)events[event].data.u64;
            struct connection *one = &all[number];
            enum state state = take(one);
            if (state == PENDING) continue;
            int waited = one->waiting;
            one->waiting = 0;
            if (state == CLOSED || one->last) open_again(one, number);
            if (!waited) continue;
            idle[idle_count++] = number;
            done++;
            if (state == CLOSED) {
                closed++;
                continue;
            }
            last = now();
            while (phase + 1 < phases && last >= began + atof(words[7 + phase]))
                phase_began[++phase] = last;
            note(&by_status[phase][one->status % MOST_STATUS], (last - one->sent) * 1000);
        }
    }
    for (int number = 0; number < phases; number++) {
        double until = number < phase ? phase_began[number + 1] : last;
        tell_phase(number, number <= phase ? until - phase_began[number] : 0);
    }
    tell_totals(asked - done + closed);
    printf("unsent %ld\n", unsent);
    printf("closed %ld\n", closed);
    return 0;
}
