/* A two-sided CUSUM of residuals; what it is, and why, is said in policy/watch.py. */

#include <stdint.h>

typedef int64_t ix;

static const double DRIFT = 0.5, ALARM = 10.0, WINSOR = 2.0;

/* Follow rows (features and value) up to the first alarm; return its place, or -1.

   state: of the run upwards its statistic and the sum and weight of what it was given, then the
   same of the run downwards; shift: set at an alarm, which ends both runs. */
ix watch_follow(ix count, ix width, const double *restrict rows, const double *restrict weights,
                const double *restrict residual, double deviation, double *restrict state,
                double *restrict shift) {
    double above = state[0], above_sum = state[1], above_weight = state[2];
    double below = state[3], below_sum = state[4], below_weight = state[5];
    ix place = -1;
    for (ix at = 0; at < count; at++) {
        const double *row = rows + at * width;
        double unit = 0.0, weight = weights[at], bound = WINSOR * weight;
        for (ix i = 0; i < width; i++) unit += row[i] * residual[i];
        unit *= weight / deviation;
        double value = unit < -bound ? -bound : unit > bound ? bound : unit;
        above += value - DRIFT;
        above_sum += unit;
        above_weight += weight;
        if (above <= 0.0) above = above_sum = above_weight = 0.0;
        below -= value + DRIFT;
        below_sum += unit;
        below_weight += weight;
        if (below <= 0.0) below = below_sum = below_weight = 0.0;
        if (above > ALARM || below > ALARM) {
            *shift = deviation * (below > above ? below_sum / below_weight
                                                : above_sum / above_weight);
            above = above_sum = above_weight = below = below_sum = below_weight = 0.0;
            place = at;
            break;
        }
    }
    state[0] = above, state[1] = above_sum, state[2] = above_weight;
    state[3] = below, state[4] = below_sum, state[5] = below_weight;
    return place;
}
