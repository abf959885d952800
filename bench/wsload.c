/*
 * wsload - the WebSocket load client of the benchmarks: one thread, epoll, nanosecond round trips.
 *
 * Not a conformance test and not a simulated caller (that is `opusagent call`): it sends prepared
 * messages and times their echoes.  The rule it keeps: it never lets its own lateness pass for the
 * server's.  What it was late by, and what kept it off its CPU, is printed beside every figure.
 *
 * Build:  gcc -O3 -Wall -Wextra -o wsload wsload.c         (bench/echo.py does)
 * Use:    wsload [options] HOST PORT                        (HOST is an IPv4 address)
 *
 *   -m closed|paced  closed: each connection sends the next message when the echo of the last
 *                    came back (-c 1 is ping-pong).  paced: open loop, each connection sends on
 *                    its own clock whether or not the server keeps up.             [closed]
 *   -c N             connections                                                   [1]
 *   -s BYTES         payload of the binary message                                 [640]
 *   -t               instead, Twilio media messages (text JSON, 160 bytes of mu-law in base64)
 *                    after `connected` and `start`; the reply must carry the same base64
 *   -k DEPTH         closed: messages in flight per connection                     [1]
 *   -r RATE          paced: messages per second per connection                     [50]
 *   -e               paced: phases evenly spaced (else random, fixed seed)
 *   -d SECS          measured time                                                 [4]
 *   -w SECS          warm-up, not measured                                         [0.5]
 *   -p PID           server process whose CPU time and memory are read, all its threads; repeatable
 *   -u PATH          request path                                                  [/]
 *   -C CPU           pin the client to this CPU
 *   -b               block in epoll_wait (else the client spins, which keeps its own wake-up out
 *                    of the round trip)
 *   -j               one line of JSON instead of text
 *
 * Every reply is compared with what was sent.  A round trip runs from just before send() to the
 * moment the reply is complete, for messages sent within the measured time.  "lag" is how late the
 * client itself sent a paced message: when it is not small, or "busy" is near 100 % with -b, the
 * client was the limit.  "Kept off the CPU" is time a side was runnable while another process had
 * its core: a run where that is not near zero is not clean.  When the client was kept off for over
 * 0.1 ms, the messages then in flight are left out of the round trips (and counted), and paced sends
 * are not caught up on.  Exit status: 0 fine, 1 usage or connect, 2 wrong or lost replies.
 */
#include "load.h"

enum { TEMPLATES = 32, IN_FLIGHT = 1024, MAX_PIDS = 64, EVENTS = 256, SENDS_PER_POLL = 64 };
enum { STALL_NS = 100000, SETTLE_NS = 2000000, DRAIN_NS = 1000000000 };

typedef struct {                /* one prepared message and what must come back */
    unsigned char *wire;        /* the masked frame as it is sent */
    size_t wire_len;
    unsigned char *want;        /* the payload expected, or a part of it (Twilio) */
    size_t want_len;
} Template;

typedef struct {                /* one message on its way */
    uint64_t at;                /* just before its send() */
    uint32_t template;
    uint32_t measured;          /* sent within the measured time */
} Sent;

typedef struct {
    int fd;
    uint32_t next;              /* template of the next message */
    uint32_t head, tail;        /* of the ring of messages on their way; they run over */
    Sent *ring;                 /* IN_FLIGHT of them */
    unsigned char *in;          /* in_cap bytes */
    size_t in_len;
    const unsigned char *rest;  /* what the socket did not take of a frame (points into a template) */
    size_t rest_len;
} Conn;

typedef struct { uint32_t *v; size_t n, cap; } Samples;     /* nanoseconds, cut off at 4.29 s */

static struct {
    int paced, conns, twilio, depth, even, block, json, cpu, npids;
    size_t size;
    double rate, secs, warm;
    const char *path, *host;
    int port;
    int pids[MAX_PIDS];
} o = { .conns = 1, .depth = 1, .cpu = -1, .size = 640, .rate = 50, .secs = 4, .warm = .5, .path = "/" };

