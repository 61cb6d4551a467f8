// Attention in AVX-512 instructions; attention.py has its definition in torch.
#ifndef NEURON_SUM_ATTENTION_KERNEL
#define NEURON_SUM_ATTENTION_KERNEL

#include <ATen/cpu/vec/vec.h>
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <type_traits>

namespace neuron_sum {

constexpr int64_t BLOCK = 16;  // positions whose scores are computed together: the float32 values of a register
constexpr int64_t TILE = 16;   // queries that read keys and values together, while these are in the cache

// Keys and values (batch, heads, length, width), and their bias (batch, heads, bias_rows, length) with the distance of
// its examples and heads in floats, 0 for a broadcast dimension.
template <typename Type>
struct Memory {
  const Type* keys;
  const Type* values;
  const float* bias;
  int64_t length, bias_rows, bias_of_example, bias_of_head;
};

inline __m512 load(const float* from) { return _mm512_loadu_ps(from); }

inline __m512 load(const at::BFloat16* from) {
  const auto bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

// The sums of keys and values. Factor is the type of a query's and a weight's values.
template <typename Type, int64_t width>
struct Rows {
  using Factor = float;
  static constexpr int64_t registers = width / 16, step = 1;

  static void convert(__m512 from, float* to) { _mm512_storeu_ps(to, from); }

  static __m512 product(const float* query, const Type* key) {
    __m512 sum = _mm512_mul_ps(load(query), load(key));
    for (int64_t at = 16; at < width; at += 16) sum = _mm512_fmadd_ps(load(query + at), load(key + at), sum);
    return sum;
  }

  struct Values {
    __m512 parts[registers];

    Values(const Type* row, const Type*) {
      for (int64_t i = 0; i < registers; i++) parts[i] = load(row + 16 * i);
    }

    void add(const float* weight, __m512 (&sums)[registers]) const {
      const __m512 factor = _mm512_set1_ps(*weight);
      for (int64_t i = 0; i < registers; i++) sums[i] = _mm512_fmadd_ps(factor, parts[i], sums[i]);
    }
  };

  static void store(const __m512 (&sums)[registers], __m512 scale, float* to) {
    for (int64_t i = 0; i < registers; i++) _mm512_storeu_ps(to + 16 * i, _mm512_mul_ps(sums[i], scale));
  }
};

#ifdef __AVX512BF16__
// An instruction multiplies pairs of values: two of a key, or those of two positions in one column.
template <int64_t width>
struct Rows<at::BFloat16, width> {
  using Factor = at::BFloat16;
  static constexpr int64_t registers = width / 16, step = 2;

  static __m512bh pairs(const at::BFloat16* from) { return (__m512bh)_mm512_loadu_si512(from); }

  static void convert(__m512 from, at::BFloat16* to) {
    _mm256_storeu_si256((__m256i*)to, (__m256i)_mm512_cvtneps_pbh(from));
  }

  static __m512 product(const at::BFloat16* query, const at::BFloat16* key) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t at = 0; at < width; at += 32) sum = _mm512_dpbf16_ps(sum, pairs(query + at), pairs(key + at));
    return sum;
  }

  struct Values {
    __m512bh parts[registers];

    Values(const at::BFloat16* row, const at::BFloat16* next) {
      for (int64_t i = 0; i < registers; i += 2) {
        const auto first = _mm512_loadu_si512(row + 16 * i), second = _mm512_loadu_si512(next + 16 * i);
        parts[i] = (__m512bh)_mm512_unpacklo_epi16(first, second);
        parts[i + 1] = (__m512bh)_mm512_unpackhi_epi16(first, second);
      }
    }

    void add(const at::BFloat16* weight, __m512 (&sums)[registers]) const {
      int32_t both;
      std::memcpy(&both, weight, sizeof both);
      const auto factors = (__m512bh)_mm512_set1_epi32(both);
      for (int64_t i = 0; i < registers; i++) sums[i] = _mm512_dpbf16_ps(sums[i], factors, parts[i]);
    }
  };

  // The two registers of 32 columns have columns 0-3, 8-11, ... and 4-7, 12-15, ...
  static void store(const __m512 (&sums)[registers], __m512 scale, float* to) {
    const auto lower = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const auto upper = _mm512_add_epi32(lower, _mm512_set1_epi32(8));
    for (int64_t i = 0; i < registers; i += 2) {
      const auto first = _mm512_permutex2var_ps(sums[i], lower, sums[i + 1]);
      const auto second = _mm512_permutex2var_ps(sums[i], upper, sums[i + 1]);
      _mm512_storeu_ps(to + 16 * i, _mm512_mul_ps(first, scale));
      _mm512_storeu_ps(to + 16 * i + 16, _mm512_mul_ps(second, scale));
    }
  }
};
#endif

