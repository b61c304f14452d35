/* Folding observations into decayed moments; what they are is said in policy/moments.py. */

#include <math.h>
#include <stdint.h>

#include "wide.h"

typedef int64_t ix;

/* Columns that are summed together, in registers. */
enum { TILE = 8 };

/* Add a block of scaled rows, each of stride numbers, to moments that have decayed by kept. */
WIDE static void add_block(ix size, ix width, ix stride, const double *restrict scaled, double kept,
                      double *restrict moments) {
    for (ix i = 0; i < width; i++) {
        for (ix from = i - i % TILE; from < width; from += TILE) {
            ix count = width - from < TILE ? width - from : TILE;
            double sum[TILE] = {0.0};
            for (ix at = 0; at < size; at++) {
                const double *row = scaled + at * stride;
                for (ix j = 0; j < TILE; j++) sum[j] += row[i] * row[from + j];
            }
            double *product = moments + i * width + from;
            for (ix j = 0; j < count; j++) product[j] = kept * product[j] + sum[j];
        }
    }
    /* What is left of a row's own tile was not computed: the products are symmetric. */
    for (ix i = 0; i < width; i++)
        for (ix j = 0; j < i - i % TILE; j++) moments[i * width + j] = moments[j * width + i];
}

/* Add blocks of rows (features and value) to moments, each after decaying what is there.

   decay: square roots of the decay of a block's rows; kept: the decay of a whole block; scratch:
   size * stride numbers, stride being the width rounded up to whole tiles. Weights go in by their
   roots, so that the products are exactly symmetric. */
void moments_fold(ix blocks, ix size, ix width, ix stride, const double *restrict rows,
                  const double *restrict weights, const double *restrict decay, double kept,
                  double *restrict moments, double *restrict scratch) {
    for (ix block = 0; block < blocks; block++) {
        for (ix at = 0; at < size; at++) {
            const double *row = rows + (block * size + at) * width;
            double factor = sqrt(weights[block * size + at]) * decay[at];
            double *scaled = scratch + at * stride;
            for (ix i = 0; i < width; i++) scaled[i] = row[i] * factor;
            for (ix i = width; i < stride; i++) scaled[i] = 0.0;
        }
        add_block(size, width, stride, scratch, kept, moments);
    }
}
