/* What the load generators share: a clock, the times of what was answered, and printing them. */
#ifndef LOAD_H
#define LOAD_H

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { MOST_STATUS = 600, MOST_PHASES = 8 };
/* How long a generator waits at the end for what is unanswered, and how long after the last answer;
 * how long a loop sleeps at the most (s). */
static const double LAST_WAIT = 30.0, SILENCE = 5.0, TICK = 0.05;

struct times {
    double *ms;
    long count, room;
};

static struct times by_status[MOST_PHASES][MOST_STATUS], late;

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

/* Whether to stop waiting for answers that are still out. */
static int stop_waiting(double present, double ends, double last_answer) {
    double since = last_answer > ends ? last_answer : ends;
    return present > ends + LAST_WAIT || present > since + SILENCE;
}

static void tell_phase(int phase, double seconds) {
    printf("phase %.3f\n", seconds);
    for (int status = 0; status < MOST_STATUS; status++) {
        struct times *times = &by_status[phase][status];
        if (!times->count) continue;
        sort(times);
        printf("code %d %ld %.3f %.3f %.3f\n", status, times->count, at(times, 0.5),
               at(times, 0.99), at(times, 1.0));
    }
}

static void tell_totals(long unanswered) {
    sort(&late);
    printf("late %.3f %.3f\nunanswered %ld\n", at(&late, 0.99), at(&late, 1.0), unanswered);
}

#endif
