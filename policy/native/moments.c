/* Folding observations into decayed moments; what they are is said in policy/moments.py. */

#include <math.h>
#include <stdint.h>

typedef int64_t ix;

/* Add blocks of rows (features and value) to moments, each after decaying what is there.

   decay: square roots of the decay of a block's rows; kept: the decay of a whole block; scratch:
   width numbers. Weights go in by their roots, so that the products are exactly symmetric. */
void moments_fold(ix blocks, ix size, ix width, const double *restrict rows,
                  const double *restrict weights, const double *restrict decay, double kept,
                  double *restrict moments, double *restrict scratch) {
    for (ix block = 0; block < blocks; block++) {
        for (ix i = 0; i < width * width; i++) moments[i] *= kept;
        for (ix at = 0; at < size; at++) {
            const double *row = rows + (block * size + at) * width;
            double factor = sqrt(weights[block * size + at]) * decay[at];
            for (ix i = 0; i < width; i++) scratch[i] = row[i] * factor;
            for (ix i = 0; i < width; i++) {
                double *restrict product = moments + i * width, one = scratch[i];
                for (ix j = 0; j < width; j++) product[j] += one * scratch[j];
            }
        }
    }
}
