/* Classifies sequences of token ids: classify FOLDER 101,2129,102 101,7592,2088,102
 *
 * Prints a line per sequence (of a head over tokens: per token): the logits, then the label of the largest.
 */
#include <efft/efft.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static int fail(const char* what) {
  fprintf(stderr, "classify: %s: %s\n", what, efft_last_error());
  return 1;
}

/* Appends the ids of "1,2,3" at ids; returns how many, or -1. */
static long parse(const char* text, int64_t* ids, long room) {
  long count = 0;
  for (;;) {
    char* end;
    errno = 0;
    const long long id = strtoll(text, &end, 10);
    if (end == text || errno != 0 || count == room) return -1;
    ids[count++] = id;
    if (*end == '\0') return count;
    if (*end != ',') return -1;
    text = end + 1;
  }
}

static void print_row(const efft_model* model, const float* row, int64_t columns) {
  int64_t best = 0;
  for (int64_t i = 0; i < columns; ++i) {
    printf("%.9g ", row[i]);
    if (row[i] > row[best]) best = i;
  }
  const char* label = efft_model_label(model, best);
  printf("%s\n", label ? label : "-");
}

int main(int argc, char** argv) {
  enum { kRoom = 1 << 16, kSequences = 1 << 10 };
  static int64_t ids[kRoom];
  static int32_t starts[kSequences + 1];
  if (argc < 3 || argc - 2 > kSequences) {
    fprintf(stderr, "usage: %s FOLDER IDS...   (ids by commas, a sequence each)\n", argv[0]);
    return 2;
  }
  const int64_t sequences = argc - 2;
  for (int64_t i = 0; i < sequences; ++i) {
    const long count = parse(argv[i + 2], ids + starts[i], kRoom - starts[i]);
    if (count < 0) {
      fprintf(stderr, "classify: \"%s\" is no list of ids by commas\n", argv[i + 2]);
      return 2;
    }
    starts[i + 1] = starts[i] + (int32_t)count;
  }

  efft_model* model;
  efft_session* session;
  int64_t rows, columns;
  if (efft_model_open(argv[1], &model) != EFFT_OK) return fail(argv[1]);
  if (efft_session_create(model, 0, &session) != EFFT_OK) return fail("session");
  if (efft_output_shape(model, EFFT_LOGITS, sequences, starts[sequences], &rows, &columns) != EFFT_OK)
    return fail("logits");
  float* logits = malloc((size_t)(rows * columns) * sizeof *logits);
  if (logits == NULL) return 1;
  if (efft_encode(session, ids, NULL, starts, sequences, EFFT_LOGITS, logits, (size_t)(rows * columns)) != EFFT_OK)
    return fail("encode");
  for (int64_t i = 0; i < rows; ++i) print_row(model, logits + i * columns, columns);
  free(logits);
  efft_session_free(session);
  efft_model_free(model);
  return 0;
}
