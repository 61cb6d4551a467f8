// The product of one row and an int8 weight, in AVX-512 VNNI instructions; one_row.py has its definition in torch.
#ifndef NEURON_SUM_ROW_KERNEL
#define NEURON_SUM_ROW_KERNEL

#include <immintrin.h>

#include <cstdint>

namespace neuron_sum {

// dpbusd multiplies unsigned with signed values: a weight w is read as w + 128, and 128 times the row subtracted.
template <int64_t outputs, int64_t width, int64_t block>
void multiply_row(const int8_t* row, const float* scales, const int8_t* weight, float* result) {
  static_assert(block == 64, "a block is a register of int8 values");
  constexpr int64_t blocks = (width + block - 1) / block;
  constexpr __mmask64 all = ~0ull, rest = all >> (blocks * block - width);
  const __m512i flip = _mm512_set1_epi8(-128);
  const auto add = [&](__m512 sums, __m512i weights, int64_t at) {
    const auto values = _mm512_loadu_si512(row + at * block);
    const auto products = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), weights, values));
    return _mm512_fmadd_ps(products, _mm512_set1_ps(scales[at]), sums);
  };
  __m512 offset = _mm512_setzero_ps();
  for (int64_t at = 0; at < blocks; at++) offset = add(offset, flip, at);
#pragma omp parallel for
  for (int64_t output = 0; output < outputs; output++) {
    __m512 sums = _mm512_setzero_ps();
    for (int64_t at = 0; at < blocks; at++) {
      const auto mask = at + 1 < blocks ? all : rest;
      const auto weights = _mm512_maskz_loadu_epi8(mask, weight + output * width + at * block);
      sums = add(sums, _mm512_xor_si512(weights, flip), at);
    }
    result[output] = _mm512_reduce_add_ps(_mm512_sub_ps(sums, offset));
  }
}

}  // namespace neuron_sum

#endif
