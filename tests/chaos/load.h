/* What the load generators share: a clock, the times of what was answered, and telling them. */
#ifndef LOAD_H
#define LOAD_H

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { MOST_STATUS = 600 };
/* How long what is unanswered at the end is waited for; how long a loop sleeps at the most (s). */
static const double PATIENCE = 30.0, TICK = 0.05;

struct times {
    double *ms;
    long count, room;
};

static struct times by_status[MOST_STATUS], late;

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static void note(struct times *times, double ms) {
    if (times->count == times->room) {
        times->room = times->room ? 2 * times->room : 1024;
        times->ms = realloc(times->ms, (size_t)times->room * sizeof *times->ms);
        if (!times->ms) fail("memory");
    }
    times->ms[times->count++] = ms;
}

static int ascending(const void *left, const void *right) {
    double difference = *(const double *)left - *(const double *)right;
    return (difference > 0) - (difference < 0);
}

static double at(const struct times *sorted, double share) {
    return sorted->count ? sorted->ms[(long)((double)(sorted->count - 1) * share)] : 0.0;
}

static void sort(struct times *times) {
    qsort(times->ms, (size_t)times->count, sizeof *times->ms, ascending);
}

/* How many ms to wait for, with the next request due in so many seconds. */
static int wait_ms(double seconds) {
    int ms = seconds <= 0 ? 0 : (int)(seconds * 1000) + 1;
    return ms > (int)(TICK * 1000) ? (int)(TICK * 1000) : ms;
}

static void tell(long unanswered, double elapsed) {
    for (int status = 0; status < MOST_STATUS; status++) {
        struct times *times = &by_status[status];
        if (!times->count) continue;
        sort(times);
        printf("code %d %ld %.3f %.3f %.3f\n", status, times->count, at(times, 0.5),
               at(times, 0.99), at(times, 1.0));
    }
    sort(&late);
    printf("late %.3f %.3f\n", at(&late, 0.99), at(&late, 1.0));
    printf("unanswered %ld\nelapsed %.3f\n", unanswered, elapsed);
}

#endif
