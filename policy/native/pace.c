/* How decisions and outcomes change the pacer's state; what it is, is said in policy/pace.py. */

#include <math.h>
#include <stdint.h>

typedef int64_t ix;

static const double NANO_PER_USD = 1e9, MEMORY_MS = 3600000.0, FAST = 10.0, NOISE_KEEP = 0.99;
static const double MEAN = 1.0 / 400.0, MEAN_FAST = 1.0 / 20.0;

/* As PACER_DTYPE has it. */
typedef struct {
    ix total, first_ms, seen_ms, requests, spent_nanousd, open_calls;
    double open_usd2, memory_ms, count_slow, count_fast, dual_price, mean_usd, mean_fast_usd;
    double planned_usd, noise_usd2, noise_scale_usd2;
    ix settled_calls;
    double settled_usd2, settled_scale_usd2;
} Pacing;

/* The pacer's fields of a budget lie at the end of its row, which has so many bytes. */
static Pacing *of(char *rows, ix bytes, ix budget) {
    return (Pacing *)(rows + (budget + 1) * bytes - (ix)sizeof(Pacing));
}

void pace_charge(ix count, char *rows, ix bytes, const ix *requests, const ix *cost_nanousd,
                 const double *dual_price, const double *planned_usd, ix now_ms) {
    for (ix at = 0; at < count; at++) {
        Pacing *pacing = of(rows, bytes, at);
        ix many = requests[at];
        if (pacing->first_ms == 0) {
            pacing->first_ms = pacing->seen_ms = now_ms > 1 ? now_ms : 1;
        }
        ix since = now_ms > pacing->seen_ms ? now_ms - pacing->seen_ms : 0;
        double memory = pacing->memory_ms > 0.0 ? pacing->memory_ms : MEMORY_MS;
        pacing->seen_ms += since;
        pacing->total += many;
        pacing->count_slow = pacing->count_slow * exp(-since / memory) + many;
        pacing->count_fast = pacing->count_fast * exp(-since * FAST / memory) + many;
        double mean = cost_nanousd[at] / (many * NANO_PER_USD);
        double slow = 1.0 - pow(1.0 - MEAN, many), fast = 1.0 - pow(1.0 - MEAN_FAST, many);
        pacing->dual_price += fast * (dual_price[at] - pacing->dual_price);
        pacing->mean_fast_usd += fast * (mean - pacing->mean_fast_usd);
        pacing->mean_usd += slow * (mean - pacing->mean_usd);
        pacing->planned_usd += slow * (planned_usd[at] - pacing->planned_usd);
        double kept = pow(NOISE_KEEP, pacing->settled_calls);
        pacing->noise_usd2 = kept * pacing->noise_usd2 + pacing->settled_usd2;
        pacing->noise_scale_usd2 = kept * pacing->noise_scale_usd2 + pacing->settled_scale_usd2;
        pacing->settled_calls = 0;
        pacing->settled_usd2 = pacing->settled_scale_usd2 = 0.0;
        /* What rounding has left. */
        if (pacing->open_calls <= 0 || pacing->open_usd2 < 0.0) pacing->open_usd2 = 0.0;
    }
}

static ix all_known(ix count, const ix *budget, ix budgets) {
    for (ix at = 0; at < count; at++)
        if (budget[at] < 0 || budget[at] >= budgets) return 0;
    return 1;
}

/* Returned is 0, and nothing changed, if a budget is not among so many. */
ix pace_hold(ix count, char *rows, ix bytes, ix budgets, const ix *budget,
             const ix *cost_nanousd) {
    if (!all_known(count, budget, budgets)) return 0;
    for (ix at = 0; at < count; at++) {
        Pacing *pacing = of(rows, bytes, budget[at]);
        double usd = cost_nanousd[at] / NANO_PER_USD;
        pacing->requests += 1;
        pacing->spent_nanousd += cost_nanousd[at];
        pacing->open_calls += cost_nanousd[at] > 0;
        pacing->open_usd2 += usd * usd;
    }
    return 1;
}

/* As pace_hold; spent_nanousd is not touched. */
ix pace_correct(ix count, char *rows, ix bytes, ix budgets, const ix *budget,
                const ix *delta_nanousd, const ix *expected_nanousd) {
    if (!all_known(count, budget, budgets)) return 0;
    for (ix at = 0; at < count; at++) {
        Pacing *pacing = of(rows, bytes, budget[at]);
        double delta = delta_nanousd[at] / NANO_PER_USD;
        double expected = expected_nanousd[at] / NANO_PER_USD, scale = expected * expected;
        /* The means are of true dollars in the end: calls are chosen where their cost looks low,
           so that expectations of chosen calls are too low on average. */
        pacing->mean_usd += MEAN * delta;
        pacing->mean_fast_usd += MEAN_FAST * delta;
        if (expected_nanousd[at] > 0) {
            pacing->settled_calls += 1;
            pacing->settled_usd2 += delta * delta;
            pacing->open_calls -= 1;
        }
        pacing->settled_scale_usd2 += scale;
        pacing->open_usd2 -= scale;
    }
    return 1;
}
