// Darknet's own batchnorm_layer.c behind four functions, for conventions_frameworks.py. In a checkout of
// pjreddie/darknet (f6afaab), or of AlexeyAB/darknet (59596d7) with -DALEXEYAB and src/utils.c:
//
//     gcc -O1 -fPIC -shared -w -Wl,-z,lazy -Iinclude -Isrc conventions_darknet.c src/batchnorm_layer.c src/blas.c
//         src/convolutional_layer.c -o libdarknet_bn.so -lm
//
// What these files name and never call stays undefined. x, y: [batch][channels]; the others: [channels].
#include <stdlib.h>
#include <string.h>

#include "batchnorm_layer.h"
#include "blas.h"
#include "darknet.h"

#ifdef ALEXEYAB
int gpu_index = -1;
typedef network_state State;
#define MAKE(batch, channels) make_batchnorm_layer(batch, 1, 1, channels, 1)
#else
typedef network State;
#define MAKE(batch, channels) make_batchnorm_layer(batch, 1, 1, channels)
#endif

layer *made(int most, int channels) {
  layer *one = calloc(1, sizeof(layer));
  *one = MAKE(most, channels);
  // What a layer of its own lacks on a processor, and a convolution with this inside has.
  if (!one->biases) one->biases = calloc(channels, sizeof(float));
  if (!one->x) one->x = calloc(most * channels, sizeof(float));
  if (!one->x_norm) one->x_norm = calloc(most * channels, sizeof(float));
  return one;
}

void set(layer *one, const float *scale, const float *bias) {
  memcpy(one->scales, scale, one->c * sizeof(float));
  memcpy(one->biases, bias, one->c * sizeof(float));
}

void run(layer *one, float *x, float *y, int batch, int train) {
  State state;
  memset(&state, 0, sizeof(state));
  state.input = x;
  state.train = train;
  one->batch = batch;
  forward_batchnorm_layer(*one, state);
  memcpy(y, one->output, batch * one->c * sizeof(float));
}

void statistics(const layer *one, float *mean, float *var) {
  memcpy(mean, one->rolling_mean, one->c * sizeof(float));
  memcpy(var, one->rolling_variance, one->c * sizeof(float));
}
