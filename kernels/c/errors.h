// What the code behind the C interface throws; efft.h's functions turn it into a status and its text.
#pragma once

#include <stdexcept>
#include <string>

#include "efft/efft.h"

namespace efft::c {

class Refused : public std::runtime_error {
 public:
  Refused(efft_status status, const std::string& text) : std::runtime_error(text), status_(status) {}
  efft_status status() const { return status_; }

 private:
  efft_status status_;
};

inline Refused bad_model(const std::string& text) { return {EFFT_BAD_MODEL, text}; }
inline Refused bad_argument(const std::string& text) { return {EFFT_INVALID_ARGUMENT, text}; }

}  // namespace efft::c
