/* Ridge estimates of the arms' reward or length, all arms at once.

   What is computed, and why, is said in policy/ridge.py. Here are only loops over small matrices,
   which numpy would need dozens of calls for. Matrices are stored by rows without gaps. Sums are
   added in the order that is written, so that every compiler gives the same numbers; loops over
   whole rows of symmetric matrices are those that a processor can do several of at a time. */

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "wide.h"

typedef int64_t ix;

enum { WEIGHT, SQUARES, VALUES, TRACE, NORM, SUMS };

static const double ASSUMED = 5.0, RANGE = 64.0;

static double larger(double a, double b) { return a > b ? a : b; }

static double slope_strength(ix features, double weight, double squares, double signal) {
    if (features == 0 || weight <= 0.0 || squares <= 0.0) return features / signal;
    double scale = larger(squares / (features * weight), 1e-12);
    return features / signal * exp2(rint(4.0 * log2(scale)) / 4.0);
}

void ridge_centre(ix d, const double *restrict moments, double *restrict products,
                  double *restrict crossed, double *restrict means, double *restrict sums) {
    ix width = d + 2;
    const double *constant = moments + d * width;
    double weight = constant[d], total = constant[d + 1], safe = larger(weight, 1e-12);
    double squares = 0.0, trace = 0.0, norm = 0.0;
    for (ix i = 0; i < d; i++) means[i] = constant[i] / safe;
    for (ix i = 0; i < d; i++) {
        const double *row = moments + i * width;
        double *product = products + i * d;
        squares += row[i];
        crossed[i] = row[d + 1] - means[i] * total;
        for (ix j = 0; j < d; j++) product[j] = row[j] - constant[i] * means[j];
        trace += product[i];
        for (ix j = 0; j < d; j++) norm += product[j] * product[j];
    }
    sums[WEIGHT] = weight;
    sums[SQUARES] = squares;
    sums[VALUES] = moments[(d + 1) * width + d + 1] - total * total / safe;
    sums[TRACE] = trace;
    sums[NORM] = norm;
}

/* Set result to a symmetric matrix, with rows of the given stride, times a vector. */
WIDE static void times(ix n, ix stride, const double *restrict matrix, const double *restrict vector,
                  double *restrict result) {
    memset(result, 0, n * sizeof(double));
    for (ix i = 0; i < n; i++) {
        const double *row = matrix + i * stride;
        double factor = vector[i];
        for (ix j = 0; j < n; j++) result[j] += factor * row[j];
    }
}

/* Invert a symmetric positive definite matrix in place; row: n numbers of scratch.

   By sweeping each pivot (Goodnight, 1979) of the lower triangle, which gives the inverse with its
   sign turned; it needs no pivoting, and is exactly symmetric. */
WIDE static void invert(ix n, double *gram, double *restrict row) {
    for (ix k = 0; k < n; k++) {
        double *own = gram + k * n, scale = 1.0 / own[k];
        for (ix j = 0; j < k; j++) row[j] = own[j];
        row[k] = 0.0;
        for (ix i = k + 1; i < n; i++) row[i] = gram[i * n + k];
        for (ix i = 0; i < n; i++) {
            double *restrict other = gram + i * n;
            double factor = row[i] * scale;
            for (ix j = 0; j <= i; j++) other[j] -= factor * row[j];
        }
        for (ix j = 0; j < k; j++) own[j] = row[j] * scale;
        own[k] = -scale;
        for (ix i = k + 1; i < n; i++) gram[i * n + k] = row[i] * scale;
    }
    for (ix i = 0; i < n; i++)
        for (ix j = 0; j <= i; j++) gram[i * n + j] = gram[j * n + i] = -gram[i * n + j];
}

double ridge_own_strength(ix arms, ix d, const double *products, const double *crossed,
                          const double *sums, const double *slopes, double expected, double noise,
                          double *scratch) {
    if (d == 0) return expected;
    double *fitted = scratch, *misses = scratch + d;
    double errors = 0.0, weight = 0.0, traces = 0.0;
    for (ix arm = 0; arm < arms; arm++) {
        const double *cross = crossed + arm * d, *sum = sums + arm * SUMS;
        times(d, d, products + arm * d * d, slopes, fitted);
        errors += sum[VALUES];
        misses[arm] = 0.0;
        for (ix i = 0; i < d; i++) {
            double miss = cross[i] - fitted[i];
            errors -= (2.0 * cross[i] - fitted[i]) * slopes[i];
            misses[arm] += miss * miss;
        }
        weight += sum[WEIGHT];
        traces += sum[TRACE];
    }
    double variance = (errors + ASSUMED * noise * noise) / (weight + ASSUMED);
    double total = traces + d * expected;
    double shares = 0.0, squared = 0.0, excess = 0.0, spread = 0.0;
    for (ix arm = 0; arm < arms; arm++) {
        double share = sums[arm * SUMS + TRACE] / total;
        shares += share;
        squared += share * share;
    }
    for (ix arm = 0; arm < arms; arm++) {
        double trace = sums[arm * SUMS + TRACE], share = trace / total;
        excess += misses[arm] / variance - trace * (1.0 + share * (shares - 2.0));
        spread += sums[arm * SUMS + NORM] * (1.0 - 2.0 * share + squared);
    }
    /* In units of the expected ratio, which is 1 with variance 1. */
    spread = larger(spread, 1e-300);
    double trust = spread / (spread + 2.0 * expected * expected);
    double ratio = trust * (excess * expected / spread) + 1.0 - trust;
    ratio = ratio < 1.0 / RANGE ? 1.0 / RANGE : ratio > RANGE ? RANGE : ratio;
    return expected * exp2(-rint(2.0 * log2(ratio)) / 2.0);
}

