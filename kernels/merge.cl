// The moments of two sets as those of one, channel by channel: Chan, Golub and LeVeque's formula (moments.clh), without loss.
//
//     delta = mean_b - mean_a,  mean = mean_a + delta n_b / n,  m2 = m2_a + m2_b + delta^2 n_a n_b / n
//
// grid: (LANES * any number of groups), which share the channels. The result may lie where the first set does; a second set
// without values may have null pointers, and then the first one is copied.

#include "walks/walk.clh"

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void merge(
    const __global ACC *ARRAY_ARGUMENTS(first_mean),                // [channels]
    const __global ACC *ARRAY_ARGUMENTS(first_mean_rest),           // [channels]
    const __global ACC *ARRAY_ARGUMENTS(first_m2),                  // [channels]
    const __global ACC *ARRAY_ARGUMENTS(first_m2_rest),             // [channels]
    const __global ACC *ARRAY_ARGUMENTS(second_mean),               // [channels], or null
    const __global ACC *ARRAY_ARGUMENTS(second_mean_rest),          // [channels], or null
    const __global ACC *ARRAY_ARGUMENTS(second_m2),                 // [channels], or null
    const __global ACC *ARRAY_ARGUMENTS(second_m2_rest),            // [channels], or null
    __global ACC *ARRAY_ARGUMENTS(mean),                            // [channels]
    __global ACC *ARRAY_ARGUMENTS(mean_rest),                       // [channels]
    __global ACC *ARRAY_ARGUMENTS(m2),                              // [channels]
    __global ACC *ARRAY_ARGUMENTS(m2_rest),                         // [channels]
    const long channels, const long first_count, const long second_count)
{
    for (long c = get_global_id(0); c < channels; c += get_global_size(0)) {
        Moments1 all;
        all.n = first_count;
        all.mean = first_mean[first_mean_start + c];
        all.rest = first_mean_rest[first_mean_rest_start + c];
        all.m2 = first_m2[first_m2_start + c];
        all.m2_rest = first_m2_rest[first_m2_rest_start + c];
        if (second_count) {
            Moments1 set;
            set.n = second_count;
            set.mean = second_mean[second_mean_start + c];
            set.rest = second_mean_rest[second_mean_rest_start + c];
            set.m2 = second_m2[second_m2_start + c];
            set.m2_rest = second_m2_rest[second_m2_rest_start + c];
            Moments1_merge(&all, &set);
        }
        const ACC whole = joined(all.mean, all.rest), squares = joined(all.m2, all.m2_rest);
        mean[mean_start + c] = whole;
        mean_rest[mean_rest_start + c] = left_out(whole, all.mean, all.rest);
        m2[m2_start + c] = squares;
        m2_rest[m2_rest_start + c] = left_out(squares, all.m2, all.m2_rest);
    }
}