static struct {                 /* the measured time */
    int recording;
    uint64_t begun, ended;      /* ns */
    uint64_t idle;              /* ns in which nothing came and nothing was due */
    uint64_t received, skipped, wrong, tainted, lost;
    uint64_t clean_from;        /* messages sent before this met a stall of the client */
    Sched server, client;       /* at begun, then the difference */
    long rss_before, rss_kb;    /* of the server: before the connections, and at the end */
    Samples rtt, lag;
} m;

static Template templates[TEMPLATES];
static Conn *conns;
static uint64_t *phase;         /* paced: offset of each connection within the period, sorted */
static int ep;
static size_t in_cap;

/* ---- samples ----------------------------------------------------------- */

static void add_sample(Samples *s, uint64_t ns)
{
    if (s->n == s->cap) {
        s->cap = s->cap ? s->cap * 2 : 1 << 20;
        if (!(s->v = realloc(s->v, s->cap * sizeof *s->v))) die("out of memory");
    }
    s->v[s->n++] = ns > UINT32_MAX ? UINT32_MAX : (uint32_t)ns;
}

static double percentile_us(const Samples *s, double p)     /* of sorted samples; 0 without any */
{
    if (!s->n) return 0;
    size_t i = (size_t)(p / 100 * (double)s->n);
    return s->v[i < s->n ? i : s->n - 1] / 1e3;
}

/* ---- what the server costs ---------------------------------------------- */

static long server_rss_kb(void)
{
    long kb = 0;
    for (int i = 0; i < o.npids; i++) {
        char path[64];
        long pages = 0;
        snprintf(path, sizeof path, "/proc/%d/statm", o.pids[i]);
        FILE *f = fopen(path, "r");
        if (f) { if (fscanf(f, "%*d %ld", &pages) == 1) kb += pages * (getpagesize() / 1024); fclose(f); }
    }
    return kb;
}

/* ---- messages ------------------------------------------------------------ */

#define STREAM_SID "MZ18ad3ab5a668481ce02b83e7395059f0"

static void build_frame(Template *t, int opcode, const unsigned char *p, size_t n)
{
    unsigned char *w = t->wire = alloc(n + 14, 1), key[4];
    *w++ = (unsigned char)(0x80 | opcode);
    if (n < 126) *w++ = (unsigned char)(0x80 | n);
    else if (n < 65536) { *w++ = 0x80 | 126; *w++ = (unsigned char)(n >> 8); *w++ = (unsigned char)n; }
    else { *w++ = 0x80 | 127; for (int i = 7; i >= 0; i--) *w++ = (unsigned char)((uint64_t)n >> (8 * i)); }
    for (int i = 0; i < 4; i++) *w++ = key[i] = (unsigned char)(rnd() >> 11);
    for (size_t i = 0; i < n; i++) *w++ = p[i] ^ key[i & 3];
    t->wire_len = (size_t)(w - t->wire);
}

static void build_binary(Template *t)
{
    t->want = alloc(o.size + 1, 1);
    t->want_len = o.size;
    for (size_t i = 0; i < o.size; i++) t->want[i] = (unsigned char)(rnd() >> 9);
    build_frame(t, 2, t->want, o.size);
}

/* 20 ms of mu-law noise.  0x7f is minus zero and would not come back as itself. */
static void build_media(Template *t, int k)
{
    unsigned char u[162] = { 0 }, msg[512], *e = t->want = alloc(217, 1);
    for (int i = 0; i < 160; i++)
        do u[i] = (unsigned char)(rnd() >> 9); while (u[i] == 0x7f);
    for (int i = 0; i < 162; i += 3) {
        uint32_t v = (uint32_t)u[i] << 16 | (uint32_t)u[i + 1] << 8 | u[i + 2];
        for (int j = 18; j >= 0; j -= 6) *e++ = (unsigned char)BASE64[v >> j & 63];
    }
    e[-2] = e[-1] = '=';                /* 160 = 53 * 3 + 1 */
    t->want_len = 216;
    int n = snprintf((char *)msg, sizeof msg,
        "{\"event\":\"media\",\"sequenceNumber\":\"%d\",\"streamSid\":\"" STREAM_SID "\",\"media\":{\"track\":\"inbound\","
        "\"chunk\":\"%d\",\"timestamp\":\"%d\",\"payload\":\"%s\"}}", k + 2, k + 1, 20 * (k + 1), t->want);
    build_frame(t, 1, msg, (size_t)n);
}

