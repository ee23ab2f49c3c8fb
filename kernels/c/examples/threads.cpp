// Several threads on one model: threads FOLDER [BATCHES] [THREADS] [THREADS-PER-CALL]
//
// Every thread encodes the same random batches with a session of its own; each result must be, bit for bit, what one
// thread alone had got before.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "efft.hpp"

using namespace efft_cpp;

namespace {

// 1 to 4 sequences of 0 to 24 tokens.
Batch random_batch(unsigned seed, const efft_info& info) {
  std::mt19937 chance(seed);
  const auto below = [&](int64_t n) { return static_cast<int64_t>(chance() % static_cast<uint64_t>(n)); };
  Batch batch;
  for (int64_t i = 1 + below(4); i > 0; --i) {
    std::vector<int64_t> sequence(static_cast<size_t>(below(std::min<int64_t>(info.max_tokens, 24) + 1)));
    for (int64_t& id : sequence) id = below(info.vocabulary);
    batch.add(sequence);
  }
  return batch;
}

efft_output output_of(unsigned number, const efft_info& info) {
  return static_cast<efft_output>(number % (info.logits > 0 ? 4 : 3));
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s FOLDER [BATCHES] [THREADS] [THREADS-PER-CALL]\n", argv[0]);
    return 2;
  }
  const auto count = static_cast<unsigned>(argc > 2 ? std::atoi(argv[2]) : 2000);
  const int threads = argc > 3 ? std::atoi(argv[3]) : 8, each = argc > 4 ? std::atoi(argv[4]) : 1;
  const Model model(argv[1]);
  const efft_info info = model.info();

  std::vector<Result> alone;
  Session session(model, each);
  for (unsigned i = 0; i < count; ++i) alone.push_back(session.encode(random_batch(i, info), output_of(i, info)));

  std::atomic<unsigned> wrong{0}, failed{0};
  std::vector<std::thread> all;
  for (int t = 0; t < threads; ++t) {
    all.emplace_back([&, t] {
      try {
        Session own(model, each);
        // Each begins elsewhere, so that different batches meet.
        for (unsigned i = 0; i < count; ++i) {
          const unsigned at = (i + static_cast<unsigned>(t) * count / static_cast<unsigned>(threads)) % count;
          const Result made = own.encode(random_batch(at, info), output_of(at, info));
          wrong += made.values != alone[at].values;
        }
      } catch (const std::exception& error) {
        std::fprintf(stderr, "threads: %s\n", error.what());
        ++failed;
      }
    });
  }
  for (std::thread& thread : all) thread.join();
  std::printf("%d threads x %u batches: %u differ, %u threads failed\n", threads, count, wrong.load(), failed.load());
  return wrong != 0 || failed != 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "threads: %s\n", error.what());
  return 1;
}
