/*
 * echo_limit - the floor of the benchmarks: the least a WebSocket echo server can do.
 *
 * One thread, epoll, handshake, unmask in place, one send or writev per read: what is left is the
 * kernel.  Other servers are held against it; it is not a server to run, for it checks next to
 * nothing.  The rule it keeps: no work that an echo could do without.
 *
 * Build:  gcc -O3 -Wall -Wextra -o echo_limit echo_limit.c      (bench/echo.py does)
 * Use:    echo_limit PORT [spin]                                 (spin: never sleep in epoll_wait)
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { IN_CAP = 256 * 1024, BATCH = 64, EVENTS = 256 };

typedef struct {
    int fd;
    int open;                   /* the handshake is done */
    unsigned char *carry;       /* bytes of an incomplete frame or request */
    size_t carry_len;
    unsigned char *out;         /* bytes the socket did not take */
    size_t out_len;
} Conn;

static int ep;
static unsigned char in[IN_CAP];    /* one read buffer for all connections */

static void *grown(void *p, size_t n)
{
    if (!(p = realloc(p, n))) { fputs("out of memory\n", stderr); exit(1); }
    return p;
}

/* ---- handshake ----------------------------------------------------------- */

/* SHA-1 (FIPS 180-4) of a message of 56 to 111 bytes: two blocks, enough for key + GUID. */
static void sha1(const unsigned char *msg, size_t n, unsigned char out[20])
{
    static const uint32_t K[4] = { 0x5a827999, 0x6ed9eba1, 0x8f1bbcdc, 0xca62c1d6 };
    uint32_t h[5] = { 0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0 };
    unsigned char b[128] = { 0 };
    memcpy(b, msg, n);
    b[n] = 0x80;
    b[126] = (unsigned char)(n * 8 >> 8);
    b[127] = (unsigned char)(n * 8);
    for (int k = 0; k < 2; k++) {
        uint32_t w[80], a = h[0], bb = h[1], c = h[2], d = h[3], e = h[4];
        for (int i = 0; i < 16; i++) { memcpy(&w[i], b + 64 * k + 4 * i, 4); w[i] = ntohl(w[i]); }
        for (int i = 16; i < 80; i++) { uint32_t x = w[i-3] ^ w[i-8] ^ w[i-14] ^ w[i-16]; w[i] = x << 1 | x >> 31; }
        for (int i = 0; i < 80; i++) {
            uint32_t f = i < 20 ? (bb & c) | (~bb & d) : i < 40 ? bb ^ c ^ d
                       : i < 60 ? (bb & c) | (bb & d) | (c & d) : bb ^ c ^ d;
            uint32_t t = (a << 5 | a >> 27) + f + e + K[i / 20] + w[i];
            e = d; d = c; c = bb << 30 | bb >> 2; bb = a; a = t;
        }
        h[0] += a; h[1] += bb; h[2] += c; h[3] += d; h[4] += e;
    }
    for (int i = 0; i < 20; i++) out[i] = (unsigned char)(h[i / 4] >> (24 - 8 * (i % 4)));
}

static void accept_value(const char *key, char acc[29])     /* RFC 6455, section 4.2.2 */
{
    static const char BASE64[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    unsigned char cat[60], d[21] = { 0 };
    char *a = acc;
    memcpy(cat, key, 24);
    memcpy(cat + 24, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
    sha1(cat, 60, d);
    for (int i = 0; i < 21; i += 3) {
        uint32_t v = (uint32_t)d[i] << 16 | (uint32_t)d[i + 1] << 8 | d[i + 2];
        for (int j = 18; j >= 0; j -= 6) *a++ = BASE64[v >> j & 63];
    }
    acc[27] = '=';
    acc[28] = 0;
}

static int handshake(Conn *c, unsigned char *p, size_t n)   /* bytes used, 0: not complete, -1: bad */
{
    static const char name[] = "sec-websocket-key: ";
    unsigned char *end = memmem(p, n, "\r\n\r\n", 4);
    char acc[29], res[160];
    if (!end) return 0;
    *end = 0;
    char *key = strcasestr((char *)p, name);
    if (!key || strlen(key) < sizeof name - 1 + 24) return -1;
    accept_value(key + sizeof name - 1, acc);
    int len = snprintf(res, sizeof res, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
                       "Connection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", acc);
    if (send(c->fd, res, (size_t)len, MSG_NOSIGNAL) != len) return -1;
    c->open = 1;
    return (int)(end + 4 - p);
}

/* ---- frames ---------------------------------------------------------------- */

static void unmask(unsigned char *p, size_t n, uint32_t key)
{
    uint64_t k = (uint64_t)key << 32 | key, x;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) { memcpy(&x, p + i, 8); x ^= k; memcpy(p + i, &x, 8); }
    for (; i < n; i++) p[i] ^= (unsigned char)(key >> (8 * (i & 3)));
}

static void want_write(Conn *c, int on)
{
    struct epoll_event ev = { .events = EPOLLIN | (on ? EPOLLOUT : 0), .data.ptr = c };
    epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &ev);
}

