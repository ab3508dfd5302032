// What XLA calls: many leaves in one call, their tiles spread over XLA's own threads.
//
// It is shipped as LLVM IR, handler.ll, which llvmlite compiles for the processor it runs on, so that no user needs a C
// compiler. `python adam_tx/executors/cpu/make_handler.py` makes handler.ll anew; it needs `pip install ziglang`.
//
// The operands are: the scalars (uint32), the numbers of the leaves (uint32), and of each leaf the parameter, the
// gradient and what is kept. The results are of each leaf the parameter and what is kept, and then, if something is
// reduced, one array (float32) with a row for each number that is, and in it one for each leaf. Every tile writes its own
// numbers, and they are joined in their order, so that the bits do not depend on which thread was first. At last, if
// there is a sample, one array (float32) with that of each leaf after the other.

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include "xla/ffi/api/c_api.h"

enum { ELEMENTS = 0, ONE_A_TILE = 1 };
enum { SUM = 0, LARGEST = 1 };

typedef void Kernel(void **arrays, const uint32_t *scalars, uint32_t number, int64_t row, int64_t first, int64_t end);

// What a kernel is called with: `call` writes it into the kernel's module.
typedef struct {
  Kernel *kernel;
  int64_t operands;       // of a leaf
  int64_t results;        // of a leaf
  int64_t reduced;        // how many numbers a tile is reduced to
  int64_t every;          // of so many elements of a leaf one is sampled; 0 for no sample
  int64_t scalars;        // how many
  int64_t block;          // the elements of a tile
  int64_t is_blocks;      // whether each row has its own tiles
  const uint8_t *kinds;   // of a leaf's operands and then results: ELEMENTS or ONE_A_TILE
  const uint8_t *dtypes;  // of the same, as XLA_FFI_DataType
  const uint8_t *hows;    // of what is reduced: SUM or LARGEST
} Program;

typedef struct {
  void **arrays;
  uint32_t number;
  int64_t row;
  int64_t tiles;
} Leaf;

typedef struct {
  _Atomic int64_t next;   // the first chunk that nobody has taken
  _Atomic int64_t done;   // chunks that are finished
  _Atomic int64_t users;  // who still reads this; the last one frees it
  int64_t chunks, tiles_of_chunk, tiles, leaves;
  Kernel *kernel;
  const uint32_t *scalars;
  float *reduced;  // of each number one a tile
  Leaf leaf[];
} Work;

void adam_tx_wait(void);  // what a processor does best while it waits; `engine` defines it

static void work(Work *w) {
  for (;;) {
    int64_t chunk = __c11_atomic_fetch_add(&w->next, 1, __ATOMIC_RELAXED);
    if (chunk >= w->chunks) return;
    int64_t first = chunk * w->tiles_of_chunk, end = first + w->tiles_of_chunk;
    int64_t before = 0;  // tiles of earlier leaves
    for (int64_t l = 0; l < w->leaves && before < end; l++) {
      const Leaf *leaf = &w->leaf[l];
      int64_t from = first > before ? first - before : 0;
      int64_t to = end - before < leaf->tiles ? end - before : leaf->tiles;
      if (from < to) w->kernel(leaf->arrays, w->scalars, leaf->number, leaf->row, from, to);
      before += leaf->tiles;
    }
    __c11_atomic_fetch_add(&w->done, 1, __ATOMIC_RELEASE);
  }
}

static void leave(Work *w) {
  if (__c11_atomic_fetch_sub(&w->users, 1, __ATOMIC_ACQ_REL) == 1) free(w);
}

static void helper(void *w) {
  work(w);
  leave(w);
}

static XLA_FFI_Error *error(XLA_FFI_CallFrame *frame, const char *message) {
  XLA_FFI_Error_Create_Args args = {sizeof(args), NULL, message, XLA_FFI_Error_Code_INVALID_ARGUMENT};
  return frame->api->XLA_FFI_Error_Create(&args);
}

static int64_t size_of(const XLA_FFI_Buffer *buffer) {
  int64_t size = 1;
  for (int64_t d = 0; d < buffer->rank; d++) size *= buffer->dims[d];
  return size;
}

static int64_t row_of(const Program *program, const XLA_FFI_Buffer *param) {
  return program->is_blocks && param->rank ? param->dims[param->rank - 1] : size_of(param);
}

