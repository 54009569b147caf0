// Batch normalization of several batches that follow each other in one tensor, forward: each with statistics of its own (ghost batches;
// of one sample each: instance normalization).
//
// batches_resident  as train_resident (forward.cl), one group per block of channels of a batch.
// batches_partial   as moments_partial (moments.cl).
// batches_apply     as train_apply.
// batches_moved     the running averages, moved by one batch after the other.
// batches_given     y from statistics that are given for each batch.
//
// grid: (LANES * slices * blocks * batches), batches_moved: (LANES * blocks). See walk.clh for the regions.

#define BATCHES 1
#include "numbers/finish.clh"

#define BATCHES_ARRAY_ARGUMENTS                                                                                        \
    const __global ACC *ARRAY_ARGUMENTS(scale),             /* [channels], or null: 1 */                               \
    const __global ACC *ARRAY_ARGUMENTS(bias),              /* [channels], or null: 0 */                               \
    __global ACC *save_mean,                                /* [batches][channels] */                                  \
    __global ACC *save_invstd,                              /* [batches][channels] */                                  \
    __global ACC *ARRAY_ARGUMENTS(batch_m2)                 /* [batches][channels] */

static void batch_saved(const MomentsC *set, const Region *g, const int u, BATCHES_ARRAY_ARGUMENTS, const ACC epsilon, CH *mean,
                        CH *gain, CH *shift)
{
    CH centre, invstd;
    batch_finish(set, g, u, scale, scale_start, bias, bias_start, (ACC)g->count, epsilon, mean, gain, shift, &centre, &invstd);
    if (!g->leader) return;
    channel_save(save_mean, g->saved, g, u, centre);
    channel_save(save_invstd, g->saved, g, u, invstd);
    channel_save(batch_m2, batch_m2_start + g->saved, g, u, joined(set->m2, set->m2_rest));
}

