// into = scale added + momentum into, element by element; with momentum 0 what was there is not even read.
//
// grid: (LANES * any number of groups), which share the elements.

#include "numbers/gather.clh"
#include "numbers/io.clh"

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void accumulate(
    __global ACC *ARRAY_ARGUMENTS(into),                            // [count]
    const __global ACC *ARRAY_ARGUMENTS(added),                     // [count]
    const long count, const ACC scale, const ACC momentum)
{
    for (long i = get_global_id(0); i < count; i += get_global_size(0))
        into[into_start + i] = GATHERED(added[added_start + i], scale, into[into_start + i], momentum);
}