static int reply_ok(const Template *t, const unsigned char *p, size_t n)
{
    if (o.twilio) return memmem(p, n, t->want, t->want_len) != NULL;
    return n == t->want_len && !memcmp(p, t->want, n);
}

/* ---- connections ---------------------------------------------------------- */

static void want_write(Conn *c, int on)
{
    struct epoll_event ev = { .events = EPOLLIN | (on ? EPOLLOUT : 0), .data.ptr = c };
    epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &ev);
}

static void flush_rest(Conn *c)
{
    ssize_t n = send(c->fd, c->rest, c->rest_len, MSG_NOSIGNAL);
    if (n < 0) { if (errno == EAGAIN) return; die("send: %s", strerror(errno)); }
    c->rest += n;
    if (!(c->rest_len -= (size_t)n)) want_write(c, 0);
}

static void send_message(Conn *c)
{
    if (c->rest_len || c->head - c->tail == IN_FLIGHT) { m.skipped++; return; }
    const Template *t = &templates[c->next];
    c->ring[c->head % IN_FLIGHT] = (Sent){ now_ns(), c->next, (uint32_t)m.recording };
    ssize_t n = send(c->fd, t->wire, t->wire_len, MSG_NOSIGNAL);
    if (n < 0) {
        if (errno != EAGAIN) die("send: %s", strerror(errno));
        m.skipped++;
        return;
    }
    c->head++;
    c->next = (c->next + 1) % TEMPLATES;
    if ((size_t)n < t->wire_len) {
        c->rest = t->wire + n;
        c->rest_len = t->wire_len - (size_t)n;
        want_write(c, 1);
    }
}

/* Behind half a frame of ours a pong would break the stream: the server pings again. */
static void pong(Conn *c, const unsigned char *p, size_t n)
{
    unsigned char f[6 + 125] = { 0x8a, (unsigned char)(0x80 | n), 0, 0, 0, 0 };
    if (c->rest_len || n > 125) return;
    memcpy(f + 6, p, n);
    if (send(c->fd, f, 6 + n, MSG_NOSIGNAL) < 0) die("pong: %s", strerror(errno));
}

/* One data message of the server: an echo, unless it is a mark or the like. */
static int take_reply(Conn *c, const unsigned char *p, size_t n, int fin)
{
    if (o.twilio && !memmem(p, n, "payload", 7)) return 0;
    if (!fin || c->head == c->tail) die("unexpected reply");
    const Sent *s = &c->ring[c->tail++ % IN_FLIGHT];
    if (s->measured && s->at >= m.clean_from) add_sample(&m.rtt, now_ns() - s->at);
    else m.tainted += s->measured;
    m.wrong += !reply_ok(&templates[s->template], p, n);
    m.received++;
    return 1;
}

/* Reads what is there; returns how many echoes came back complete. */
static int receive(Conn *c)
{
    ssize_t got = recv(c->fd, c->in + c->in_len, in_cap - c->in_len, 0);
    if (got < 0 && errno == EAGAIN) return 0;
    if (got <= 0) die("connection closed by the server (%s)", got ? strerror(errno) : "end of stream");
    c->in_len += (size_t)got;
    unsigned char *p = c->in, *end = c->in + c->in_len;
    int done = 0;
    while (end - p >= 2) {
        size_t n = p[1] & 127, h = n < 126 ? 2 : n == 126 ? 4 : 10;
        if ((size_t)(end - p) < h) break;
        if (h == 4) n = (size_t)p[2] << 8 | p[3];
        if (h == 10) { n = 0; for (int i = 2; i < 10; i++) n = n << 8 | p[i]; }
        if (n > in_cap - 10) die("reply of %zu bytes is longer than expected", n);
        if ((size_t)(end - p) < h + n) break;
        int opcode = p[0] & 15;
        if (opcode == 8) die("close frame from the server: %.*s", n > 2 ? (int)n - 2 : 0, p + h + 2);
        if (opcode == 9) pong(c, p + h, n);
        if (opcode == 1 || opcode == 2) done += take_reply(c, p + h, n, p[0] & 0x80);
        p += h + n;
    }
    c->in_len = (size_t)(end - p);
    if (c->in_len && p != c->in) memmove(c->in, p, c->in_len);
    return done;
}

