// selavi.ops._numpy: the primitives of the Sinkhorn solvers on NumPy arrays. Definitions:
// selavi/ops/_definition.py. Torch-free: plain loops over csrc/include on the calling thread, so it
// also checks that core without the blocks, threads and tensors of csrc/cpu.
#include <pybind11/numpy.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "../include/potential.h"
#include "../include/row_reader.h"
#include "../include/softmax_row.h"

namespace py = pybind11;

namespace selavi::numpy {
namespace {

using Doubles = py::array_t<double, py::array::c_style>;
using Shape = std::vector<py::ssize_t>;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

void check(bool holds, const char* message) {
  if (!holds) throw std::invalid_argument(message);  // ValueError
}

// The extent of an axis of log_p, which is (B, N, K).
py::ssize_t extent(const py::array& log_p, int axis) {
  check(log_p.ndim() == 3, "log_p must be (B, N, K)");
  return log_p.shape(axis);
}

const double* data_of(const Doubles& array, const Shape& shape, const char* message) {
  check(Shape(array.shape(), array.shape() + array.ndim()) == shape, message);
  return array.data();
}

Doubles zeros(const Shape& shape) {
  Doubles array(shape);
  std::fill_n(array.mutable_data(), array.size(), 0.0);
  return array;
}

// Calls body(Storage{}) for the dtype of an array.
template <typename Body>
void with_storage(const py::array& array, const std::string& name, const Body& body) {
  if (py::isinstance<py::array_t<float>>(array)) return body(float{});
  if (py::isinstance<py::array_t<double>>(array)) return body(double{});
  if (array.dtype().equal(py::dtype("e"))) return body(Float16{});
  throw py::type_error(name + " must be float32, float64 or float16 of native byte order");
}

// The rows of one problem and their softmax at each of the potentials v (candidates, K): all
// arithmetic of csrc/include is called here, the version for any processor.
template <typename Storage>
struct Rows {
  using Number = Compute<Storage>;

  Rows(const MatrixView<Storage>& matrix, double lam, const double* v, int64_t candidates)
      : columns(matrix.columns),
        lam(lam),
        buffer(kTile * padded(columns)),
        exponentials(padded(columns)),
        reader(matrix, 0, matrix.rows, buffer.data()) {
    for (int64_t s = 0; s < candidates; ++s) parts.emplace_back(v + s * columns, lam, columns);
  }

  // Fills `exponentials` with exp(x_k - shift), x_k = lam log_p_k + v_k.
  RowSoftmax softmax(const Number* row, size_t candidate = 0) {
    return softmax_row<false>(row, parts[candidate].view(), padded(columns), exponentials.data());
  }

  // sums_k += factor * exponentials_k for k >= first
  void add(double factor, double* sums, int64_t first = 0) {
    const Number* terms = exponentials.data();
    for (int64_t k = first; k < columns; ++k) sums[k] += factor * static_cast<double>(terms[k]);
  }

