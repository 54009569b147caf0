// Batch normalization, backward: dx, dscale and dbias from x, dy and the saved statistics (see finish.clh).
//
// With an activation dy is taken times its derivative before all else (USED_DY in element.clh): from x and bias, with the residual in
// `aux`, or from the output there. SECOND: that product is written as well, as `dresidual`.
//
// backward_resident   one group per block of channels, or per `chain` blocks: sums, then dx while a cache still holds x and dy.
// backward_partial    the sums of one slice.
// sums_merge          those of all slices, as a result: what parts of a batch hand on.
// backward_apply      adds up the sums of sets, slices or what comes from elsewhere, anew in every group, then writes a slice of
//                     dx.
// constant_partial    for statistics that are constants: dx = dy scale invstd at once, with the slice's sums.
// constant_merge      dscale and dbias of those.
//
// grid: (LANES * slices * blocks), sums_merge and constant_merge: (LANES * blocks). See walk.clh for the regions.

#include "numbers/gradients.clh"

// The sums of sets that are to be added up: of each of the six there is a row of numbers, one per channel, six rows behind the
// one of the set before.
#define SUMS_ARGUMENTS                                                                                                 \
    const __global ACC *ARRAY_ARGUMENTS(set_dy),            /* [sets][6][channels]: sum(dy) */                         \
    const __global ACC *ARRAY_ARGUMENTS(set_dy_rest),       /* [sets][6][channels] */                                  \
    const __global ACC *ARRAY_ARGUMENTS(set_dy_xmu),        /* [sets][6][channels]: sum(dy (x - mean)) */              \
    const __global ACC *ARRAY_ARGUMENTS(set_dy_xmu_rest),   /* [sets][6][channels] */                                  \
    const __global ACC *ARRAY_ARGUMENTS(set_xmu),           /* [sets][6][channels]: sum(x - mean) */                   \
    const __global ACC *ARRAY_ARGUMENTS(set_xmu_rest),      /* [sets][6][channels] */                                  \
    const int sets
#define SUMS_PASSED                                                                                                    \
    set_dy, set_dy_start, set_dy_rest, set_dy_rest_start, set_dy_xmu, set_dy_xmu_start, set_dy_xmu_rest,               \
    set_dy_xmu_rest_start, set_xmu, set_xmu_start, set_xmu_rest, set_xmu_rest_start, sets

static void sums_read(SumsC *sums, SUMS_ARGUMENTS, const int which, const Region *g, const int u, const int channels)
{
    const long at = which * 6L * channels;
    sums->gradient = channel_load(set_dy, set_dy_start + at, g, u, 0);
    sums->gradient_rest = channel_load(set_dy_rest, set_dy_rest_start + at, g, u, 0);
    sums->product = channel_load(set_dy_xmu, set_dy_xmu_start + at, g, u, 0);
    sums->product_rest = channel_load(set_dy_xmu_rest, set_dy_xmu_rest_start + at, g, u, 0);
    sums->deviation = channel_load(set_xmu, set_xmu_start + at, g, u, 0);
    sums->deviation_rest = channel_load(set_xmu_rest, set_xmu_rest_start + at, g, u, 0);
}

