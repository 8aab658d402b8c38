/* The C interface of charrnn_fast: networks, their training, and language models from checkpoints.
 * C11 and C++; the shared library exports these functions alone.
 *
 * Dimension letters: T seq_len, B batch, I input_size, H hidden_size, L num_layers, D directions (2
 * if bidirectional, else 1), R width of h (proj_size, or H without a projection), O output_size
 * (D*R without a decoder), V vocab_size. Arrays are row-major, time first, of the model's dtype
 * (float or double) where they are void*. States are all h [L*D, B, R], then (lstm) all c [L*D, B,
 * H]. Gate order: LSTM i, f, g, o; GRU r, z, n. Losses are in nats.
 *
 * Status. Each function that can fail returns a charrnn_status: CHARRNN_OK, or what is wrong, and
 * charrnn_last_error() has a message. Arguments are checked before any work; after an error nothing
 * has changed, except that arrays which a call writes may hold anything. Pointers must not be NULL
 * unless said so. A function that returns a number instead is negative for an error.
 *
 * Memory is the caller's: functions tell the sizes, the caller allocates. No pointer of the caller
 * is kept after a call. Handles are made by ..._create or ..._load and freed by ..._destroy, which
 * takes NULL. A model's own memory grows at the first use of a size and stays.
 *
 * Options are structs that begin with their size: set it to sizeof the struct. The rest may be 0
 * for the defaults, unless said so. Structs of older versions are accepted, and those of newer ones
 * as long as all that this version does not know is 0.
 *
 * Threads. Any thread may use any handle: a lock serializes the calls of a model. An optimizer's
 * slots must not be read or written during an update, and a
 * charrnn_text_stream belongs to one thread at a time. A handle must not be in use when it is
 * freed.
 */
#ifndef CHARRNN_FAST_H
#define CHARRNN_FAST_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define CHARRNN_API __attribute__((visibility("default")))
#else
#define CHARRNN_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Programs linked against one ABI version run with every later library of that version. */
#define CHARRNN_ABI_VERSION 1

typedef int32_t charrnn_status;
enum {
  CHARRNN_OK = 0,
  CHARRNN_INVALID_ARGUMENT = 1,
  CHARRNN_OUT_OF_MEMORY = 2,
  CHARRNN_FILE_ERROR = 3,     /* a file cannot be read */
  CHARRNN_BAD_CHECKPOINT = 4, /* it is no checkpoint, is damaged, or of a newer version */
  CHARRNN_INTERNAL_ERROR = 5, /* a fault of this library */
  CHARRNN_NO_DEVICE = 6       /* no such device, or no driver or kernels for it */
};

/* The message of this thread's last call that failed, or "". Valid until that thread's next call
 * that fails. */
CHARRNN_API const char* charrnn_last_error(void);

/* ---- the library ------------------------------------------------------------------------- */

CHARRNN_API int32_t charrnn_abi_version(void); /* CHARRNN_ABI_VERSION of the library that runs */
CHARRNN_API const char* charrnn_version(void); /* "0.1.0" */
/* The instruction set of the kernels in use: "x86-64-v3". NULL if CHARRNN_ISA names none. */
CHARRNN_API const char* charrnn_instruction_set(void);
CHARRNN_API const char* charrnn_compiler(void); /* that built the library: "GCC 12.2.0" */

/* Threads that a call uses at most; results never depend on it. Initially CHARRNN_NUM_THREADS, or
 * the processors that this process may use. Do not set it while another thread is in a call. */
CHARRNN_API int32_t charrnn_get_num_threads(void);
CHARRNN_API charrnn_status charrnn_set_num_threads(int32_t n);

/* Whose threads: "own", the library's; "openmp", those of libgomp, once the process has loaded it;
 * "auto", initially: libgomp's if PyTorch is loaded, for the main thread. Initially
 * CHARRNN_EXECUTOR. Not while another thread is in a call. */
CHARRNN_API charrnn_status charrnn_set_executor(const char* name);
/* What was set; "host" for threads of charrnn_set_host_executor. */
CHARRNN_API const char* charrnn_get_executor(void);

