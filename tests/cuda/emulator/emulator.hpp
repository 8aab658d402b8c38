// CUDA's execution model on a CPU: kernels that are plain C++ run as they would on a card, under
// schedules that a card may choose, and what the model forbids is reported. README.md in this
// folder is the manual.
//
// Every CUDA thread is a fiber of one system thread, switched only where it waits: at barriers, at
// collectives of its warp, at loads that may acquire. set_order() says in which order threads go
// on, so that what fails once fails again. This header is what a port's own header of device
// functions is written on; kernels include that, not this.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <source_location>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

// CUDA's own names, in the global namespace as there.
struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
extern const uint3 &threadIdx, &blockIdx;
extern const dim3 &blockDim, &gridDim;
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))

namespace cuda_emulator {

using Where = std::source_location;

// ---- findings -----------------------------------------------------------------------------
enum class Kind {
  deadlock,           // all threads wait, and nothing that is under way ends it
  divergent_barrier,  // a part of the block is at another barrier, or has ended
  divergent_warp,     // lanes of a mask meet in different collectives, or have ended
  limits,             // a launch that the card refuses
  unwritten,          // memory that nothing wrote was copied to the host
  overrun,            // memory next to an allocation was written
  ended_block,        // something arrived at a block of the cluster that was not there
  misuse,             // an address, size or count that the instruction does not take
  capture,            // a call that a stream being captured does not take
};
const char* name_of(Kind kind);

// Thrown to the host, by launch() for limits, else by the call that runs the stream.
class Finding : public std::runtime_error {
 public:
  Finding(Kind what_kind, const std::string& message)
      : std::runtime_error(std::string(name_of(what_kind)) + ": " + message), kind(what_kind) {}
  const Kind kind;
};

// ---- the card and the order ---------------------------------------------------------------
// What launches are checked against. Bytes are those of the CUDA programming guide's table of
// technical specifications.
struct Card {
  const char* name;
  int compute_capability;  // 90: 9.0
  int multiprocessors, threads_per_multiprocessor, blocks_per_multiprocessor;
  std::size_t shared_per_block, shared_per_multiprocessor;  // a block may ask for the first
  int cluster_size;  // most blocks of a cluster; 1: no clusters. Above 8 a kernel has to allow it
};
extern const Card a100, rtx_4090, h200;
const Card& card();
void set_card(const Card& card);  // h200 at first

// 0: threads, and blocks, in the order of their indices; 1: in reverse; above: at random, seeded by
// the number. Asynchronous stores arrive as late as they can in orders 0 and 1, at random else.
void set_order(std::uint64_t order);

struct Statistics {
  std::uint64_t launches, threads, switches;  // thread-steps: how often a thread went on
};
Statistics statistics();

// ---- memory of the device -----------------------------------------------------------------
// Every word begins as 0x7FFD7FFD: a NaN as bfloat16, float and double, out of range as a token.
// The host can access it only by the copies below. Aligned to 256 bytes; null when out of memory.
constexpr std::uint32_t unwritten_word = 0x7FFD7FFD;
void* allocate(std::size_t bytes);
void release(void* memory);  // a null pointer is ignored
constexpr std::size_t all_memory = std::size_t(64) << 30;
std::size_t allocated_bytes();
bool is_device(const void* address);

// ---- streams ------------------------------------------------------------------------------
// Work is only queued; it runs when the host, or work that the host waits for, waits for it.
// Streams in turn, each in its order.
class Stream;

// A place in a stream.
class Event {
 public:
  // Behind all that is queued. Once more: another place; who waits already waits for the earlier.
  void record(Stream& stream);
  bool reached() const { return !place_ || place_->reached; }

 private:
  friend class Stream;
  struct Place {
    Stream* stream;  // null: destroyed
    bool reached = false;
  };
  std::shared_ptr<Place> place_;
};

class Stream {
 public:
  Stream();
  ~Stream();  // what was not waited for is dropped
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  void enqueue(std::function<void()> work);
  // All of these take effect in the order of the stream. upload reads `from` when it runs, as a
  // copy from pinned memory does. download reports words that nothing wrote, unless told not to.
  void upload(const void* from, std::size_t bytes, void* to);
  void download(const void* from, std::size_t bytes, void* to, bool check = true);
  void copy(const void* from, std::size_t bytes, void* to);
  void fill(void* to, int byte, std::size_t bytes);
  // What is queued from now on runs behind the event. Before its first record, changes nothing.
  void wait(const Event& event);
  void synchronize();
  std::size_t queued() const { return queue_.size(); }

