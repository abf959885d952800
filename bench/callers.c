/*
 * callers - many telephone callers in one thread: each plays recordings in turns and times the answers.
 *
 * The platform's side of Twilio Media Streams: 20 ms of mu-law at absolute deadlines, marks given back when they
 * are reached, clears obeyed.  Not wsload, which times echoes of frames; not `opusagent call`, which holds one
 * conversation and costs a hundred times as much.  The rule it keeps: what it measures it finds in the audio, and its
 * own lateness never passes for the server's.
 *
 * Build:  gcc -O3 -Wall -Wextra -o callers callers.c       (bench/calls.py does)
 * Use:    callers [options] HOST PORT                       (HOST is an IPv4 address)
 *
 *   -f FILE   what callers say: raw mu-law at 8 kHz; repeatable, one file a turn, round and round   [needed]
 *   -k        turns alternate: something said, then a key pressed
 *   -c N      calls at once                                                         [1]
 *   -w SECS   over which the calls begin and settle; not measured                   [5]
 *   -d SECS   measured time                                                         [10]
 *   -g MS     the reply is over after so much quiet                                 [300]
 *   -s MS     silence between two turns                                             [500]
 *   -t MS     without an answer for so long, the caller goes on                     [8000]
 *   -p PID    server process whose CPU time is read, all its threads; repeatable
 *   -u PATH   request path                                                          [/]
 *   -C CPU    pin the client to this CPU
 *   -o FILE   a line of JSON for each turn
 *   -r        a refusal (429 or 503) is counted and timed, and is no lost call
 *
 * Voiced: a 10 ms window above -45 dBFS and within 30 dB of its clip's peak.  Sample p of a caller is spoken p / 8000 s
 * after its call began, a frame leaves when its last sample has been spoken, and what arrives is heard in its order,
 * never before it arrived.  A turn's line: `call` and `id`, `turn`, `kind` ("speech" or "key"), `first` and `last`
 * (frames of the call that carried it), `end` (of the last voiced window, or when the key left), `answer` (begin of the
 * first voiced window of the reply; null: none), `arrived` (when that window's frame came), all ns since `t0`, when
 * frame 0 was due; and `late`, us, of the frames from `last` until the reply.  Prints one line of JSON: what was
 * sent, received and lost, how late frames left, and what the server cost over the measured time.
 * Exit status: 0 fine, 1 usage or connect, 2 calls were lost.
 */
#include "load.h"

#define MS 1000000ull           /* ns */
enum { FRAME = 160, WINDOW = 80, ALIGN = 8, MAX_FILES = 16, MAX_PIDS = 64, EVENTS = 256, SENDS_PER_POLL = 64 };
enum { ROOM = 1 << 16, MARKS = 64, HEARD = 4096, LATE = 600 };
#define FRAME_NS (20 * MS)
#define SAMPLE_NS 125000ull

typedef struct {                /* one recording */
    const char *name;
    unsigned char *codes;       /* whole frames of mu-law */
    int frames;
    int voiced_to;              /* end of its last voiced window, samples */
    char (*base64)[217];        /* each frame as it is sent */
} Speech;

typedef struct { uint64_t at; double level; uint64_t arrived; } Window;     /* above -45 dBFS, heard at `at` ns */
typedef struct { uint64_t at; char name[100]; } Mark;
enum { CONNECTING, WAITING, TALKING, LISTENING, OVER };

typedef struct {
    int fd, index, phase;
    char id[40], stream[40];
    unsigned char *in;          /* ROOM bytes */
    size_t in_len;
    unsigned char *out;         /* ROOM bytes the socket did not take */
    size_t out_len;
    uint64_t dialled;           /* ns: when its connection was begun */
    uint64_t t0;                /* ns: when frame 0 was due */
    uint64_t k;                 /* frames sent */
    uint64_t number;            /* sequenceNumber of the last message */
    uint64_t due;               /* the frame from which the next turn may begin */
    /* the turn */
    int turn, key, at;          /* number; it is a key; frames of it that were said */
    uint64_t first, last, end;
    uint32_t late[LATE];        /* us, of the frames from `last` on */
    int lates;
    /* what is heard */
    uint64_t play_end;          /* of what is queued, ns */
    Window *heard;              /* HEARD of them, since the turn's end */
    int windows;
    double peak;
    uint64_t voiced_at;         /* when a window was last above -45 dBFS */
    Mark marks[MARKS];
    int nmarks;
} Call;

