#include <stdint.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* A WebSocket mask or its inverse: XOR with a key that repeats every four bytes, eight bytes at a time. */
static inline void oa_xor(uint8_t *p, size_t n, uint32_t key)
{
    uint64_t wide = (uint64_t)key << 32 | key, x;
    size_t i = 0;
    for (; i + 8 <= n; i += 8) { memcpy(&x, p + i, 8); x ^= wide; memcpy(p + i, &x, 8); }
    for (; i < n; i++) p[i] ^= (uint8_t)(key >> (8 * (i & 3)));
}

/* The key as seen by a reader that starts `offset` bytes into the payload (little-endian machine word). */
static inline uint32_t oa_rotate(uint32_t key, unsigned offset)
{
    unsigned s = 8 * (offset & 3);
    return s ? key >> s | key << (32 - s) : key;
}

/* UTF-8 in pieces: how many continuation bytes are owed and the range the next one must lie in
   (RFC 3629 section 4, which excludes overlong forms, surrogates and values past U+10FFFF). */
typedef struct { uint8_t need, lo, hi; } oa_utf8;

static inline int oa_utf8_push(oa_utf8 *s, const uint8_t *p, size_t n)   /* 0: a byte that cannot stand here */
{
    const uint8_t *end = p + n;
    uint64_t x;
    while (p < end) {
        uint8_t c;
        if (s->need) {
            c = *p++;
            if (c < s->lo || c > s->hi) return 0;
            s->lo = 0x80; s->hi = 0xBF; s->need--;
            continue;
        }
        while (end - p >= 8) {
            memcpy(&x, p, 8);
            if (x & 0x8080808080808080ULL) break;
            p += 8;
        }
        if (p == end) break;
        c = *p++;
        if (c < 0x80) continue;
        s->lo = 0x80; s->hi = 0xBF;
        if (c >= 0xC2 && c <= 0xDF) s->need = 1;
        else if (c >= 0xE0 && c <= 0xEF) {
            s->need = 2;
            if (c == 0xE0) s->lo = 0xA0;
            if (c == 0xED) s->hi = 0x9F;
        } else if (c >= 0xF0 && c <= 0xF4) {
            s->need = 3;
            if (c == 0xF0) s->lo = 0x90;
            if (c == 0xF4) s->hi = 0x8F;
        } else return 0;
    }
    return 1;
}

static inline int64_t oa_now(void)     /* ns, CLOCK_MONOTONIC, as time.monotonic_ns() */
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* What is at `p` will be wanted soon: the memory is asked for it while something else is done. */
static inline void oa_soon(const void *p, size_t n)
{
    for (size_t i = 0; i < n; i += 64) __builtin_prefetch((const char *)p + i);
}