  const int64_t columns;
  const double lam;
  Scratch<Number> buffer, exponentials;
  RowReader<Storage> reader;
  std::vector<PotentialParts<Number>> parts;
};

// Calls body(b, rows) for every problem, without the GIL; v is (B, candidates, K).
template <typename Body>
void for_each_problem(const py::array& log_p, const Doubles& lam, const double* v,
                      py::ssize_t candidates, const Body& body) {
  const double* lams = data_of(lam, {extent(log_p, 0)}, "lam must be (B,)");
  with_storage(log_p, "log_p", [&](auto tag) {
    using Storage = decltype(tag);
    constexpr auto kSize = static_cast<py::ssize_t>(sizeof(Storage));
    bool aligned = (log_p.flags() & py::detail::npy_api::NPY_ARRAY_ALIGNED_) != 0;
    for (int axis = 0; axis < 3; ++axis) aligned = aligned && log_p.strides(axis) % kSize == 0;
    check(aligned, "log_p must be aligned, with strides of whole elements");
    const py::gil_scoped_release release;
    for (py::ssize_t b = 0; b < log_p.shape(0); ++b) {
      const char* data = static_cast<const char*>(log_p.data()) + b * log_p.strides(0);
      Rows<Storage> rows({reinterpret_cast<const Storage*>(data), log_p.shape(1), log_p.shape(2),
                          log_p.strides(1) / kSize, log_p.strides(2) / kSize},
                         lams[b], v + b * candidates * log_p.shape(2), candidates);
      body(b, rows);
    }
  });
}

py::tuple sinkhorn_pass(const py::array& log_p, const Doubles& v, const Doubles& row_marginal,
                        const Doubles& lam) {
  const auto problems = extent(log_p, 0), n = extent(log_p, 1), k = extent(log_p, 2);
  check(v.ndim() == 3, "v must be (B, S, K)");
  const auto candidates = v.shape(1);
  const double* potentials = data_of(v, {problems, candidates, k}, "v must be (B, S, K)");
  const double* c = data_of(row_marginal, {problems, n}, "row_marginal must be (B, N)");
  Doubles mass = zeros({problems, candidates, k}), value = zeros({problems, candidates});
  double *masses = mass.mutable_data(), *values = value.mutable_data();
  for_each_problem(log_p, lam, potentials, candidates, [=](int64_t b, auto& rows) {
    for (int64_t i = 0; i < n; ++i) {
      const double weight = c[b * n + i];
      if (weight == 0.0) continue;
      const auto* row = rows.reader.row(i);
      for (int64_t s = 0; s < candidates; ++s) {
        if (std::isnan(potentials[(b * candidates + s) * k])) continue;
        const RowSoftmax softmax = rows.softmax(row, static_cast<size_t>(s));
        rows.add(weight / softmax.sum, masses + (b * candidates + s) * k);
        values[b * candidates + s] += weight * (softmax.shift + std::log(softmax.sum));
      }
    }
  });
  for (int64_t row = 0; row < problems * candidates; ++row) {
    if (!std::isnan(potentials[row * k])) continue;
    std::fill_n(masses + row * k, k, potentials[row * k]);
    values[row] = potentials[row * k];
  }
  return py::make_tuple(mass, value);
}

Doubles sinkhorn_overlap(const py::array& log_p, const Doubles& v, const Doubles& row_marginal,
                         const Doubles& lam) {
  const auto problems = extent(log_p, 0), n = extent(log_p, 1), k = extent(log_p, 2);
  const double* potential = data_of(v, {problems, k}, "v must be (B, K)");
  const double* c = data_of(row_marginal, {problems, n}, "row_marginal must be (B, N)");
  Doubles overlap = zeros({problems, k, k});
  double* overlaps = overlap.mutable_data();
  for_each_problem(log_p, lam, potential, 1, [=](int64_t b, auto& rows) {
    double* target = overlaps + b * k * k;
    for (int64_t i = 0; i < n; ++i) {
      const double weight = c[b * n + i];
      if (weight == 0.0) continue;
      const RowSoftmax softmax = rows.softmax(rows.reader.row(i));
      const double factor = weight / (softmax.sum * softmax.sum);
      for (int64_t j = 0; j < k; ++j) {  // the upper triangle; most of a sharp row is 0
        const auto e = static_cast<double>(rows.exponentials.data()[j]);
        if (e != 0.0) rows.add(factor * e, target + j * k, j);
      }
    }
    for (int64_t j = 0; j < k; ++j) {
      for (int64_t l = 0; l < j; ++l) target[j * k + l] = target[l * k + j];
    }
  });
  return overlap;
}

py::tuple sinkhorn_labels(const py::array& log_p, const Doubles& v, const Doubles& lam) {
  const auto problems = extent(log_p, 0), n = extent(log_p, 1), k = extent(log_p, 2);
  const double* potential = data_of(v, {problems, k}, "v must be (B, K)");
  py::array_t<int64_t> label(Shape{problems, n});
  Doubles logsumexp = zeros({problems, n}), confidence = zeros({problems, n});
  int64_t* labels = label.mutable_data();
  double *logsumexps = logsumexp.mutable_data(), *confidences = confidence.mutable_data();
  for_each_problem(log_p, lam, potential, 1, [=](int64_t b, auto& rows) {
    for (int64_t i = 0; i < n; ++i) {
      const auto* row = rows.reader.row(i);
      const auto* terms = rows.exponentials.data();
      const RowSoftmax softmax = rows.softmax(row);
      logsumexps[b * n + i] = softmax.shift + std::log(softmax.sum);
      confidences[b * n + i] = *std::max_element(terms, terms + k) / softmax.sum;
      double best = -kInfinity;
      labels[b * n + i] = 0;
      for (int64_t j = 0; j < k; ++j) {
        const double x = rows.lam * static_cast<double>(row[j]) + potential[b * k + j];
        if (x > best) best = x, labels[b * n + i] = j;
      }
    }
  });
  return py::make_tuple(label, logsumexp, confidence);
}

py::array sinkhorn_plan(const py::array& log_p, const Doubles& v, const Doubles& row_marginal,
                        const Doubles& lam, const py::dtype& dtype) {
  const auto problems = extent(log_p, 0), n = extent(log_p, 1), k = extent(log_p, 2);
  const double* potential = data_of(v, {problems, k}, "v must be (B, K)");
  const double* c = data_of(row_marginal, {problems, n}, "row_marginal must be (B, N)");
  py::array plan(dtype, Shape{problems, n, k});
  with_storage(plan, "dtype", [&](auto tag) {
    auto* plans = static_cast<decltype(tag)*>(plan.mutable_data());
    for_each_problem(log_p, lam, potential, 1, [=](int64_t b, auto& rows) {
      for (int64_t i = 0; i < n; ++i) {
        const double weight = c[b * n + i];
        auto* terms = rows.exponentials.data();
        if (weight == 0.0) std::fill_n(terms, k, 0);
        const double factor =
            weight == 0.0 ? 0.0 : share_of(weight, rows.softmax(rows.reader.row(i)));
        auto* out = plans + (b * n + i) * k;
        for (int64_t j = 0; j < k; ++j) narrow(factor * static_cast<double>(terms[j]), out + j);
      }
    });
  });
  return plan;
}

Doubles sinkhorn_column_logsumexp(const py::array& log_p, const Doubles& u, const Doubles& lam) {
  const auto problems = extent(log_p, 0), n = extent(log_p, 1), k = extent(log_p, 2);
  const double* potential = data_of(u, {problems, n}, "u must be (B, N)");
  Doubles logsumexp = zeros({problems, k});
  double* logsumexps = logsumexp.mutable_data();
  for_each_problem(log_p, lam, nullptr, 0, [=](int64_t b, auto& rows) {
    std::vector<double> max(static_cast<size_t>(k), -kInfinity), sum(static_cast<size_t>(k));
    for (const bool have_max : {false, true}) {
      for (int64_t i = 0; i < n; ++i) {
        const double shift = potential[b * n + i];
        if (shift == -kInfinity) continue;
        const auto* row = rows.reader.row(i);
        for (size_t j = 0; j < max.size(); ++j) {
          if (row[j] == -__builtin_inf()) continue;
          const double x = rows.lam * static_cast<double>(row[j]) + shift;
          if (have_max) sum[j] += std::exp(x - max[j]);
          if (!have_max) max[j] = std::max(max[j], x);
        }
      }
    }
    for (size_t j = 0; j < max.size(); ++j)
      logsumexps[static_cast<size_t>(b * k) + j] = max[j] + std::log(sum[j]);
  });
  return logsumexp;
}

}  // namespace
}  // namespace selavi::numpy

PYBIND11_MODULE(_numpy, m) {
  using namespace pybind11::literals;
  using namespace selavi::numpy;
  m.doc() = "The primitives of selavi.ops._definition on NumPy arrays; log_p of any strides.";
  m.def("sinkhorn_pass", &sinkhorn_pass, "log_p"_a, "v"_a, "row_marginal"_a, "lam"_a);
  m.def("sinkhorn_overlap", &sinkhorn_overlap, "log_p"_a, "v"_a, "row_marginal"_a, "lam"_a);
  m.def("sinkhorn_labels", &sinkhorn_labels, "log_p"_a, "v"_a, "lam"_a);
  m.def("sinkhorn_plan", &sinkhorn_plan, "log_p"_a, "v"_a, "row_marginal"_a, "lam"_a, "dtype"_a);
  m.def("sinkhorn_column_logsumexp", &sinkhorn_column_logsumexp, "log_p"_a, "u"_a, "lam"_a);
}
