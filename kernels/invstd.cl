// 1 / sqrt(m2 / count + epsilon) of the moments of a set, channel by channel, as forward.cl saves it (finish.clh).
//
// grid: (LANES * any number of groups), which share the channels.

#include "numbers/finish.clh"

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void invstd(
    const __global ACC *ARRAY_ARGUMENTS(m2),                        // [channels]
    const __global ACC *ARRAY_ARGUMENTS(m2_rest),                   // [channels]
    __global ACC *ARRAY_ARGUMENTS(save_invstd),                     // [channels]
    const long channels, const ACC count, const ACC epsilon)
{
    for (long c = get_global_id(0); c < channels; c += get_global_size(0)) {
        CH var, var_rest, step;
        variance_of(m2[m2_start + c], m2_rest[m2_rest_start + c], count, &var, &var_rest);
        const CH root = inverse_root(var, var_rest, epsilon, &step);
        save_invstd[save_invstd_start + c] = root + step;
    }
}
