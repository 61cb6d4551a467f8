// The products of a few rows and a weight in AVX-512 instructions; few_rows.py has their definition in torch.
#ifndef NEURON_SUM_FEW_ROWS_KERNEL
#define NEURON_SUM_FEW_ROWS_KERNEL

#include <ATen/cpu/vec/vec.h>
#include <c10/util/bit_cast.h>
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>

namespace neuron_sum {

constexpr int64_t TOGETHER = 8;  // rows whose sums stay in registers while an output's weights are read
constexpr int64_t OUTPUTS = 16;  // outputs of a thread's turn

inline __m512 floats(__m512 values) { return values; }

inline __m512 floats(__m512i values) { return _mm512_cvtepi32_ps(values); }

// A row, prepared for products with a type of weights: blocks of values with one scale each, `step` values per
// instruction, padded with zeros to a multiple of them.
template <typename Type, int64_t width, int64_t block>
struct Factors;

#ifdef __AVX512BF16__
template <int64_t width, int64_t block>
struct Factors<at::BFloat16, width, block> {
  using Sum = __m512;
  static constexpr int64_t step = 32, padded = (width + step - 1) / step * step;

  alignas(64) at::BFloat16 values[padded];

  explicit Factors(const float* row) {
    for (int64_t at = 0; at < padded; at += 16) {
      const __mmask16 inside = (1u << std::clamp<int64_t>(width - at, 0, 16)) - 1;
      _mm256_store_si256((__m256i*)(values + at), (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(inside, row + at)));
    }
  }

  static __m512i read(const at::BFloat16* weights, int64_t left) {
    const bool is_whole = width % step == 0 || left >= step;
    return is_whole ? _mm512_loadu_si512(weights) : _mm512_maskz_loadu_epi16((1u << left) - 1, weights);
  }

  Sum start(int64_t) const { return _mm512_setzero_ps(); }

  void add(Sum& sum, __m512i weights, int64_t at) const {
    sum = _mm512_dpbf16_ps(sum, (__m512bh)weights, (__m512bh)_mm512_load_si512(values + at));
  }

  float scale(int64_t) const { return 1; }
};
#endif

#ifdef __AVX512VNNI__
// dpbusd multiplies unsigned with signed values: a weight w is read as w + 128, and 128 times the row subtracted.
template <int64_t width, int64_t block>
struct Factors<int8_t, width, block> {
  using Sum = __m512i;
  static constexpr int64_t step = 64, padded = (width + step - 1) / step * step;
  static constexpr int64_t blocks = (width + block - 1) / block;

  alignas(64) int8_t values[padded];
  __m512i starts[blocks];
  float scales[blocks];

  explicit Factors(const float* row) {
    const auto part = [&](int64_t at) {
      return _mm512_maskz_loadu_ps((1u << std::clamp<int64_t>(width - at, 0, 16)) - 1, row + at);
    };
    for (int64_t i = 0; i < blocks; i++) {
      const int64_t end = i + 1 < blocks ? (i + 1) * block : padded;
      // As integers, of which those of NaN are the largest, so that it is not lost.
      __m512i largest = _mm512_castps_si512(_mm512_set1_ps(1e-8f));
      for (int64_t at = i * block; at < end; at += 16)
        largest = _mm512_max_epi32(largest, _mm512_castps_si512(_mm512_abs_ps(part(at))));
      const float most = c10::bit_cast<float>(_mm512_reduce_max_epi32(largest));
      const __m512 factor = _mm512_set1_ps(127 / most);
      for (int64_t at = i * block; at < end; at += 16) {
        const auto rounded = _mm512_cvtps_epi32(_mm512_mul_ps(part(at), factor));
        _mm_store_si128((__m128i*)(values + at), _mm512_cvtepi32_epi8(rounded));
      }
      __m512i sum = _mm512_setzero_si512();
      for (int64_t at = i * block; at < end; at += step)
        sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(-128), _mm512_load_si512(values + at));
      starts[i] = _mm512_sub_epi32(_mm512_setzero_si512(), sum);
      scales[i] = most / 127;
    }
  }