static void sums_merged(SumsC *all, SUMS_ARGUMENTS, const Region *g, const int u, const int channels)
{
    sums_read(all, SUMS_PASSED, 0, g, u, channels);
    for (int s = 1; s < sets; ++s) {
        SumsC sums;
        sums_read(&sums, SUMS_PASSED, s, g, u, channels);
        SumsC_merge(all, &sums);
    }
}

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void backward_resident(
    SUMMED_ARGUMENTS,
    RESULT_ARGUMENTS,
    const __global ACC *ARRAY_ARGUMENTS(scale),                     // [channels], or null: 1
    const __global ACC *ARRAY_ARGUMENTS(save_mean),                 // [channels]
    const __global ACC *ARRAY_ARGUMENTS(save_invstd),               // [channels]
    GRADIENT_ARRAY_ARGUMENTS,
    CUT_ARGUMENTS, const int chain,
    const ACC count, const ACC count_rest, const ACC grad_scale, const ACC grad_momentum, const ACC slope)
{
    SCRATCH(SumsC, scratch);
    Region g;
    SumsC sums[BLOCKS];
    Summed from;
    Gradient out;
    // Of the forms of this loop one that no driver is known to run twice: around a do-while POCL 7 repeats what is done once.
    for (int done = 0, more = 1; more; ++done) {  // blocks of the chain
        REGION_OF_GROUP(g, GROUP * chain + done);
        TAKE_SUMMED(from, SAVED_INVSTD)
        region_sums(&g, &from, CHAIN && done ? &out : 0, sums);
        EACH_BLOCK(u, &g)
        {
            GROUP_SUMS(&sums[u], scratch, &g);
            CH of_scale, of_bias;
            gradient_finish(&sums[u], &g, u, scale, scale_start, from.mean[u], SAVED_INVSTD, count, count_rest, &of_scale,
                            &of_bias, &out.level[u], &out.gain[u], &out.tilt[u], &out.shift[u]);
            gradient_store(of_scale, of_bias, &g, u, GRADIENT_PASSED, grad_scale, grad_momentum);
            out.mean[u] = from.mean[u];
        }
        TAKE_RESULT(out)
        more = chain_goes_on(&g, done + 1, chain, channels);
    }
    region_gradient(&out);
}

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void backward_partial(
    SUMMED_ARGUMENTS,
    const __global ACC *ARRAY_ARGUMENTS(scale),                     // [channels], or null: 1; with an activation only
    const __global ACC *ARRAY_ARGUMENTS(save_mean),                 // [channels]
    const __global ACC *ARRAY_ARGUMENTS(save_invstd),               // [channels]; with an activation only
    __global ACC *restrict ARRAY_ARGUMENTS(partial),                // [slices][6][channels]: what SUMS_ARGUMENTS are of
    CUT_ARGUMENTS,
    const ACC slope)
{
    SCRATCH(SumsC, scratch);
    Region g;
    REGION_OF_GROUP(g, GROUP);
    SumsC sums[BLOCKS];
    Summed from;
    TAKE_SUMMED(from, SAVED_INVSTD)
    region_sums(&g, &from, 0, sums);
    EACH_BLOCK(u, &g) {
        GROUP_SUMS(&sums[u], scratch, &g);
        if (g.leader) sums_write(partial, partial_start, (int)(GROUP % slices), &g, u, channels, &sums[u]);
    }
}

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void sums_merge(
    SUMS_ARGUMENTS,
    __global ACC *restrict ARRAY_ARGUMENTS(sum_dy),                 // [channels]
    __global ACC *restrict ARRAY_ARGUMENTS(sum_dy_rest),            // [channels]
    __global ACC *restrict ARRAY_ARGUMENTS(sum_dy_xmu),             // [channels]
    __global ACC *restrict ARRAY_ARGUMENTS(sum_dy_xmu_rest),        // [channels]
    __global ACC *restrict ARRAY_ARGUMENTS(sum_xmu),                // [channels]
    __global ACC *restrict ARRAY_ARGUMENTS(sum_xmu_rest),           // [channels]
    CUT_ARGUMENTS)
{
    Region g;
    REGION(g, 0, (int)get_group_id(0));
    EACH_BLOCK(u, &g) {
        SumsC sums;
        sums_merged(&sums, SUMS_PASSED, &g, u, channels);
        if (!g.leader) continue;
        const CH gradient = joined(sums.gradient, sums.gradient_rest), product = joined(sums.product, sums.product_rest);
        const CH deviation = joined(sums.deviation, sums.deviation_rest);
        channel_save(sum_dy, sum_dy_start, &g, u, gradient);
        channel_save(sum_dy_rest, sum_dy_rest_start, &g, u, left_out(gradient, sums.gradient, sums.gradient_rest));
        channel_save(sum_dy_xmu, sum_dy_xmu_start, &g, u, product);
        channel_save(sum_dy_xmu_rest, sum_dy_xmu_rest_start, &g, u, left_out(product, sums.product, sums.product_rest));
        channel_save(sum_xmu, sum_xmu_start, &g, u, deviation);
        channel_save(sum_xmu_rest, sum_xmu_rest_start, &g, u, left_out(deviation, sums.deviation, sums.deviation_rest));
    }
}

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void backward_apply(
    SUMMED_ARGUMENTS,
    RESULT_ARGUMENTS,
    SUMS_ARGUMENTS,
    const __global ACC *ARRAY_ARGUMENTS(scale),                     // [channels], or null: 1
    const __global ACC *ARRAY_ARGUMENTS(save_mean),                 // [channels]
    const __global ACC *ARRAY_ARGUMENTS(save_invstd),               // [channels]
    GRADIENT_ARRAY_ARGUMENTS,
    CUT_ARGUMENTS,
    const ACC count, const ACC count_rest, const ACC grad_scale, const ACC grad_momentum, const ACC slope)
{
    Region g;
    REGION_OF_GROUP(g, GROUP_BACK);
    Gradient out;
    g.leader = g.leader && GROUP_BACK % slices == 0;
    EACH_BLOCK(u, &g) {
        SumsC sums;
        sums_merged(&sums, SUMS_PASSED, &g, u, channels);
        out.mean[u] = channel_load(save_mean, save_mean_start, &g, u, 0);
        CH of_scale, of_bias;
        gradient_finish(&sums, &g, u, scale, scale_start, out.mean[u], SAVED_INVSTD, count, count_rest, &of_scale, &of_bias,
                        &out.level[u], &out.gain[u], &out.tilt[u], &out.shift[u]);
        gradient_store(of_scale, of_bias, &g, u, GRADIENT_PASSED, grad_scale, grad_momentum);
    }
    TAKE_RESULT(out)
    region_gradient(&out);
}

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void constant_partial(
    SUMMED_ARGUMENTS,
    RESULT_ARGUMENTS,
    const __global ACC *ARRAY_ARGUMENTS(scale),                     // [channels], or null: 1
    const __global ACC *ARRAY_ARGUMENTS(save_mean),                 // [channels]
    CONSTANT_ARRAY_ARGUMENTS,
    __global ACC *restrict ARRAY_ARGUMENTS(partial),                // [slices][6][channels]: what SUMS_ARGUMENTS are of
    CUT_ARGUMENTS,
    const ACC epsilon, const ACC slope)
{
    SCRATCH(SumsC, scratch);
    Region g;
    REGION_OF_GROUP(g, GROUP);
    SumsC sums[BLOCKS];
    Summed from;
    Constant out;
    TAKE_SUMMED(from, constant_invstd(CONSTANT_PASSED, epsilon, &g, u))
    EACH_BLOCK(u, &g) {
        out.gain[u] = channel_load(scale, scale_start, &g, u, 1) * constant_invstd(CONSTANT_PASSED, epsilon, &g, u);
        out.shift[u] = 0;
#if FROM_Z
        out.mean[u] = from.mean[u];
#endif
    }
    region_sums(&g, &from, 0, sums);
    EACH_BLOCK(u, &g) {
        GROUP_SUMS(&sums[u], scratch, &g);
        if (g.leader) sums_write(partial, partial_start, (int)(GROUP % slices), &g, u, channels, &sums[u]);
    }
    TAKE_RESULT(out)
    region_constant(&out);
}

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void constant_merge(
    SUMS_ARGUMENTS,
    CONSTANT_ARRAY_ARGUMENTS,
    GRADIENT_ARRAY_ARGUMENTS,
    CUT_ARGUMENTS,
    const ACC epsilon, const ACC grad_scale, const ACC grad_momentum)
{
    Region g;
    REGION(g, 0, (int)get_group_id(0));
    EACH_BLOCK(u, &g) {
        SumsC sums;
        sums_merged(&sums, SUMS_PASSED, &g, u, channels);
        const CH invstd = constant_invstd(CONSTANT_PASSED, epsilon, &g, u);
        gradient_store(joined(sums.product, sums.product_rest) * invstd, joined(sums.gradient, sums.gradient_rest), &g, u,
                       GRADIENT_PASSED, grad_scale, grad_momentum);
    }
}
