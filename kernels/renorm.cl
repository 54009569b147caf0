// Batch renormalization's corrections, channel by channel, and scale and bias with them.
//
//     r = sigma / running_sigma, from 1 / r_max to r_max        d = (mean - running_mean) / running_sigma, from -d_max to d_max
//     y = ((x - mean) / sigma r + d) scale + bias:    normalised with scale r and bias + scale d
//
// sigma = sqrt(var + epsilon), running_sigma = sqrt(running_var + epsilon). (Ioffe, "Batch Renormalization", 2017, its algorithm) Where
// there are no running statistics r and d are given.
//
// grid: (LANES * any number of groups), which share the channels.

#include "numbers/finish.clh"

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void renorm(
    const __global ACC *ARRAY_ARGUMENTS(mean),                      // [channels]: of the batch, with the next two; or null
    const __global ACC *ARRAY_ARGUMENTS(m2),                        // [channels], or null
    const __global ACC *ARRAY_ARGUMENTS(m2_rest),                   // [channels], or null
    const __global ACC *ARRAY_ARGUMENTS(running_mean),              // [channels], or null
    const __global ACC *ARRAY_ARGUMENTS(running_var),               // [channels], or null
    const __global ACC *ARRAY_ARGUMENTS(scale),                     // [channels], or null: 1
    const __global ACC *ARRAY_ARGUMENTS(bias),                      // [channels], or null: 0
    __global ACC *ARRAY_ARGUMENTS(r),                               // [channels]
    __global ACC *ARRAY_ARGUMENTS(d),                               // [channels]
    __global ACC *ARRAY_ARGUMENTS(scale_r),                         // [channels]: scale r
    __global ACC *ARRAY_ARGUMENTS(bias_d),                          // [channels]: bias + scale d
    const long channels, const ACC count, const ACC epsilon, const ACC r_max, const ACC d_max)
{
    for (long c = get_global_id(0); c < channels; c += get_global_size(0)) {
        ACC ratio, shift;
        if (running_var) {
            CH var, var_rest, step, running_step;
            variance_of(m2[m2_start + c], m2_rest[m2_rest_start + c], count, &var, &var_rest);
            const CH root = inverse_root(var, var_rest, epsilon, &step);
            const ACC running = running_var[running_var_start + c];
            const CH running_root = inverse_root(running, 0, epsilon, &running_step);
            const ACC invstd = root + step, running_invstd = running_root + running_step;
            const ACC apart = mean[mean_start + c] - running_mean[running_mean_start + c];
            // a root of 0 stands for an infinite deviation, or else for one of 0: of a constant channel, without epsilon
            const int far = invstd == 0 && var > 0, running_far = running_invstd == 0 && running > 0;
            const int none = invstd == 0 && !far, running_none = running_invstd == 0 && !running_far;
            if (!far && !none && !running_far && !running_none) ratio = running_invstd / invstd;
            else ratio = far == running_far && none == running_none ? (ACC)1 : far || running_none ? r_max : (ACC)0;
            shift = running_none ? (ACC)(apart > 0 ? d_max : apart < 0 ? -d_max : 0) : apart * running_invstd;
            if (ratio > r_max) ratio = r_max;
            if (ratio < 1 / r_max) ratio = 1 / r_max;
            if (shift > d_max) shift = d_max;
            if (shift < -d_max) shift = -d_max;
            r[r_start + c] = ratio;
            d[d_start + c] = shift;
        } else {
            ratio = r[r_start + c];
            shift = d[d_start + c];
        }
        const ACC own = scale ? scale[scale_start + c] : (ACC)1;
        scale_r[scale_r_start + c] = own * ratio;
        bias_d[bias_d_start + c] = fma(own, shift, bias ? bias[bias_start + c] : (ACC)0);
    }
}