#define BATCHES_PASSED scale, scale_start, bias, bias_start, save_mean, save_invstd, batch_m2, batch_m2_start, epsilon

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void batches_resident(
    const __global STORE(x) *restrict TENSOR_ARGUMENTS(x),          // [rows][channels][inner], by its strides
    __global STORE(to) *UNSHARED TENSOR_ARGUMENTS(y),               // [rows][channels][inner], by its strides
    const __global STORE(aux) *UNSHARED TENSOR_ARGUMENTS(aux),      // [rows][channels][inner], by its strides, or null
    const __global STORE(aux) *restrict TENSOR_ARGUMENTS(offsets),  // [rows][channels][inner], by its strides, or null
    BATCHES_ARRAY_ARGUMENTS,
    CUT_ARGUMENTS, const int chain, BATCH_ARGUMENTS,
    const ACC epsilon, const ACC slope)
{
    SCRATCH(MomentsC, scratch);
    Region g;
    MomentsC set[BLOCKS];
    Output out;
    for (int done = 0, more = 1; more; ++done) {  // blocks of the chain
        REGION_OF_GROUP(g, GROUP * chain + done);
        region_moments(BEGIN(x), x_row, x_channel, &g, CHAIN && done ? &out : 0, set);
        EACH_BLOCK(u, &g)
        {
            GROUP_MOMENTS(&set[u], scratch, &g);
            batch_saved(&set[u], &g, u, BATCHES_PASSED, &out.mean[u], &out.gain[u], &out.shift[u]);
        }
        TAKE_OUTPUT(out)
        more = chain_goes_on(&g, done + 1, chain, channels, batches);
    }
    region_output(&out);
}

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void batches_partial(
    const __global STORE(x) *restrict TENSOR_ARGUMENTS(x),          // [rows][channels][inner], by its strides
    __global ACC *restrict ARRAY_ARGUMENTS(partial),                // [batches][slices][4][channels]: mean and m2, each with its rest
    __global long *restrict ARRAY_ARGUMENTS(counts),                // [batches][slices]: values of a channel
    CUT_ARGUMENTS, BATCH_ARGUMENTS)
{
    SCRATCH(MomentsC, scratch);
    const int slice = (int)(GROUP % slices);
    Region g;
    REGION_OF_GROUP(g, GROUP);
    if (slice >= g.filled) return;
    const long which = g.batch * (long)slices + slice;
    if (GROUP / slices % ((channels + share - 1) / share) == 0 && get_local_id(0) == 0)
        counts[counts_start + which] = slice_count(slice, batch_rows(g.batch, outer, BATCH_PASSED), inner, slice_rows, slice_columns,
                                                   column_slices);
    MomentsC set[BLOCKS];
    region_moments(BEGIN(x), x_row, x_channel, &g, 0, set);
    EACH_BLOCK(u, &g) {
        GROUP_MOMENTS(&set[u], scratch, &g);
        if (g.leader) moments_write(partial, partial_start, which, &g, u, channels, &set[u]);
    }
}

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void batches_apply(
    const __global STORE(x) *restrict TENSOR_ARGUMENTS(x),          // [rows][channels][inner], by its strides
    __global STORE(to) *UNSHARED TENSOR_ARGUMENTS(y),               // [rows][channels][inner], by its strides
    const __global STORE(aux) *UNSHARED TENSOR_ARGUMENTS(aux),      // [rows][channels][inner], by its strides, or null
    const __global STORE(aux) *restrict TENSOR_ARGUMENTS(offsets),  // [rows][channels][inner], by its strides, or null
    const __global ACC *ARRAY_ARGUMENTS(partial),                   // [batches][slices][4][channels]
    const __global long *ARRAY_ARGUMENTS(counts),                   // [batches][slices]
    BATCHES_ARRAY_ARGUMENTS,
    CUT_ARGUMENTS, BATCH_ARGUMENTS,
    const ACC epsilon, const ACC slope)
{
    Region g;
    REGION_OF_GROUP(g, GROUP_BACK);
    Output out;
    if ((int)(GROUP_BACK % slices) >= g.filled) return;
    g.leader = g.leader && GROUP_BACK % slices == 0;
    const long first = partial_start + g.saved * 4 * slices;
    EACH_BLOCK(u, &g) {
        MomentsC set;
        moments_merged(&set, partial, first, partial, first + channels, partial, first + 2L * channels, partial,
                       first + 3L * channels, counts, counts_start + (long)g.batch * slices, g.filled, &g, u, channels);
        batch_saved(&set, &g, u, BATCHES_PASSED, &out.mean[u], &out.gain[u], &out.shift[u]);
    }
    TAKE_OUTPUT(out)
    region_output(&out);
}

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void batches_given(
    const __global STORE(x) *restrict TENSOR_ARGUMENTS(x),          // [rows][channels][inner], by its strides
    __global STORE(to) *UNSHARED TENSOR_ARGUMENTS(y),               // [rows][channels][inner], by its strides
    const __global ACC *ARRAY_ARGUMENTS(save_mean),                 // [batches][channels]
    const __global ACC *ARRAY_ARGUMENTS(save_invstd),               // [batches][channels]
    CUT_ARGUMENTS, BATCH_ARGUMENTS)
{
    Region g;
    REGION_OF_GROUP(g, GROUP);
    if ((int)(GROUP % slices) >= g.filled) return;
    Output out;
    EACH_BLOCK(u, &g) {
        out.mean[u] = channel_load(save_mean, save_mean_start + SAVED, &g, u, 0);
        out.gain[u] = channel_load(save_invstd, save_invstd_start + SAVED, &g, u, 0);
        out.shift[u] = 0;
    }
    out.g = g;
    PLACE(out, x, x);
    PLACE(out, to, y);
    region_output(&out);
}

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void batches_moved(
    const __global ACC *save_mean,                                  // [batches][channels]
    const __global ACC *ARRAY_ARGUMENTS(batch_m2),                  // [batches][channels]
    RUNNING_ARGUMENTS,
    CUT_ARGUMENTS, BATCH_ARGUMENTS,
    const ACC factor, const ACC init_factor, const int guard, const int taken)
{
    Region g;
    REGION(g, 0, (int)get_group_id(0));
    if (!g.leader) return;
    EACH_BLOCK(u, &g) {
        for (int b = 0; b < batches; ++b) {
            const long saved = (long)b * channels, count = batch_rows(b, outer, BATCH_PASSED) * inner;
            const CH centre = channel_load(save_mean, saved, &g, u, 0), m2 = channel_load(batch_m2, batch_m2_start + saved, &g, u, 0);
            running_move(centre, m2, &g, u, RUNNING_PASSED, (ACC)(count - taken), factor, init_factor, guard);
        }
    }
}
