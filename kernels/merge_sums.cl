// The sums of backward over two sets as those over both, channel by channel, without loss: Knuth's two-sum (sums.clh).
//
// grid: (LANES * any number of groups), which share the channels. The result may lie where the first set does; a second set
// without values may have null pointers, and then the first one is copied.

#include "walks/walk.clh"
#include "numbers/sums.clh"

#define SUMS_OF_ARGUMENTS(set)                                                                                         \
    const __global ACC *ARRAY_ARGUMENTS(set##_sum_dy),          /* [channels]: sum(dy) */                                  \
    const __global ACC *ARRAY_ARGUMENTS(set##_sum_dy_rest),     /* [channels] */                                           \
    const __global ACC *ARRAY_ARGUMENTS(set##_sum_dy_xmu),      /* [channels]: sum(dy (x - mean)) */                       \
    const __global ACC *ARRAY_ARGUMENTS(set##_sum_dy_xmu_rest), /* [channels] */                                           \
    const __global ACC *ARRAY_ARGUMENTS(set##_sum_xmu),         /* [channels]: sum(x - mean) */                            \
    const __global ACC *ARRAY_ARGUMENTS(set##_sum_xmu_rest)     /* [channels] */

#define SUMS_FROM(sums, set)                                                                                           \
    sums.gradient = set##_sum_dy[set##_sum_dy_start + c];                                                                      \
    sums.gradient_rest = set##_sum_dy_rest[set##_sum_dy_rest_start + c];                                                       \
    sums.product = set##_sum_dy_xmu[set##_sum_dy_xmu_start + c];                                                               \
    sums.product_rest = set##_sum_dy_xmu_rest[set##_sum_dy_xmu_rest_start + c];                                                \
    sums.deviation = set##_sum_xmu[set##_sum_xmu_start + c];                                                                   \
    sums.deviation_rest = set##_sum_xmu_rest[set##_sum_xmu_rest_start + c];

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void merge_sums(
    SUMS_OF_ARGUMENTS(first),
    SUMS_OF_ARGUMENTS(second),                                        // or null
    __global ACC *ARRAY_ARGUMENTS(sum_dy),                          // [channels]
    __global ACC *ARRAY_ARGUMENTS(sum_dy_rest),                     // [channels]
    __global ACC *ARRAY_ARGUMENTS(sum_dy_xmu),                      // [channels]
    __global ACC *ARRAY_ARGUMENTS(sum_dy_xmu_rest),                 // [channels]
    __global ACC *ARRAY_ARGUMENTS(sum_xmu),                         // [channels]
    __global ACC *ARRAY_ARGUMENTS(sum_xmu_rest),                    // [channels]
    const long channels, const long first_count, const long second_count)
{
    for (long c = get_global_id(0); c < channels; c += get_global_size(0)) {
        Sums1 all;
        SUMS_FROM(all, first)
        if (second_count) {
            Sums1 sums;
            SUMS_FROM(sums, second)
            Sums1_merge(&all, &sums);
        }
        const ACC gradient = joined(all.gradient, all.gradient_rest), product = joined(all.product, all.product_rest);
        const ACC deviation = joined(all.deviation, all.deviation_rest);
        sum_dy[sum_dy_start + c] = gradient;
        sum_dy_rest[sum_dy_rest_start + c] = left_out(gradient, all.gradient, all.gradient_rest);
        sum_dy_xmu[sum_dy_xmu_start + c] = product;
        sum_dy_xmu_rest[sum_dy_xmu_rest_start + c] = left_out(product, all.product, all.product_rest);
        sum_xmu[sum_xmu_start + c] = deviation;
        sum_xmu_rest[sum_xmu_rest_start + c] = left_out(deviation, all.deviation, all.deviation_rest);
    }
}