static struct {
    int calls, keys, cpu, npids, nfiles, port, refusable;
    double warm, secs, gap, silence, patience;
    const char *path, *host, *records;
    int pids[MAX_PIDS];
    const char *files[MAX_FILES];
} o = { .calls = 1, .cpu = -1, .warm = 5, .secs = 10, .gap = 300, .silence = 500, .patience = 8000, .path = "/" };

static struct {                 /* the measured time */
    int recording;
    uint64_t begun, ended;
    uint64_t sent, received, turns, unanswered, lost, skipped;
    Sched server, client;
    uint32_t *answered[2];      /* us from the begin of a connection to its answer: refused, and taken */
    size_t nanswered[2];
    uint64_t speechless;        /* refusals without Retry-After */
    uint32_t *late;             /* us of each frame sent */
    size_t nlate, room;
} m;

static Speech speech[MAX_FILES];
static Call *calls;
static uint64_t *phases;
static int ep;
static FILE *records;
static double SQUARE[256];      /* of a code's sample */
static int8_t SEXTET[256];

static double larger(double a, double b) { return a > b ? a : b; }

/* ---- audio ---------------------------------------------------------------- */

static const double LOUD = 32768.0 * 32768.0 * 3.1622776601683795e-05;      /* mean square of -45 dBFS */

static void fill_tables(void)
{
    for (int code = 0; code < 256; code++) {        /* G.711 */
        int c = ~code & 255, size = ((((c & 15) << 3) + 132) << (c >> 4 & 7)) - 132;
        SQUARE[code] = (double)size * size;
    }
    memset(SEXTET, -1, sizeof SEXTET);
    for (int i = 0; i < 64; i++) SEXTET[(unsigned char)BASE64[i]] = (int8_t)i;
}

static double level_of(const unsigned char *codes, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++) sum += SQUARE[codes[i]];
    return sum / n;
}

static void encode_base64(const unsigned char *codes, char *out)    /* a frame: 160 = 53 * 3 + 1 */
{
    unsigned char u[162] = { 0 };
    memcpy(u, codes, FRAME);
    for (int i = 0; i < 162; i += 3) {
        uint32_t v = (uint32_t)u[i] << 16 | (uint32_t)u[i + 1] << 8 | u[i + 2];
        for (int j = 18; j >= 0; j -= 6) *out++ = BASE64[v >> j & 63];
    }
    out[-2] = out[-1] = '=';
    *out = 0;
}

/* Returns the bytes decoded, at most `room`; what follows a character that is none of base64 is not read. */
static size_t decode_base64(const unsigned char *p, size_t n, unsigned char *out, size_t room)
{
    uint32_t v = 0;
    int bits = 0;
    size_t got = 0;
    for (size_t i = 0; i < n && SEXTET[p[i]] >= 0; i++) {
        v = v << 6 | (uint32_t)SEXTET[p[i]];
        if ((bits += 6) < 8) continue;
        if (got == room) break;
        out[got++] = (unsigned char)(v >> (bits -= 8));
    }
    return got;
}

static void load_speech(Speech *s, const char *name)
{
    FILE *f = fopen(name, "rb");
    long size;
    double peak = 0;
    if (!f || fseek(f, 0, SEEK_END) || (size = ftell(f)) < FRAME) die("%s: no mu-law in it", name);
    rewind(f);
    s->name = name;
    s->frames = (int)((size + FRAME - 1) / FRAME);
    s->codes = alloc((size_t)s->frames, FRAME);
    memset(s->codes, 0xff, (size_t)s->frames * FRAME);
    if (fread(s->codes, 1, (size_t)size, f) != (size_t)size) die("%s: cannot be read", name);
    fclose(f);
    for (int i = 0; i < 2 * s->frames; i++) peak = larger(peak, level_of(s->codes + i * WINDOW, WINDOW));
    for (int i = 0; i < 2 * s->frames; i++)
        if (level_of(s->codes + i * WINDOW, WINDOW) > larger(LOUD, peak * 0.001)) s->voiced_to = (i + 1) * WINDOW;
    if (!s->voiced_to) die("%s: nothing in it is louder than -45 dBFS", name);
    s->base64 = alloc((size_t)s->frames, sizeof *s->base64);
    for (int i = 0; i < s->frames; i++) encode_base64(s->codes + i * FRAME, s->base64[i]);
}

