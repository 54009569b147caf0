// dscale of batch renormalization, channel by channel, from that of batch normalization with scale r, whose y lacks d:
//
//     dscale = r dscale + d dbias
//
// in place. Both are gathered here, in scale_grad and bias_grad, so that no other launch changes what is there. r and d are constants of
// the gradient.
//
// grid: (LANES * any number of groups), which share the channels.

#include "numbers/gather.clh"
#include "numbers/io.clh"

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void renorm_gradient(
    const __global ACC *ARRAY_ARGUMENTS(r),                         // [channels]
    const __global ACC *ARRAY_ARGUMENTS(d),                         // [channels]
    __global ACC *ARRAY_ARGUMENTS(dscale),                          // [channels]
    const __global ACC *ARRAY_ARGUMENTS(dbias),                     // [channels]
    __global ACC *ARRAY_ARGUMENTS(scale_grad),                      // [channels], or null: not wanted
    __global ACC *ARRAY_ARGUMENTS(bias_grad),                       // [channels], or null: not wanted
    const long channels, const ACC grad_scale, const ACC grad_momentum)
{
    for (long c = get_global_id(0); c < channels; c += get_global_size(0)) {
        const ACC of_bias = dbias[dbias_start + c], sum = fma(r[r_start + c], dscale[dscale_start + c], d[d_start + c] * of_bias);
        dscale[dscale_start + c] = sum;
        if (scale_grad)
            scale_grad[scale_grad_start + c] = GATHERED(sum, grad_scale, scale_grad[scale_grad_start + c], grad_momentum);
        if (bias_grad)
            bias_grad[bias_grad_start + c] = GATHERED(of_bias, grad_scale, bias_grad[bias_grad_start + c], grad_momentum);
    }
}
