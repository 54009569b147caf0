// What compress.cl put side by side, back at its positions: target[place p, channel c] = source[rank p][c], and 0 where the rank is
// below 0; with `apart` it comes from source[c][rank p].
//
// Positions are taken in an order of their own: ranks[p] is which of the source's the p-th is, places[p] how far it lies from the
// target's first one, in items. What lies at positions that are not among them stays.
//
// grid: (LANES * pieces * row_pieces, or more); group = row_piece * pieces + piece. Rows are positions, or channels with `apart`; a group
// writes up to `piece_rows` of them, `columns` items of each: `width` work-items side by side, LANES / width below each other.

#include "numbers/items.clh"

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1))) void expand(
    const __global ITEM *restrict source,       // [inside][channels], or [channels][inside]; may be null where inside is 0
    const __global long *restrict ranks,        // [positions]
    const __global long *restrict places,       // [positions]
    __global ITEM *restrict target,             // [positions][channels], by places and target_channel
    const long target_start, const long target_channel,
    const long inside, const long positions, const long channels, const int apart, const long columns, const long piece_rows,
    const int width)
{
    const int lane = LANES > 1 ? (int)get_local_id(0) : 0;
    const long inner = apart ? positions : channels, rows = apart ? channels : positions;
    const long pieces = (inner + columns - 1) / columns;
    const long first = get_group_id(0) / pieces * piece_rows, begin = get_group_id(0) % pieces * columns;
    const long last = first + piece_rows < rows ? first + piece_rows : rows;
    const long end = begin + columns < inner ? begin + columns : inner;
    for (long row = first + lane / width; row < last; row += LANES / width) {
        __global ITEM *to = target + (target_start + (apart ? row * target_channel : places[row]));
        if (apart) {
            const __global ITEM *from = source + row * inside;
            for (long i = begin + lane % width; i < end; i += width) {
                ITEM item = 0;
                if (ranks[i] >= 0) item = from[ranks[i]];
                to[places[i]] = item;
            }
        } else if (ranks[row] < 0)
            for (long i = begin + lane % width; i < end; i += width) to[i * target_channel] = 0;
        else {
            const __global ITEM *from = source + ranks[row] * channels;
            if (target_channel == 1)
                for (long i = begin + lane % width; i < end; i += width) to[i] = from[i];
            else
                for (long i = begin + lane % width; i < end; i += width) to[i * target_channel] = from[i];
        }
    }
}
