// Sums in the registers of AVX-512.
#ifndef NEURON_SUM_REGISTERS
#define NEURON_SUM_REGISTERS

#include <immintrin.h>

namespace neuron_sum {

// The sum of each of 16 registers.
inline __m512 sums_of(__m512 (&rows)[16]) {
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++) {
    const auto first = rows[2 * i], second = rows[2 * i + 1];
    rows[i] = _mm512_add_ps(_mm512_unpacklo_ps(first, second), _mm512_unpackhi_ps(first, second));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const auto first = _mm512_castps_pd(rows[2 * i]), second = _mm512_castps_pd(rows[2 * i + 1]);
    rows[i] = _mm512_add_ps(
        _mm512_castpd_ps(_mm512_unpacklo_pd(first, second)), _mm512_castpd_ps(_mm512_unpackhi_pd(first, second)));
  }
  const auto halves = [](__m512 first, __m512 second) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(first, second, 0x88), _mm512_shuffle_f32x4(first, second, 0xdd));
  };
  return halves(halves(rows[0], rows[1]), halves(rows[2], rows[3]));
}

}  // namespace neuron_sum

#endif