static void send_text(int fd, const char *text)
{
    Template t = { 0 };
    build_frame(&t, 1, (const unsigned char *)text, strlen(text));
    if (send(fd, t.wire, t.wire_len, MSG_NOSIGNAL) != (ssize_t)t.wire_len) die("start: %s", strerror(errno));
    free(t.wire);
}

/* What Twilio says before the first media message.  Each call has its own callSid; the stream's is shared. */
static void send_start(int fd)
{
    static unsigned calls;
    char start[700];
    snprintf(start, sizeof start,
        "{\"event\":\"start\",\"sequenceNumber\":\"1\",\"streamSid\":\"" STREAM_SID "\",\"start\":{"
        "\"accountSid\":\"AC00000000000000000000000000000000\",\"streamSid\":\"" STREAM_SID "\","
        "\"callSid\":\"CA%08x%024x\",\"tracks\":[\"inbound\"],\"customParameters\":{},"
        "\"mediaFormat\":{\"encoding\":\"audio/x-mulaw\",\"sampleRate\":8000,\"channels\":1}}}",
        (unsigned)getpid(), ++calls);
    send_text(fd, "{\"event\":\"connected\",\"protocol\":\"Call\",\"version\":\"1.0.0\"}");
    send_text(fd, start);
}

static int dial(void)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)o.port) };
    struct timeval patience = { .tv_sec = 10 };
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0) die("socket: %s", strerror(errno));
    if (inet_pton(AF_INET, o.host, &a.sin_addr) != 1) die("%s: not an IPv4 address", o.host);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (connect(fd, (struct sockaddr *)&a, sizeof a)) die("connect: %s", strerror(errno));
    return fd;
}

