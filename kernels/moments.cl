// Moments of each channel: the first step of a split forward pass, and a result of their own.
//
// moments_partial  one group per slice of a channel.        grid: (LANES * slices * blocks)
// moments_merge    the slices' moments as one, by channel.  grid: (LANES * blocks)
//
// As a result, mean and m2 are rounded once each; what that lost is written where it is asked for, so that moments can be
// merged without loss (merge.cl).
//
// See walk.clh for the regions.

#include "numbers/finish.clh"

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void moments_partial(
    const __global STORE(x) *restrict TENSOR_ARGUMENTS(x),          // [outer][channels][inner], by its strides
    __global ACC *restrict ARRAY_ARGUMENTS(partial),                // [slices][4][channels]: mean and m2, each with its rest
    __global long *restrict ARRAY_ARGUMENTS(counts),                // [slices]: values of a channel
    CUT_ARGUMENTS)
{
    SCRATCH(MomentsC, scratch);
    const int slice = (int)(GROUP % slices);
    if (GROUP < slices && get_local_id(0) == 0)
        counts[counts_start + slice] = slice_count(slice, outer, inner, slice_rows, slice_columns, column_slices);
    Region g;
    REGION_OF_GROUP(g, GROUP);
    MomentsC set[BLOCKS];
    region_moments(BEGIN(x), x_row, x_channel, &g, 0, set);
    EACH_BLOCK(u, &g) {
        GROUP_MOMENTS(&set[u], scratch, &g);
        if (g.leader) moments_write(partial, partial_start, slice, &g, u, channels, &set[u]);
    }
}

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void moments_merge(
    MOMENTS_ARGUMENTS,
    __global ACC *restrict ARRAY_ARGUMENTS(mean),                   // [channels]
    __global ACC *restrict ARRAY_ARGUMENTS(mean_rest),              // [channels], or null
    __global ACC *restrict ARRAY_ARGUMENTS(m2),                     // [channels]
    __global ACC *restrict ARRAY_ARGUMENTS(m2_rest),                // [channels], or null
    CUT_ARGUMENTS)
{
    Region g;
    REGION(g, 0, (int)get_group_id(0));
    EACH_BLOCK(u, &g) {
        MomentsC set;
        moments_merged(&set, MOMENTS_PASSED, &g, u, channels);
        if (!g.leader) continue;
        const CH whole = joined(set.mean, set.rest), squares = joined(set.m2, set.m2_rest);
        channel_save(mean, mean_start, &g, u, whole);
        channel_save(m2, m2_start, &g, u, squares);
        if (mean_rest) channel_save(mean_rest, mean_rest_start, &g, u, left_out(whole, set.mean, set.rest));
        if (m2_rest) channel_save(m2_rest, m2_rest_start, &g, u, left_out(squares, set.m2, set.m2_rest));
    }
}
