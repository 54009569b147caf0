// Batch normalization, forward.
//
//     y = (x - mean) / sqrt(var + epsilon) * scale + bias        (Ioffe and Szegedy, 2015, algorithm 1)
//
// train_resident   one group per block of channels: moments, running averages, y. Memory sees one read and one write of the
//                  slice that a cache still holds when it is read again. With CHAIN, one group per `chain` blocks.
// train_apply      after moments_partial (moments.cl): every group merges its channel's few partial moments anew, then
//                  writes its slice of y; the first slice's group also moves the running averages.
// infer            y from given statistics; x and y may be the same array.
//
// grid: (LANES * slices * blocks); group = block * slices + slice, a block being the `share` channels
// that a group handles. See walk.clh for the regions.

#include "numbers/finish.clh"

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void train_resident(
    const __global STORE *restrict x,           // [outer][channels][inner], by its strides
    const long x_start, const long x_row, const long x_channel,
    __global STORE *restrict y,                 // [outer][channels][inner], by its strides
    const long y_start, const long y_row, const long y_channel,
    const __global ACC *scale,                  // [channels], or null: 1
    const long scale_start,
    const __global ACC *bias,                   // [channels], or null: 0
    const long bias_start,
    __global ACC *running_mean,                 // [channels], or null; moved in place
    const long running_mean_start,
    __global ACC *running_var,                  // [channels], or null; moved in place
    const long running_var_start,
    __global uint *skipped,                     // [channels], or null; counts updates left out
    const long skipped_start,
    __global uint *entered,                     // [channels], or null; counts updates, before this one too
    const long entered_start,
    __global ACC *save_mean,                    // [channels]
    __global ACC *save_invstd,                  // [channels]
    const long outer, const int channels, const long inner, const int slices, const int slice_rows,
    const int slice_columns, const int column_slices, const int chunk_rows, const int chunk_columns, const int width,
    const int share, const int chain,
    const ACC count, const ACC unbiased, const ACC epsilon, const ACC factor, const ACC init_factor,
    const int guard)
{
    SCRATCH(MomentsC, scratch);
    Region g;
    MomentsC set[BLOCKS];
    Output out;
    // Of the forms of this loop one that no driver is known to run twice: around a do-while POCL 7 repeats what is done once.
    for (int done = 0, more = 1; more; ++done) {  // blocks of the chain
        REGION_OF_GROUP(g, GROUP * chain + done);
        const __global STORE *from = x + region_start(&g, x_start, x_row, x_channel);
        region_moments(from, x_row, x_channel, &g, CHAIN && done ? &out : 0, set);
        EACH_BLOCK(u, &g)
        {
            GROUP_MOMENTS(&set[u], scratch, &g);
            train_finish(&set[u], &g, u, scale, scale_start, bias, bias_start, running_mean,
                         running_mean_start, running_var, running_var_start, skipped, skipped_start, entered, entered_start,
                         save_mean, save_invstd, count, unbiased, epsilon, factor, init_factor, guard, &out.mean[u],
                         &out.gain[u], &out.shift[u]);
        }
        output_of(&out, &g, from, x_row, x_channel, y + region_start(&g, y_start, y_row, y_channel), y_row, y_channel);
        more = chain_goes_on(&g, done + 1, chain, channels);
    }
    region_normalize(&out);
}

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void train_apply(
    const __global STORE *restrict x,           // [outer][channels][inner], by its strides
    const long x_start, const long x_row, const long x_channel,
    __global STORE *restrict y,                 // [outer][channels][inner], by its strides
    const long y_start, const long y_row, const long y_channel,
    const __global ACC *partial,                // [slices][4][channels]: mean and m2, each with its rest
    const __global ACC *scale,                  // [channels], or null: 1
    const long scale_start,
    const __global ACC *bias,                   // [channels], or null: 0
    const long bias_start,
    __global ACC *running_mean,                 // [channels], or null; moved in place
    const long running_mean_start,
    __global ACC *running_var,                  // [channels], or null; moved in place
    const long running_var_start,
    __global uint *skipped,                     // [channels], or null; counts updates left out
    const long skipped_start,
    __global uint *entered,                     // [channels], or null; counts updates, before this one too
    const long entered_start,
    __global ACC *save_mean,                    // [channels]
    __global ACC *save_invstd,                  // [channels]
    const long outer, const int channels, const long inner, const int slices, const int slice_rows,
    const int slice_columns, const int column_slices, const int chunk_rows, const int chunk_columns, const int width,
    const int share,
    const ACC count, const ACC unbiased, const ACC epsilon, const ACC factor, const ACC init_factor,
    const int guard)
{
    Region g;
    REGION_OF_GROUP(g, GROUP_BACK);
    Output out;
    g.leader = g.leader && GROUP_BACK % slices == 0;
    EACH_BLOCK(u, &g) {
        MomentsC set;
        moments_merged(&set, partial, slices, &g, u, channels, outer, inner, slice_rows, slice_columns, column_slices);
        train_finish(&set, &g, u, scale, scale_start, bias, bias_start, running_mean, running_mean_start, running_var,
                     running_var_start, skipped, skipped_start, entered, entered_start, save_mean, save_invstd, count, unbiased,
                     epsilon, factor, init_factor, guard, &out.mean[u], &out.gain[u], &out.shift[u]);
    }
    output_of(&out, &g, x + region_start(&g, x_start, x_row, x_channel), x_row, x_channel,
              y + region_start(&g, y_start, y_row, y_channel), y_row, y_channel);
    region_normalize(&out);
}

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void infer(
    const __global STORE *x,                    // [outer][channels][inner], by its strides
    const long x_start, const long x_row, const long x_channel,
    __global STORE *y,                          // [outer][channels][inner], by its strides; may be x itself
    const long y_start, const long y_row, const long y_channel,
    const __global ACC *scale,                  // [channels], or null: 1
    const long scale_start,
    const __global ACC *bias,                   // [channels], or null: 0
    const long bias_start,
    const __global ACC *mean,                   // [channels]
    const long mean_start,
    const __global ACC *var,                    // [channels]
    const long var_start,
    const long outer, const int channels, const long inner, const int slices, const int slice_rows,
    const int slice_columns, const int column_slices, const int chunk_rows, const int chunk_columns, const int width,
    const int share,
    const ACC epsilon)
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
    output_of(&out, &g, x + region_start(&g, x_start, x_row, x_channel), x_row, x_channel,
              y + region_start(&g, y_start, y_row, y_channel), y_row, y_channel);
    region_normalize(&out);
}
