// Batch normalization of several batches that follow each other in one tensor, backward (see forward_batches.cl): gradients with
// respect to x batch by batch, and those with respect to scale and bias over all of them.
//
// gradients_resident  as backward_resident (backward.cl), one group per block of channels of a batch.
// gradients_partial   as backward_partial.
// gradients_apply     as backward_apply.
// gradients_gathered  dscale and dbias, added up over the batches.
//
// grid: (LANES * slices * blocks * batches), gradients_gathered: (LANES * blocks). See walk.clh for the regions.

#define BATCHES 1
#include "numbers/gradients.clh"

#define SAVED_ARGUMENTS                                                                                                \
    const __global ACC *ARRAY_ARGUMENTS(scale),             /* [channels], or null: 1 */                               \
    const __global ACC *ARRAY_ARGUMENTS(save_mean),         /* [batches][channels] */                                  \
    const __global ACC *ARRAY_ARGUMENTS(save_invstd)        /* [batches][channels] */

// How a batch's gradient becomes `out` at u; what it adds to dscale and dbias is stored.
#define TAKE_GRADIENT(sums)                                                                                            \
    const ACC count = (ACC)g.count, count_rest = (ACC)(g.count - (long)count);                                         \
    CH of_scale, of_bias;                                                                                              \
    gradient_finish(sums, &g, u, scale, scale_start, out.mean[u], SAVED_INVSTD, count, count_rest, &of_scale, &of_bias, \
                    &out.level[u], &out.gain[u], &out.tilt[u], &out.shift[u]);                                         \
    if (g.leader) {                                                                                                    \
        channel_save(batch_sums, batch_sums_start + 2 * g.saved, &g, u, of_scale);                                     \
        channel_save(batch_sums, batch_sums_start + 2 * g.saved + channels, &g, u, of_bias);                           \
    }

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void gradients_resident(
    SUMMED_ARGUMENTS,
    RESULT_ARGUMENTS,
    SAVED_ARGUMENTS,
    __global ACC *ARRAY_ARGUMENTS(batch_sums),                      // [batches][2][channels]: dscale and dbias of each
    CUT_ARGUMENTS, const int chain, BATCH_ARGUMENTS,
    const ACC slope)
{
    SCRATCH(SumsC, scratch);
    Region g;
    SumsC sums[BLOCKS];
    Summed from;
    Gradient out;
    for (int done = 0, more = 1; more; ++done) {  // blocks of the chain
        REGION_OF_GROUP(g, GROUP * chain + done);
        TAKE_SUMMED(from, SAVED_INVSTD)
        region_sums(&g, &from, CHAIN && done ? &out : 0, sums);
        EACH_BLOCK(u, &g)
        {
            GROUP_SUMS(&sums[u], scratch, &g);
            out.mean[u] = from.mean[u];
            TAKE_GRADIENT(&sums[u])
        }
        TAKE_RESULT(out)
        more = chain_goes_on(&g, done + 1, chain, channels, batches);
    }
    region_gradient(&out);
}

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void gradients_partial(
    SUMMED_ARGUMENTS,
    SAVED_ARGUMENTS,
    __global ACC *restrict ARRAY_ARGUMENTS(partial),                // [batches][slices][6][channels]: the sums and their rests
    CUT_ARGUMENTS, BATCH_ARGUMENTS,
    const ACC slope)
{
    SCRATCH(SumsC, scratch);
    Region g;
    REGION_OF_GROUP(g, GROUP);
    if ((int)(GROUP % slices) >= g.filled) return;
    SumsC sums[BLOCKS];
    Summed from;
    TAKE_SUMMED(from, SAVED_INVSTD)
    region_sums(&g, &from, 0, sums);
    EACH_BLOCK(u, &g) {
        GROUP_SUMS(&sums[u], scratch, &g);
        const int which = g.batch * slices + (int)(GROUP % slices);
        if (g.leader) sums_write(partial, partial_start, which, &g, u, channels, &sums[u]);
    }
}

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void gradients_apply(
    SUMMED_ARGUMENTS,
    RESULT_ARGUMENTS,
    const __global ACC *ARRAY_ARGUMENTS(partial),                   // [batches][slices][6][channels]
    SAVED_ARGUMENTS,
    __global ACC *ARRAY_ARGUMENTS(batch_sums),                      // [batches][2][channels]: dscale and dbias of each
    CUT_ARGUMENTS, BATCH_ARGUMENTS,
    const ACC slope)
{
    Region g;
    REGION_OF_GROUP(g, GROUP_BACK);
    Gradient out;
    if ((int)(GROUP_BACK % slices) >= g.filled) return;
    g.leader = g.leader && GROUP_BACK % slices == 0;
    EACH_BLOCK(u, &g) {
        SumsC sums;
        partial_merged(&sums, partial, partial_start + g.saved * SUM_ROWS * slices, g.filled, &g, u, channels);
        out.mean[u] = channel_load(save_mean, save_mean_start + SAVED, &g, u, 0);
        TAKE_GRADIENT(&sums)
    }
    TAKE_RESULT(out)
    region_gradient(&out);
}

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void gradients_gathered(
    const __global ACC *ARRAY_ARGUMENTS(batch_sums),                // [batches][2][channels]: dscale and dbias of each
    GRADIENT_ARRAY_ARGUMENTS,
    CUT_ARGUMENTS, BATCH_ARGUMENTS,
    const ACC grad_scale, const ACC grad_momentum)
{
    Region g;
    REGION(g, 0, (int)get_group_id(0));
    if (!g.leader) return;
    EACH_BLOCK(u, &g) {
        CH of_scale = 0, scale_rest = 0, of_bias = 0, bias_rest = 0;
        for (int b = 0; b < batches; ++b) {
            const long first = batch_sums_start + 2L * b * channels;
            ADD_EXACTLY(CH, of_scale, scale_rest, channel_load(batch_sums, first, &g, u, 0))
            ADD_EXACTLY(CH, of_bias, bias_rest, channel_load(batch_sums, first + channels, &g, u, 0))
        }
        gradient_store(joined(of_scale, scale_rest), joined(of_bias, bias_rest), &g, u, GRADIENT_PASSED, grad_scale, grad_momentum);
    }
}