  static __m512i read(const int8_t* weights, int64_t left) {
    const bool is_whole = width % step == 0 || left >= step;
    const auto read = is_whole ? _mm512_loadu_si512(weights) : _mm512_maskz_loadu_epi8((1ull << left) - 1, weights);
    return _mm512_xor_si512(read, _mm512_set1_epi8(-128));
  }

  Sum start(int64_t i) const { return starts[i]; }

  void add(Sum& sum, __m512i weights, int64_t at) const {
    sum = _mm512_dpbusd_epi32(sum, weights, _mm512_load_si512(values + at));
  }

  float scale(int64_t i) const { return scales[i]; }
};
#endif

// The products of up to TOGETHER rows with up to OUTPUTS outputs, whose weights are in the cache after the first call.
template <typename Type, int64_t rows, int64_t width, int64_t block>
void multiply_turn(
    const Factors<Type, width, block>* factors, const Type* weight, int64_t count, int64_t outputs, float* result) {
  using Row = Factors<Type, width, block>;
  constexpr bool is_one_block = block >= width;
  constexpr int64_t together = 16 / rows;
  alignas(64) float scales[16] = {}, stored[16];
  for (int64_t i = 0; i < together * rows; i++) scales[i] = is_one_block ? factors[i % rows].scale(0) : 1;
  for (int64_t first = 0; first < count; first += together) {
    __m512 sums[16];
#pragma GCC unroll 16
    for (auto& sum : sums) sum = _mm512_setzero_ps();
#pragma GCC unroll 16
    for (int64_t output = 0; output < together; output++) {
      const Type* read = weight + std::min(first + output, count - 1) * width;
      for (int64_t from = 0; from < width; from += block) {
        typename Row::Sum parts[rows];
#pragma GCC unroll 8
        for (int64_t row = 0; row < rows; row++) parts[row] = factors[row].start(from / block);
        for (int64_t at = from; at < std::min(from + block, width); at += Row::step) {
          if (rows > 1) _mm_prefetch(read + width + at, _MM_HINT_T0);
          const __m512i weights = Row::read(read + at, width - at);
#pragma GCC unroll 8
          for (int64_t row = 0; row < rows; row++) factors[row].add(parts[row], weights, at);
        }
#pragma GCC unroll 8
        for (int64_t row = 0; row < rows; row++) {
          auto& sum = sums[output * rows + row];
          const __m512 part = floats(parts[row]);
          sum = is_one_block ? part : _mm512_fmadd_ps(part, _mm512_set1_ps(factors[row].scale(from / block)), sum);
        }
      }
    }
    _mm512_store_ps(stored, _mm512_mul_ps(sums_of(sums), _mm512_load_ps(scales)));
    for (int64_t output = 0; output < std::min(together, count - first); output++)
      for (int64_t row = 0; row < rows; row++) result[row * outputs + first + output] = stored[output * rows + row];
  }
}

template <typename Type, int64_t rows, int64_t width, int64_t block>
void multiply(const float* inputs, const Type* weight, int64_t outputs, float* result) {
  using Row = Factors<Type, width, block>;
  const std::unique_ptr<Row, void (*)(void*)> factors((Row*)std::aligned_alloc(64, rows * sizeof(Row)), std::free);
  if (!factors) throw std::bad_alloc();
  for (int64_t row = 0; row < rows; row++) new (factors.get() + row) Row(inputs + row * width);
#pragma omp parallel for
  for (int64_t first = 0; first < outputs; first += OUTPUTS) {
    const auto turn = [&](auto number, int64_t row) {
      multiply_turn<Type, decltype(number)::value>(
          factors.get() + row, weight + first * width, std::min(OUTPUTS, outputs - first), outputs,
          result + row * outputs + first);
    };
    constexpr int64_t whole = rows / TOGETHER * TOGETHER;
    for (int64_t row = 0; row < whole; row += TOGETHER) turn(std::integral_constant<int64_t, TOGETHER>(), row);
    if constexpr (whole < rows) turn(std::integral_constant<int64_t, rows - whole>(), whole);
  }
}

}  // namespace neuron_sum

#endif
