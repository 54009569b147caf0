// The elements of some positions of a tensor, side by side: target[m][c] = source[place m, channel c]; with `apart` they become
// target[c][m].
//
// A position is all of an element's indices but that of its channel. places[m] is how far the position that comes m-th lies from the
// tensor's first one, in items; channels lie source_channel items apart. So the tensor may lie anyhow.
//
// grid: (LANES * pieces * row_pieces, or more); group = row_piece * pieces + piece. Rows are what the target has behind each other:
// positions, or channels with `apart`; a group moves up to `piece_rows` of them, `columns` items of each: `width` work-items side
// by side, LANES / width below each other.

#include "numbers/items.clh"

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void compress(
    const __global ITEM *restrict source,       // [positions][channels], by places and source_channel
    const long source_start, const long source_channel,
    const __global long *restrict places,       // [inside]
    __global ITEM *restrict target,             // [inside][channels], or [channels][inside]
    const long inside, const long channels, const int apart, const long columns, const long piece_rows, const int width)
{
    const int lane = LANES > 1 ? (int)get_local_id(0) : 0;
    const long inner = apart ? inside : channels, rows = apart ? channels : inside;
    const long pieces = (inner + columns - 1) / columns;
    const long first = get_group_id(0) / pieces * piece_rows, begin = get_group_id(0) % pieces * columns;
    const long last = first + piece_rows < rows ? first + piece_rows : rows;
    const long end = begin + columns < inner ? begin + columns : inner;
    for (long row = first + lane / width; row < last; row += LANES / width) {
        __global ITEM *to = target + row * inner;
        const __global ITEM *from = source + (source_start + (apart ? row * source_channel : places[row]));
        if (apart)
            for (long i = begin + lane % width; i < end; i += width) to[i] = from[places[i]];
        else if (source_channel == 1)
            for (long i = begin + lane % width; i < end; i += width) to[i] = from[i];
        else
            for (long i = begin + lane % width; i < end; i += width) to[i] = from[i * source_channel];
    }
}