/* Calls task(argument, i) for each i from 0 to n - 1, n >= 2, on any threads, the caller included.
 */
typedef void (*charrnn_task)(void* argument, int i);
typedef void (*charrnn_run)(void* pool, int n, charrnn_task task, void* argument);
/* The most tasks that can run at once, the caller's thread included; below 2, it computes alone. */
typedef int (*charrnn_pool_threads)(void* pool);
typedef struct charrnn_executor {
  size_t size; /* sizeof(charrnn_executor) */
  void* pool;  /* passed to both functions */
  charrnn_pool_threads num_threads;
  charrnn_run run;
  /* Tasks wait for each other. 1: all n run at the same time, and `run` returns after all of them.
   * 0: the pool may run them one after another; then those that begin within 0.1 ms share the work,
   * and later ones return at once. */
  int32_t at_once;
  int32_t reserved; /* 0 */
} charrnn_executor;
/* Threads of the program that the library is part of, for the kernels to run on. */
CHARRNN_API charrnn_status charrnn_set_host_executor(const charrnn_executor* executor);

/* Names of cells and of optimizers, by index from 0; NULL behind the last. */
CHARRNN_API const char* charrnn_cell_name(int32_t index);
CHARRNN_API const char* charrnn_optimizer_name(int32_t index);

/* ---- models: a network, its parameters and memory ---------------------------------------- */

typedef struct charrnn_model charrnn_model;

enum { CHARRNN_FLOAT32 = 0, CHARRNN_FLOAT64 = 1 };
/* How the operands of all matrix products are rounded, of float32 models: not at all; to TF32; to
 * bfloat16. Sums, states, gradients and parameters stay float32. TF32 is for GPUs. */
enum { CHARRNN_COMPUTE_FLOAT32 = 0, CHARRNN_COMPUTE_TF32 = 1, CHARRNN_COMPUTE_BFLOAT16 = 2 };
enum { CHARRNN_COMPUTE_AS_SAVED = -1 }; /* of a language model: as its file says */
/* Bias vectors of a layer: PyTorch's two, one, or none. */
enum { CHARRNN_BIAS_BOTH = 0, CHARRNN_BIAS_SINGLE = 1, CHARRNN_BIAS_NONE = 2 };

typedef struct charrnn_shape {
  size_t size;              /* sizeof(charrnn_shape) */
  const char* cell;         /* "rnn", "gru", "lstm" and others, see charrnn_cell_name */
  const char* nonlinearity; /* of the cell "rnn": "tanh" or "relu"; NULL: "tanh" */
  int64_t input_size;       /* I: features of x, or the number of tokens */
  int64_t hidden_size;      /* H */
  int64_t output_size;      /* of the linear decoder; 0: no decoder */
  int64_t num_layers;       /* L; 0: one layer */
  int64_t proj_size;        /* P of an LSTM's projection; 0: none */
  int32_t dtype;            /* CHARRNN_FLOAT32 or CHARRNN_FLOAT64 */
  int32_t bias;             /* CHARRNN_BIAS_... */
  int32_t bidirectional;    /* 0 or 1, as are: */
  int32_t layer_norm;       /* layer normalization of the gates' input and recurrent terms */
  int32_t variational;      /* dropout masks for all steps of a sequence instead of one per step */
  int32_t compute_dtype;    /* CHARRNN_COMPUTE_... */
  /* Rates in [0, 1). Dropout acts only in calls with a mask_seed. */
  double input_dropout;     /* on x */
  double dropout;           /* between layers */
  double output_dropout;    /* on the top layer's h */
  double recurrent_dropout; /* on h before W_hh */
  double weight_drop;       /* on W_hh */
  double zoneout_h;
  double zoneout_c;
} charrnn_shape;

/* A model whose parameters are 0. */
CHARRNN_API charrnn_status charrnn_model_create(const charrnn_shape* shape, charrnn_model** model);
/* The same on a device: "cpu", "cuda" (or "cuda:0") or "cuda:N". The model's own memory is there.
 * Arrays of its calls are the host's; all of T (float or double) may also be the card's, where the
 * work on them is only queued, in order with the model's later calls. A process uses one card. */
