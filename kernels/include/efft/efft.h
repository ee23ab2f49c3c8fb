/* The encoder for C, C++ and whatever calls C: ids in, hidden states, pooled vectors or logits out. No Python, no
 * torch.
 *
 * A model is a folder with spec.json and weights.safetensors, as `builder export-native` writes it. It is opened once
 * and only read from then on; each thread that calls has a session of its own, as many on one model as it likes.
 *
 * Nothing is thrown across this boundary: a function that can fail returns a status, and efft_last_error() says in one
 * line what was wrong. A failed call leaves model and session as they were and its results untouched; only a failure
 * of the device can leave a part of them written.
 */
#ifndef EFFT_EFFT_H
#define EFFT_EFFT_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define EFFT_API
#else
#define EFFT_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Changes of the first number break programs that were built before; it is the library's soname, too. */
#define EFFT_ABI_VERSION 0

typedef enum efft_status {
  EFFT_OK = 0,
  EFFT_INVALID_ARGUMENT = 1, /* what the caller passed: a null pointer, an id without a row, a text too long */
  EFFT_BAD_MODEL = 2,        /* the folder: a file is missing, cut off, or does not fit the other one */
  EFFT_UNSUPPORTED = 3,      /* this model does not offer that, or this library does not run it */
  EFFT_BUSY = 4,             /* another thread is inside a call with the same session */
  EFFT_OUT_OF_MEMORY = 5,
  EFFT_FAILED = 6 /* the device */
} efft_status;

typedef enum efft_output {
  EFFT_HIDDEN = 0, /* [tokens, hidden]: the last hidden state of every token */
  EFFT_FIRST = 1,  /* [sequences, hidden]: that of each sequence's first token */
  EFFT_MEAN = 2,   /* [sequences, hidden]: the mean over each sequence's tokens */
  EFFT_LOGITS = 3  /* what the model's head makes of them: [sequences, n], or [tokens, n] for a head over tokens.
                      Of an embedding model it is the vector, at length 1 where the archive normalises. */
} efft_output;

typedef struct efft_model efft_model;
typedef struct efft_session efft_session;

/* Texts are the model's and live as long as it does. */
typedef struct efft_info {
  size_t size;        /* of this struct, set by the caller: a later library fills in no more than that */
  int64_t hidden;     /* width of hidden states and pooled vectors */
  int64_t vocabulary; /* ids are below it */
  int64_t segments;   /* segment ids are below it; 0: the model has none and reads none */
  int64_t max_tokens; /* of a sequence */
  int64_t logits;     /* width of EFFT_LOGITS; 0: the folder holds no head */
  int32_t per_token;  /* 1: EFFT_LOGITS has a row for each token */
  int32_t labels;     /* how many labels have names, see efft_model_label */
  const char* name;
  const char* task;
  const char* compute; /* fp32, bf16, fp16 or int8 */
  const char* device;  /* of this library: cpu or cuda */
} efft_info;

/* The library's version, such as "0.1.0". */
EFFT_API const char* efft_version(void);

/* One line about the latest failure of a call by this thread; empty before the first. Valid until its next failure. */
EFFT_API const char* efft_last_error(void);

/* Reads a folder and prepares its weights for this processor (the CUDA library: for the current device, which is read
 * off the calling thread). */
EFFT_API efft_status efft_model_open(const char* folder, efft_model** model);

/* Sessions that still exist keep what they need. NULL is allowed. */
EFFT_API void efft_model_free(efft_model* model);

EFFT_API efft_status efft_model_info(const efft_model* model, efft_info* info);

/* The name of a column of EFFT_LOGITS, or NULL where it has none. */
EFFT_API const char* efft_model_label(const efft_model* model, int64_t index);

/* threads: how many a call computes on, 0: one for each core that the process may use. The CUDA library ignores it and
 * gives the session a stream. A session may move from thread to thread but is in one call at a time. */
EFFT_API efft_status efft_session_create(efft_model* model, int32_t threads, efft_session** session);

/* NULL is allowed. */
EFFT_API void efft_session_free(efft_session* session);

/* The sizes of a result, for a batch of so many sequences and tokens; output: an efft_output. */
EFFT_API efft_status efft_output_shape(const efft_model* model, int32_t output, int64_t sequences, int64_t tokens,
                                       int64_t* rows, int64_t* columns);

/* Encodes a batch of sequences that lie one behind the other, without pads.
 *
 * ids:        [tokens], special tokens included
 * segments:   [tokens], or NULL: all 0
 * cu_seqlens: [sequences + 1], rising from 0 to tokens; sequence i is ids[cu_seqlens[i]] to ids[cu_seqlens[i + 1] - 1]
 * output:     an efft_output
 * out:        [rows, columns] of efft_output_shape, row-major; out_elements says how much room there is
 */
EFFT_API efft_status efft_encode(efft_session* session, const int64_t* ids, const int64_t* segments,
                                 const int32_t* cu_seqlens, int64_t sequences, int32_t output, float* out,
                                 size_t out_elements);

#ifdef __cplusplus
}
#endif

#endif
