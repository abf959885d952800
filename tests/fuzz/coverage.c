/* Tells libFuzzer, which is inside atheris, where the compiled module has been: gcc calls __sanitizer_cov_trace_pc at
   every edge, libFuzzer wants a table of counters.  Linked into the module by guided.py. */
#include <stdint.h>

enum { PLACES = 1 << 15 };      /* edges share a counter only where their addresses agree in 15 bits */

static uint8_t hits[PLACES];
static struct { uintptr_t address, flags; } places[PLACES];

extern void __sanitizer_cov_8bit_counters_init(uint8_t *, uint8_t *);
extern void __sanitizer_cov_pcs_init(const uintptr_t *, const uintptr_t *);

#pragma GCC visibility push(hidden)      /* libFuzzer has functions of these names, which refuse to work */

void __sanitizer_cov_trace_pc(void)
{
    uintptr_t here = (uintptr_t)__builtin_return_address(0);
    unsigned place = (here ^ here >> 15) % PLACES;
    places[place].address = here;
    hits[place]++;
}

__attribute__((constructor)) static void announce(void)
{
    __sanitizer_cov_8bit_counters_init(hits, hits + PLACES);
    __sanitizer_cov_pcs_init((const uintptr_t *)places, (const uintptr_t *)(places + PLACES));
}

/* gcc also reports comparisons of floats, which libFuzzer does not ask for. */
void __sanitizer_cov_trace_cmpf(float a, float b) {}
void __sanitizer_cov_trace_cmpd(double a, double b) {}