/* Solve a symmetric positive definite system in place: right becomes the solution. Of the matrix
   the lower triangle is read and overwritten; column: n numbers of scratch. */
WIDE static void eliminate(ix n, double *gram, double *restrict right, double *restrict column) {
    for (ix k = 0; k < n; k++) {
        double scale = 1.0 / gram[k * n + k];
        for (ix i = k + 1; i < n; i++) column[i] = gram[i * n + k];
        for (ix i = k + 1; i < n; i++) {
            double *restrict row = gram + i * n;
            double factor = column[i] * scale;
            for (ix j = k + 1; j <= i; j++) row[j] -= factor * column[j];
            row[k] = factor;
            right[i] -= factor * right[k];
        }
    }
    for (ix k = 0; k < n; k++) right[k] /= gram[k * n + k];
    for (ix k = n - 1; k >= 0; k--) {
        const double *row = gram + k * n;
        for (ix j = 0; j < k; j++) right[j] -= row[j] * right[k];
    }
}

/* Take what changed, and find what all arms share: slopes, set to d numbers and the level that
   they explain of the mean arm; returned is the strength of own slopes. Scratch: d * d + 2 * d +
   arms numbers. */
double ridge_shared(ix arms, ix d, const double *moments, const uint8_t *changed,
                    double *products, double *crossed, double *means, double *sums,
                    double *slopes, double signal, double noise, double *scratch) {
    ix width = d + 2;
    double *shared = scratch, *middle = shared + d * d, *rest = middle + d;
    double weight = 0.0, squares = 0.0, level = 0.0;
    memset(shared, 0, (d * d + d) * sizeof(double));
    memset(slopes, 0, d * sizeof(double));
    for (ix arm = 0; arm < arms; arm++) {
        double *product = products + arm * d * d, *cross = crossed + arm * d;
        double *mean = means + arm * d, *sum = sums + arm * SUMS;
        if (changed[arm])
            ridge_centre(d, moments + arm * width * width, product, cross, mean, sum);
        weight += sum[WEIGHT];
        squares += sum[SQUARES];
        for (ix i = 0; i < d * d; i++) shared[i] += product[i];
        for (ix i = 0; i < d; i++) slopes[i] += cross[i];
        for (ix i = 0; i < d; i++) middle[i] += sum[WEIGHT] * mean[i];
    }
    double strength = slope_strength(d, weight, squares, signal);
    for (ix i = 0; i < d; i++) shared[i * d + i] += strength;
    eliminate(d, shared, slopes, rest);
    for (ix i = 0; i < d; i++) level += middle[i] / larger(weight, 1e-12) * slopes[i];
    slopes[d] = level;
    return ridge_own_strength(arms, d, products, crossed, sums, slopes, strength, noise, rest);
}

/* Set the inverses of some arms' regularised Gram matrices. Scratch: w * w + w numbers, w = d + 1. */
void ridge_inverses(ix arms, ix d, const double *moments, const uint8_t *changed, double strength,
                    double *inverses, double *scratch) {
    ix w = d + 1, width = d + 2;
    double *inverse = scratch, *row = scratch + w * w;
    for (ix arm = 0; arm < arms; arm++) {
        if (!changed[arm]) continue;
        for (ix i = 0; i < w; i++) {
            memcpy(inverse + i * w, moments + (arm * width + i) * width, w * sizeof(double));
            inverse[i * w + i] += i < d ? strength : 1.0;
        }
        invert(w, inverse, row);
        for (ix i = 0; i < w; i++)
            memcpy(inverses + (i * arms + arm) * w, inverse + i * w, w * sizeof(double));
    }
}

/* Set estimates and variances of all arms from the inverses. Scratch: 2 * (d + 1) numbers. */
void ridge_estimates(ix arms, ix d, const double *moments, const double *sums,
                     const double *slopes, const double *prior, double strength, double noise,
                     const double *inverses, double *theta, double *variance, double *scratch) {
    ix w = d + 1, width = d + 2;
    double *right = scratch, *fitted = scratch + w, level = slopes[d];
    for (ix arm = 0; arm < arms; arm++) {
        const double *seen = moments + arm * width * width, *told = seen + w * width;
        double *found = theta + arm * w;
        for (ix i = 0; i < d; i++) right[i] = told[i] + strength * slopes[i];
        right[d] = told[d] + prior[arm] - level;
        times(w, arms * w, inverses + arm * w, right, found);
        times(w, width, seen, found, fitted);
        double left = told[w];
        for (ix i = 0; i < w; i++) left += found[i] * (fitted[i] - 2.0 * told[i]);
        variance[arm] = (larger(left, 0.0) + ASSUMED * noise * noise)
                        / (sums[arm * SUMS + WEIGHT] + ASSUMED);
    }
}

/* A plain estimate of one arm about its running mean; scratch: (d + 1) * (d + 2) numbers. */
void ridge_plain(ix d, const double *moments, double signal, double *theta, double *scratch) {
    ix w = d + 1, width = d + 2;
    double weight = moments[d * width + d], squares = 0.0;
    for (ix i = 0; i < d; i++) squares += moments[i * width + i];
    double strength = slope_strength(d, weight, squares, signal);
    for (ix i = 0; i < w; i++) {
        memcpy(scratch + i * w, moments + i * width, w * sizeof(double));
        scratch[i * w + i] += i < d ? strength : 1.0;
        theta[i] = moments[i * width + w];
    }
    theta[d] += moments[d * width + w] / larger(weight, 1e-9);
    eliminate(w, scratch, theta, scratch + w * w);
}