CHARRNN_API charrnn_status charrnn_model_create_on(const charrnn_shape* shape, const char* device,
                                                   charrnn_model** model);
CHARRNN_API void charrnn_model_destroy(charrnn_model* model);
/* Whether charrnn_model_create_on can use a device: CHARRNN_OK, or CHARRNN_NO_DEVICE with the
 * reason as message. */
CHARRNN_API charrnn_status charrnn_device_status(const char* device);
/* shape->size says how much of it is written. Its strings live as long as the library. */
CHARRNN_API charrnn_status charrnn_model_shape(const charrnn_model* model, charrnn_shape* shape);
/* Features of an output row: O. */
CHARRNN_API int64_t charrnn_model_output_size(const charrnn_model* model);
/* Elements of all states of B streams. */
CHARRNN_API int64_t charrnn_model_state_elements(const charrnn_model* model, int64_t batch);

/* Parameters have PyTorch's names, shapes and orientation: weight_ih_l0 [G*H, I]. */
typedef struct charrnn_parameter {
  size_t size;      /* sizeof(charrnn_parameter) */
  const char* name; /* lives as long as the model */
  int64_t rows;
  int64_t cols; /* 0: a vector [rows] */
} charrnn_parameter;

CHARRNN_API int64_t charrnn_model_num_parameters(const charrnn_model* model); /* arrays */
CHARRNN_API charrnn_status charrnn_model_parameter(const charrnn_model* model, int64_t index,
                                                   charrnn_parameter* parameter);
/* values [rows, cols]; elements: rows * cols, or rows of a vector. */
CHARRNN_API charrnn_status charrnn_model_get_parameter(charrnn_model* model, const char* name,
                                                       void* values, int64_t elements);
CHARRNN_API charrnn_status charrnn_model_set_parameter(charrnn_model* model, const char* name,
                                                       const void* values, int64_t elements);

/* A batch of sequences. Either tokens or x; the other is NULL. */
typedef struct charrnn_batch {
  size_t size; /* sizeof(charrnn_batch) */
  int64_t seq_len;
  int64_t batch;
  const int32_t* tokens;     /* [T, B], each in 0 to I - 1; one stands for a one-hot vector */
  const void* x;             /* [T, B, I] */
  const int64_t* lengths;    /* [B], each 0 to T; NULL: all are T steps long */
  const uint64_t* mask_seed; /* of the dropout masks; NULL: no dropout */
} charrnn_batch;

/* y [T, B, O], 0 in the padding. state_0 NULL: zeros. state_n: after each sequence's last step.
 * keep: 0, or 1 for a backward to follow. */
CHARRNN_API charrnn_status charrnn_model_forward(charrnn_model* model, const charrnn_batch* batch,
                                                 const void* state_0, int32_t keep, void* y,
                                                 void* state_n);
/* Of the last forward with keep, of whichever thread. dy [T, B, O], NULL: zeros. dstate: on entry
 * the gradient of the last state, on return that of the initial state. dx [T, B, I], or NULL; it
 * must be NULL after tokens. gradients [charrnn_model_gradient_elements]: overwritten. */
CHARRNN_API charrnn_status charrnn_model_backward(charrnn_model* model, const void* dy,
                                                  void* dstate, void* dx, void* gradients);
/* One step of B streams: tokens [B] or x [B, I], the other NULL; y [B, O]; state is updated. */
CHARRNN_API charrnn_status charrnn_model_step(charrnn_model* model, int64_t batch,
                                              const int32_t* tokens, const void* x, void* state,
                                              void* y);

/* Gradients of all parameters lie in one array, in an order of their own. */
CHARRNN_API int64_t charrnn_model_gradient_elements(const charrnn_model* model);
/* That of one parameter, in its shape. */
CHARRNN_API charrnn_status charrnn_model_get_gradient(const charrnn_model* model,
                                                      const void* gradients, const char* name,
                                                      void* values, int64_t elements);
