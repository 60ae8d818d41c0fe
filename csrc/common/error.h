// The one exception of the native core; Python sees it as tunecore.errors.NativeError.
#pragma once
#include <stdexcept>
#include <string>

namespace tunecore {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

inline void require(bool ok, const std::string& message) {
  if (!ok) throw Error(message);
}

}  // namespace tunecore
