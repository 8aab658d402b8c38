/* Trains a GRU to continue sine waves: from the values so far, the next one. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "charrnn_fast/charrnn_fast.h"

enum { T = 50, B = 16, H = 24, STEPS = 400 };

static void check(charrnn_status status) {
  if (status == CHARRNN_OK) return;
  fprintf(stderr, "error: %s\n", charrnn_last_error());
  exit(1);
}

static float* zeros(int64_t n) {
  float* const array = n < 0 ? NULL : calloc((size_t)n, sizeof(float));
  if (!array) exit(1);
  return array;
}

/* Uniform in [-1, 1). */
static float uniform(uint32_t* random) {
  *random = *random * 1664525u + 1013904223u;
  return (float)(*random >> 8) / 8388608.0f - 1;
}

static void draw_parameters(charrnn_model* model, uint32_t* random) {
  for (int64_t i = 0; i < charrnn_model_num_parameters(model); ++i) {
    charrnn_parameter parameter = {.size = sizeof parameter};
    check(charrnn_model_parameter(model, i, &parameter));
    const int64_t n = parameter.rows * (parameter.cols ? parameter.cols : 1);
    float* const values = zeros(n);
    for (int64_t k = 0; k < n; ++k) values[k] = uniform(random) / sqrtf((float)H);
    check(charrnn_model_set_parameter(model, parameter.name, values, n));
    free(values);
  }
}

int main(void) {
  const charrnn_shape shape = {
      .size = sizeof shape, .cell = "gru", .input_size = 1, .hidden_size = H, .output_size = 1};
  charrnn_model* model = NULL;
  check(charrnn_model_create(&shape, &model));
  uint32_t random = 1;
  draw_parameters(model, &random);
  charrnn_optimizer* adam = NULL;
  check(charrnn_optimizer_create(model, "adam", NULL, 0, &adam));

  static float wave[(T + 1) * B], y[T * B], dy[T * B];
  float* const state = zeros(charrnn_model_state_elements(model, B));
  float* const gradients = zeros(charrnn_model_gradient_elements(model));
  const charrnn_batch batch = {.size = sizeof batch, .seq_len = T, .batch = B, .x = wave};
  for (int step = 0; step < STEPS; ++step) {
    for (int b = 0; b < B; ++b) {
      const float phase = 3.14159265f * uniform(&random), speed = 0.2f + 0.1f * uniform(&random);
      for (int t = 0; t <= T; ++t) wave[t * B + b] = sinf(phase + speed * (float)t);
    }
    double loss;
    check(charrnn_model_forward(model, &batch, NULL, 1, y, state));
    check(charrnn_mean_square(CHARRNN_FLOAT32, y, wave + B, T * B, 1, NULL, dy, &loss));
    /* On entry the gradient of the last state, which no loss depends on. */
    for (int64_t i = 0; i < charrnn_model_state_elements(model, B); ++i) state[i] = 0;
    check(charrnn_model_backward(model, dy, state, NULL, gradients));
    check(charrnn_model_clip_norm(model, gradients, 1.0, NULL));
    check(charrnn_model_update(model, adam, gradients, 0.01));
    if (step % 100 == 0 || step == STEPS - 1) printf("step %3d  loss %.3f\n", step, loss);
  }

  free(gradients);
  free(state);
  charrnn_optimizer_destroy(adam);
  charrnn_model_destroy(model);
  return 0;
}