/* Scales all gradients so that their norm is at most `limit`. norm: before; may be NULL. */
CHARRNN_API charrnn_status charrnn_model_clip_norm(const charrnn_model* model, void* gradients,
                                                   double limit, double* norm);
/* Clips each element to [-limit, limit]. */
CHARRNN_API charrnn_status charrnn_model_clip_value(const charrnn_model* model, void* gradients,
                                                    double limit);

/* Weights that sampling reads: the model's own; or, of float32 models, rounded to bfloat16 (half
 * the memory), or to int8 with one scale per row (a quarter; on the CPU alone, and rows of at most
 * 12,288 weights). Losses are of the model that is sampled from. A file of such weights alone has
 * no others: FULL stands for them. */
enum { CHARRNN_WEIGHTS_FULL = 0, CHARRNN_WEIGHTS_BFLOAT16 = 1, CHARRNN_WEIGHTS_INT8 = 2 };

/* `length` times: feeds each stream its token (at first `first` [B]) and draws the next one. drawn
 * [length, B]; state is updated; seeds [B]. To continue as one longer call would have, pass the
 * last tokens drawn, the state, and position + length. The model must take and give the same
 * tokens, I = O.
 */
typedef struct charrnn_sampling {
  size_t size;        /* sizeof(charrnn_sampling) */
  double temperature; /* divides the logits; 0: always the most probable token */
  int64_t top_k;      /* draw from the k most probable tokens; 0: from all */
  double top_p;       /* draw from the fewest tokens that reach this probability; 0: from all */
  int32_t weights;    /* CHARRNN_WEIGHTS_... */
  int32_t reserved;   /* 0 */
  /* Divides the logits of the last repetition_window tokens (multiplies negative ones); 0: none. */
  double repetition_penalty;
  int64_t repetition_window; /* 0: 64 */
  /* [repetition_window, B] the tokens before the first draw, the oldest first, -1 for none;
   * updated, for the call that continues. NULL: none. */
  int32_t* recent;
} charrnn_sampling;
CHARRNN_API charrnn_status charrnn_model_sample(charrnn_model* model, int64_t length, int64_t batch,
                                                const int32_t* first, void* state,
                                                const uint64_t* seeds, uint64_t position,
                                                const charrnn_sampling* options, int32_t* drawn);

/* ---- training ----------------------------------------------------------------------------- */

/* PyTorch's formulas. */
typedef struct charrnn_optimizer charrnn_optimizer;

typedef struct charrnn_option {
  const char* name; /* "momentum", "beta1" and others, see charrnn_optimizer_option */
  double value;     /* flags: 0 or 1 */
} charrnn_option;
/* The options of an optimizer with their defaults, by index from 0; behind the last, the name is
 * NULL. */
CHARRNN_API charrnn_status charrnn_optimizer_option(const char* optimizer, int32_t index,
                                                    charrnn_option* option);

/* name: "sgd", "rmsprop", "adagrad", "adam" or "adamw". options [num_options]; others have their
 * defaults. The learning rate is an argument of each update, whatever "lr" says. */
CHARRNN_API charrnn_status charrnn_optimizer_create(const charrnn_model* model, const char* name,
                                                    const charrnn_option* options,
                                                    size_t num_options,
                                                    charrnn_optimizer** optimizer);
CHARRNN_API void charrnn_optimizer_destroy(charrnn_optimizer* optimizer);
/* What it needs to go on later: the updates so far, and its slots, each with one number for each
 * parameter's element. Slots have names by index from 0; NULL behind the last. */
CHARRNN_API int64_t charrnn_optimizer_num_steps(const charrnn_optimizer* optimizer);
CHARRNN_API charrnn_status charrnn_optimizer_set_num_steps(charrnn_optimizer* optimizer, int64_t n);
CHARRNN_API const char* charrnn_optimizer_slot_name(const charrnn_optimizer* optimizer,
                                                    int32_t slot);
CHARRNN_API charrnn_status charrnn_optimizer_get_slot(charrnn_optimizer* optimizer, int32_t slot,
                                                      const char* parameter, void* values,
                                                      int64_t elements);
