// Batch normalization, backward once more: the gradients gx, gdy and gscale of what depends on dx, dscale and dbias (see doubled.clh).
//
// double_resident   one group per block of channels, or per `chain` blocks: sums, then gx and gdy while a cache still holds x, dy and ddx.
// double_partial    the sums of one slice.
// double_apply      adds up the sums of all slices, anew in every group, then writes a slice of gx and gdy.
//
// grid: (LANES * slices * blocks). See walk.clh for the regions.

#include "numbers/doubled.clh"

// What is summed over region g, from a kernel's own arguments.
#define TAKE_SUMMED(from)                                                                                              \
    PLACE(from, x, x);                                                                                                 \
    PLACE(from, dy, dy);                                                                                               \
    PLACE_AUX(from);                                                                                                   \
    EACH_BLOCK(u, &g) from.mean[u] = channel_load(save_mean, save_mean_start, &g, u, 0);

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void double_resident(
    DOUBLED_TENSOR_ARGUMENTS,
    DOUBLED_RESULT_ARGUMENTS,
    DOUBLED_NUMBER_ARGUMENTS,
    const __global ACC *ARRAY_ARGUMENTS(save_mean),                 // [channels]
    const __global ACC *ARRAY_ARGUMENTS(save_invstd),               // [channels]
    __global ACC *gscale,                                           // [channels]
    CUT_ARGUMENTS, const int chain,
    const ACC count, const ACC count_rest)
{
    SCRATCH(SumsC, scratch);
    Region g;
    SumsC sums[BLOCKS];
    Summed from;
    Gradient out;
    for (int done = 0, more = 1; more; ++done) {  // blocks of the chain, as in backward_resident
        REGION_OF_GROUP(g, GROUP * chain + done);
        TAKE_SUMMED(from)
        region_sums(&g, &from, CHAIN && done ? &out : 0, sums);
        EACH_BLOCK(u, &g)
        {
            GROUP_SUMS(&sums[u], scratch, &g);
            doubled_finish(&sums[u], &g, u, from.mean[u], channel_load(save_invstd, save_invstd_start, &g, u, 0), DOUBLED_PASSED,
                           gscale, count, count_rest, &out);
        }
        TAKE_DOUBLED(out)
        more = chain_goes_on(&g, done + 1, chain, channels);
    }
    region_gradient(&out);
}

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void double_partial(
    DOUBLED_TENSOR_ARGUMENTS,
    const __global ACC *ARRAY_ARGUMENTS(save_mean),                 // [channels]
    __global ACC *restrict ARRAY_ARGUMENTS(partial),                // [slices][SUM_ROWS][channels]
    CUT_ARGUMENTS)
{
    SCRATCH(SumsC, scratch);
    Region g;
    REGION_OF_GROUP(g, GROUP);
    SumsC sums[BLOCKS];
    Summed from;
    TAKE_SUMMED(from)
    region_sums(&g, &from, 0, sums);
    EACH_BLOCK(u, &g) {
        GROUP_SUMS(&sums[u], scratch, &g);
        if (g.leader) sums_write(partial, partial_start, (int)(GROUP % slices), &g, u, channels, &sums[u]);
    }
}

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void double_apply(
    DOUBLED_TENSOR_ARGUMENTS,
    DOUBLED_RESULT_ARGUMENTS,
    DOUBLED_NUMBER_ARGUMENTS,
    const __global ACC *ARRAY_ARGUMENTS(save_mean),                 // [channels]
    const __global ACC *ARRAY_ARGUMENTS(save_invstd),               // [channels]
    const __global ACC *ARRAY_ARGUMENTS(partial),                   // [sets][SUM_ROWS][channels]
    __global ACC *gscale,                                           // [channels]
    CUT_ARGUMENTS, const int sets,
    const ACC count, const ACC count_rest)
{
    Region g;
    REGION_OF_GROUP(g, GROUP_BACK);
    Gradient out;
    g.leader = g.leader && GROUP_BACK % slices == 0;
    EACH_BLOCK(u, &g) {
        SumsC sums;
        partial_merged(&sums, partial, partial_start, sets, &g, u, channels);
        doubled_finish(&sums, &g, u, channel_load(save_mean, save_mean_start, &g, u, 0),
                       channel_load(save_invstd, save_invstd_start, &g, u, 0), DOUBLED_PASSED, gscale, count, count_rest, &out);
    }
    TAKE_DOUBLED(out)
    region_gradient(&out);
}