/* ---- sending --------------------------------------------------------------- */

static void lose(Call *c, const char *why)
{
    if (c->phase == OVER) return;
    if (m.lost++ < 3) fprintf(stderr, "call %d: %s\n", c->index, why);
    c->phase = OVER;
    close(c->fd);
}

static void watch(Call *c)
{
    struct epoll_event ev = { .events = EPOLLIN | (c->out_len ? EPOLLOUT : 0), .data.ptr = c };
    epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &ev);
}

static void put(Call *c, const void *data, size_t n)
{
    ssize_t sent = c->out_len ? 0 : send(c->fd, data, n, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN) { lose(c, strerror(errno)); return; }
    if (sent < 0) sent = 0;
    if ((size_t)sent == n) return;
    if (c->out_len + n - (size_t)sent > ROOM) { lose(c, "the server does not read"); return; }
    memcpy(c->out + c->out_len, (const char *)data + sent, n - (size_t)sent);
    c->out_len += n - (size_t)sent;
    watch(c);
}

static void flush(Call *c)
{
    ssize_t sent = send(c->fd, c->out, c->out_len, MSG_NOSIGNAL);
    if (sent < 0) { if (errno != EAGAIN) lose(c, strerror(errno)); return; }
    memmove(c->out, c->out + sent, c->out_len - (size_t)sent);
    if (!(c->out_len -= (size_t)sent)) watch(c);
}

static void put_frame(Call *c, int opcode, const char *p, size_t n)     /* masked, as a client must */
{
    unsigned char frame[1100], *w = frame, key[4];
    if (n > 1000) die("a message of %zu bytes", n);
    *w++ = (unsigned char)(0x80 | opcode);
    if (n < 126) *w++ = (unsigned char)(0x80 | n);
    else { *w++ = 0x80 | 126; *w++ = (unsigned char)(n >> 8); *w++ = (unsigned char)n; }
    for (int i = 0; i < 4; i++) *w++ = key[i] = (unsigned char)(rnd() >> 11);
    for (size_t i = 0; i < n; i++) w[i] = (unsigned char)p[i] ^ key[i & 3];
    put(c, frame, (size_t)(w - frame) + n);
}

