// What the core says of itself: build_info, capability, allocator, checks that tests reach.
#include "common.h"

#include <pybind11/stl.h>

#include <string>
#include <vector>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "capsule.h"
#include "cpu/capability.h"
#include "philox.h"

namespace py = pybind11;

namespace tunecore {
namespace {

#ifndef TUNECORE_VARIANTS
#define TUNECORE_VARIANTS "default"
#endif

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::string part;
  for (char c : text + ",") {
    if (c != ',') {
      part += c;
    } else if (!part.empty()) {
      parts.push_back(part);
      part.clear();
    }
  }
  return parts;
}

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = std::string("clang ") + __clang_version__;
#else
  info["compiler"] = std::string("gcc ") + __VERSION__;
#endif
  info["version"] = TUNECORE_VERSION;
  info["variants"] = split(TUNECORE_VARIANTS);
#ifdef _OPENMP
  info["openmp"] = _OPENMP;
#else
  info["openmp"] = py::none();
#endif
  return info;
}

// Keep freed pages in the process: a fresh tensor of 94 MB costs 28 ms in page faults, a kept one 3.
bool tune_allocator() {
#ifdef __GLIBC__
  return mallopt(M_MMAP_MAX, 0) && mallopt(M_TRIM_THRESHOLD, 2147483647) && mallopt(M_TOP_PAD, 64 << 20);
#else
  return false;
#endif
}

std::vector<uint32_t> philox(uint64_t key, const std::vector<uint32_t>& counter) {
  require(counter.size() == 4, "argument 'counter': wanted 4 words, got " + std::to_string(counter.size()));
  const Philox4 out =
      philox4x32_10(uint32_t(key), uint32_t(key >> 32), counter[0], counter[1], counter[2], counter[3]);
  return {out.w, out.w + 4};
}

}  // namespace

void def_common(py::module_& m) {
  py::register_exception_translator([](std::exception_ptr pending) {
    try {
      if (pending) std::rethrow_exception(pending);
    } catch (const Error& error) {
      const py::object type = py::module_::import("tunecore.errors").attr("NativeError");
      PyErr_SetString(type.ptr(), error.what());
    }
  });
  m.def("build_info", &build_info, "Compiler, version, variants compiled and OpenMP date of this build.");
  m.def("capability", [] { return name_of(capability()); }, "The instruction set in use.");
  m.def("detected_capability", [] { return name_of(detected_capability()); }, "The best one of this machine.");
  m.def("set_capability", &set_capability, py::arg("name"), "Use another instruction set; '' is the detected one.");
  m.def("tune_allocator", &tune_allocator, "Let glibc keep freed memory; False where there is no glibc.");
  m.def("philox", &philox, py::arg("key"), py::arg("counter"), "The four words of Philox4x32-10.");
}

}  // namespace tunecore