CHARRNN_API charrnn_status charrnn_optimizer_set_slot(charrnn_optimizer* optimizer, int32_t slot,
                                                      const char* parameter, const void* values,
                                                      int64_t elements);

/* One update of a model's parameters by gradients of charrnn_model_backward. */
CHARRNN_API charrnn_status charrnn_model_update(charrnn_model* model, charrnn_optimizer* optimizer,
                                                const void* gradients, double learning_rate);

typedef struct charrnn_training {
  size_t size; /* sizeof(charrnn_training) */
  double learning_rate;
  double clip_norm;  /* 0: none */
  double clip_value; /* 0: none */
  int32_t sum;       /* 1: the loss is the sum over the targets, 0: the mean */
  int32_t reserved;  /* 0 */
} charrnn_training;
/* One update by the softmax cross-entropy of a batch. targets [T, B]: tokens; -1 and padding are
 * ignored. state is updated. gradient_norm: before clipping; both may be NULL. If one of them is
 * not finite, the call succeeds, and parameters and state stay as they were. */
CHARRNN_API charrnn_status charrnn_model_train_step(charrnn_model* model,
                                                    const charrnn_batch* batch,
                                                    const int32_t* targets, void* state,
                                                    charrnn_optimizer* optimizer,
                                                    const charrnn_training* options, double* loss,
                                                    double* gradient_norm);
/* The sum of the losses, and the number of targets that are not ignored. state is updated. */
CHARRNN_API charrnn_status charrnn_model_evaluate(charrnn_model* model, const charrnn_batch* batch,
                                                  const int32_t* targets, void* state,
                                                  double* loss_sum, int64_t* count);

/* Losses on arrays of a dtype, and their gradients. mean: 1 for the mean, 0 for the sum.
 * weights: of the elements (rows), or NULL.
 * Softmax cross-entropy of logits [N, V] against targets [N], -1 ignored; dlogits [N, V]. */
CHARRNN_API charrnn_status charrnn_cross_entropy(int32_t dtype, const void* logits,
                                                 const int32_t* targets, int64_t rows,
                                                 int64_t classes, int32_t mean, const void* weights,
                                                 void* dlogits, double* loss);
/* Of the probabilities sigmoid(logits) against targets in [0, 1], elementwise over n. */
CHARRNN_API charrnn_status charrnn_binary_cross_entropy(int32_t dtype, const void* logits,
                                                        const void* targets, int64_t n,
                                                        int32_t mean, const void* weights,
                                                        void* dlogits, double* loss);
/* (y - target)^2, elementwise over n. */
CHARRNN_API charrnn_status charrnn_mean_square(int32_t dtype, const void* y, const void* targets,
                                               int64_t n, int32_t mean, const void* weights,
                                               void* dy, double* loss);

/* ---- real time ---------------------------------------------------------------------------- */

/* A network on one sequence, such as an audio signal: a sample or a block of samples at a time. All
 * that can be done in advance is done by charrnn_stream_create. From then on run, reset, get_state
 * and set_state allocate nothing, take no lock, make no system call and use the calling thread
 * alone, as long as their arguments are right. One thread at a time may use a stream; different
 * streams are independent. Results are bit for bit those of the model with a batch of one, without
 * dropout; blocks of any length give the same. */
typedef struct charrnn_stream charrnn_stream;

/* From a model's shape and its parameters of now, which are copied: the model is not needed
 * afterwards. It must not be bidirectional. The state begins at zero. */
CHARRNN_API charrnn_status charrnn_stream_create(charrnn_model* model, charrnn_stream** stream);
/* A copy shares the weights and continues from the same state. */
CHARRNN_API charrnn_status charrnn_stream_copy(const charrnn_stream* stream, charrnn_stream** copy);
CHARRNN_API void charrnn_stream_destroy(charrnn_stream* stream);
CHARRNN_API int64_t charrnn_stream_input_size(const charrnn_stream* stream);
CHARRNN_API int64_t charrnn_stream_output_size(const charrnn_stream* stream);
CHARRNN_API int64_t charrnn_stream_state_elements(const charrnn_stream* stream);
/* n steps: y [n, O] from x [n, I]. x and y may be the same array if I is O; otherwise they must not
 * overlap. */
