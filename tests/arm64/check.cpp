// Runs every kernel family of every target built for arm64 against plain loops in double, under an
// emulator. Gradients are compared with central differences of the reference, so that one formula
// per family says what is right.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "dispatch/cpu.h"
#include "dispatch/table.h"

using namespace lanewise;

namespace {

using Values = std::vector<double>;

int passed = 0, failed = 0;
std::mt19937 generator(1);

double epsilon(DType type) {
  return type == DType::f32 ? 0x1p-23 : type == DType::f16 ? 0x1p-10 : 0x1p-7;
}
size_t size_of(DType type) { return type == DType::f32 ? 4 : 2; }
const char* name_of(DType type) {
  return type == DType::f32 ? "float32" : type == DType::f16 ? "float16" : "bfloat16";
}

// An array of a dtype and the exact values it holds.
struct Array {
  DType type;
  size_t size;
  std::vector<unsigned char> bytes;

  Array(DType type, size_t size) : type(type), size(size), bytes(size * size_of(type)) {}

  void set(size_t i, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint16_t top = bits >> 16;  // truncation is good enough for inputs
    const __fp16 half = value;
    if (type == DType::f32) std::memcpy(&bytes[4 * i], &value, 4);
    if (type == DType::bf16) std::memcpy(&bytes[2 * i], &top, 2);
    if (type == DType::f16) std::memcpy(&bytes[2 * i], &half, 2);
  }
  double get(size_t i) const {
    if (type == DType::f32) {
      float value;
      std::memcpy(&value, &bytes[4 * i], 4);
      return value;
    }
    uint16_t bits;
    std::memcpy(&bits, &bytes[2 * i], 2);
    if (type == DType::f16) {
      __fp16 half;
      std::memcpy(&half, &bits, 2);
      return half;
    }
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
  }
  Values values() const {
    Values all(size);
    for (size_t i = 0; i < size; ++i) all[i] = get(i);
    return all;
  }
  void* data() { return bytes.data(); }
  float* floats() { return reinterpret_cast<float*>(bytes.data()); }
};

Array random_array(DType type, size_t size) {
  std::normal_distribution<float> normal;
  Array a(type, size);
  for (size_t i = 0; i < size; ++i) a.set(i, normal(generator));
  return a;
}

// Errors are measured against the largest reference value: `slack` roundings of float32, one of the
// output's dtype, and what the differences of a gradient are good for.
void check(const std::string& what, const Array& got, const Values& wanted, double slack,
           double absolute = 0) {
  double size = 1e-30, worst = 0;
  for (double w : wanted) size = std::max(size, std::fabs(w));
  const double bound = size * (slack * epsilon(DType::f32) + epsilon(got.type)) + absolute;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double error = std::fabs(got.get(i) - wanted[i]);
    if (!(error <= worst)) worst = error;
  }
  const bool good = worst <= bound;
  ++(good ? passed : failed);
  if (!good) std::printf("FAILED %s: error %g, bound %g\n", what.c_str(), worst, bound);
}

// d loss / d x[i] for every i.
Values differences(Values& x, const std::function<double()>& loss) {
  Values gradient(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const double before = x[i], h = 1e-5;
    x[i] = before + h;
    const double up = loss();
    x[i] = before - h;
    gradient[i] = (up - loss()) / (2 * h);
    x[i] = before;
  }
  return gradient;
}
constexpr double kDifferences = 1e-6;  // what central differences with h = 1e-5 leave

double dot(const Values& a, const Values& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}

double activate(Activation f, double x) {
  switch (f) {
    case Activation::none:
      return x;
    case Activation::relu:
      return std::max(x, 0.0);
    case Activation::gelu:
      return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
    case Activation::gelu_tanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::silu:
      return x / (1 + std::exp(-x));
    case Activation::tanh:
      return std::tanh(x);
  }
  return NAN;
}
constexpr Activation kActivations[] = {Activation::none,      Activation::relu, Activation::gelu,
                                       Activation::gelu_tanh, Activation::silu, Activation::tanh};

