// Fragment layouts, index-coded: every element of a tile has a value of its own, so a wrong place shows.
#include "../../common/cuda/entry.h"
#include "../../common/cuda/numbers.h"
#include "../../common/cuda/probe.h"
#include "machine.h"

using namespace tunecore;
using namespace tunecore::cuda;
using tests::Buffer;

namespace {

// The element of a register that the PTX ISA manual gives to (row, column) of A: "(groupID, threadID * 2 + (i & 1))" and
// so on, written here from the tile's side: which lane, register and half holds it.
struct Place {
  int lane, reg, half;
};
Place place_in_a(int row, int column) { return {row % 8 * 4 + column % 8 / 2, row / 8 + column / 8 * 2, column % 2}; }
Place place_in_b(int row, int column) { return {column * 4 + row % 8 / 2, row / 8, row % 2}; }
Place place_in_d(int row, int column) { return {row % 8 * 4 + column / 2, row / 8 * 2 + column % 2, 0}; }

void put(std::vector<uint32_t>& registers, int count, Place at, uint16_t bits) {
  registers[size_t(at.lane * count + at.reg)] |= uint32_t(bits) << 16 * at.half;
}

// Products of A, all elements different, with columns of the identity pick out each element of A; and the other way.
// Returns how many elements of D are wrong where register i of A is given as register order[i].
template <class T>
int wrong_products(bool pick_from_a, int shift, const int (&order)[4]) {
  std::vector<uint32_t> a(32 * 4), b(32 * 2);
  const auto value_a = [&](int m, int k) { return pick_from_a ? float(16 * m + k) : float(m == k + shift); };
  const auto value_b = [&](int k, int n) { return pick_from_a ? float(k == n + shift) : float(8 * k + n); };
  for (int m = 0; m < 16; ++m)
    for (int k = 0; k < 16; ++k) put(a, 4, place_in_a(m, k), from_float<T>(value_a(m, k)).bits);
  for (int k = 0; k < 16; ++k)
    for (int n = 0; n < 8; ++n) put(b, 2, place_in_b(k, n), from_float<T>(value_b(k, n)).bits);
  std::vector<uint32_t> given(a.size());
  for (size_t i = 0; i < a.size(); ++i) given[i] = a[i / 4 * 4 + size_t(order[i % 4])];
  auto a_L4 = Buffer<uint32_t>::input("a", given), b_L2 = Buffer<uint32_t>::input("b", b);
  auto d_L4 = Buffer<float>::in_place("d", std::vector<float>(32 * 4, 0.5f));
  const DType dtype = std::is_same_v<T, bf16> ? DType::bf16 : DType::f16;
  const MmaProbe p{a_L4.data(), b_L2.data(), d_L4.data(), 0, int32_t(dtype)};
  CHECK(tests::ran(tunecore_cuda_probe_mma, p));
  int wrong = 0;
  for (int m = 0; m < 16; ++m)
    for (int n = 0; n < 8; ++n) {
      float wanted = 0.5f;
      for (int k = 0; k < 16; ++k) wanted += value_a(m, k) * value_b(k, n);
      const Place at = place_in_d(m, n);
      wrong += d_L4[size_t(at.lane * 4 + at.reg)] != wanted;
    }
  return wrong;
}

void check_ldmatrix(int tiles, bool transposed) {
  std::vector<uint16_t> rows(32 * 8);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = uint16_t(i);
  auto rows_L8 = Buffer<uint16_t>::input("rows", rows);
  auto r_LN = Buffer<uint32_t>::output("r", size_t(32 * tiles));
  const LdmatrixProbe p{rows_L8.data(), r_LN.data(), 0, tiles, transposed};
  CHECK(tests::ran(tunecore_cuda_probe_ldmatrix, p));
  CHECK(r_LN.unwritten() == -1);
  for (int tile = 0; tile < tiles; ++tile)
    for (int row = 0; row < 8; ++row)
      for (int column = 0; column < 8; ++column) {
        const int r = transposed ? column : row, c = transposed ? row : column;
        const uint32_t pair = r_LN[size_t((r * 4 + c / 2) * tiles + tile)];
        CHECK(int(pair >> 16 * (c % 2) & 0xFFFFu) == 64 * tile + 8 * row + column);
      }
}

}  // namespace

TEST(mma_has_the_layout_of_the_manual) {
  tests::in_every_order([] {
    for (const int shift : {0, 8})
      for (const bool pick_from_a : {true, false}) {
        CHECK(wrong_products<bf16>(pick_from_a, shift, {0, 1, 2, 3}) == 0);
        CHECK(wrong_products<f16>(pick_from_a, shift, {0, 1, 2, 3}) == 0);
      }
  });
}

TEST(a_wrong_fragment_shows_in_every_order) {
  tests::in_every_order([] {
    CHECK(wrong_products<bf16>(true, 0, {0, 2, 1, 3}) > 0);
    CHECK(wrong_products<bf16>(true, 8, {0, 1, 3, 2}) > 0);
    CHECK(wrong_products<f16>(true, 0, {2, 3, 0, 1}) > 0);
  });
}

TEST(ldmatrix_has_the_layout_of_the_manual) {
  tests::in_every_order_and_copy([] {
    for (const int tiles : {1, 2, 4}) check_ldmatrix(tiles, false), check_ldmatrix(tiles, true);
  });
  const LdmatrixProbe three{nullptr, nullptr, 0, 3, 0};
  CHECK(tests::has(tests::failure_of(tunecore_cuda_probe_ldmatrix, three), "tiles must be 1, 2 or 4"));
}

TEST(half_precision_conversions_round_to_nearest_even) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {  // there and back is the identity, NaN apart
    const float from_f16 = to_float(f16{uint16_t(bits)}), from_bf16 = to_float(bf16{uint16_t(bits)});
    CHECK(std::isnan(from_f16) || from_float<f16>(from_f16).bits == bits);
    CHECK(std::isnan(from_bf16) || from_float<bf16>(from_bf16).bits == bits);
  }
  for (uint32_t bits = 0; bits < 0x7BFF; ++bits) {  // halfway between neighbours goes to the even one, beside it to the nearer
    const double low = to_float(f16{uint16_t(bits)}), high = to_float(f16{uint16_t(bits + 1)});
    const float middle = float((low + high) / 2);
    CHECK(from_float<f16>(middle).bits == bits + (bits & 1));
    CHECK(from_float<f16>(std::nextafterf(middle, 0.0f)).bits == bits);
    CHECK(from_float<f16>(std::nextafterf(middle, 1e9f)).bits == bits + 1);
  }
  CHECK(from_float<f16>(65519.0f).bits == 0x7BFF && from_float<f16>(65520.0f).bits == 0x7C00);
  CHECK(from_float<f16>(-1e9f).bits == 0xFC00);
  CHECK(from_float<bf16>(1.0f + 1.0f / 256).bits == 0x3F80 && from_float<bf16>(1.0f + 3.0f / 256).bits == 0x3F82);
  CHECK(std::isnan(to_float(from_float<f16>(NAN))) && std::isnan(to_float(from_float<bf16>(NAN))));
}
