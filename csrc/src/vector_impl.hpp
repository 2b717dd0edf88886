// A vector of vector_bytes bytes. Included once per instruction set, like pair_kernels_impl.hpp.

template <class T>
struct VecOf {
  typedef T type __attribute__((vector_size(vector_bytes)));  // NOLINT: `using` cannot carry the attribute
};
template <class T>
using Vec = typename VecOf<T>::type;
