/* send() and recv(), and the same by syscall(), that fail when they are told to, for the descriptors that are named, and
   are libc's own otherwise.
   Preloaded by test_failures.py; failures.py gives the orders. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/types.h>

enum { SEND, RECV };
enum { SHORT = -1 };            /* instead of an error: one byte only */

static unsigned char watched[1024];     /* descriptors: 1 if their calls are counted */
static int which, how;          /* SEND or RECV; SHORT or an errno */
static long first, last;        /* of the counted calls, from 1, those that fail */
static long calls;              /* counted so far, of the kind that fails */

void failing_watch(int fd, int on) { watched[fd & 1023] = on; }

void failing_plan(int kind, int error, long n, long times)
{
    which = kind; how = error; first = n; last = n + times - 1; calls = 0;
}

long failing_calls(void) { return calls; }

/* 1 when the call is to fail: errno is set, or *size is cut. */
static int fails(int kind, int fd, size_t *size)
{
    if (fd < 0 || fd >= 1024 || !watched[fd] || kind != which)
        return 0;
    calls++;
    if (calls < first || calls > last)
        return 0;
    if (how == SHORT) {
        *size = *size > 1 ? 1 : *size;
        return 0;
    }
    errno = how;
    return 1;
}

ssize_t send(int fd, const void *data, size_t size, int flags)
{
    static ssize_t (*real)(int, const void *, size_t, int);
    if (real == NULL)
        real = dlsym(RTLD_NEXT, "send");
    return fails(SEND, fd, &size) ? -1 : real(fd, data, size, flags);
}

ssize_t recv(int fd, void *room, size_t size, int flags)
{
    static ssize_t (*real)(int, void *, size_t, int);
    if (real == NULL)
        real = dlsym(RTLD_NEXT, "recv");
    return fails(RECV, fd, &size) ? -1 : real(fd, room, size, flags);
}

long syscall(long number, ...)
{
    static long (*real)(long, ...);
    size_t a[6];
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(list, size_t);
    va_end(list);
    if (real == NULL)
        real = dlsym(RTLD_NEXT, "syscall");
    int kind = number == SYS_sendto ? SEND : RECV;
    if ((number == SYS_sendto || number == SYS_recvfrom) && fails(kind, (int)a[0], &a[2]))
        return -1;
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