static int64_t tiles_of(const Program *program, const XLA_FFI_Buffer *param) {
  int64_t row = row_of(program, param);
  return row ? size_of(param) / row * ((row + program->block - 1) / program->block) : 0;
}

static int64_t tiles_of_all(const Program *program, XLA_FFI_Buffer **given, int64_t leaves) {
  int64_t tiles = 0;
  for (int64_t l = 0; l < leaves; l++) tiles += tiles_of(program, given[2 + l * program->operands]);
  return tiles;
}

static int64_t sampled_of(const Program *program, const XLA_FFI_Buffer *param) {
  return program->every ? (size_of(param) + program->every - 1) / program->every : 0;
}

static int fits(const Program *program, int64_t k, const XLA_FFI_Buffer *buffer, const XLA_FFI_Buffer *param) {
  int64_t size = program->kinds[k] == ELEMENTS ? size_of(param) : tiles_of(program, param);
  return buffer->dtype == (XLA_FFI_DataType)program->dtypes[k] && size_of(buffer) == size;
}

static int holds(const XLA_FFI_Buffer *buffer, int64_t size) {
  return buffer->dtype == XLA_FFI_DataType_F32 && size_of(buffer) == size;
}

static const char *fault(const Program *program, XLA_FFI_CallFrame *frame, int64_t leaves) {
  XLA_FFI_Buffer **given = (XLA_FFI_Buffer **)frame->args.args, **made = (XLA_FFI_Buffer **)frame->rets.rets;
  int64_t arrays = leaves * program->results + (program->reduced > 0) + (program->every > 0);
  if (leaves < 1 || frame->args.size != 2 + leaves * program->operands || frame->rets.size != arrays)
    return "adam_tx: a call with another number of arrays than its kernel is made for";
  if (size_of(given[0]) != program->scalars || size_of(given[1]) != leaves || given[0]->dtype != XLA_FFI_DataType_U32 ||
      given[1]->dtype != XLA_FFI_DataType_U32)
    return "adam_tx: a call with other scalars than its kernel is made for";
  for (int64_t l = 0; l < leaves; l++) {
    XLA_FFI_Buffer **operands = given + 2 + l * program->operands, **results = made + l * program->results;
    for (int64_t k = 0; k < program->operands; k++)
      if (!fits(program, k, operands[k], operands[0])) return "adam_tx: an operand of another shape or dtype";
    for (int64_t k = 0; k < program->results; k++)
      if (!fits(program, program->operands + k, results[k], operands[0]))
        return "adam_tx: a result of another shape or dtype";
  }
  int64_t sampled = 0;
  for (int64_t l = 0; l < leaves; l++) sampled += sampled_of(program, given[2 + l * program->operands]);
  if (program->reduced && !holds(made[leaves * program->results], program->reduced * leaves))
    return "adam_tx: an array of another shape or dtype for what is reduced";
  if (program->every && !holds(made[arrays - 1], sampled))
    return "adam_tx: an array of another shape or dtype for a sample";
  return NULL;
}

static Work *work_of(const Program *program, XLA_FFI_CallFrame *frame, int64_t leaves) {
  XLA_FFI_Buffer **given = (XLA_FFI_Buffer **)frame->args.args, **made = (XLA_FFI_Buffer **)frame->rets.rets;
  int64_t arrays = program->operands + program->results + program->reduced + (program->every > 0);
  int64_t tiles = tiles_of_all(program, given, leaves);
  int64_t of_leaves = leaves * (sizeof(Leaf) + arrays * sizeof(void *));
  Work *w = malloc(sizeof(Work) + of_leaves + program->reduced * tiles * sizeof(float));
  if (!w) return NULL;
  void **addresses = (void **)&w->leaf[leaves];
  w->reduced = (float *)(addresses + leaves * arrays);
  float *sample = program->every ? made[leaves * program->results + (program->reduced > 0)]->data : NULL;
  w->kernel = program->kernel;
  w->scalars = given[0]->data;
  w->leaves = leaves;
  w->tiles = 0;
  for (int64_t l = 0; l < leaves; l++) {
    XLA_FFI_Buffer **operands = given + 2 + l * program->operands, **results = made + l * program->results;
    Leaf *leaf = &w->leaf[l];
    leaf->arrays = addresses + l * arrays;
    leaf->number = ((const uint32_t *)given[1]->data)[l];
    leaf->row = row_of(program, operands[0]);
    leaf->tiles = tiles_of(program, operands[0]);
    for (int64_t k = 0; k < program->operands; k++) leaf->arrays[k] = operands[k]->data;
    for (int64_t k = 0; k < program->results; k++) leaf->arrays[program->operands + k] = results[k]->data;
    for (int64_t k = 0; k < program->reduced; k++)
      leaf->arrays[program->operands + program->results + k] = w->reduced + k * tiles + w->tiles;
    if (program->every) leaf->arrays[arrays - 1] = sample;
    if (program->every) sample += sampled_of(program, operands[0]);
    w->tiles += leaf->tiles;
  }
  return w;
}