void check_elementary(const Table& t, DType type, const std::string& name) {
  const struct {
    Function function;
    double (*reference)(double);
  } cases[] = {{Function::identity, [](double x) { return x; }},
               {Function::exp, [](double x) { return std::exp(x); }},
               {Function::exp2, [](double x) { return std::exp2(x); }},
               {Function::tanh, [](double x) { return std::tanh(x); }},
               {Function::erf, [](double x) { return std::erf(x); }}};
  for (const auto& c : cases)
    for (int count : {1, 3, 4, 7, 100}) {
      Array x = random_array(type, count), out(type, count);
      Values wanted = x.values();
      for (double& w : wanted) w = c.reference(w);
      t.elementary({c.function, count, type, x.data(), type, out.data()});
      check(name + " elementary", out, wanted, 2);
    }
}

void check_rope(const Table& t, DType type, const std::string& name) {
  const int64_t heads = 2, seq = 3, dim = 22, half = 9;
  Array x = random_array(type, heads * seq * dim), out(type, x.size);
  Array cos = random_array(DType::f32, seq * half), sin = random_array(DType::f32, seq * half);
  for (bool interleaved : {false, true})
    for (bool inverse : {false, true}) {
      Values wanted = x.values();
      for (int64_t row = 0; row < heads * seq; ++row)
        for (int64_t i = 0; i < half; ++i) {
          const int64_t first = row * dim + (interleaved ? 2 * i : i);
          const int64_t second = first + (interleaved ? 1 : half);
          const double c = cos.get(row % seq * half + i);
          const double s = sin.get(row % seq * half + i) * (inverse ? -1 : 1);
          wanted[first] = x.get(first) * c - x.get(second) * s;
          wanted[second] = x.get(second) * c + x.get(first) * s;
        }
      t.rope({.dtype = type,
              .batch = 1,
              .heads = heads,
              .seq = seq,
              .dim = dim,
              .half = half,
              .interleaved = interleaved,
              .inverse = inverse,
              .x = x.data(),
              .x_batch = 0,
              .x_head = seq * dim,
              .x_seq = dim,
              .cos = cos.floats(),
              .sin = sin.floats(),
              .cos_batch = 0,
              .cos_seq = half,
              .sin_batch = 0,
              .sin_seq = half,
              .out = out.data(),
              .out_batch = 0,
              .out_head = seq * dim,
              .out_seq = dim,
              .threads = 2});
      check(name + " rope", out, wanted, 4);
    }
}

