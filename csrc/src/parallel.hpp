#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "headcodes/overlap.hpp"

namespace headcodes {

/// Handed to every worker; called between pieces of work with about how many vector steps the next piece
/// takes. Throws Cancelled once any worker has failed or the caller wants out.
class Poll {
 public:
  static constexpr std::chrono::milliseconds interval{30};
  /// Steps of a prompt that is handled by itself instead of 64 components at a time: renumbered, grouped,
  /// stamped.
  static constexpr std::size_t per_prompt = 4;

  Poll(std::atomic<bool>& stop, const std::function<bool()>* cancelled)
      : stop_(stop), cancelled_(cancelled), next_(Clock::now() + interval) {}

  void operator()(std::size_t steps) {
    // Reading the clock takes as long as the smallest pieces of work.
    steps_ += steps;
    if (steps_ < steps_between_looks) return;
    steps_ = 0;
    if (stop_.load(std::memory_order_relaxed)) throw Cancelled();
    if (cancelled_ == nullptr || !*cancelled_) return;
    const auto now = Clock::now();
    if (now < next_) return;
    next_ = now + interval;
    if ((*cancelled_)()) throw Cancelled();
  }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr std::size_t steps_between_looks = std::size_t{1} << 18;
  std::atomic<bool>& stop_;
  const std::function<bool()>* cancelled_;
  Clock::time_point next_;
  std::size_t steps_ = 0;
};

/// Runs work(worker, poll) for worker = 0 .. threads-1, worker 0 on the calling thread. The first exception
/// of any worker stops the others and is rethrown here.
template <class Work>
void run_workers(int threads, const std::function<bool()>& cancelled, Work&& work) {
  std::atomic<bool> stop{false};
  std::mutex mutex;
  std::condition_variable finished;
  std::exception_ptr failure;
  int n_running = 0;
  const auto fail = [&](std::exception_ptr error) {
    const std::lock_guard lock(mutex);
    if (!stop.exchange(true)) failure = std::move(error);
  };
  const auto guarded = [&](int worker) {
    try {
      Poll poll(stop, worker == 0 ? &cancelled : nullptr);
      work(worker, poll);
    } catch (...) {
      fail(std::current_exception());
    }
  };
  {
    // Joined on every way out. Not std::jthread: Apple's standard library has none yet.
    struct Joined : std::vector<std::thread> {
      ~Joined() {
        for (auto& thread : *this) thread.join();
      }
    } others;
    others.reserve(static_cast<std::size_t>(threads));
    try {
      for (int worker = 1; worker < threads; ++worker) {
        {
          const std::lock_guard lock(mutex);
          ++n_running;
        }
        others.emplace_back([&, worker] {
          guarded(worker);
          const std::lock_guard lock(mutex);
          --n_running;
          finished.notify_one();
        });
      }
    } catch (...) {
      // No more threads to be had: stop those that run, then say so.
      stop = true;
      throw;
    }
    guarded(0);
    // Others may take longer: the caller still wants to be asked meanwhile.
    std::unique_lock lock(mutex);
    while (!finished.wait_for(lock, Poll::interval, [&] { return n_running == 0; })) {
      lock.unlock();
      if (!stop && cancelled && cancelled()) fail(std::make_exception_ptr(Cancelled()));
      lock.lock();
    }
  }
  if (failure) std::rethrow_exception(failure);
}

/// No more threads than repay their start, for so many pairs of components times prompts. A thread starts in
/// tens of microseconds on an idle machine and in milliseconds on a busy one; this much work takes one to two
/// milliseconds.
inline int useful_threads(int threads, std::size_t work) {
  constexpr std::size_t work_per_thread = std::size_t{1} << 24;
  return static_cast<int>(
      std::clamp<std::size_t>(work / work_per_thread, 1, static_cast<std::size_t>(threads)));
}

/// Bounds of share `worker` of `n` equal units: a static partition.
inline std::size_t share_begin(std::size_t n, int worker, int threads) {
  return n * static_cast<std::size_t>(worker) / static_cast<std::size_t>(threads);
}

}  // namespace headcodes