CHARRNN_API charrnn_status charrnn_stream_run(charrnn_stream* stream, const void* x, int64_t n,
                                              void* y);
/* The state: all h [L, R], then (lstm) all c [L, H]. */
CHARRNN_API charrnn_status charrnn_stream_reset(charrnn_stream* stream); /* to zero */
CHARRNN_API charrnn_status charrnn_stream_get_state(const charrnn_stream* stream, void* state);
CHARRNN_API charrnn_status charrnn_stream_set_state(charrnn_stream* stream, const void* state);

/* ---- language models ---------------------------------------------------------------------- */

/* A trained character-level language model. Texts are UTF-8, their lengths in bytes; only in a
 * vocabulary of bytes a prime may be any bytes. For a checkpoint, options and a seed the text is
 * the one that CharLM.sample gives in Python. */
typedef struct charrnn_language_model charrnn_language_model;

CHARRNN_API charrnn_status charrnn_language_model_load(const char* path,
                                                       charrnn_language_model** model);
/* Of a checkpoint's bytes, which are not needed afterwards. */
CHARRNN_API charrnn_status charrnn_language_model_load_memory(const void* checkpoint, size_t bytes,
                                                              charrnn_language_model** model);
/* The same on a device, named as for charrnn_model_create_on. It computes as compute_dtype says:
 * CHARRNN_COMPUTE_... */
CHARRNN_API charrnn_status charrnn_language_model_load_on(const char* path, const char* device,
                                                          int32_t compute_dtype,
                                                          charrnn_language_model** model);
CHARRNN_API charrnn_status charrnn_language_model_load_memory_on(const void* checkpoint,
                                                                 size_t bytes, const char* device,
                                                                 int32_t compute_dtype,
                                                                 charrnn_language_model** model);
CHARRNN_API void charrnn_language_model_destroy(charrnn_language_model* model);

/* Its network, shared with it: changed parameters change both. Free it by charrnn_model_destroy;
 * the two may be freed in any order. */
CHARRNN_API charrnn_status charrnn_language_model_network(const charrnn_language_model* model,
                                                          charrnn_model** network);

CHARRNN_API int64_t charrnn_language_model_vocab_size(const charrnn_language_model* model);
/* 1: the symbols are the 256 bytes; 0: characters. */
CHARRNN_API int32_t charrnn_language_model_has_bytes(const charrnn_language_model* model);
/* The code points (or bytes) of all ids: symbols [V]. */
CHARRNN_API charrnn_status charrnn_language_model_symbols(const charrnn_language_model* model,
                                                          int32_t* symbols, int64_t vocab_size);
/* The ids of a text, at most one for each byte: ids [capacity]; *count: how many there are. Writes
 * nothing if there are more than capacity, which is no error; ids may be NULL then. */
CHARRNN_API charrnn_status charrnn_language_model_encode(const charrnn_language_model* model,
                                                         const char* text, size_t bytes,
                                                         int32_t* ids, int64_t capacity,
                                                         int64_t* count);
/* The text of ids [count], without a 0 behind it; *bytes: its length. As for encode. */
CHARRNN_API charrnn_status charrnn_language_model_decode(const charrnn_language_model* model,
                                                         const int32_t* ids, int64_t count,
                                                         char* text, size_t capacity,
                                                         size_t* bytes);

