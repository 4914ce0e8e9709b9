// Elementary functions on a Vec, accurate to float. Included after vec.h.

namespace sbrrt::SBRRT_ISA {

// e^x within 1.5 ulp for -87.33 <= x <= 88.37; 0 below, so e^-inf = 0; inf above; NaN stays.
// x = n log 2 + r with log 2 in two parts (Cody and Waite), |r| <= log(2) / 2; the polynomial is a
// minimax fit of (e^r - 1 - r) / r^2, relative error of e^r 3e-9.
inline Vec vec_exp(Vec x) {
  const Vec smallest = vec_set(-87.33f), largest = vec_set(88.37f);
  const Vec inside = vec_max(smallest, vec_min(largest, x));  // of a NaN: the second, x
  const Vec n = vec_round(inside * vec_set(1.44269504f));
  Vec r = vec_fma(n, vec_set(-0.693145752f), inside);
  r = vec_fma(n, vec_set(-1.42860677e-6f), r);
  Vec q = vec_set(1.381453592e-3f);
  q = vec_fma(q, r, vec_set(8.368745446e-3f));
  q = vec_fma(q, r, vec_set(4.166839272e-2f));
  q = vec_fma(q, r, vec_set(1.666652113e-1f));
  q = vec_fma(q, r, vec_set(4.999999404e-1f));
  const Vec y = vec_scale_by_power(vec_fma(q * r, r, r) + vec_set(1.0f), n);
  const Vec above = vec_where_less(largest, x, vec_set(std::numeric_limits<float>::infinity()), y);
  return vec_where_less(x, smallest, vec_set(0.0f), above);
}

}  // namespace sbrrt::SBRRT_ISA