static int write_all(Conn *c, struct iovec *v, int nv)      /* -1: close */
{
    ssize_t n = 0;
    if (!c->out_len) {
        n = nv == 1 ? send(c->fd, v->iov_base, v->iov_len, MSG_NOSIGNAL) : writev(c->fd, v, nv);
        if (n < 0 && errno != EAGAIN) return -1;
        if (n < 0) n = 0;
    }
    for (int i = 0; i < nv; i++) {
        size_t len = v[i].iov_len, skip = (size_t)n < len ? (size_t)n : len;
        n -= (ssize_t)skip;
        if (skip == len) continue;
        c->out = grown(c->out, c->out_len + len - skip);
        memcpy(c->out + c->out_len, (char *)v[i].iov_base + skip, len - skip);
        if (!c->out_len) want_write(c, 1);
        c->out_len += len - skip;
    }
    return 0;
}

/* Echoes every complete frame of p..end; returns where it stopped, NULL: close. */
static unsigned char *echo_frames(Conn *c, unsigned char *p, unsigned char *end)
{
    struct iovec v[BATCH];
    int nv = 0;
    while (end - p >= 6) {
        size_t n = p[1] & 127, h = n < 126 ? 2 : n == 126 ? 4 : 10;
        if ((size_t)(end - p) < h + 4) break;
        if (h == 4) n = (size_t)p[2] << 8 | p[3];
        if (h == 10) { n = 0; for (int i = 2; i < 10; i++) n = n << 8 | p[i]; }
        if (!(p[1] & 0x80) || n > IN_CAP - 14 || (p[0] & 15) == 8) return NULL;
        if ((size_t)(end - p) < h + 4 + n) break;
        uint32_t key;
        memcpy(&key, p + h, 4);
        unmask(p + h + 4, n, key);
        unsigned char *r = p + 4;   /* the reply's header has no key: 4 bytes shorter */
        memmove(r, p, h);
        if ((r[0] & 15) == 9) r[0] = 0x8a;
        r[1] &= 127;
        v[nv++] = (struct iovec){ r, h + n };
        p += h + 4 + n;
        if (nv == BATCH) { if (write_all(c, v, nv)) return NULL; nv = 0; }
    }
    return nv && write_all(c, v, nv) ? NULL : p;
}

static int on_readable(Conn *c)     /* -1: close */
{
    if (c->carry_len) memcpy(in, c->carry, c->carry_len);
    ssize_t got = recv(c->fd, in + c->carry_len, IN_CAP - c->carry_len, 0);
    if (got < 0 && errno == EAGAIN) return 0;
    if (got <= 0) return -1;
    unsigned char *p = in, *end = in + c->carry_len + got;
    if (!c->open) {
        int used = handshake(c, p, (size_t)(end - p));
        if (used < 0) return -1;
        p += used;
    }
    if (c->open && !(p = echo_frames(c, p, end))) return -1;
    c->carry_len = (size_t)(end - p);
    if (c->carry_len) {
        c->carry = grown(c->carry, c->carry_len);
        memcpy(c->carry, p, c->carry_len);
    }
    return 0;
}

static int on_writable(Conn *c)     /* -1: close */
{
    ssize_t n = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL);
    if (n < 0) return errno == EAGAIN ? 0 : -1;
    memmove(c->out, c->out + n, c->out_len -= (size_t)n);
    if (!c->out_len) want_write(c, 0);
    return 0;
}

/* ---- sockets ---------------------------------------------------------------- */

static int listen_on(int port)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 4096)) { perror("listen"); exit(1); }
    return fd;
}

static void accept_one(int listening)
{
    int one = 1, fd = accept4(listening, NULL, NULL, SOCK_NONBLOCK);
    if (fd < 0) return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    Conn *c = grown(NULL, sizeof *c);
    *c = (Conn){ .fd = fd };
    struct epoll_event ev = { .events = EPOLLIN, .data.ptr = c };
    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
}

static void on_event(Conn *c, uint32_t events)
{
    int r = events & EPOLLOUT ? on_writable(c) : 0;
    if (!r && events & (EPOLLIN | EPOLLHUP | EPOLLERR)) r = on_readable(c);
    if (!r) return;
    close(c->fd);
    free(c->carry);
    free(c->out);
    free(c);
}

int main(int argc, char **argv)
{
    if (argc < 2) { fputs("usage: echo_limit PORT [spin]\n", stderr); return 1; }
    int timeout = argc > 2 && !strcmp(argv[2], "spin") ? 0 : -1, listening = listen_on(atoi(argv[1]));
    struct epoll_event ev = { .events = EPOLLIN, .data.ptr = NULL }, evs[EVENTS];
    ep = epoll_create1(0);
    epoll_ctl(ep, EPOLL_CTL_ADD, listening, &ev);
    for (;;) {
        int n = epoll_wait(ep, evs, EVENTS, timeout);
        for (int i = 0; i < n; i++) {
            if (evs[i].data.ptr) on_event(evs[i].data.ptr, evs[i].events);
            else accept_one(listening);
        }
    }
}
