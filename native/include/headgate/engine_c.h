/* The native engine for C, and for all that can call C. Functions may be called from several threads at once, also on one
 * engine; nothing is thrown through them. */
#ifndef HEADGATE_ENGINE_C_H
#define HEADGATE_ENGINE_C_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum headgate_status {
  HEADGATE_OK = 0,
  HEADGATE_PLAN_ERROR = 1,    /* the file cannot be read, or is not a plan of this version */
  HEADGATE_INPUT_ERROR = 2,   /* an argument does not fit the plan, or makes no sense */
  HEADGATE_BACKEND_ERROR = 3, /* HEADGATE_ISA names what the build or the CPU lacks */
  HEADGATE_OUT_OF_MEMORY = 4,
  HEADGATE_INTERNAL_ERROR = 5
} headgate_status;

typedef struct headgate_engine headgate_engine;

/* How a gated convolution completes its open outputs: one by one, or by a dense convolution of which it keeps them. */
typedef enum headgate_path { HEADGATE_NOT_GATED = -1, HEADGATE_SPARSE = 0, HEADGATE_MASKED = 1 } headgate_path;

/* One operator's work since the engine was opened or its statistics were reset. */
typedef struct headgate_layer_stats {
  const char *name, *kind;    /* valid until the engine is closed */
  int64_t images;
  double milliseconds;        /* wall time */
  int64_t dense_macs;         /* what the dense layer would have cost */
  int64_t executed_macs;      /* what was computed; the same for what is not gated */
  int64_t decisions, open;    /* of gated convolutions, over all images */
  headgate_path path;         /* of gated convolutions, now */
} headgate_layer_stats;

/* Why the calling thread's latest call that failed did so; valid until its next one fails. Never null. */
const char* headgate_last_error(void);

/* Loads a plan that headgate.export wrote; `threads` of one call, in [1, 256]. Where this fails, *engine is null. */
headgate_status headgate_engine_open(const char* path, int threads, headgate_engine** engine);

/* No call may still be running. Null is fine. */
void headgate_engine_close(headgate_engine* engine);

/* Channels, height and width of one image, and of one result. */
headgate_status headgate_engine_shapes(const headgate_engine* engine, int input[3], int output[3]);

/* From (images, channels, height, width) to (images, channels, height, width), float32, contiguous. */
headgate_status headgate_engine_run(const headgate_engine* engine, const float* input, int64_t images, float* output);

/* Adds to every threshold, in standard deviations; positive saves more. Calls add up. */
headgate_status headgate_engine_shift_thresholds(headgate_engine* engine, float offset);

/* The path of the gated convolution `name` from the next run on; sparse at first. */
headgate_status headgate_engine_set_path(headgate_engine* engine, const char* name, headgate_path path);

/* Runs a batch `repeats` times by each path, and has every gated convolution take the faster one. */
headgate_status headgate_engine_tune(headgate_engine* engine, const float* input, int64_t images, int repeats);

/* The number of operators; and, where `layers` is not null, the work of the first `capacity` of them, in order. */
headgate_status headgate_engine_stats(const headgate_engine* engine, headgate_layer_stats* layers, int64_t capacity,
                                      int64_t* count);

headgate_status headgate_engine_reset_stats(headgate_engine* engine);

#ifdef __cplusplus
}
#endif

#endif