static void upgrade(int fd)             /* with key and accept value of RFC 6455, section 1.3 */
{
    char req[512], res[2048] = "";
    int n = snprintf(req, sizeof req, "GET %s HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n", o.path, o.host, o.port);
    if (send(fd, req, (size_t)n, MSG_NOSIGNAL) != n) die("handshake: %s", strerror(errno));
    size_t len = 0;
    do {
        ssize_t got = recv(fd, res + len, sizeof res - 1 - len, 0);
        if (got <= 0) die("handshake: no answer");
        len += (size_t)got;
        res[len] = 0;
    } while (!strstr(res, "\r\n\r\n") && len < sizeof res - 1);
    if (strncmp(res, "HTTP/1.1 101", 12) || !strstr(res, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="))
        die("handshake refused: %.200s", res);
}

static void open_conn(Conn *c, uint32_t first)
{
    c->fd = dial();
    upgrade(c->fd);
    if (o.twilio) send_start(c->fd);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    c->next = first % TEMPLATES;
    c->in = alloc(in_cap, 1);
    c->ring = alloc(IN_FLIGHT, sizeof *c->ring);
    struct epoll_event ev = { .events = EPOLLIN, .data.ptr = c };
    epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &ev);
}

static void close_conns(void)           /* a normal close, not waited for */
{
    static const unsigned char bye[] = { 0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8 };
    for (int i = 0; i < o.conns; i++) {
        if (!conns[i].rest_len && send(conns[i].fd, bye, sizeof bye, MSG_NOSIGNAL) < 0) continue;
        close(conns[i].fd);
    }
}

/* ---- the run ---------------------------------------------------------------- */

static int poll_once(uint64_t wait_ns, int answer)
{
    struct epoll_event ev[EVENTS];
    struct timespec ts = { (time_t)(wait_ns / 1000000000u), (long)(wait_ns % 1000000000u) };
    int n = o.block ? epoll_pwait2(ep, ev, EVENTS, &ts, NULL) : epoll_wait(ep, ev, EVENTS, 0);
    for (int i = 0; i < n; i++) {
        Conn *c = ev[i].data.ptr;
        if (ev[i].events & EPOLLOUT) flush_rest(c);
        if (!(ev[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP))) continue;
        int done = receive(c);
        while (answer && done-- > 0) send_message(c);
    }
    return n;
}

/* True when the client itself was kept off its CPU since the last call. */
static int stalled(void)
{
    static int fd = -1;
    static unsigned long long last;
    unsigned long long wait = 0;
    char b[80];
    if (fd < 0) fd = open("/proc/self/schedstat", O_RDONLY);
    ssize_t n = pread(fd, b, sizeof b - 1, 0);
    if (n <= 0) return 0;
    b[n] = 0;
    if (sscanf(b, "%*u %llu", &wait) != 1) return 0;
    int yes = wait - last > STALL_NS;
    last = wait;
    return yes;
}

static uint64_t due_at(uint64_t t0, uint64_t g)     /* when the g-th paced message is to leave */
{
    uint64_t n = (uint64_t)o.conns, period = (uint64_t)(1e9 / o.rate);
    return t0 + g / n * period + phase[g % n];
}

static void begin_recording(void)
{
    m.server = sched_of_all(o.pids, o.npids);
    m.client = sched_of(getpid());
    m.received = m.skipped = 0;
    m.recording = 1;
    m.begun = now_ns();
}

static void end_recording(void)
{
    m.ended = now_ns();
    m.server = since(m.server, sched_of_all(o.pids, o.npids));
    m.client = since(m.client, sched_of(getpid()));
    m.rss_kb = server_rss_kb();
    m.recording = 0;
}

static void run(void)
{
    uint64_t t0 = now_ns(), measure = t0 + (uint64_t)(o.warm * 1e9), stop = measure + (uint64_t)(o.secs * 1e9);
    uint64_t g = 0, now, before = t0;
    if (!o.paced)
        for (int i = 0; i < o.conns * o.depth; i++) send_message(&conns[i % o.conns]);
    while ((now = now_ns()) < stop) {
        if (!m.recording && now >= measure) { begin_recording(); now = m.begun; }
        if (now - before > 3 * STALL_NS && stalled()) {
            m.clean_from = now + SETTLE_NS;
            while (o.paced && due_at(t0, g) < now) g++;     /* no burst to catch up */
        }
        before = now;
        int sent = 0;
        uint64_t due = stop;
        while (o.paced && sent < SENDS_PER_POLL && (due = due_at(t0, g)) <= now) {
            if (m.recording) add_sample(&m.lag, now_ns() - due);
            send_message(&conns[g++ % (uint64_t)o.conns]);
            sent++;
        }
        due = due < stop ? due : stop;
        int n = poll_once(due > now ? due - now : 0, !o.paced);
        if (n <= 0 && !sent && m.recording) m.idle += now_ns() - now;
    }
    uint64_t got = m.received;
    end_recording();
    uint64_t until = m.ended + DRAIN_NS;
    do {                                /* what is still on its way, for a second at most */
        poll_once(1000000, 0);
        m.lost = 0;
        for (int i = 0; i < o.conns; i++) m.lost += conns[i].head - conns[i].tail;
    } while (m.lost && now_ns() < until);
    m.received = got;
}

static void prepare(void)
{
    uint64_t period = (uint64_t)(1e9 / o.rate), n = (uint64_t)o.conns;
    pin(o.cpu);
    for (int k = 0; k < TEMPLATES; k++)
        if (o.twilio) build_media(&templates[k], k);
        else build_binary(&templates[k]);
    in_cap = 2 * (o.twilio ? 1024 : o.size) + 8192;
    m.rss_before = server_rss_kb();
    ep = epoll_create1(0);
    conns = alloc(n, sizeof *conns);
    phase = alloc(n, sizeof *phase);
    for (uint64_t i = 0; i < n; i++) {
        open_conn(&conns[i], (uint32_t)i);
        phase[i] = o.even ? i * period / n : (uint64_t)((double)rnd() / 4294967296.0 * (double)period);
    }
    qsort(phase, n, sizeof *phase, compare_u64);
}

static void report(void)
{
    double secs = (double)(m.ended - m.begun) / 1e9;
    double us = m.received ? (double)m.server.run / 1e3 / (double)m.received : 0;
    const char *fmt = o.json
        ? "{\"mode\":\"%s\",\"conns\":%d,\"bytes\":%zu,\"secs\":%.3f,\"msgs\":%llu,\"msgs_per_s\":%.0f,"
          "\"p50\":%.2f,\"p90\":%.2f,\"p99\":%.2f,\"p999\":%.2f,\"max\":%.2f,\"lag_p99\":%.2f,"
          "\"cpu_pct\":%.2f,\"cpu_us_per_msg\":%.3f,\"rss_kb\":%ld,\"rss_before_kb\":%ld,\"client_busy\":%.1f,"
          "\"srv_wait_pct\":%.2f,\"client_wait_pct\":%.2f,"
          "\"skipped\":%llu,\"lost\":%llu,\"wrong\":%llu,\"tainted\":%llu,\"timed\":%llu}\n"
        : "%s, %d connections, %zu bytes, %.2f s: %llu messages, %.0f/s\n"
          "round trip us  p50 %.2f  p90 %.2f  p99 %.2f  p99.9 %.2f  max %.2f   (client lag p99 %.2f)\n"
          "server CPU %.2f %%, %.3f us per message, RSS %ld KiB (%ld before); client busy %.1f %%\n"
          "kept off the CPU by others: server %.2f %%, client %.2f %%\n"
          "skipped %llu, lost %llu, wrong %llu, left out after a stall of the client %llu, timed %llu\n";
    qsort(m.rtt.v, m.rtt.n, sizeof *m.rtt.v, compare_u32);
    qsort(m.lag.v, m.lag.n, sizeof *m.lag.v, compare_u32);
    printf(fmt, o.paced ? "paced" : "closed", o.conns, o.twilio ? (size_t)0 : o.size, secs,
           (unsigned long long)m.received, (double)m.received / secs,
           percentile_us(&m.rtt, 50), percentile_us(&m.rtt, 90), percentile_us(&m.rtt, 99),
           percentile_us(&m.rtt, 99.9), percentile_us(&m.rtt, 100), percentile_us(&m.lag, 99),
           (double)m.server.run / 1e7 / secs, us, m.rss_kb, m.rss_before, 100 - (double)m.idle / 1e7 / secs,
           (double)m.server.wait / 1e7 / secs, (double)m.client.wait / 1e7 / secs,
           (unsigned long long)m.skipped, (unsigned long long)m.lost, (unsigned long long)m.wrong,
           (unsigned long long)m.tainted, (unsigned long long)m.rtt.n);
}

static void parse_options(int argc, char **argv)
{
    static const char usage[] = "usage: wsload [options] HOST PORT (see the head of wsload.c)";
    for (int c; (c = getopt(argc, argv, "m:c:s:tk:r:ed:w:p:u:C:bj")) != -1;)
        switch (c) {
        case 'm':
            if (strcmp(optarg, "paced") && strcmp(optarg, "closed")) die("-m closed or -m paced");
            o.paced = optarg[0] == 'p';
            break;
        case 'c': o.conns = atoi(optarg); break;
        case 's': o.size = strtoul(optarg, NULL, 10); break;
        case 't': o.twilio = 1; break;
        case 'k': o.depth = atoi(optarg); break;
        case 'r': o.rate = atof(optarg); break;
        case 'e': o.even = 1; break;
        case 'd': o.secs = atof(optarg); break;
        case 'w': o.warm = atof(optarg); break;
        case 'p':
            if (o.npids == MAX_PIDS) die("at most %d processes", MAX_PIDS);
            o.pids[o.npids++] = atoi(optarg);
            break;
        case 'u': o.path = optarg; break;
        case 'C': o.cpu = atoi(optarg); break;
        case 'b': o.block = 1; break;
        case 'j': o.json = 1; break;
        default: die(usage);
        }
    if (argc - optind != 2 || o.conns < 1 || o.depth < 1 || o.depth > IN_FLIGHT || o.rate <= 0) die(usage);
    o.host = argv[optind];
    o.port = atoi(argv[optind + 1]);
}

int main(int argc, char **argv)
{
    parse_options(argc, argv);
    prepare();
    run();
    close_conns();
    report();
    return m.wrong || m.lost ? 2 : 0;
}
