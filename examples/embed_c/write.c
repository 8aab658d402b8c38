/* Writes text with a checkpoint: write MODEL [PRIME [SEED]]
 *
 * For a seed it is the text of `charrnn-fast sample MODEL --prime PRIME --seed SEED`. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "charrnn_fast/charrnn_fast.h"

static void check(charrnn_status status) {
  if (status == CHARRNN_OK) return;
  fprintf(stderr, "error: %s\n", charrnn_last_error());
  exit(1);
}

int main(int argc, char** argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: write MODEL [PRIME [SEED]]\n");
    return 2;
  }
  charrnn_language_model* model = NULL;
  check(charrnn_language_model_load(argv[1], &model));

  charrnn_text_options options = CHARRNN_TEXT_OPTIONS(500);
  if (argc > 2) {
    options.prime = argv[2];
    options.prime_bytes = strlen(argv[2]);
  }
  const uint64_t seed = argc > 3 ? strtoull(argv[3], NULL, 10) : 1;

  charrnn_text_stream* stream = NULL;
  check(charrnn_text_stream_create(model, &options, seed, &stream));
  const char* piece = NULL;
  size_t bytes = 0;
  for (;;) {
    check(charrnn_text_stream_next(stream, &piece, &bytes));
    if (!piece) break;
    fwrite(piece, 1, bytes, stdout);
    fflush(stdout);
  }
  putchar('\n');
  charrnn_text_stream_destroy(stream);
  charrnn_language_model_destroy(model);
  return 0;
}
