/*
 * What the load clients share: a clock, fixed chance, what a process costs, a core of one's own.
 *
 * The rule: nothing here knows of a socket.  A client is one C file; this is included by it, once.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

typedef struct { uint64_t run, wait; } Sched;               /* ns on a CPU; ns runnable but kept off */

static const char BASE64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

static void die(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(1);
}

static void *alloc(size_t n, size_t size)
{
    void *p = calloc(n ? n : 1, size);
    if (!p) die("out of memory");
    return p;
}

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint32_t rnd(void)       /* xorshift, fixed seed */
{
    static uint32_t s = 0x9e3779b9;
    s ^= s << 13; s ^= s >> 17; s ^= s << 5;
    return s;
}

static int compare_u32(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static Sched sched_of(int pid)  /* all threads of a process */
{
    Sched sum = { 0, 0 };
    char path[400];
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *d = opendir(path);
    if (!d) die("no process %d", pid);
    for (struct dirent *e; (e = readdir(d));) {
        unsigned long long run = 0, wait = 0;
        if (e->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "/proc/%d/task/%s/schedstat", pid, e->d_name);
        FILE *f = fopen(path, "r");
        if (!f) continue;
        if (fscanf(f, "%llu %llu", &run, &wait) == 2) { sum.run += run; sum.wait += wait; }
        fclose(f);
    }
    closedir(d);
    return sum;
}

static Sched sched_of_all(const int *pids, int n)
{
    Sched sum = { 0, 0 };
    for (int i = 0; i < n; i++) {
        Sched s = sched_of(pids[i]);
        sum.run += s.run;
        sum.wait += s.wait;
    }
    return sum;
}

static Sched since(Sched then, Sched now)
{
    return (Sched){ now.run - then.run, now.wait - then.wait };
}

static void pin(int cpu)        /* and wake up when it is time, not 50 us later; -1: wherever there is room */
{
    cpu_set_t set;
    prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0);
    if (cpu < 0) return;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set)) die("cannot pin to CPU %d", cpu);
}
