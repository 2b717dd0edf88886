#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "headcodes/overlap.hpp"

namespace headcodes::bindings {

inline constexpr std::array<std::pair<const char*, Isa>, 3> isa_names{
    {{"simd128", Isa::simd128}, {"avx2", Isa::avx2}, {"avx512", Isa::avx512}}};

// No forcecast: the Python layer converts and checks; an array of another type is refused here.
using CodeArray = pybind11::array_t<std::int32_t, 0>;

using LayerArray = std::optional<pybind11::array_t<std::int32_t, pybind11::array::c_style>>;

/// A copy, because layers are read more than once; empty where none are given.
inline std::vector<std::int32_t> copy_layers(const LayerArray& layers, std::size_t n_component) {
  if (!layers) return {};
  if (layers->ndim() != 1 || static_cast<std::size_t>(layers->size()) != n_component) {
    throw pybind11::value_error("layers must hold one number per component");
  }
  return {layers->data(), layers->data() + layers->size()};
}

inline Codes view(const CodeArray& array) {
  if (array.ndim() != 2) throw pybind11::value_error("codes must be two-dimensional");
  constexpr auto size = static_cast<pybind11::ssize_t>(sizeof(std::int32_t));
  if (array.strides(0) % size != 0 || array.strides(1) % size != 0) {
    throw pybind11::value_error("codes must have strides of whole elements");
  }
  return {array.data(), static_cast<std::size_t>(array.shape(0)), static_cast<std::size_t>(array.shape(1)),
          array.strides(0) / size, array.strides(1) / size};
}

inline void check_sides(const Codes& positive, const Codes& negative) {
  if (positive.n_component != negative.n_component) throw pybind11::value_error("sides differ in components");
  if (positive.n_component > max_component) throw pybind11::value_error("too many components");
  if (positive.n_prompt + negative.n_prompt > max_prompt) throw pybind11::value_error("too many prompts");
}

inline std::span<std::int32_t> span_of(pybind11::array_t<std::int32_t>& array) {
  return {array.mutable_data(), static_cast<std::size_t>(array.size())};
}

/// True once a Python signal handler has raised: the pending exception is then the caller's to deliver.
/// Signals run on Python's main thread only; elsewhere this never stops a count.
inline bool interrupted() {
  const pybind11::gil_scoped_acquire gil;
  return PyErr_CheckSignals() != 0;
}

inline Options make_options(std::optional<std::int32_t> dead, int threads, const std::string& isa) {
  if (threads < 1) throw pybind11::value_error("threads must be at least 1");
  for (const auto& [name, variant] : isa_names) {
    if (isa == name && supported(variant)) return {dead, threads, variant, interrupted};
  }
  throw pybind11::value_error("no such instruction set here");
}

/// Runs a count without the GIL and hands a Ctrl-C on as Python raised it.
template <class Count>
void without_gil(Count&& count) {
  try {
    const pybind11::gil_scoped_release release;
    count();
  } catch (const Cancelled&) {
    throw pybind11::error_already_set();
  }
}

}  // namespace headcodes::bindings