static void tell(Call *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void tell(Call *c, const char *fmt, ...)
{
    char text[1000];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    put_frame(c, 1, text, (size_t)n);
}

static void give_back_marks(Call *c, uint64_t now)      /* those that have been reached */
{
    int i = 0;
    for (; i < c->nmarks && c->marks[i].at <= now; i++)
        tell(c, "{\"event\":\"mark\",\"sequenceNumber\":\"%llu\",\"streamSid\":\"%s\",\"mark\":{\"name\":\"%s\"}}",
             (unsigned long long)++c->number, c->stream, c->marks[i].name);
    if (i) memmove(c->marks, c->marks + i, (size_t)(c->nmarks -= i) * sizeof(Mark));
}

/* ---- the turns -------------------------------------------------------------- */

static void finish_turn(Call *c)
{
    const Window *answer = NULL;
    for (int i = 0; i < c->windows && !answer; i++)
        if (c->heard[i].level > c->peak * 0.001) answer = &c->heard[i];
    if (m.recording) {
        m.turns++;
        m.unanswered += !answer;
    }
    if (records) {
        fprintf(records, "{\"call\":%d,\"id\":\"%s\",\"turn\":%d,\"kind\":\"%s\",\"measured\":%s,\"first\":%llu,"
                "\"last\":%llu,\"end\":%lld,", c->index, c->id, c->turn, c->key ? "key" : "speech",
                m.recording ? "true" : "false", (unsigned long long)c->first, (unsigned long long)c->last,
                (long long)(c->end - c->t0));
        if (answer)
            fprintf(records, "\"answer\":%lld,\"arrived\":%lld,\"late\":[", (long long)(answer->at - c->t0),
                    (long long)(answer->arrived - c->t0));
        else
            fprintf(records, "\"answer\":null,\"arrived\":null,\"late\":[");
        for (int i = 0; i < c->lates; i++) fprintf(records, "%s%u", i ? "," : "", c->late[i]);
        fprintf(records, "]}\n");
    }
    c->phase = WAITING;
    c->due = c->k + (uint64_t)(o.silence / 20);
    c->turn++;
}

static void begin_turn(Call *c)
{
    c->key = o.keys && c->turn % 2;
    c->at = c->lates = c->windows = 0;
    c->peak = 0;
    c->phase = TALKING;
    c->first = c->k;
}

/* Is it this caller's turn to speak?  Turns begin at multiples of 8 frames, which are 5 windows of 32 ms. */
static int may_begin(const Call *c, uint64_t now)
{
    return c->k >= c->due && c->k % ALIGN == 0 && now > c->play_end + (uint64_t)(o.gap * 1e6);
}

static void listen_on(Call *c, uint64_t now)
{
    uint64_t quiet = c->voiced_at > c->play_end ? c->voiced_at : c->play_end;
    if (c->windows ? now > quiet + (uint64_t)(o.gap * 1e6) : now > c->end + (uint64_t)(o.patience * 1e6))
        finish_turn(c);
}

static void press(Call *c)
{
    c->number++;
    c->end = now_ns();
    tell(c, "{\"event\":\"dtmf\",\"sequenceNumber\":\"%llu\",\"streamSid\":\"%s\",\"dtmf\":{\"track\":\"inbound_track\","
         "\"digit\":\"5\"}}", (unsigned long long)c->number, c->stream);
    c->last = c->k;
    c->phase = LISTENING;
}

/* The next 20 ms of this caller, due at `due`. */
static void speak(Call *c, uint64_t due)
{
    static char silence[217];
    static int made;
    const char *payload = silence;
    uint64_t now = now_ns();
    if (!made++) {
        unsigned char quiet[FRAME];
        memset(quiet, 0xff, FRAME);
        encode_base64(quiet, silence);
    }
    if (!c->k) c->t0 = due;
    give_back_marks(c, now);
    if (c->phase == LISTENING) listen_on(c, now);
    if (c->phase == WAITING && may_begin(c, now)) begin_turn(c);
    if (c->phase == TALKING && c->key) press(c);
    const Speech *s = &speech[(c->index + c->turn) % o.nfiles];
    if (c->phase == TALKING) payload = s->base64[c->at++];
    tell(c, "{\"event\":\"media\",\"sequenceNumber\":\"%llu\",\"streamSid\":\"%s\",\"media\":{\"track\":\"inbound\","
         "\"chunk\":\"%llu\",\"timestamp\":\"%llu\",\"payload\":\"%s\"}}", (unsigned long long)++c->number, c->stream,
         (unsigned long long)c->k + 1, (unsigned long long)c->k * 20, payload);
    uint32_t late = (uint32_t)((now_ns() - due) / 1000);
    if (m.recording && m.nlate < m.room) m.late[m.nlate++] = late;
    m.sent += (uint64_t)m.recording;
    if (c->phase == TALKING && c->at == s->frames) {
        c->last = c->k;
        c->end = c->t0 + c->first * FRAME_NS + (uint64_t)s->voiced_to * SAMPLE_NS - FRAME_NS;
        c->phase = LISTENING;
    }
    if (c->phase == LISTENING && c->lates < LATE) c->late[c->lates++] = late;
    c->k++;
}

/* ---- receiving --------------------------------------------------------------- */

static void hear(Call *c, const unsigned char *text, size_t n, uint64_t now)
{
    unsigned char codes[8192];
    size_t count = decode_base64(text, n, codes, sizeof codes);
    uint64_t start = now > c->play_end ? now : c->play_end;
    c->play_end = start + count * SAMPLE_NS;
    m.received += (uint64_t)m.recording;
    for (size_t at = 0; at + WINDOW <= count; at += WINDOW) {
        double level = level_of(codes + at, WINDOW);
        if (level <= LOUD) continue;
        c->voiced_at = start + (at + WINDOW) * SAMPLE_NS;
        if ((c->phase != LISTENING && c->phase != TALKING) || c->windows == HEARD) continue;
        c->heard[c->windows++] = (Window){ start + at * SAMPLE_NS, level, now };
        c->peak = larger(c->peak, level);
    }
}

static void take_message(Call *c, unsigned char *p, size_t n, uint64_t now)
{
    unsigned char *at;
    if ((at = memmem(p, n, "\"payload\"", 9))) {
        at = memchr(at + 9, '"', (size_t)(p + n - at) - 9);
        if (at) hear(c, at + 1, (size_t)(p + n - at) - 1, now);
    } else if (memmem(p, n, "\"clear\"", 7)) {
        c->play_end = now;
        for (int i = 0; i < c->nmarks; i++) c->marks[i].at = now;
    } else if ((at = memmem(p, n, "\"name\"", 6)) && c->nmarks < MARKS) {
        Mark *mark = &c->marks[c->nmarks++];
        unsigned char *from = memchr(at + 6, '"', (size_t)(p + n - at) - 6), *to = NULL;
        if (from) to = memchr(from + 1, '"', (size_t)(p + n - from) - 1);
        if (!to || to - from > (long)sizeof mark->name) { c->nmarks--; return; }
        snprintf(mark->name, sizeof mark->name, "%.*s", (int)(to - from - 1), from + 1);
        mark->at = now > c->play_end ? now : c->play_end;
    }
}

static void note_answer(Call *c, int taken, uint64_t now)
{
    m.answered[taken][m.nanswered[taken]++] = (uint32_t)((now - c->dialled) / 1000);
}

static void turn_away(Call *c, const unsigned char *head, size_t n, uint64_t now)
{
    note_answer(c, 0, now);
    m.speechless += !memmem(head, n, "\r\nRetry-After: ", 15);
    c->phase = OVER;
    close(c->fd);
}

static void open_call(Call *c)          /* the 101 is there */
{
    tell(c, "{\"event\":\"connected\",\"protocol\":\"Call\",\"version\":\"1.0.0\"}");
    tell(c, "{\"event\":\"start\",\"sequenceNumber\":\"1\",\"streamSid\":\"%s\",\"start\":{\"accountSid\":"
         "\"AC00000000000000000000000000000000\",\"streamSid\":\"%s\",\"callSid\":\"%s\",\"tracks\":[\"inbound\"],"
         "\"customParameters\":{},\"mediaFormat\":{\"encoding\":\"audio/x-mulaw\",\"sampleRate\":8000,\"channels\":1}}}",
         c->stream, c->stream, c->id);
    c->number = 1;
    c->due = 50 + rnd() % 150;          /* so that they do not speak in chorus */
    c->phase = WAITING;
}

static void receive(Call *c, uint64_t now)
{
    ssize_t got = recv(c->fd, c->in + c->in_len, ROOM - c->in_len, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) { lose(c, "the server ended the connection"); return; }
    c->in_len += (size_t)got;
    unsigned char *p = c->in, *end = c->in + c->in_len;
    if (c->phase == CONNECTING) {
        unsigned char *body = memmem(p, c->in_len, "\r\n\r\n", 4);
        if (!body) return;
        if (o.refusable && c->in_len > 12 && (!memcmp(p, "HTTP/1.1 503", 12) || !memcmp(p, "HTTP/1.1 429", 12))) {
            turn_away(c, p, (size_t)(body + 2 - p), now);
            return;
        }
        if (c->in_len < 12 || memcmp(p, "HTTP/1.1 101", 12)) { lose(c, "the server refused the call"); return; }
        note_answer(c, 1, now);
        p = body + 4;
        open_call(c);
    }
    while (end - p >= 2 && c->phase != OVER) {
        size_t n = p[1] & 127, h = n < 126 ? 2 : n == 126 ? 4 : 10;
        if ((size_t)(end - p) < h) break;
        if (h == 4) n = (size_t)p[2] << 8 | p[3];
        if (h == 10) { n = 0; for (int i = 2; i < 10; i++) n = n << 8 | p[i]; }
        if (n > ROOM - 10) { lose(c, "a message is too long"); return; }
        if ((size_t)(end - p) < h + n) break;
        int opcode = p[0] & 15;
        if (opcode == 8) { lose(c, "the server hung up"); return; }
        if (opcode == 9) put_frame(c, 10, (char *)p + h, n);
        if (opcode == 1 || opcode == 2) take_message(c, p + h, n, now);
        p += h + n;
    }
    c->in_len = (size_t)(end - p);
    if (c->in_len && p != c->in) memmove(c->in, p, c->in_len);
}

static void dial(Call *c)
{
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_port = htons((uint16_t)o.port) };
    char request[512];
    int one = 1;
    c->dialled = now_ns();
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0) die("socket: %s", strerror(errno));
    if (inet_pton(AF_INET, o.host, &a.sin_addr) != 1) die("%s: not an IPv4 address", o.host);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, (struct sockaddr *)&a, sizeof a)) die("connect: %s", strerror(errno));
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    c->in = alloc(ROOM, 1);
    c->out = alloc(ROOM, 1);
    c->heard = alloc(HEARD, sizeof *c->heard);
    struct epoll_event ev = { .events = EPOLLIN, .data.ptr = c };
    epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &ev);
    snprintf(c->id, sizeof c->id, "CA%08x%024x", (unsigned)getpid(), (unsigned)c->index);
    snprintf(c->stream, sizeof c->stream, "MZ%08x%024x", (unsigned)getpid(), (unsigned)c->index);
    int n = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n", o.path, o.host, o.port);
    put(c, request, (size_t)n);
}