void check_norm(const Table& t, DType type, const std::string& name) {
  const int64_t rows = 3, cols = 37;
  const double eps = 1e-5;
  const Rows layout = {1, rows, 0, 0, cols};
  Array x = random_array(type, rows * cols), residual = random_array(type, rows * cols);
  Array weight = random_array(type, cols), bias = random_array(type, cols);
  Array grad = random_array(type, rows * cols), grad_sum = random_array(type, rows * cols);
  for (bool centred : {false, true}) {
    Values vx = x.values(), vr = residual.values(), vw = weight.values(), vb = bias.values();
    const auto forward = [&](Values* sums) {
      Values y(rows * cols);
      for (int64_t r = 0; r < rows; ++r) {
        double mean = 0, square = 0;
        const auto at = [&](int64_t c) { return vx[r * cols + c] + vr[r * cols + c]; };
        for (int64_t c = 0; c < cols; ++c) mean += centred ? at(c) / cols : 0;
        for (int64_t c = 0; c < cols; ++c) square += (at(c) - mean) * (at(c) - mean) / cols;
        for (int64_t c = 0; c < cols; ++c) {
          y[r * cols + c] =
              (at(c) - mean) / std::sqrt(square + eps) * vw[c] + (centred ? vb[c] : 0);
          if (sums) (*sums)[r * cols + c] = at(c);
        }
      }
      return y;
    };
    Values sums(rows * cols);
    const Values wanted = forward(&sums);
    Array y(type, rows * cols), sum(type, rows * cols);
    t.norm({.dtype = type,
            .centred = centred,
            .rows = rows,
            .cols = cols,
            .eps = static_cast<float>(eps),
            .weight_offset = 0,
            .x = x.data(),
            .x_rows = layout,
            .residual = residual.data(),
            .residual_rows = layout,
            .weight = weight.data(),
            .weight_dtype = type,
            .bias = centred ? bias.data() : nullptr,
            .bias_dtype = type,
            .y = y.data(),
            .sum = sum.data(),
            .threads = 2});
    check(name + " norm", y, wanted, 16);
    check(name + " norm sum", sum, sums, 1);

    const Values g = grad.values(), gs = grad_sum.values();
    const auto loss = [&] {
      Values total(rows * cols);
      const Values out = forward(&total);
      return dot(out, g) + dot(total, gs);
    };
    Array grad_x(type, rows * cols), grad_weight(type, cols), grad_bias(DType::f32, cols);
    std::vector<float> partials(rows * 2 * cols);
    t.norm_backward({.dtype = type,
                     .centred = centred,
                     .rows = rows,
                     .cols = cols,
                     .eps = static_cast<float>(eps),
                     .weight_offset = 0,
                     .grad = grad.data(),
                     .grad_rows = layout,
                     .grad_sum = grad_sum.data(),
                     .grad_sum_rows = layout,
                     .x = x.data(),
                     .x_rows = layout,
                     .residual = residual.data(),
                     .residual_rows = layout,
                     .weight = weight.data(),
                     .weight_dtype = type,
                     .grad_x = grad_x.data(),
                     .grad_weight = grad_weight.data(),
                     .grad_bias = centred ? grad_bias.floats() : nullptr,
                     .partials = partials.data(),
                     .chunks = rows,
                     .threads = 2});
    check(name + " norm grad_x", grad_x, differences(vx, loss), 32, kDifferences);
    check(name + " norm grad_weight", grad_weight, differences(vw, loss), 32, kDifferences);
    if (centred)
      check(name + " norm grad_bias", grad_bias, differences(vb, loss), 32, kDifferences);
  }
}