  // What is queued between the two becomes a graph, and does not run. While a stream is captured,
  // allocate(), release() and synchronize() are findings, and so are events of that stream, which
  // would capture another one, too.
  void begin_capture();
  std::vector<std::function<void()>> end_capture();
  void replay(const std::vector<std::function<void()>>& graph);

 private:
  friend class Event;
  struct Work {
    std::function<void()> run;
    std::shared_ptr<Event::Place> behind, reaches;  // or null
  };
  void run_first();
  void not_while_captured(const char* what) const;

  std::deque<Work> queue_;
  bool capturing_ = false;
};
// The one that a null pointer stands for. Nothing of it is ordered with other streams, as with
// CUDA's for streams that are made not to be.
Stream& default_stream();
// Waits for all streams.
void synchronize();

// ---- launches -----------------------------------------------------------------------------
struct Grid {
  dim3 blocks, threads;
  std::size_t shared = 0;    // bytes of dynamic shared memory of a block
  unsigned cluster = 1;      // blocks of a cluster, along x
  bool cooperative = false;  // all blocks are resident at once; else a few at a time
  Where where = Where::current();
};
// Checks the launch now and queues it.
void launch_function(const Grid& grid, Stream& stream, std::function<void()> thread);

template <class... P, class... A>
void launch(const Grid& grid, Stream& stream, void (*kernel)(P...), A&&... arguments) {
  auto parameters = std::make_shared<const std::tuple<std::decay_t<P>...>>(
      static_cast<std::decay_t<P>>(arguments)...);
  launch_function(grid, stream, [kernel, parameters] { std::apply(kernel, *parameters); });
}
// The most blocks of a cooperative launch.
int resident_blocks(const Grid& grid);

// ---- what kernels call --------------------------------------------------------------------
constexpr unsigned full_warp = 0xffffffffu;

void* dynamic_shared();
// Static shared memory of a block: one array for each Key.
void* static_shared(const void* key, std::size_t bytes, std::size_t alignment);

void sync_threads(unsigned barrier, unsigned threads, Where where);  // threads 0: the whole block
void sync_warp(unsigned mask, Where where);

enum class Shuffle { index, exclusive_or, up, down };
std::uint64_t shuffle(Shuffle how, unsigned mask, std::uint64_t value, unsigned operand,
                      unsigned width, Where where);
unsigned ballot(unsigned mask, bool predicate, Where where);

unsigned cluster_rank();
unsigned cluster_blocks();
void cluster_arrive(Where where);                     // releases
void cluster_wait(Where where);                       // acquires
void* remote(void* own, unsigned rank, Where where);  // the same place in another block

// A load that may wait for another thread's store: lets others go on.
void poll(Where where);
// After anything by which a poll may end.
void progress();

void copy_async(void* shared, const void* global, std::size_t bytes, Where where);
void commit_copies();
void wait_copies(int groups_left);  // until at most so many groups are under way

using Mbarrier = std::uint64_t;
void mbarrier_init(Mbarrier* barrier, unsigned count, Where where);
void mbarrier_arrive(Mbarrier* barrier, std::uint32_t expected_bytes, Where where);
void mbarrier_wait(Mbarrier* barrier, unsigned parity, Where where);
void store_async(void* to, const void* value, std::size_t bytes, Mbarrier* barrier, Where where);

// d += a b for one tile of a warp: d 16 x 8. The fragments are those of PTX's mma.sync.
void mma_m16n8k8_tf32(float* d, const std::uint32_t* a, const std::uint32_t* b, Where where);
void mma_m16n8k16_bf16(float* d, const std::uint32_t* a, const std::uint32_t* b, Where where);

}  // namespace cuda_emulator