/* ---- the run ------------------------------------------------------------------ */

static void poll_once(uint64_t wait_ns)
{
    struct epoll_event ev[EVENTS];
    struct timespec ts = { (time_t)(wait_ns / 1000000000u), (long)(wait_ns % 1000000000u) };
    int n = epoll_pwait2(ep, ev, EVENTS, &ts, NULL);
    for (int i = 0; i < n; i++) {
        Call *c = ev[i].data.ptr;
        if (c->phase != OVER && ev[i].events & EPOLLOUT) flush(c);
        if (c->phase != OVER && ev[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP)) receive(c, now_ns());
    }
}

static void begin_recording(void)
{
    m.room = (size_t)(o.calls * 50 * (o.secs + 2));
    m.late = alloc(m.room, sizeof *m.late);
    m.server = sched_of_all(o.pids, o.npids);
    m.client = sched_of(getpid());
    m.recording = 1;
    m.begun = now_ns();
}

static void run(void)
{
    uint64_t t0 = now_ns(), n = (uint64_t)o.calls, ramp = (uint64_t)(o.warm * 0.6e9), g = 0;
    uint64_t measure = t0 + (uint64_t)(o.warm * 1e9), stop = measure + (uint64_t)(o.secs * 1e9), now;
    int dialled = 0;
    while ((now = now_ns()) < stop) {
        if (!m.recording && now >= measure) begin_recording();
        if (dialled < o.calls && now >= t0 + ramp * (uint64_t)dialled / n) dial(&calls[dialled++]);
        uint64_t due = stop;
        for (int sent = 0; sent < SENDS_PER_POLL; sent++, g++) {
            if ((due = t0 + g / n * FRAME_NS + phases[g % n]) > now) break;
            Call *c = &calls[g % n];
            if (c->phase != CONNECTING && c->phase != OVER) speak(c, due);
        }
        now = now_ns();
        poll_once(due > now ? due - now : 0);
    }
    m.ended = now_ns();
    m.server = since(m.server, sched_of_all(o.pids, o.npids));
    m.client = since(m.client, sched_of(getpid()));
}