static inline int leading_zeros(uint64_t x) { return __builtin_clzll(x); }
static inline uint64_t oa_load(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void oa_store(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline uint64_t oa_swap(uint64_t *p, uint64_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
static inline void oa_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* recv() and send() that never wait.  libc's are points at which a thread can be cancelled, which a process with more
   than one thread pays for at each, and a hundredth of a frame's time is that. */
#if defined(SYS_recvfrom) && defined(SYS_sendto)
#define OA_RECV(fd, to, n) syscall(SYS_recvfrom, fd, to, n, MSG_DONTWAIT, NULL, NULL)
#define OA_SEND(fd, from, n) syscall(SYS_sendto, fd, from, n, MSG_NOSIGNAL | MSG_DONTWAIT, NULL, 0)
#else
#define OA_RECV(fd, to, n) recv(fd, to, n, MSG_DONTWAIT)
#define OA_SEND(fd, from, n) send(fd, from, n, MSG_NOSIGNAL | MSG_DONTWAIT)
#endif
static inline ssize_t oa_recv(int fd, void *to, size_t n) { return OA_RECV(fd, to, n); }
static inline ssize_t oa_send(int fd, const void *from, size_t n) { return OA_SEND(fd, from, n); }

/* epoll_wait for `ns` (negative: for ever), never shorter; to the ns where the kernel can (5.11), else to the ms */
static int oa_epoll(int ep, struct epoll_event *events, int n, int64_t ns) {
#ifdef SYS_epoll_pwait2
    static int exact = 1;
    if (ns > 0 && exact) {
        struct timespec wait = {ns / 1000000000, ns % 1000000000};
        int got = syscall(SYS_epoll_pwait2, ep, events, n, &wait, NULL, 8);
        if (got >= 0 || (errno != ENOSYS && errno != EPERM)) return got;
        exact = 0;      /* an older kernel, or a sandbox that does not know the call */
    }
#endif
    int64_t ms = (ns + 999999) / 1000000;
    return epoll_wait(ep, events, n, ns < 0 ? -1 : ms > 60000 ? 60000 : (int)ms);
}

/* oa_epoll that asks for `spin` ns without sleeping before it sleeps */
static int oa_spin(int ep, struct epoll_event *events, int n, int64_t ns, int64_t spin) {
    int64_t began = spin > 0 ? oa_now() : 0, spent = 0;
    while (spent < spin && (ns < 0 || spent < ns)) {
        int got = epoll_wait(ep, events, n, 0);
        if (got) return got;
        spent = oa_now() - began;
    }
    return oa_epoll(ep, events, n, ns < 0 ? ns : ns > spent ? ns - spent : 0);
}

/* out[row] = bias + in[row] x w, and nothing below `floor`.  Rows come in groups of `per`: those of `in` are
   `stride` floats apart and its groups `group`, those of `out` follow one another and its groups are `out_group`
   apart.  w is in panels of 32 columns, which stay in the cache for all rows.  The same for three widths of the
   processor's registers, each with as many rows together as these can hold sums of. */
typedef float oa_v4 __attribute__((vector_size(16), aligned(4)));
typedef float oa_v8 __attribute__((vector_size(32), aligned(4)));
typedef float oa_v16 __attribute__((vector_size(64), aligned(4)));
typedef void oa_dense_fn(const float *, int, int, int, int, const float *, int, int, const float *, float, float *,
                         int);
#define OA_EACH _Pragma("GCC unroll 8") for
#define OA_DENSE(name, target, vec, lanes, together)                                                            \
target static void name(const float *in, int rows, int per, int stride, int group, const float *w, int depth,   \
                        int panels, const float *bias, float floor, float *out, int out_group)                  \
{                                                                                                               \
    for (int p = 0; p < panels; p++, w += 32 * depth)                                                           \
        for (int r = 0; r < rows; r += together) {                                                              \
            vec sum[together][32 / lanes];                                                                      \
            const float *x[together];                                                                           \
            OA_EACH (int j = 0; j < together; j++) {                                                            \
                int row = r + j < rows ? r + j : rows - 1;                                                      \
                x[j] = in + row / per * group + row % per * stride;                                             \
                OA_EACH (int i = 0; i < 32 / lanes; i++)                                                        \
                    sum[j][i] = bias ? *(const vec *)(bias + 32 * p + lanes * i) : (vec){ 0 };                  \
            }                                                                                                   \
            for (int k = 0; k < depth; k++)                                                                     \
                OA_EACH (int i = 0; i < 32 / lanes; i++) {                                                      \
                    vec column = *(const vec *)(w + 32 * k + lanes * i);                                        \
                    OA_EACH (int j = 0; j < together; j++) sum[j][i] += x[j][k] * column;                       \
                }                                                                                               \
            OA_EACH (int j = 0; j < together; j++) {                                                            \
                if (r + j >= rows) break;                                                                       \
                float *y = out + (r + j) / per * out_group + (r + j) % per * 32 * panels + 32 * p;              \
                OA_EACH (int i = 0; i < 32 / lanes; i++) {                                                      \
                    vec v = sum[j][i];                                                                          \
                    for (int n = 0; n < lanes; n++) y[lanes * i + n] = v[n] > floor ? v[n] : floor;             \
                }                                                                                               \
            }                                                                                                   \
        }                                                                                                       \
}
OA_DENSE(oa_dense_any, , oa_v4, 4, 1)
#if defined(__x86_64__) && defined(__GNUC__)
OA_DENSE(oa_dense_avx2, __attribute__((target("avx2,fma"))), oa_v8, 8, 2)
OA_DENSE(oa_dense_avx512, __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,fma"))), oa_v16, 16, 4)
static oa_dense_fn *oa_dense_here(void)
{
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) return oa_dense_avx512;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? oa_dense_avx2 : oa_dense_any;
}
#else
static oa_dense_fn *oa_dense_here(void) { return oa_dense_any; }
#endif