static float joined(const float *numbers, int64_t count, int how) {
  double sum = 0;
  float largest = 0;
  for (int64_t t = 0; t < count; t++) {
    sum += numbers[t];
    if (numbers[t] > largest || numbers[t] != numbers[t]) largest = numbers[t];
  }
  return how == SUM ? (float)sum : largest;
}

static void reduce(const Program *program, const Work *w, XLA_FFI_Buffer *result) {
  const float *numbers = w->reduced;
  for (int64_t k = 0; k < program->reduced; k++)
    for (int64_t l = 0; l < w->leaves; l++) {
      ((float *)result->data)[k * w->leaves + l] = joined(numbers, w->leaf[l].tiles, program->hows[k]);
      numbers += w->leaf[l].tiles;
    }
}

static int64_t threads_of(XLA_FFI_CallFrame *frame) {
  int64_t threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args args = {sizeof(args), NULL, frame->ctx, &threads};
  return frame->api->XLA_FFI_ThreadPool_NumThreads(&args) ? 1 : threads;
}

// About 32768 elements are worth a task; up to eight tasks a thread, so that one that is late holds up little.
static int64_t divide(Work *w, int64_t block, int64_t threads) {
  int64_t least = (32768 + block - 1) / block, chunks = (w->tiles + least - 1) / least;
  if (chunks > 8 * threads) chunks = 8 * threads;
  if (chunks < 1) chunks = 1;
  w->tiles_of_chunk = (w->tiles + chunks - 1) / chunks;
  w->chunks = w->tiles_of_chunk ? (w->tiles + w->tiles_of_chunk - 1) / w->tiles_of_chunk : 0;
  int64_t helpers = (threads < w->chunks ? threads : w->chunks) - 1;
  return helpers > 0 ? helpers : 0;
}

XLA_FFI_Error *adam_tx_call(XLA_FFI_CallFrame *frame, const Program *program) {
  if (frame->extension_start && frame->extension_start->type == XLA_FFI_Extension_Metadata) {
    XLA_FFI_Metadata *metadata = ((XLA_FFI_Metadata_Extension *)frame->extension_start)->metadata;
    metadata->api_version.major_version = 0;  // what is used here is in all versions since 0.1
    metadata->api_version.minor_version = 1;
    return NULL;
  }
  if (frame->stage != XLA_FFI_ExecutionStage_EXECUTE) return NULL;
  int64_t leaves = frame->args.size < 2 ? 0 : (frame->args.size - 2) / program->operands;
  const char *wrong = fault(program, frame, leaves);
  if (wrong) return error(frame, wrong);
  Work *w = work_of(program, frame, leaves);
  if (!w) return error(frame, "adam_tx: no memory for a step");
  int64_t helpers = divide(w, program->block, threads_of(frame));
  w->next = 0;
  w->done = 0;
  w->users = 1 + helpers;
  for (int64_t h = 0; h < helpers; h++) {
    XLA_FFI_ThreadPool_Schedule_Args args = {sizeof(args), NULL, frame->ctx, helper, w};
    if (frame->api->XLA_FFI_ThreadPool_Schedule(&args)) leave(w);
  }
  work(w);
  while (__c11_atomic_load(&w->done, __ATOMIC_ACQUIRE) < w->chunks) adam_tx_wait();
  if (program->reduced) reduce(program, w, frame->rets.rets[leaves * program->results]);
  leave(w);
  return NULL;
}