// The attention of up to TILE queries, from `first` on, of one head of one example.
template <typename Type, int64_t width, size_t count>
void attend_tile(
    const float* query, const Memory<Type> (&memories)[count], int64_t example, int64_t head, int64_t heads,
    int64_t first, int64_t queries, float unread, float* result) {
  using Row = Rows<Type, width>;
  using Factor = typename Row::Factor;
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const int64_t pair = example * heads + head;
  int64_t blocks = 0;
  for (const auto& memory : memories) blocks += (memory.length + BLOCK - 1) / BLOCK;
  const int64_t padded = blocks * BLOCK;
  const std::unique_ptr<Factor[]> factors(new Factor[queries * std::max(width, padded)]);
  const std::unique_ptr<float[]> weights(new float[queries * padded]);
  const std::unique_ptr<bool[]> is_read(new bool[blocks]);
  const __m512 unread_bias = _mm512_set1_ps(unread);

  for (int64_t at = 0; at < queries * width; at += 16) Row::convert(_mm512_loadu_ps(query + at), factors.get() + at);
  int64_t block = 0;
  for (const auto& memory : memories) {
    const Type* keys = memory.keys + pair * memory.length * width;
    const float* bias = memory.bias + example * memory.bias_of_example + head * memory.bias_of_head;
    for (int64_t at = 0; at < memory.length; at += BLOCK, block++) {
      const __mmask16 inside = (1u << std::min(BLOCK, memory.length - at)) - 1;
      const auto biases = [&](int64_t i) {
        const float* row = bias + (first + i) % memory.bias_rows * memory.length;
        return _mm512_mask_loadu_ps(_mm512_set1_ps(-infinity), inside, row + at);
      };
      is_read[block] = false;
      for (int64_t i = 0; i < std::min(queries, memory.bias_rows); i++)
        is_read[block] |= _mm512_cmp_ps_mask(biases(i), unread_bias, _CMP_GT_OQ) != 0;
      if (!is_read[block]) continue;
      for (int64_t i = 0; i < queries; i++) {
        __m512 products[BLOCK];
#pragma GCC unroll 16
        for (int64_t row = 0; row < BLOCK; row++)
          products[row] =
              Row::product(factors.get() + i * width, keys + std::min(at + row, memory.length - 1) * width);
        const __m512 added = biases(i);
        const auto kept = _mm512_cmp_ps_mask(added, unread_bias, _CMP_GT_OQ);
        const auto scores = _mm512_mask_add_ps(_mm512_set1_ps(-infinity), kept, sums_of(products), added);
        _mm512_storeu_ps(weights.get() + i * padded + block * BLOCK, scores);
      }
    }
  }

  float scales[TILE];
  for (int64_t i = 0; i < queries; i++) {
    float* row = weights.get() + i * padded;
    __m512 highest = unread_bias, sum = _mm512_setzero_ps();
    for (int64_t at = 0; at < padded; at += BLOCK)
      if (is_read[at / BLOCK]) highest = _mm512_max_ps(highest, _mm512_loadu_ps(row + at));
    const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(highest));
    for (int64_t at = 0; at < padded; at += BLOCK) {
      if (!is_read[at / BLOCK]) continue;
      const __m512 weight = at::vec::Vectorized<float>(_mm512_sub_ps(_mm512_loadu_ps(row + at), top)).exp_u20();
      sum = _mm512_add_ps(sum, weight);
      Row::convert(weight, factors.get() + i * padded + at);
    }
    scales[i] = 1.0f / std::max(_mm512_reduce_add_ps(sum), std::numeric_limits<float>::min());
  }

  const auto mix = [&](auto number, int64_t start) {
    constexpr int64_t rows = decltype(number)::value;
    __m512 sums[rows][Row::registers];
    for (auto& each : sums)
      for (auto& part : each) part = _mm512_setzero_ps();
    int64_t block = 0;
    for (const auto& memory : memories) {
      const Type* values = memory.values + pair * memory.length * width;
      for (int64_t from = 0; from < memory.length; from += BLOCK, block++) {
        if (!is_read[block]) continue;
        for (int64_t at = from; at < std::min(from + BLOCK, memory.length); at += Row::step) {
          const typename Row::Values read(values + at * width, values + std::min(at + 1, memory.length - 1) * width);
          for (int64_t i = 0; i < rows; i++)
            read.add(factors.get() + (start + i) * padded + block * BLOCK + at - from, sums[i]);
        }
      }
    }
    for (int64_t i = 0; i < rows; i++)
      Row::store(sums[i], _mm512_set1_ps(scales[start + i]), result + (start + i) * width);
  };
  // Queries that share each value that is read; their sums stay in registers.
  constexpr int64_t together = std::min<int64_t>(4, std::max<int64_t>(1, 16 / Row::registers));
  for (int64_t start = 0; start < queries; start += together) {
    switch (std::min(together, queries - start)) {
      case 4: mix(std::integral_constant<int64_t, 4>(), start); break;
      case 3: mix(std::integral_constant<int64_t, 3>(), start); break;
      case 2: mix(std::integral_constant<int64_t, 2>(), start); break;
      default: mix(std::integral_constant<int64_t, 1>(), start);
    }
  }
}

template <typename Type, int64_t width, size_t count>
void attend(
    const float* query, const Memory<Type> (&memories)[count], int64_t batch, int64_t heads, int64_t queries,
    float unread, float* result) {
  const int64_t tiles = (queries + TILE - 1) / TILE;
#pragma omp parallel for
  for (int64_t task = 0; task < batch * heads * tiles; task++) {
    const int64_t pair = task / tiles, first = task % tiles * TILE, offset = (pair * queries + first) * width;
    attend_tile<Type, width>(
        query + offset, memories, pair / heads, pair % heads, heads, first, std::min(TILE, queries - first), unread,
        result + offset);
  }
}

}  // namespace neuron_sum

#endif
