// efft.h for C++: owners that free what they hold, and exceptions in place of statuses. Copy it into your program.
#pragma once

#include <efft/efft.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace efft_cpp {

class Error : public std::runtime_error {
 public:
  explicit Error(efft_status status) : std::runtime_error(efft_last_error()), status(status) {}
  const efft_status status;
};

inline void check(efft_status status) {
  if (status != EFFT_OK) throw Error(status);
}

// Sequences one behind the other.
struct Batch {
  std::vector<int64_t> ids;
  std::vector<int32_t> cu_seqlens{0};

  void add(const std::vector<int64_t>& sequence) {
    ids.insert(ids.end(), sequence.begin(), sequence.end());
    cu_seqlens.push_back(static_cast<int32_t>(ids.size()));
  }
  int64_t sequences() const { return static_cast<int64_t>(cu_seqlens.size()) - 1; }
};

struct Result {
  int64_t rows = 0, columns = 0;
  std::vector<float> values;  // row-major
};

class Model {
 public:
  explicit Model(const std::string& folder) {
    efft_model* model = nullptr;
    check(efft_model_open(folder.c_str(), &model));
    model_.reset(model);
  }
  efft_info info() const {
    efft_info info{};
    info.size = sizeof info;
    check(efft_model_info(model_.get(), &info));
    return info;
  }
  efft_model* get() const { return model_.get(); }

 private:
  struct Free {
    void operator()(efft_model* model) const { efft_model_free(model); }
  };
  std::unique_ptr<efft_model, Free> model_;
};

// One thread's at a time.
class Session {
 public:
  explicit Session(const Model& model, int threads = 1) : model_(model) {
    efft_session* session = nullptr;
    check(efft_session_create(model.get(), threads, &session));
    session_.reset(session);
  }

  Result encode(const Batch& batch, efft_output output) {
    Result r;
    const auto tokens = static_cast<int64_t>(batch.ids.size());
    check(efft_output_shape(model_.get(), output, batch.sequences(), tokens, &r.rows, &r.columns));
    r.values.resize(static_cast<size_t>(r.rows * r.columns));
    check(efft_encode(session_.get(), batch.ids.data(), nullptr, batch.cu_seqlens.data(), batch.sequences(), output,
                      r.values.data(), r.values.size()));
    return r;
  }

 private:
  struct Free {
    void operator()(efft_session* session) const { efft_session_free(session); }
  };
  const Model& model_;
  std::unique_ptr<efft_session, Free> session_;
};

}  // namespace efft_cpp