typedef struct charrnn_text_options {
  size_t size;              /* sizeof(charrnn_text_options) */
  int64_t length;           /* the most characters (or bytes) to draw */
  const char* prime;        /* the text begins with it */
  size_t prime_bytes;       /* 0: no prime; the model reads a newline first */
  double temperature;       /* divides the logits; 0: always the most probable character */
  int64_t top_k;            /* draw from the k most probable characters; 0: from all */
  double top_p;             /* draw from the fewest that reach this probability; 0: from all */
  const char* const* stop;  /* [num_stop] the text ends before the stop string completed first */
  const size_t* stop_bytes; /* [num_stop] their lengths; NULL: each ends with a 0 */
  size_t num_stop;
  int32_t weights;  /* CHARRNN_WEIGHTS_... */
  int32_t reserved; /* 0 */
  /* Divides the logits of the last repetition_window characters, prime included (multiplies
   * negative ones); 0: none. */
  double repetition_penalty;
  int64_t repetition_window; /* 0: 64 */
} charrnn_text_options;
/* For a declaration: length characters at temperature 1. */
#define CHARRNN_TEXT_OPTIONS(length) \
  {sizeof(charrnn_text_options), (length), NULL, 0, 1.0, 0, 0.0, NULL, NULL, 0, 0, 0, 0.0, 0}

/* Bytes that the text of such options may need, with a 0 behind it. */
CHARRNN_API charrnn_status charrnn_language_model_text_capacity(const charrnn_language_model* model,
                                                                const charrnn_text_options* options,
                                                                size_t* bytes);
/* prime and its continuation, for each of num_seeds seeds, drawn as one batch: text i begins at
 * texts + i * capacity and ends with a 0; bytes [num_seeds], its length without that, may be NULL.
 * capacity: at least what charrnn_language_model_text_capacity says. */
CHARRNN_API charrnn_status charrnn_language_model_sample(const charrnn_language_model* model,
                                                         const charrnn_text_options* options,
                                                         const uint64_t* seeds, size_t num_seeds,
                                                         char* texts, size_t capacity,
                                                         size_t* bytes);

/* The same text in pieces, each as soon as it is drawn: the prime first, then mostly one character
 * at a time. A possible beginning of a stop string is held back. */
typedef struct charrnn_text_stream charrnn_text_stream;
CHARRNN_API charrnn_status charrnn_text_stream_create(const charrnn_language_model* model,
                                                      const charrnn_text_options* options,
                                                      uint64_t seed, charrnn_text_stream** stream);
CHARRNN_API void charrnn_text_stream_destroy(charrnn_text_stream* stream);
/* *piece: ends with a 0, and is valid until the stream's next call; NULL: the text has ended.
 * *bytes, its length, may be NULL. */
CHARRNN_API charrnn_status charrnn_text_stream_next(charrnn_text_stream* stream, const char** piece,
                                                    size_t* bytes);

/* The likeliest text that beam search finds, keeping `beam` beginnings (1 to 10,000); text
 * [capacity] ends with a 0, *bytes is its length without that, *log_probability that of the
 * characters behind the prime in nats, the stop string included that ended it; both may be NULL.
 * Options but length, prime, stop and weights must have their defaults. The beam times the size of
 * the vocabulary is 2^28 at most. */
CHARRNN_API charrnn_status charrnn_language_model_beam_search(const charrnn_language_model* model,
                                                              const charrnn_text_options* options,
                                                              int64_t beam, char* text,
                                                              size_t capacity, size_t* bytes,
                                                              double* log_probability);

/* The probability of each symbol to come next behind a prime: probabilities [V], by id. */
CHARRNN_API charrnn_status charrnn_language_model_next_probabilities(
    const charrnn_language_model* model, const char* prime, size_t prime_bytes, int32_t weights,
    double* probabilities, int64_t vocab_size);

/* The mean loss of a text in nats per character, from the zero state; the first is not predicted.
 */
CHARRNN_API charrnn_status charrnn_language_model_evaluate(const charrnn_language_model* model,
                                                           const char* text, size_t bytes,
                                                           int32_t weights, double* loss);
/* The log-probability of each text in nats: that sampling gives it. texts, bytes and scores have
 * `count` elements; bytes NULL: each text ends with a 0. */
CHARRNN_API charrnn_status charrnn_language_model_score(const charrnn_language_model* model,
                                                        const char* const* texts,
                                                        const size_t* bytes, size_t count,
                                                        int32_t weights, double* scores);

#ifdef __cplusplus
}
#endif

#endif /* CHARRNN_FAST_H */
