// Stream: a network that reads one sequence in real time, such as an audio signal, a sample or a
// block of samples at a time.
//
// Everything that can be done in advance is done when a Stream is made: weights are packed, memory
// is allocated, the kernels are chosen. From then on step, run, reset, get_state and set_state
// allocate nothing, take no lock, make no system call and use the calling thread alone. Their time
// depends on the sizes only.
//
// One thread at a time may use a Stream. Different Streams, copies too, are independent.
//
// Results are bit for bit those of Network and Model with a batch of one, without masks. Blocks may
// be of any length: they do not change the results.
#pragma once

#include <memory>

#include "charrnn_fast/network.hpp"

namespace charrnn_fast {

// T: float or double. Dimension letters as in network.hpp.
template <class T>
class Stream {
 public:
  // parameters: the flat parameters of Network<T>(shape), parameter_elements() of them; they are
  // copied. The state begins at zero. Throws std::invalid_argument for an impossible shape and for
  // a bidirectional one, which would have to read the future.
  Stream(const NetworkShape& shape, const T* parameters);
  // A copy shares the weights, which never change, and continues from the same state. Both need
  // memory of their own: copies are not for the real-time thread.
  Stream(const Stream& other);
  Stream& operator=(const Stream& other);
  // A Stream that was moved from can only be assigned to or destroyed.
  Stream(Stream&&) noexcept;
  Stream& operator=(Stream&&) noexcept;
  ~Stream();

  const NetworkShape& shape() const;
  Index input_size() const;      // I
  Index output_size() const;     // O, or R without a decoder
  Index state_elements() const;  // of get_state and set_state

  // n steps: y [n, O] from x [n, I]. The state is carried on. x and y may be the same array if I is
  // O; otherwise they must not overlap. Throws std::invalid_argument for n < 0, with nothing done.
  void run(const T* x, Index n, T* y);
  // One step: y [O] from x [I].
  void step(const T* x, T* y) { run(x, 1, y); }

  // The state as in Network with a batch of one: all h [L, R], then (lstm) all c [L, H].
  void reset();  // to zero
  void get_state(T* state) const;
  void set_state(const T* state);

 private:
  struct Weights;
  class State;
  std::unique_ptr<State> state_;
};

extern template class Stream<float>;
extern template class Stream<double>;

}  // namespace charrnn_fast
