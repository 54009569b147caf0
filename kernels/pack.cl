// A tensor copied from one order in memory into another: target[i, j, ...] = source[i, j, ...], whatever the strides; with CAST, into
// another type.
//
// The tensor is rows of `inner` items, by strides that may be anything, negative and 0 too (of the target: no two items are one);
// up to 8 dimensions of sizes size0 (the fastest), size1, ... lie above a row. An item is BYTES of memory that are moved as they
// are: a whole element, or the largest part of one that all offsets and strides are multiples of. With CAST it is an element, rounded
// to the nearest of the target's, ties to even; NaN stays one.
//
// grid: (LANES * row_pieces * pieces); group = row_piece * pieces + piece. A group copies up to `piece_rows` rows, `columns`
// items of each: `width` work-items side by side, LANES / width below each other.

#include "numbers/io.clh"

#ifndef CAST
#define CAST 0  // 1: from KIND_x to KIND_to (io.clh), where 0 is float
#endif
#ifndef DOUBLE_x
#define DOUBLE_x 0  // 1: the source holds double
#endif
#ifndef DOUBLE_to
#define DOUBLE_to 0  // 1: the target holds double
#endif
#ifndef BYTES
#define BYTES 4  // of an item: 1, 2, 4, 8 or 16
#endif

#if BYTES == 1
#define ITEM uchar
#elif BYTES == 2
#define ITEM ushort
#elif BYTES == 4
#define ITEM uint
#elif BYTES == 8
#define ITEM ulong
#else
#define ITEM uint4
#endif

#if !CAST
#define SOURCE ITEM
#define TARGET ITEM
#define MOVE(put, got) *(put) = *(got)
#elif DOUBLE_x
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#define SOURCE double
#define TARGET STORE(to)
// The float that a double is rounded to once more, as if it had been rounded but then: to odd, unless that is exact.
static float to_odd(const double value)
{
    const float near = (float)value;
    const double back = near;
    if (back == value || value != value) return near;
    const uint bits = as_uint(near), beyond = (value > 0 ? back > value : back < value) ? 1 : 0;
    return as_float((bits - beyond) | 1u);
}
#if KIND_to
#define MOVE(put, got) SAVE_ONE(to, put, to_odd(*(got)))
#else
#define MOVE(put, got) *(put) = (float)*(got)
#endif
#elif DOUBLE_to
#pragma OPENCL EXTENSION cl_khr_fp64 : enable
#define SOURCE STORE(x)
#define TARGET double
#define MOVE(put, got) *(put) = (double)LOAD_ONE(x, got)
#else
#define SOURCE STORE(x)
#define TARGET STORE(to)
#define MOVE(put, got) SAVE_ONE(to, put, LOAD_ONE(x, got))
#endif

// Takes the index in one dimension off `rest`, and moves both places there.
#define PLACE(size, source_stride, target_stride)                                                                      \
    if (rest) {                                                                                                        \
        const long at = rest % (size);                                                                                 \
        rest /= (size);                                                                                                \
        from += at * (source_stride);                                                                                  \
        to += at * (target_stride);                                                                                    \
    }

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void pack(
    const __global SOURCE *source,              // [size7]...[size0][inner], by its strides
    const long source_start, const long source_step,
    const long source0, const long source1, const long source2, const long source3, const long source4, const long source5,
    const long source6, const long source7,
    __global TARGET *target,                    // [size7]...[size0][inner], by its strides
    const long target_start, const long target_step,
    const long target0, const long target1, const long target2, const long target3, const long target4, const long target5,
    const long target6, const long target7,
    const long size0, const long size1, const long size2, const long size3, const long size4, const long size5,
    const long size6, const long size7, const long rows, const long inner, const long pieces, const long piece_rows,
    const long columns, const int width)
{
    const int lane = LANES > 1 ? (int)get_local_id(0) : 0;
    const long first = get_group_id(0) / pieces * piece_rows, begin = get_group_id(0) % pieces * columns;
    const long last = first + piece_rows < rows ? first + piece_rows : rows;
    const long end = begin + columns < inner ? begin + columns : inner;
    for (long row = first + lane / width; row < last; row += LANES / width) {
        long rest = row, from = source_start, to = target_start;
        PLACE(size0, source0, target0)
        PLACE(size1, source1, target1)
        PLACE(size2, source2, target2)
        PLACE(size3, source3, target3)
        PLACE(size4, source4, target4)
        PLACE(size5, source5, target5)
        PLACE(size6, source6, target6)
        PLACE(size7, source7, target7)
        if (source_step == 1 && target_step == 1)
            for (long i = begin + lane % width; i < end; i += width) MOVE(target + (to + i), source + (from + i));
        else
            for (long i = begin + lane % width; i < end; i += width)
                MOVE(target + (to + i * target_step), source + (from + i * source_step));
    }
}
