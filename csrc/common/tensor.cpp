#include "tensor.h"

#include <sstream>

namespace tunecore {
namespace {

DType dtype_from(const dlpack::DataType& t, const char* name) {
  if (t.lanes == 1) {
    if (t.code == dlpack::kFloat && t.bits == 32) return DType::f32;
    if (t.code == dlpack::kFloat && t.bits == 64) return DType::f64;
    if (t.code == dlpack::kFloat && t.bits == 16) return DType::f16;
    if (t.code == dlpack::kBfloat && t.bits == 16) return DType::bf16;
    if (t.code == dlpack::kInt && t.bits == 32) return DType::i32;
    if (t.code == dlpack::kInt && t.bits == 64) return DType::i64;
    if (t.code == dlpack::kBool && t.bits == 8) return DType::boolean;
  }
  std::ostringstream out;
  out << "argument '" << name << "': element type not supported (DLPack code " << int(t.code) << ", " << int(t.bits)
      << " bits, " << t.lanes << " lanes)";
  throw Error(out.str());
}

size_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
    case DType::i64:
      return 8;
    case DType::f32:
    case DType::i32:
      return 4;
    case DType::f16:
    case DType::bf16:
      return 2;
    case DType::boolean:
      return 1;
  }
  return 0;
}

void join(std::ostringstream& out, const int64_t* values, int n) {
  for (int i = 0; i < n; ++i) out << (i ? ", " : "") << values[i];
}

}  // namespace

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return "float32";
    case DType::f64:
      return "float64";
    case DType::f16:
      return "float16";
    case DType::bf16:
      return "bfloat16";
    case DType::i32:
      return "int32";
    case DType::i64:
      return "int64";
    case DType::boolean:
      return "bool";
  }
  return "?";
}

TensorView TensorView::from_dlpack(const dlpack::Tensor& t, const char* name) {
  TensorView view;
  view.name_ = name;
  require(t.ndim >= 0 && t.ndim <= kMaxDims,
          std::string("argument '") + name + "': " + std::to_string(t.ndim) + " dimensions, at most 8 are supported");
  view.dtype_ = dtype_from(t.dtype, name);
  view.ndim_ = t.ndim;
  view.device_type_ = t.device.device_type;
  int64_t compact = 1;
  for (int d = t.ndim - 1; d >= 0; --d) {
    view.shape_[d] = t.shape[d];
    view.strides_[d] = t.strides ? t.strides[d] : compact;
    compact *= t.shape[d];
  }
  if (t.data) view.data_ = static_cast<char*>(t.data) + t.byte_offset;
  if (!view.data_ && view.numel() > 0) view.refuse("data in memory, not a fake or meta tensor");
  return view;
}

int64_t TensorView::numel() const {
  int64_t n = 1;
  for (int d = 0; d < ndim_; ++d) n *= shape_[d];
  return n;
}

std::string TensorView::describe() const {
  std::ostringstream out;
  out << name_of(dtype_) << "[";
  join(out, shape_, ndim_);
  out << "] strides (";
  join(out, strides_, ndim_);
  out << ")";
  if (device_type_ != dlpack::kCPU) out << " on DLPack device " << device_type_;
  if (!data_) out << " without data";
  return out.str();
}

void TensorView::refuse(const std::string& wanted) const {
  throw Error(std::string("argument '") + name_ + "': wanted " + wanted + ", got " + describe());
}

void TensorView::require_element(size_t size) const {
  if (size_of(dtype_) != size) refuse("elements of " + std::to_string(size) + " bytes");
}

const TensorView& TensorView::dtype(std::initializer_list<DType> wanted) const {
  std::string names;
  for (DType d : wanted) {
    if (d == dtype_) return *this;
    names += (names.empty() ? "" : " or ") + std::string(name_of(d));
  }
  refuse(names);
}

const TensorView& TensorView::dims(int wanted) const {
  if (ndim_ != wanted) refuse(std::to_string(wanted) + " dimensions");
  return *this;
}

const TensorView& TensorView::shape(std::initializer_list<int64_t> wanted) const {
  bool ok = static_cast<int>(wanted.size()) == ndim_;
  std::ostringstream out;
  out << "shape [";
  int d = 0;
  for (int64_t w : wanted) {
    ok = ok && (w == kAny || w == shape_[d]);
    out << (d ? ", " : "");
    w == kAny ? out << "*" : out << w;
    ++d;
  }
  if (!ok) refuse(out.str() + "]");
  return *this;
}

const TensorView& TensorView::contiguous() const {
  int64_t compact = 1;
  for (int d = ndim_ - 1; d >= 0; --d) {
    if (shape_[d] > 1 && strides_[d] != compact && numel() > 0) refuse("a contiguous tensor");
    compact *= shape_[d];
  }
  return *this;
}

const TensorView& TensorView::last_stride_one() const {
  if (ndim_ > 0 && shape_[ndim_ - 1] > 1 && strides_[ndim_ - 1] != 1) refuse("a last stride of 1");
  return *this;
}

const TensorView& TensorView::rows_or_columns_in_one_piece() const {
  if (strides_[0] != 1 && strides_[1] != 1 && numel() != 0) refuse("rows or columns that lie in one piece");
  return *this;
}

const TensorView& TensorView::on_cpu() const {
  if (device_type_ != dlpack::kCPU) refuse("a CPU tensor");
  return *this;
}

}  // namespace tunecore