void check_gemm(const Table& t, DType type, const std::string& name) {
  for (int64_t m : {1, 5, 30})
    for (int64_t n : {3, 33})
      for (int64_t k : {7, 70}) {
        Array a = random_array(type, m * k), b = random_array(type, k * n);
        Array gate = random_array(type, k * n), bias = random_array(type, n);
        Array residual = random_array(type, m * n), out(type, m * n);
        const Values va = a.values(), vb = b.values(), vg = gate.values();
        const auto product = [&](const Values& right, int64_t i, int64_t j) {
          double sum = 0;
          for (int64_t l = 0; l < k; ++l) sum += va[i * k + l] * right[l * n + j];
          return sum;
        };
        const int64_t panels = (n + t.panel_width - 1) / t.panel_width;
        const int64_t depth = type == DType::bf16 ? k + k % 2 : k;  // its panels hold pairs
        Array packed(type, panels * depth * t.panel_width);
        t.pack_panels({.matrix = {b.data(), type, n, 1},
                       .n = n,
                       .k = k,
                       .panels = packed.data(),
                       .threads = 2});
        const RightRef plain = {.matrix = {b.data(), type, n, 1}};
        const RightRef panel = {.matrix = {packed.data(), type, 0, 0}, .packed = true};
        for (Activation f : kActivations)
          for (const RightRef& right : {plain, panel}) {
            Values wanted(m * n);
            for (int64_t i = 0; i < m; ++i)
              for (int64_t j = 0; j < n; ++j)
                wanted[i * n + j] =
                    activate(f, product(vb, i, j) + bias.get(j)) + residual.get(i * n + j);
            t.gemm({.m = m,
                    .n = n,
                    .k = k,
                    .a = {a.data(), type, k, 1},
                    .b = right,
                    .bias = {bias.data(), type},
                    .activation = f,
                    .residual = {residual.data(), type, n, 1},
                    .out = out.data(),
                    .out_dtype = type,
                    .out_stride = n,
                    .threads = 2});
            check(name + " gemm", out, wanted, 4 * std::sqrt(k) + 8);
          }
        Values wanted(m * n);
        for (int64_t i = 0; i < m; ++i)
          for (int64_t j = 0; j < n; ++j)
            wanted[i * n + j] = activate(Activation::silu, product(vg, i, j)) * product(vb, i, j);
        t.gemm({.m = m,
                .n = n,
                .k = k,
                .a = {a.data(), type, k, 1},
                .b = plain,
                .gated = true,
                .gate = {.matrix = {gate.data(), type, n, 1}},
                .activation = Activation::silu,
                .out = out.data(),
                .out_dtype = type,
                .out_stride = n,
                .threads = 2});
        check(name + " gemm gated", out, wanted, 8 * std::sqrt(k) + 8);

        Array total(type, k);
        Values sums(k);
        for (int64_t i = 0; i < m * k; ++i) sums[i % k] += va[i];
        t.column_sum({.a = a.data(),
                      .dtype = type,
                      .rows = m,
                      .cols = k,
                      .row_stride = k,
                      .out = total.data(),
                      .out_dtype = type,
                      .threads = 2});
        check(name + " column_sum", total, sums, m);
      }
}

void check_activation(const Table& t, DType type, const std::string& name) {
  const int64_t rows = 2, cols = 19;
  for (Activation f : kActivations) {
    Array z = random_array(DType::f32, rows * cols), up = random_array(DType::f32, rows * cols);
    Array grad = random_array(type, rows * cols);
    Values vz = z.values(), vu = up.values();
    const Values g = grad.values();
    const auto loss = [&] {
      double sum = 0;
      for (size_t i = 0; i < vz.size(); ++i) sum += activate(f, vz[i]) * vu[i] * g[i];
      return sum;
    };
    const Values wanted_z = differences(vz, loss), wanted_up = differences(vu, loss);
    t.activation_backward({.activation = f,
                           .rows = rows,
                           .cols = cols,
                           .z = z.floats(),
                           .z_row_stride = cols,
                           .up = up.floats(),
                           .up_row_stride = cols,
                           .grad = grad.data(),
                           .grad_dtype = type,
                           .grad_row_stride = cols,
                           .threads = 2});
    check(name + " activation grad_z", z, wanted_z, 32, kDifferences);
    check(name + " activation grad_up", up, wanted_up, 32, kDifferences);
  }
}

