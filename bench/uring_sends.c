/*
 * uring_sends - do the sends of one pacing tick cost less through io_uring than one by one?
 *
 * N TCP connections over loopback; in a tick each is sent one frame: by N calls of send(), or by N entries and one
 * io_uring_enter().  Printed is the time of the sending thread per frame, in alternating rounds.  The rule: both
 * ways send the same bytes to the same sockets, and what came is read between the ticks, outside of the time.
 *
 * Build:  gcc -O3 -Wall -Wextra -o uring_sends uring_sends.c
 * Use:    uring_sends [CONNECTIONS [BYTES [ROUNDS]]]             [200 644 9]
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/io_uring.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { TICKS = 400, MOST = 4096 };

static int near[MOST], far[MOST], n = 200, size = 644, ring;
static unsigned char frame[65536];
static struct io_uring_sqe *entries;
static struct io_uring_cqe *done;
static unsigned *tail, *mask, *array, *cq_head, *cq_tail, *cq_mask;

static void die(const char *what) { perror(what); exit(1); }

static uint64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void connect_pairs(void)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t len = sizeof a;
    int one = 1, listening = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listening, (struct sockaddr *)&a, len) || listen(listening, 128)) die("listen");
    getsockname(listening, (struct sockaddr *)&a, &len);
    for (int i = 0; i < n; i++) {
        far[i] = socket(AF_INET, SOCK_STREAM, 0);
        if (connect(far[i], (struct sockaddr *)&a, sizeof a)) die("connect");
        near[i] = accept(listening, NULL, NULL);
        setsockopt(near[i], IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    }
}

static void open_ring(void)
{
    struct io_uring_params p = { 0 };
    ring = (int)syscall(SYS_io_uring_setup, n, &p);
    if (ring < 0) die("this kernel allows no io_uring");
    unsigned char *sq = mmap(NULL, p.sq_off.array + p.sq_entries * sizeof(unsigned), PROT_READ | PROT_WRITE,
                             MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
    unsigned char *cq = mmap(NULL, p.cq_off.cqes + p.cq_entries * sizeof *done, PROT_READ | PROT_WRITE,
                             MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_CQ_RING);
    entries = mmap(NULL, p.sq_entries * sizeof *entries, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring,
                   IORING_OFF_SQES);
    if (sq == MAP_FAILED || cq == MAP_FAILED || entries == MAP_FAILED) die("mmap");
    tail = (unsigned *)(sq + p.sq_off.tail);
    mask = (unsigned *)(sq + p.sq_off.ring_mask);
    array = (unsigned *)(sq + p.sq_off.array);
    cq_head = (unsigned *)(cq + p.cq_off.head);
    cq_tail = (unsigned *)(cq + p.cq_off.tail);
    cq_mask = (unsigned *)(cq + p.cq_off.ring_mask);
    done = (struct io_uring_cqe *)(cq + p.cq_off.cqes);
}

static void send_each(void)
{
    for (int i = 0; i < n; i++)
        if (send(near[i], frame, (size_t)size, MSG_NOSIGNAL | MSG_DONTWAIT) != size) die("send");
}

static void send_ring(void)
{
    unsigned at = *tail;
    for (int i = 0; i < n; i++, at++) {
        unsigned k = at & *mask;
        entries[k] = (struct io_uring_sqe){ .opcode = IORING_OP_SEND, .fd = near[i], .addr = (uintptr_t)frame,
                                            .len = (unsigned)size, .msg_flags = MSG_NOSIGNAL | MSG_DONTWAIT };
        array[k] = k;
    }
    __atomic_store_n(tail, at, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring, n, n, IORING_ENTER_GETEVENTS, NULL, 0) != n) die("io_uring_enter");
    unsigned head = *cq_head;
    for (; head != __atomic_load_n(cq_tail, __ATOMIC_ACQUIRE); head++)
        if (done[head & *cq_mask].res != size) { fprintf(stderr, "short send\n"); exit(1); }
    __atomic_store_n(cq_head, head, __ATOMIC_RELEASE);
}

static void drain(void)
{
    static unsigned char in[65536];
    for (int i = 0; i < n; i++)
        for (int got = 0; got < size;) {
            ssize_t some = recv(far[i], in, sizeof in, 0);
            if (some <= 0) die("recv");
            got += (int)some;
        }
}

static double per_frame(void (*tick)(void))     /* us */
{
    uint64_t spent = 0;
    for (int t = 0; t < TICKS; t++) {
        uint64_t began = cpu_ns();
        tick();
        spent += cpu_ns() - began;
        drain();
    }
    return (double)spent / 1e3 / TICKS / n;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
    struct rlimit files = { 2 * MOST + 100, 2 * MOST + 100 };
    int rounds = argc > 3 ? atoi(argv[3]) : 9;
    if (argc > 1) n = atoi(argv[1]);
    if (argc > 2) size = atoi(argv[2]);
    if (n < 1 || n > MOST || size < 1 || size > (int)sizeof frame || rounds < 1 || rounds > 99) {
        fputs("usage: uring_sends [CONNECTIONS [BYTES [ROUNDS]]]\n", stderr);
        return 1;
    }
    setrlimit(RLIMIT_NOFILE, &files);
    connect_pairs();
    open_ring();
    per_frame(send_each);
    per_frame(send_ring);
    double each[99], batch[99], ratio[99];
    for (int i = 0; i < rounds; i++) {
        each[i] = per_frame(send_each);
        batch[i] = per_frame(send_ring);
        ratio[i] = batch[i] / each[i];
    }
    qsort(each, (size_t)rounds, sizeof *each, ascending);
    qsort(batch, (size_t)rounds, sizeof *batch, ascending);
    qsort(ratio, (size_t)rounds, sizeof *ratio, ascending);
    printf("%d connections, %d bytes, %d rounds of %d ticks: send() %.2f us a frame, io_uring %.2f, "
           "ratio %.2f (%.2f to %.2f)\n", n, size, rounds, TICKS, each[rounds / 2], batch[rounds / 2],
           ratio[rounds / 2], ratio[0], ratio[rounds - 1]);
    return 0;
}
