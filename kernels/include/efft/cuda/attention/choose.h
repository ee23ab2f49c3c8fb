// Which attention kernel a batch gets, and how it is cut. No CUDA header: tests ask for the choices of a device that
// they make up.
#pragma once

#include <algorithm>

#include "efft/cuda/attention/tiles.h"
#include "efft/cuda/device.h"
#include "efft/types.h"

namespace efft::cuda {

struct AttentionShape {
  Type type;
  int batch, heads, head_size;
  int max_length;  // no sequence is longer
  int capacity;    // rows of qkv
  bool aligned;    // qkv, bias and out start on 16 bytes
};

enum class AttentionKernel {
  simt,      // fp32
  packed,    // mma.sync, tiles shared by sequences; any head size and chip
  resident,  // wgmma, all keys of a sequence in shared memory
  ring,      // wgmma, blocks that stay and copy ahead
};

struct AttentionPlan {
  AttentionKernel kernel;
  int row_groups = 1;  // resident: warpgroups along the rows; ring: of a block
  int key_groups = 1;  // resident: warpgroups that divide the keys
  int stages = 0;      // of 64 keys and values in shared memory
  int blocks = 0;      // ring only
  int tiles = 0;       // ring only: at most, of all heads
};

// The head size that kernels are compiled for, 32, 64 or 128: the smallest that holds one.
inline int compiled_head(int head_size) { return head_size <= 32 ? 32 : head_size <= 64 ? 64 : 128; }

AttentionPlan choose_attention(const DeviceInfo& device, const AttentionShape& shape);

}  // namespace efft::cuda
