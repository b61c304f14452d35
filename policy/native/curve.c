/* The steps of a spend curve; what it is, and why, is said in policy/curve.py. */

#include <math.h>
#include <stdint.h>

typedef int64_t ix;

/* Of the arms in a row: the one with the best reward, and of equal ones the cheapest. */
static ix best_arm(ix arms, const double *reward, const double *cost, const uint8_t *eligible) {
    ix best = -1;
    for (ix arm = 0; arm < arms; arm++) {
        if (!eligible[arm]) continue;
        if (best < 0 || reward[arm] > reward[best]
            || (reward[arm] == reward[best] && cost[arm] < cost[best]))
            best = arm;
    }
    return best;
}

/* The next arm of a row as the price rises, or -1: that of the least slope, and of equal ones the
   cheapest, which is the end of the edge. */
static ix next_arm(ix arms, const double *reward, const double *cost, const uint8_t *eligible,
                   ix now, double *slope) {
    ix next = -1;
    for (ix arm = 0; arm < arms; arm++) {
        if (!eligible[arm] || !(cost[now] - cost[arm] > 0.0)) continue;
        double own = (reward[now] - reward[arm]) / (cost[now] - cost[arm]);
        if (!isfinite(own)) continue;
        if (next < 0 || own < *slope || (own == *slope && cost[arm] < cost[next])) {
            next = arm;
            *slope = own;
        }
    }
    return next;
}

/* Follow each row's requests from price 0 upwards; return how many steps there are.

   now, reached: one number a row, for the arm that a row is at and the price of its last step; now
   is -1 for a row without an eligible arm. first: set to each row's cost at price 0. price, drop:
   set to the price of each step and by how much the cost of its row falls there; first the first
   steps of all rows, then the second, rows * (arms - 1) at most. sums, counts: one number an arm,
   set to the sum of its costs where it is eligible, and to how often it is. */
ix curve_steps(ix rows, ix arms, const double *restrict reward, const double *restrict cost,
               const uint8_t *restrict eligible, ix *restrict now, double *restrict reached,
               double *restrict first, double *restrict price, double *restrict drop,
               double *restrict sums, ix *restrict counts) {
    ix steps = 0;
    for (ix arm = 0; arm < arms; arm++) sums[arm] = 0.0, counts[arm] = 0;
    for (ix row = 0; row < rows; row++) {
        ix at = row * arms;
        now[row] = best_arm(arms, reward + at, cost + at, eligible + at);
        reached[row] = 0.0;
        first[row] = now[row] < 0 ? 0.0 : cost[at + now[row]];
        for (ix arm = 0; arm < arms; arm++) {
            if (!eligible[at + arm]) continue;
            sums[arm] += cost[at + arm];
            counts[arm]++;
        }
    }
    for (ix turn = 1; turn < arms; turn++) {
        ix before = steps;
        for (ix row = 0; row < rows; row++) {
            if (now[row] < 0) continue;
            ix at = row * arms;
            double slope = 0.0;
            ix next = next_arm(arms, reward + at, cost + at, eligible + at, now[row], &slope);
            if (next < 0) continue;
            /* Rounding must not let a hull turn back. */
            if (slope > reached[row]) reached[row] = slope;
            price[steps] = reached[row];
            drop[steps++] = cost[at + now[row]] - cost[at + next];
            now[row] = next;
        }
        if (steps == before) break;
    }
    return steps;
}
