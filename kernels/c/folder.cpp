#include "folder.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

#include "errors.h"

namespace efft::c {

namespace {

constexpr const char* kFormat = "efft-native/1";
constexpr int64_t kMostRows = int64_t{1} << 31;

std::string text_of(const Json& json, const char* key) {
  const Json* found = json.find(key);
  if (found == nullptr || !found->is(Json::Kind::text)) throw std::runtime_error(std::string(key) + " is missing");
  return found->text;
}

Type float_type(const TensorFile& tensors, const std::string& name) {
  switch (tensors.entry(name).type) {
    case ElementType::f32:
      return Type::f32;
    case ElementType::bf16:
      return Type::bf16;
    case ElementType::f16:
      return Type::f16;
    default:
      throw std::runtime_error(name + " is of bytes, not of numbers");
  }
}

// A table of the encoder's width and the tables' type; its number of rows.
Bytes table(const TensorFile& tensors, const Folder& folder, const std::string& name, int64_t* rows) {
  const TensorEntry& entry = tensors.entry(name);
  if (entry.shape.size() != 2 || entry.shape[1] != folder.encoder->spec.embedding || entry.shape[0] >= kMostRows)
    throw std::runtime_error(name + " is no table of width " + std::to_string(folder.encoder->spec.embedding));
  if (float_type(tensors, name) != folder.type) throw std::runtime_error(name + " is of another type than word");
  *rows = entry.shape[0];
  return tensors.read(name);
}

void read_weights(Folder& folder, const TensorFile& tensors) {
  folder.type = float_type(tensors, "word");
  folder.word = table(tensors, folder, "word", &folder.words);
  folder.position = table(tensors, folder, "position", &folder.positions);
  folder.segment = table(tensors, folder, "segment", &folder.segments);
  const TensorEntry& matrices = tensors.entry("matrices");
  folder.matrix_bytes = matrices.bytes();
  folder.matrix_type = matrices.type == ElementType::u8 ? Type::s8 : float_type(tensors, "matrices");
  const int64_t elements = arena_elements(folder.encoder->slots, SlotKind::matrix);
  if (folder.matrix_type != Type::s8 && matrices.elements != elements)
    throw std::runtime_error("matrices has " + std::to_string(matrices.elements) + " elements, the encoder of " +
                             "spec.json has " + std::to_string(elements));
  folder.matrices = tensors.read("matrices");
  const int64_t vectors = arena_elements(folder.encoder->slots, SlotKind::vector);
  if (float_type(tensors, "vectors") != Type::f32 || tensors.entry("vectors").elements != vectors)
    throw std::runtime_error("vectors are not the encoder's " + std::to_string(vectors) + " of type F32");
  folder.vectors = tensors.read("vectors");
}

// A text of max_tokens must find a row for each of its positions.
void check_positions(const Folder& folder) {
  const EncoderSpec& spec = folder.encoder->spec;
  if (spec.positions == PositionCount::none) return;
  const int64_t room = folder.positions - spec.first_position();
  if (folder.max_tokens > room)
    throw std::runtime_error("max_tokens is " + std::to_string(folder.max_tokens) + ", but there are positions for " +
                             std::to_string(std::max<int64_t>(room, 0)));
}

void read_labels(Folder& folder, const Json& spec) {
  const Json* labels = spec.find("labels");
  if (labels == nullptr) return;
  for (const Json& label : labels->list) {
    if (!label.is(Json::Kind::text)) throw std::runtime_error("labels are not all texts");
    folder.labels.push_back(label.text);
  }
}

void read_spec(Folder& folder, const Json& spec) {
  if (!spec.is(Json::Kind::object)) throw std::runtime_error("not an object");
  if (const std::string format = text_of(spec, "format"); format != kFormat)
    throw std::runtime_error("format " + format.substr(0, 40) + " is not this library's, " + kFormat);
  folder.encoder = lowered(text_of(spec, "encoder"));
  folder.name = text_of(spec, "name");
  folder.task = text_of(spec, "task");
  folder.compute = text_of(spec, "compute");
  folder.read = output_of(text_of(spec, "reads"));
  const Json* most = spec.find("max_tokens");
  if (most == nullptr) throw std::runtime_error("max_tokens is missing");
  folder.max_tokens = whole(*most, "max_tokens");
  read_labels(folder, spec);
}

}  // namespace

Folder::Folder()
    : word(nullptr, std::free),
      position(nullptr, std::free),
      segment(nullptr, std::free),
      matrices(nullptr, std::free),
      vectors(nullptr, std::free) {}

Folder read_folder(const std::string& path) {
  Folder folder;
  const char* file = "spec.json";
  try {
    const Json spec = parse_json(read_text(path + "/" + file));
    read_spec(folder, spec);
    const TensorFile tensors(path + "/weights.safetensors");
    file = "weights.safetensors";
    read_weights(folder, tensors);
    file = "spec.json";
    check_positions(folder);
    if (const Json* head = spec.find("head"); head != nullptr && head->is(Json::Kind::list))
      folder.head.emplace(*head, tensors, folder.encoder->spec.hidden, folder.read == Output::hidden);
  } catch (const Refused&) {
    throw;
  } catch (const std::runtime_error& error) {
    throw bad_model(std::string(file) + ": " + error.what());
  }
  return folder;
}

}  // namespace efft::c
