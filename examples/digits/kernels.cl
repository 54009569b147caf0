// What a convolutional network needs beside normalization, in plain OpenCL C 1.2.
//
// Tensors are float, channels last and without gaps: [images][height][width][channels]. A work-item makes one element of
// the result by itself (of matmul 4 x 4), so that every run gives the same bits, and work-groups may be of any size: the
// driver chooses one. Dimension 0 of each grid is the innermost in memory.

#define TILE 4

// c = a b + beta c, with a: m x k, b: k x n, c: m x n.   grid: (n / TILE, m / TILE), rounded up
//
// Element (i, j) of a is a[i * a_row + j * a_column], and of b likewise: a transposed matrix needs no copy.
// A work-item keeps TILE x TILE sums in registers, and so multiplies 16 times for 8 numbers that it reads. At the edges
// it reads the last row or column again, and writes nothing. Tiles in local memory, as one would write it for a GPU
// alone, take twenty times as long on a processor; for both there is CLBlast.
__kernel void matmul(
    const int m,
    const int n,
    const int k,
    __global const float *a, // [m][k], or [k][m] where it is transposed
    const int a_row,
    const int a_column,
    __global const float *b, // [k][n], or [n][k]
    const int b_row,
    const int b_column,
    const float beta,
    __global float *c) // [m][n]; not read where beta is 0
{
    const int column = TILE * get_global_id(0), row = TILE * get_global_id(1);
    int left[TILE], right[TILE];
    float4 sum[TILE];
    for (int i = 0; i < TILE; ++i) {
        left[i] = min(row + i, m - 1) * a_row;
        right[i] = min(column + i, n - 1) * b_column;
        sum[i] = 0.0f;
    }
    for (int at = 0; at < k; ++at, a += a_column, b += b_row) {
        const float4 factors = (float4)(b[right[0]], b[right[1]], b[right[2]], b[right[3]]);
        for (int i = 0; i < TILE; ++i)
            sum[i] += a[left[i]] * factors;
    }
    for (int i = 0; i < min(TILE, m - row); ++i) {
        const float sums[TILE] = {sum[i].x, sum[i].y, sum[i].z, sum[i].w};
        __global float *into = c + (row + i) * n + column;
        for (int j = 0; j < min(TILE, n - column); ++j)
            into[j] = beta == 0.0f ? sums[j] : sums[j] + beta * into[j];
    }
}

// The pixels around each pixel, side by side: size x size of them, zeros beyond the border; of every stride-th pixel.
// A convolution is a product with these rows.   grid: (channels, size * size, images * out_height * out_width)
__kernel void im2col(
    __global const float *x, // [images][height][width][channels]
    const int height,
    const int width,
    const int size,
    const int stride,
    __global float *columns) // [images][out_height][out_width][size][size][channels]
{
    const int channels = get_global_size(0), channel = get_global_id(0);
    const int taps = get_global_size(1), tap = get_global_id(1);
    const int out_height = (height + stride - 1) / stride, out_width = (width + stride - 1) / stride;
    const int out = get_global_id(2), image = out / (out_height * out_width);
    const int i = out / out_width % out_height * stride + tap / size - size / 2;
    const int j = out % out_width * stride + tap % size - size / 2;
    const int inside = i >= 0 && i < height && j >= 0 && j < width;
    columns[(out * taps + tap) * channels + channel] =
        inside ? x[((image * height + i) * width + j) * channels + channel] : 0.0f;
}

// The gradient of im2col: a pixel's is the sum over all places where it has been put.
// grid: (channels, images * height * width)
__kernel void col2im(
    __global const float *dcolumns, // [images][out_height][out_width][size][size][channels]
    const int height,
    const int width,
    const int size,
    const int stride,
    __global float *dx) // [images][height][width][channels]
{
    const int channels = get_global_size(0), channel = get_global_id(0), pixel = get_global_id(1);
    const int out_height = (height + stride - 1) / stride, out_width = (width + stride - 1) / stride;
    const int image = pixel / (height * width), i = pixel / width % height, j = pixel % width;
    float sum = 0.0f;
    for (int down = 0; down < size; ++down) {
        const int above = i + size / 2 - down;
        if (above < 0 || above % stride != 0 || above / stride >= out_height)
            continue;
        for (int right = 0; right < size; ++right) {
            const int before = j + size / 2 - right;
            if (before < 0 || before % stride != 0 || before / stride >= out_width)
                continue;
            const int out = (image * out_height + above / stride) * out_width + before / stride;
            sum += dcolumns[((out * size + down) * size + right) * channels + channel];
        }
    }
    dx[pixel * channels + channel] = sum;
}

// The mean of each map.   grid: (channels, images)
__kernel void pool(
    __global const float *x, // [images][pixels][channels]
    const int pixels,
    __global float *y) // [images][channels]
{
    const int channels = get_global_size(0), channel = get_global_id(0), image = get_global_id(1);
    float sum = 0.0f;
    for (int pixel = 0; pixel < pixels; ++pixel)
        sum += x[(image * pixels + pixel) * channels + channel];
    y[image * channels + channel] = sum / pixels;
}

// The gradient of pool: all pixels of a map have the same.   grid: (channels, pixels, images)
__kernel void unpool(
    __global const float *dy, // [images][channels]
    __global float *dx) // [images][pixels][channels]
{
    const int channels = get_global_size(0), channel = get_global_id(0);
    const int pixels = get_global_size(1), image = get_global_id(2);
    dx[(image * pixels + get_global_id(1)) * channels + channel] = dy[image * channels + channel] / pixels;
}

// The cross entropy of softmax(scores), and the gradient of its mean over the images.   grid: (images)
__kernel void cross_entropy(
    __global const float *scores, // [images][classes]
    __global const int *labels, // [images]
    const int classes,
    __global float *losses, // [images]
    __global float *hits, // [images]: 1 where the label has the highest score, else 0
    __global float *dscores) // [images][classes]
{
    const int image = get_global_id(0), images = get_global_size(0), label = labels[image];
    scores += image * classes;
    dscores += image * classes;
    int best = 0;
    for (int i = 1; i < classes; ++i)
        best = scores[i] > scores[best] ? i : best;
    float sum = 0.0f;
    for (int i = 0; i < classes; ++i)
        sum += exp(scores[i] - scores[best]); // so that nothing overflows
    losses[image] = log(sum) + scores[best] - scores[label];
    hits[image] = best == label;
    for (int i = 0; i < classes; ++i)
        dscores[i] = (exp(scores[i] - scores[best]) / sum - (i == label)) / images;
}

// A batch out of the whole data set, each image shifted by some pixels, zeros moving in.   grid: (width, height, images)
__kernel void batch(
    __global const float *all, // [everything][height][width]
    __global const int *chosen, // [images][3]: which image, how far down, how far to the right
    __global float *x) // [images][height][width]
{
    const int width = get_global_size(0), height = get_global_size(1), image = get_global_id(2);
    const int i = get_global_id(1) - chosen[3 * image + 1], j = get_global_id(0) - chosen[3 * image + 2];
    const int inside = i >= 0 && i < height && j >= 0 && j < width;
    x[(image * height + get_global_id(1)) * width + get_global_id(0)] =
        inside ? all[(chosen[3 * image] * height + i) * width + j] : 0.0f;
}

// A step down, and towards 0 by weight decay.   grid: (elements)
__kernel void descend(
    __global float *weights, // [elements]
    __global const float *gradient, // [elements]
    const float rate,
    const float decay)
{
    const int i = get_global_id(0);
    weights[i] -= rate * (gradient[i] + decay * weights[i]);
}