static double ms_of(const uint32_t *sorted, size_t n, double p)
{
    size_t i = (size_t)(p / 100 * (double)n);
    return n ? sorted[i < n ? i : n - 1] / 1e3 : 0;
}

static double late_ms(double p) { return ms_of(m.late, m.nlate, p); }

static void report_answers(void)
{
    static const char *names[] = { "refused", "taken" };
    for (int i = 0; i < 2; i++) {
        qsort(m.answered[i], m.nanswered[i], sizeof(uint32_t), compare_u32);
        printf("\"%s\":%zu,\"%s_p50\":%.3f,\"%s_p99\":%.3f,\"%s_max\":%.3f,", names[i], m.nanswered[i], names[i],
               ms_of(m.answered[i], m.nanswered[i], 50), names[i], ms_of(m.answered[i], m.nanswered[i], 99), names[i],
               ms_of(m.answered[i], m.nanswered[i], 100));
    }
    printf("\"without_retry_after\":%llu,", (unsigned long long)m.speechless);
}

static void report(void)
{
    static const unsigned char bye[] = { 0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8 };
    double secs = (double)(m.ended - m.begun) / 1e9;
    uint64_t lost = m.lost, open = 0;
    for (int i = 0; i < o.calls; i++) {
        open += calls[i].phase != OVER && calls[i].phase != CONNECTING;
        if (calls[i].phase != OVER) put(&calls[i], bye, sizeof bye);
    }
    qsort(m.late, m.nlate, sizeof *m.late, compare_u32);
    printf("{");
    report_answers();
    printf("\"calls\":%d,\"open\":%llu,\"lost\":%llu,\"secs\":%.3f,\"turns\":%llu,\"unanswered\":%llu,\"sent\":%llu,"
           "\"received\":%llu,\"late_p50\":%.3f,\"late_p99\":%.3f,\"late_max\":%.3f,\"server_ns\":%llu,"
           "\"server_wait_ns\":%llu,\"client_ns\":%llu,\"client_wait_ns\":%llu}\n",
           o.calls, (unsigned long long)open, (unsigned long long)lost, secs, (unsigned long long)m.turns,
           (unsigned long long)m.unanswered, (unsigned long long)m.sent, (unsigned long long)m.received, late_ms(50),
           late_ms(99), late_ms(100), (unsigned long long)m.server.run, (unsigned long long)m.server.wait,
           (unsigned long long)m.client.run, (unsigned long long)m.client.wait);
}

