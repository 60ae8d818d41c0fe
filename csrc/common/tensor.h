// TensorView: a borrowed tensor and the checks on it. Every error names the argument, what was wanted and what was got.
//
//   auto q = TensorView::from_capsule(capsule, "q").dtype({DType::f32, DType::bf16}).dims(3).last_stride_one();
//
// A view owns nothing: it is valid while the capsule (an argument of the bound function) lives.
#pragma once
#include <cstdint>
#include <initializer_list>
#include <string>

#include "dlpack.h"
#include "error.h"

namespace tunecore {

enum class DType : uint8_t { f32, f64, f16, bf16, i32, i64, boolean };

const char* name_of(DType dtype);

class TensorView {
 public:
  static constexpr int kMaxDims = 8;
  static constexpr int64_t kAny = -1;

  // Borrow a tensor from DLPack structures. NULL data with elements is refused: a fake tensor exports one.
  static TensorView from_dlpack(const dlpack::Tensor& tensor, const char* name);

  const TensorView& dtype(std::initializer_list<DType> wanted) const;
  const TensorView& dims(int wanted) const;
  const TensorView& shape(std::initializer_list<int64_t> wanted) const;  // kAny: whatever it is
  const TensorView& contiguous() const;
  const TensorView& last_stride_one() const;
  const TensorView& rows_or_columns_in_one_piece() const;  // of two dimensions
  const TensorView& on_cpu() const;

  DType dtype() const { return dtype_; }
  int ndim() const { return ndim_; }
  int64_t size(int dim) const { return shape_[dim]; }
  int64_t stride(int dim) const { return strides_[dim]; }
  int64_t numel() const;
  const char* name() const { return name_; }
  std::string describe() const;  // "float32[3, 4] strides (4, 1)"

  void* raw() const { return data_; }

  // The data as T; the element type is checked, bf16 is read as uint16_t.
  template <class T>
  T* data() const {
    require_element(sizeof(T));
    return static_cast<T*>(data_);
  }

 private:
  [[noreturn]] void refuse(const std::string& wanted) const;
  void require_element(size_t size) const;

  void* data_ = nullptr;
  const char* name_ = "";
  DType dtype_ = DType::f32;
  int ndim_ = 0;
  int32_t device_type_ = dlpack::kCPU;
  int64_t shape_[kMaxDims] = {};
  int64_t strides_[kMaxDims] = {};
};

}  // namespace tunecore
