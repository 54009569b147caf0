// Batch normalization with statistics that are constants, backward once more: gx, gdy and gscale (see doubled.clh).
//
// double_constant_partial   gx and gdy at once, with the slice's sum(ddx dy).
// double_constant_merge     gscale of those.
//
// grid: (LANES * slices * blocks), double_constant_merge: (LANES * blocks). See walk.clh for the regions.

#define CONSTANTS 1
#include "numbers/doubled.clh"

#if WITHOUT
#define TAKE_GAIN(out)
#else
#define TAKE_GAIN(out) out.gain[u] = channel_load(scale, scale_start, &g, u, 1) * invstd;
#endif

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void double_constant_partial(
    DOUBLED_TENSOR_ARGUMENTS,
    DOUBLED_RESULT_ARGUMENTS,
    DOUBLED_NUMBER_ARGUMENTS,
    const __global ACC *ARRAY_ARGUMENTS(save_mean),                 // [channels]
    CONSTANT_ARRAY_ARGUMENTS,
    __global ACC *restrict ARRAY_ARGUMENTS(partial),                // [slices][SUM_ROWS][channels]
    CUT_ARGUMENTS,
    const ACC epsilon)
{
    Region g;
    REGION_OF_GROUP(g, GROUP);
    Constant out;
    EACH_BLOCK(u, &g) {
        const CH invstd = constant_invstd(CONSTANT_PASSED, epsilon, &g, u);
        TAKE_GAIN(out)
        out.mean[u] = channel_load(save_mean, save_mean_start, &g, u, 0);
        out.turn[u] = channel_load(ddscale, ddscale_start, &g, u, 0) * invstd;
        out.bias[u] = channel_load(ddbias, ddbias_start, &g, u, 0);
    }
#if !WITHOUT
    SCRATCH(SumsC, scratch);
    SumsC sums[BLOCKS];
    Summed from;
    PLACE(from, x, x);
    PLACE(from, dy, dy);
    PLACE_AUX(from);
    region_sums(&g, &from, 0, sums);
    EACH_BLOCK(u, &g) {
        GROUP_SUMS(&sums[u], scratch, &g);
        if (g.leader) sums_write(partial, partial_start, (int)(GROUP % slices), &g, u, channels, &sums[u]);
    }
#endif
    TAKE_DOUBLED(out)
    region_constant(&out);
}

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void double_constant_merge(
    CONSTANT_ARRAY_ARGUMENTS,
    const __global ACC *ARRAY_ARGUMENTS(partial),                   // [sets][SUM_ROWS][channels]
    __global ACC *gscale,                                           // [channels]
    CUT_ARGUMENTS, const int sets,
    const ACC epsilon)
{
    Region g;
    REGION(g, 0, (int)get_group_id(0));
    EACH_BLOCK(u, &g) {
#if WITHOUT
        const CH sum = 0;
#else
        SumsC sums;
        partial_merged(&sums, partial, partial_start, sets, &g, u, channels);
        const CH sum = joined(sums.cross, sums.cross_rest);
#endif
        if (g.leader) channel_save(gscale, 0, &g, u, sum * constant_invstd(CONSTANT_PASSED, epsilon, &g, u));
    }
}
