// A model's folder: spec.json and weights.safetensors, checked against each other.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "efft/program.h"
#include "head.h"
#include "safetensors.h"

namespace efft::c {

struct Folder {
  std::shared_ptr<const Lowered> encoder;
  Type type = Type::f32;  // of the tables, and of what the encoder gives
  Bytes word, position, segment, matrices, vectors;
  int64_t words = 0, positions = 0, segments = 0;
  int64_t matrix_bytes = 0;
  Type matrix_type = Type::f32;  // s8: the archived 8-bit form (efft/quantised.h)
  Output read = Output::hidden;  // what the head reads
  std::optional<Head> head;
  int64_t max_tokens = 0;
  std::string name, task, compute;
  std::vector<std::string> labels;

  Folder();
};

// Throws Refused (EFFT_BAD_MODEL) in one line that names the file.
Folder read_folder(const std::string& path);

}  // namespace efft::c