static void parse_options(int argc, char **argv)
{
    static const char usage[] = "usage: callers [options] HOST PORT (see the head of callers.c)";
    for (int c; (c = getopt(argc, argv, "f:kc:w:d:g:s:t:p:u:C:o:r")) != -1;)
        switch (c) {
        case 'f':
            if (o.nfiles == MAX_FILES) die("at most %d files", MAX_FILES);
            o.files[o.nfiles++] = optarg;
            break;
        case 'k': o.keys = 1; break;
        case 'c': o.calls = atoi(optarg); break;
        case 'w': o.warm = atof(optarg); break;
        case 'd': o.secs = atof(optarg); break;
        case 'g': o.gap = atof(optarg); break;
        case 's': o.silence = atof(optarg); break;
        case 't': o.patience = atof(optarg); break;
        case 'p':
            if (o.npids == MAX_PIDS) die("at most %d processes", MAX_PIDS);
            o.pids[o.npids++] = atoi(optarg);
            break;
        case 'u': o.path = optarg; break;
        case 'C': o.cpu = atoi(optarg); break;
        case 'o': o.records = optarg; break;
        case 'r': o.refusable = 1; break;
        default: die(usage);
        }
    if (argc - optind != 2 || o.calls < 1 || !o.nfiles) die(usage);
    o.host = argv[optind];
    o.port = atoi(argv[optind + 1]);
}

int main(int argc, char **argv)
{
    parse_options(argc, argv);
    pin(o.cpu);
    fill_tables();
    for (int i = 0; i < o.nfiles; i++) load_speech(&speech[i], o.files[i]);
    if (o.records && !(records = fopen(o.records, "w"))) die("%s: %s", o.records, strerror(errno));
    ep = epoll_create1(0);
    calls = alloc((size_t)o.calls, sizeof *calls);
    phases = alloc((size_t)o.calls, sizeof *phases);
    for (int i = 0; i < 2; i++) m.answered[i] = alloc((size_t)o.calls, sizeof *m.answered[i]);
    for (int i = 0; i < o.calls; i++) {
        calls[i].index = i;
        phases[i] = (uint64_t)((double)rnd() / 4294967296.0 * (double)FRAME_NS);
    }
    qsort(phases, (size_t)o.calls, sizeof *phases, compare_u64);
    run();
    report();
    if (records) fclose(records);
    return m.lost ? 2 : 0;
}
