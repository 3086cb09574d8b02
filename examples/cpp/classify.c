/* The same in C: ./classify_c model.hgplan */
#include <headgate/engine_c.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char** argv) {
  headgate_engine* engine;
  int in[3], out[3];
  if (argc != 2) return fprintf(stderr, "usage: classify_c model.hgplan\n"), 2;
  if (headgate_engine_open(argv[1], 1, &engine)) return fprintf(stderr, "%s\n", headgate_last_error()), 1;
  headgate_engine_shapes(engine, in, out);
  const int pixels = in[0] * in[1] * in[2], classes = out[0] * out[1] * out[2];
  float *image = malloc(pixels * sizeof *image), *scores = malloc(classes * sizeof *scores);
  for (int i = 0; i < pixels; ++i) image[i] = 0.5f;
  if (headgate_engine_run(engine, image, 1, scores)) return fprintf(stderr, "%s\n", headgate_last_error()), 1;
  int best = 0;
  for (int i = 1; i < classes; ++i) best = scores[i] > scores[best] ? i : best;
  printf("class %d, score %.4f\n", best, scores[best]);
  free(image), free(scores);
  headgate_engine_close(engine);
  return 0;
}
