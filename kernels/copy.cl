// y = x, element by element: what the speed of everything else is measured against.
//
// grid: (LANES * pieces); a group copies one piece of `piece` elements, a multiple of LANES * VEC.

#include "numbers/io.clh"

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void copy(
    const __global STORE(x) *restrict x,        // [count]
    __global STORE(to) *restrict y,             // [count]
    const long count, const long piece)
{
    const long first = get_group_id(0) * piece, last = LEAST(first + piece, count);
    const long whole = first + (last - first) / VEC * VEC;
    const int lane = LANES > 1 ? (int)get_local_id(0) : 0;
    if (FAR && IS_WHOLE(y))
        for (long i = first + lane * VEC; i < whole; i += LANES * VEC) SAVE_FAR(to, y + i, LOAD(x, x + i));
    else
        for (long i = first + lane * VEC; i < whole; i += LANES * VEC) SAVE(to, y + i, LOAD(x, x + i));
    for (long i = whole + lane; i < last; i += LANES) SAVE_ONE(to, y + i, LOAD_ONE(x, x + i));
}
