// Batch normalization, forward.
//
//     y = f((x - mean) / sqrt(var + epsilon) * scale + bias + residual)        (Ioffe and Szegedy, 2015, algorithm 1)
//
// f being an activation (activation.clh), or nothing; nor need there be a residual, which is `aux`.
//
// train_resident   one group per block of channels: moments, running averages, y. Memory sees one read and one write of the
//                  slice that a cache still holds when it is read again. With CHAIN, one group per `chain` blocks.
// train_apply      from the moments of sets, as moments_partial (moments.cl) leaves them or as they come from elsewhere: every
//                  group merges its channel's anew, then writes its slice of y; the first slice's group also moves the
//                  running averages.
// infer            y from given statistics; x and y may be the same array.
//
// grid: (LANES * slices * blocks); group = block * slices + slice, a block being the `share` channels
// that a group handles. See walk.clh for the regions.

#include "numbers/finish.clh"

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void train_resident(
    const __global STORE(x) *restrict TENSOR_ARGUMENTS(x),          // [outer][channels][inner], by its strides
    __global STORE(to) *UNSHARED TENSOR_ARGUMENTS(y),               // [outer][channels][inner], by its strides
    const __global STORE(aux) *UNSHARED TENSOR_ARGUMENTS(aux),      // [outer][channels][inner], by its strides, or null
    TRAIN_ARRAY_ARGUMENTS,
    CUT_ARGUMENTS, const int chain,
    TRAIN_NUMBER_ARGUMENTS, const ACC slope)
{
    SCRATCH(MomentsC, scratch);
    Region g;
    MomentsC set[BLOCKS];
    Output out;
    // Of the forms of this loop one that no driver is known to run twice: around a do-while POCL 7 repeats what is done once.
    for (int done = 0, more = 1; more; ++done) {  // blocks of the chain
        REGION_OF_GROUP(g, GROUP * chain + done);
        region_moments(BEGIN(x), x_row, x_channel, &g, CHAIN && done ? &out : 0, set);
        EACH_BLOCK(u, &g)
        {
            GROUP_MOMENTS(&set[u], scratch, &g);
            train_finish(&set[u], &g, u, TRAIN_PASSED, &out.mean[u], &out.gain[u], &out.shift[u]);
        }
        TAKE_OUTPUT(out)
        more = chain_goes_on(&g, done + 1, chain, channels);
    }
    region_output(&out);
}

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void train_apply(
    const __global STORE(x) *restrict TENSOR_ARGUMENTS(x),          // [outer][channels][inner], by its strides
    __global STORE(to) *UNSHARED TENSOR_ARGUMENTS(y),               // [outer][channels][inner], by its strides
    const __global STORE(aux) *UNSHARED TENSOR_ARGUMENTS(aux),      // [outer][channels][inner], by its strides, or null
    MOMENTS_ARGUMENTS,
    TRAIN_ARRAY_ARGUMENTS,
    CUT_ARGUMENTS,
    TRAIN_NUMBER_ARGUMENTS, const ACC slope)
{
    Region g;
    REGION_OF_GROUP(g, GROUP_BACK);
    Output out;
    g.leader = g.leader && GROUP_BACK % slices == 0;
    EACH_BLOCK(u, &g) {
        MomentsC set;
        moments_merged(&set, MOMENTS_PASSED, &g, u, channels);
        train_finish(&set, &g, u, TRAIN_PASSED, &out.mean[u], &out.gain[u], &out.shift[u]);
    }
    TAKE_OUTPUT(out)
    region_output(&out);
}

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void infer(
    const __global STORE(x) *TENSOR_ARGUMENTS(x),                   // [outer][channels][inner], by its strides
    __global STORE(to) *TENSOR_ARGUMENTS(y),                        // [outer][channels][inner], by its strides; may be x itself
    const __global STORE(aux) *TENSOR_ARGUMENTS(aux),               // [outer][channels][inner], by its strides, or null
    const __global ACC *ARRAY_ARGUMENTS(scale),                     // [channels], or null: 1
    const __global ACC *ARRAY_ARGUMENTS(bias),                      // [channels], or null: 0
    const __global ACC *ARRAY_ARGUMENTS(mean),                      // [channels]
    const __global ACC *ARRAY_ARGUMENTS(var),                       // [channels]
    CUT_ARGUMENTS,
    const ACC epsilon, const ACC slope)
{
    Region g;
    REGION_OF_GROUP(g, GROUP);
    Output out;
    EACH_BLOCK(u, &g) {
        CH step;
        const CH root = inverse_root(channel_load(var, var_start, &g, u, 1), 0, epsilon, &step);
        out.mean[u] = channel_load(mean, mean_start, &g, u, 0);
        out.gain[u] = gain_of(channel_load(scale, scale_start, &g, u, 1), root, step);
        out.shift[u] = channel_load(bias, bias_start, &g, u, 0);
    }
    TAKE_OUTPUT(out)
    region_output(&out);
}