void check_attention(const Table& t, DType type, const std::string& name, int64_t keys,
                     bool with_options) {
  const int64_t heads = 2, queries = 5, dim = 11, value_dim = 6;
  Array q = random_array(type, heads * queries * dim), k = random_array(type, keys * dim);
  Array v = random_array(type, keys * value_dim), bias = random_array(DType::f32, queries * keys);
  Array sinks = random_array(DType::f32, heads), slopes = random_array(DType::f32, heads);
  Values vq = q.values(), vk = k.values(), vv = v.values(), vs = sinks.values();
  Values vbias = bias.values();
  const double scale = 0.3, softcap = with_options ? 4.0 : 0.0;
  const auto forward = [&](Values* lse) {
    Values out(heads * queries * value_dim);
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t i = 0; i < queries; ++i) {
        double total = with_options ? std::exp(vs[h]) : 0;
        Values p(keys);
        for (int64_t j = 0; j < keys; ++j) {
          const int64_t distance = i + keys - queries - j;  // of the key before the query
          if (distance < 0) continue;                       // causal
          if (with_options && distance > 9) continue;
          double s = 0;
          for (int64_t d = 0; d < dim; ++d)
            s += vq[(h * queries + i) * dim + d] * vk[j * dim + d] * scale;
          if (with_options)
            s = softcap * std::tanh(s / softcap) - slopes.get(h) * distance + vbias[i * keys + j];
          p[j] = std::exp(s);
          total += p[j];
        }
        for (int64_t j = 0; j < keys && total > 0; ++j)
          for (int64_t d = 0; d < value_dim; ++d)
            out[(h * queries + i) * value_dim + d] += p[j] / total * vv[j * value_dim + d];
        (*lse)[h * queries + i] = std::log(total);
      }
    return out;
  };
  Values wanted_lse(heads * queries);
  const Values wanted = forward(&wanted_lse);
  Array out(type, wanted.size()), lse(DType::f32, heads * queries);
  AttentionParams p = {.dtype = type,
                       .batch = 1,
                       .heads = heads,
                       .kv_heads = 1,
                       .dim = dim,
                       .value_dim = value_dim,
                       .queries = queries,
                       .keys = keys,
                       .q = q.data(),
                       .k = k.data(),
                       .v = v.data(),
                       .q_strides = {0, queries * dim, dim},
                       .k_strides = {0, 0, dim},
                       .v_strides = {0, 0, value_dim},
                       .window_left = -1,
                       .window_right = 0,
                       .softcap = static_cast<float>(softcap),
                       .scale = static_cast<float>(scale),
                       .out = out.data(),
                       .out_strides = {0, queries * value_dim, value_dim},
                       .lse = lse.floats(),
                       .lse_batch = heads * queries,
                       .lse_head = queries,
                       .threads = 2};
  if (with_options) {
    p.window_left = 9;
    p.bias_type = BiasType::f32;
    p.bias = bias.data();
    p.bias_query = keys;
    p.bias_key = 1;
    p.sinks = sinks.floats();
    p.slopes = slopes.floats();
    p.slopes_head = 1;
  }
  t.attention(p);
  // What is kept of the probabilities in the input's dtype costs a rounding each.
  const double slack = 64 + epsilon(type) / epsilon(DType::f32);
  check(name + " attention", out, wanted, slack);
  check(name + " attention lse", lse, wanted_lse, 64);

  // The same sequence between two empty ones, packed and then in pages of a cache.
  const std::vector<int64_t> query_starts = {0, 0, queries, queries},
                             key_starts = {0, 0, keys, keys};
  AttentionParams packed = p;
  packed.batch = 3;
  packed.query_starts = query_starts.data();
  packed.key_starts = key_starts.data();
  packed.lse_batch = packed.slopes_batch = 0;
  Array packed_out(type, wanted.size());
  packed.out = packed_out.data();
  t.attention(packed);
  check(name + " attention packed", packed_out, wanted, slack);

  const int64_t block_size = 4, blocks = (keys + block_size - 1) / block_size;
  const std::vector<int32_t> key_counts = {0, static_cast<int32_t>(keys), 0};
  std::vector<int32_t> table(3 * blocks, -1);
  std::vector<int64_t> slots(keys);
  for (int64_t i = 0; i < blocks; ++i) table[blocks + i] = static_cast<int32_t>(blocks - 1 - i);
  for (int64_t j = 0; j < keys; ++j)
    slots[j] = table[blocks + j / block_size] * block_size + j % block_size;
  Array k_cache(type, blocks * block_size * dim), v_cache(type, blocks * block_size * value_dim);
  packed.k_strides = {block_size * dim, 0, dim};
  packed.v_strides = {block_size * value_dim, 0, value_dim};
  t.paged_cache_write({.element_size = static_cast<int64_t>(size_of(type)),
                       .tokens = keys,
                       .heads = 1,
                       .dim = dim,
                       .value_dim = value_dim,
                       .block_size = block_size,
                       .slots = slots.data(),
                       .k = k.data(),
                       .v = v.data(),
                       .k_strides = p.k_strides,
                       .v_strides = p.v_strides,
                       .k_cache = k_cache.data(),
                       .v_cache = v_cache.data(),
                       .k_cache_strides = packed.k_strides,
                       .v_cache_strides = packed.v_strides,
                       .threads = 2});
  packed.k = k_cache.data();
  packed.v = v_cache.data();
  packed.key_starts = nullptr;
  packed.key_counts = key_counts.data();
  packed.block_table = table.data();
  packed.table_stride = blocks;
  packed.block_size = block_size;
  Array paged_out(type, wanted.size());
  packed.out = paged_out.data();
  t.attention(packed);
  check(name + " attention paged", paged_out, wanted, slack);

  Array grad_out = random_array(type, wanted.size()), delta(DType::f32, heads * queries),
        norms(DType::f32, heads * queries);
  Array grad_lse = random_array(DType::f32, heads * queries);
  const Values g = grad_out.values(), gl = grad_lse.values();
  const auto loss = [&] {
    Values l(heads * queries);
    const Values o = forward(&l);
    return dot(o, g) + dot(l, gl);
  };
  Array grad_q(type, q.size), grad_k(type, k.size), grad_v(type, v.size);
  Array grad_bias(DType::f32, bias.size), grad_sinks(DType::f32, heads);
  Array grad_q_sums(DType::f32, q.size);
  AttentionBackwardParams b = {
      .forward = p,
      .grad_out = grad_out.data(),
      .grad_out_strides = p.out_strides,
      .grad_lse = grad_lse.floats(),
      .delta = delta.floats(),
      .norms = norms.floats(),
      .grad_q = grad_q.data(),
      .grad_k = grad_k.data(),
      .grad_v = grad_v.data(),
      .grad_q_strides = p.q_strides,
      .grad_k_strides = p.k_strides,
      .grad_v_strides = p.v_strides,
      .grad_q_sums = type == DType::f32 ? grad_q.floats() : grad_q_sums.floats(),
      .grad_q_sums_strides = p.q_strides};
  if (with_options) {
    b.grad_bias = grad_bias.floats();
    b.bias_batches = b.bias_heads = 1;
    b.bias_queries = queries;
    b.bias_keys = keys;
    b.grad_sinks = grad_sinks.floats();
  }
  t.attention_backward(b);
  // out enters the backward rounded to its dtype.
  const double loose = 256 + 4 * epsilon(type) / epsilon(DType::f32);
  check(name + " attention grad_q", grad_q, differences(vq, loss), loose, kDifferences);
  check(name + " attention grad_k", grad_k, differences(vk, loss), loose, kDifferences);
  check(name + " attention grad_v", grad_v, differences(vv, loss), loose, kDifferences);
  if (!with_options) return;
  check(name + " attention grad_bias", grad_bias, differences(vbias, loss), loose, kDifferences);
  check(name + " attention grad_sinks", grad_sinks, differences(vs, loss), loose, kDifferences);
}

}  // namespace

int main() {
  for (const Table* t : tables()) {
    if (!cpu_runs(t->target)) {
      std::printf("FAILED %s does not run here\n", t->target);
      ++failed;
      continue;
    }
    for (DType type : {DType::f32, DType::bf16, DType::f16}) {
      const std::string name = std::string(t->target) + " " + name_of(type);
      check_elementary(*t, type, name);
      check_rope(*t, type, name);
      check_norm(*t, type, name);
      check_gemm(*t, type, name);
      check_activation(*t, type, name);
      for (int64_t keys : {5, 18})
        for (bool with_options : {false, true}) check_attention(*t, type, name, keys, with_options);
    }
    std::printf("%s done\n", t->target);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed != 0;
}
