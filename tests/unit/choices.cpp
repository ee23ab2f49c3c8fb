// Prints which kernels the CUDA engine picks on a device that needs not be there. Arguments: multiprocessors, the
// encoder's spec, then for each call its batch, length and valid tokens.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "../../kernels/cuda/engine/model.h"
#include "efft/cuda/attention/choose.h"
#include "efft/cuda/linear/choose.h"

using namespace efft;
using namespace efft::cuda;

const char* name(Path path) { return path == Path::small ? "small" : path == Path::hopper ? "hopper" : "library"; }

std::string name(const LinearPlan& plan) {
  static constexpr const char* kCuts[] = {"96", "176", "192", "256", "turns"};
  if (plan.backend == Backend::library) return "cublaslt";
  if (plan.backend == Backend::many_rows) return std::string("many:") + kCuts[static_cast<int>(plan.cut)];
  const FewChoice& t = plan.tile;
  return "few:" + std::to_string(t.rows) + "x" + std::to_string(t.columns) + "/" + std::to_string(t.splits) + "*" +
         std::to_string(t.sharers);
}

std::string name(const AttentionPlan& plan) {
  static constexpr const char* kKernels[] = {"simt", "packed", "resident", "ring"};
  return std::string(kKernels[static_cast<int>(plan.kernel)]) + ":" + std::to_string(plan.row_groups) + "x" +
         std::to_string(plan.key_groups);
}

int main(int count, char** arguments) {
  DeviceInfo device;
  device.major = 9;
  device.hopper = true;
  device.multiprocessors = std::atoi(arguments[1]);
  device.shared_bytes = 228 * 1024;
  Model model{};
  model.encoder = lowered(std::string(arguments[2]));
  model.type = Type::f16;
  alignas(16) static char matrices[16];
  model.folded = model.matrices = matrices;
  const EncoderSpec& spec = model.spec();
  for (int i = 3; i + 2 < count; i += 3) {
    const int batch = std::atoi(arguments[i]), length = std::atoi(arguments[i + 1]),
              valid = std::atoi(arguments[i + 2]);
    Bucket bucket = bucket_for(batch, length, int64_t{1} * batch * length, batch == 1);
    std::string line;
    if (worth_counting(device, model, bucket)) {
      line += attends_early(device, model, bucket) ? "attends, " : "counts, ";
      bucket = bucket_for(bucket.batch, bucket.length, valid, true);
    }
    const Path path = path_for(device, model, bucket);
    line += std::to_string(bucket.tokens) + " " + name(path);
    for (const Slot& slot : model.encoder->slots) {
      if (slot.kind != SlotKind::matrix || slot.layer > 0) continue;
      LinearShape shape;
      shape.own_only = path != Path::library;
      shape.rows = shape.own_only ? expected_tokens(bucket.tokens) : bucket.tokens;
      shape.n = static_cast<int>(slot.rows), shape.k = static_cast<int>(slot.columns);
      if (slot.name == "0.intermediate") shape.pointwise = pointwise(spec.activation);
      shape.closes = slot.name == "0.output" || slot.name == "0.attention_output";
      line += " " + name(choose_linear(device, shape));
    }
    const AttentionShape shape{
        Type::f16,     bucket.batch, static_cast<int>(spec.heads), static_cast<int>(spec.head_size()), bucket.length,
        bucket.tokens, true};
    std::printf("%s %s\n", line.c_str(), name(choose_attention(device, shape)).c_str());
  }
}
