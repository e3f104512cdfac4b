// How CUDA runs threads, on the CPU: blocks, warps, barriers and shared memory of the emulator.
//
// A thread is a coroutine that runs until it meets a barrier or a warp's exchange. Blocks run one
// after another; the blocks of a cluster, and all blocks of a cooperative launch, are alive at the
// same time. This checks indices, arithmetic and who waits for whom, not speed. Shared memory
// starts as NaN and ends at a guard page; a barrier that some threads never reach, and lanes that
// meet in different warp operations, end the program with a message. Threads take turns forward or
// by chance (SELAVI_EMULATOR_SEED): results that differ show a barrier that is missing.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <vector>

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulator {

constexpr int kWarp = 32;
constexpr size_t kStack = size_t{128} << 10;
constexpr size_t kLargestExchange = 128;  // bytes a lane

[[noreturn]] inline void fail(const char* message) {
  std::fprintf(stderr, "emulator: %s\n", message);
  std::abort();
}

struct Fiber;

struct Barrier {
  size_t expected = 0;
  std::vector<Fiber*> waiting;
};

struct Warp {
  Barrier barrier;
  int phase = 0;
  const char* operation = nullptr;
  alignas(16) unsigned char slots[2][kWarp][kLargestExchange];
};

// Memory that ends where a page begins that must not be touched, filled with NaN.
class GuardedMemory {
 public:
  explicit GuardedMemory(size_t bytes) : bytes_((bytes + 15) / 16 * 16) {
    const size_t page = 4096, body = (bytes_ + page - 1) / page * page;
    mapped_ = body + page;
    base_ = static_cast<unsigned char*>(
        mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED) fail("out of memory");
    mprotect(base_ + body, page, PROT_NONE);
    data_ = base_ + body - bytes_;
    std::memset(data_, 0xff, bytes_);
  }
  GuardedMemory(const GuardedMemory&) = delete;
  ~GuardedMemory() { munmap(base_, mapped_); }
  unsigned char* data() const { return data_; }

 private:
  size_t bytes_, mapped_;
  unsigned char *base_, *data_;
};

struct Block {
  dim3 index;
  int rank = 0;  // in its cluster
  std::unique_ptr<GuardedMemory> shared;
  Barrier barrier;
  Barrier named[16];
  int phase = 0;  // of __syncthreads_or
  int any[2] = {};
  std::vector<std::unique_ptr<Warp>> warps;
};

struct Group;

struct Fiber {
  Group* group;
  Block* block;
  Warp* warp;
  dim3 thread;
  int lane;
  bool done = false, started = false;
  void* stack = nullptr;
  jmp_buf resume;
};

// The blocks that are alive at the same time.
struct Group {
  dim3 grid;
  int threads;
  int cluster;
  bool cooperative;
  std::function<void()> kernel;
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<Barrier> cluster_barriers;
  Barrier grid_barrier;
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::deque<Fiber*> ready;
  jmp_buf scheduler;
  ucontext_t main;
};

inline Fiber*& current() {
  static Fiber* fiber = nullptr;
  return fiber;
}

inline std::vector<void*>& free_stacks() {
  static std::vector<void*> stacks;
  return stacks;
}

inline void enter() {
  Fiber* fiber = current();
  fiber->group->kernel();
  fiber->done = true;
  _longjmp(fiber->group->scheduler, 1);
}

inline void resume(Fiber* fiber) {
  current() = fiber;
  if (_setjmp(fiber->group->scheduler) == 0) {
    if (fiber->started) _longjmp(fiber->resume, 1);
    fiber->started = true;
    auto& stacks = free_stacks();
    if (stacks.empty()) {
      void* memory =
          mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED) fail("out of memory");
      stacks.push_back(memory);
    }
    fiber->stack = stacks.back();
    stacks.pop_back();
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = fiber->stack;
    context.uc_stack.ss_size = kStack;
    context.uc_link = nullptr;
    makecontext(&context, enter, 0);
    setcontext(&context);
  }
  if (current()->done) free_stacks().push_back(current()->stack);
}

// Returns when all that the barrier expects have come.
inline void wait(Barrier& barrier) {
  Fiber* fiber = current();
  if (barrier.waiting.size() + 1 == barrier.expected) {
    auto& ready = fiber->group->ready;
    ready.insert(ready.end(), barrier.waiting.begin(), barrier.waiting.end());
    barrier.waiting.clear();
    return;
  }
  barrier.waiting.push_back(fiber);
  if (_setjmp(fiber->resume) == 0) _longjmp(fiber->group->scheduler, 1);
}

inline void named_wait(int id, int threads) {
  if (id < 1 || id > 15 || threads % kWarp != 0) fail("no such barrier");
  Barrier& barrier = current()->block->named[id];
  if (barrier.waiting.empty()) barrier.expected = static_cast<size_t>(threads);
  if (barrier.expected != static_cast<size_t>(threads)) fail("a barrier of differing sizes");
  wait(barrier);
}

// All lanes give a value; returns those of the 32, valid until the warp's next operation but one.
template <typename T>
inline const unsigned char (*exchange(const char* operation, T value)) [kLargestExchange] {
  static_assert(sizeof(T) <= kLargestExchange);
  Fiber* fiber = current();
  Warp& warp = *fiber->warp;
  const int phase = warp.phase;
  if (warp.barrier.waiting.empty()) warp.operation = operation;
  if (std::strcmp(warp.operation, operation) != 0) {
    std::fprintf(stderr, "emulator: lanes of a warp meet in %s and %s\n", warp.operation,
                 operation);
    std::abort();
  }
  std::memcpy(warp.slots[phase][fiber->lane], &value, sizeof(T));
  if (warp.barrier.waiting.size() + 1 == warp.barrier.expected) warp.phase = 1 - phase;
  wait(warp.barrier);
  return warp.slots[phase];
}

template <typename T>
inline T from_lane(const unsigned char (*slots)[kLargestExchange], int lane) {
  T value;
  std::memcpy(&value, slots[lane], sizeof(T));
  return value;
}

inline void run(Group& group) {
  for (auto& fiber : group.fibers) group.ready.push_back(fiber.get());
  const char* seed = std::getenv("SELAVI_EMULATOR_SEED");
  std::minstd_rand random(seed == nullptr ? 1u : static_cast<unsigned>(std::atoi(seed)));
  while (!group.ready.empty()) {
    if (seed != nullptr) std::swap(group.ready.front(), group.ready[random() % group.ready.size()]);
    Fiber* fiber = group.ready.front();
    group.ready.pop_front();
    resume(fiber);
  }
  for (auto& fiber : group.fibers) {
    if (!fiber->done) fail("threads wait at a barrier that others have not reached");
  }
}

// Runs kernel() in every thread. The x extent of the grid is a multiple of the cluster's.
inline void launch(dim3 grid, int threads, size_t shared_bytes, int cluster, bool cooperative,
                   std::function<void()> kernel) {
  if (threads < 1 || threads > 1024) fail("a block has 1 to 1024 threads");
  if (grid.x < 1 || grid.y < 1 || grid.z < 1 || grid.y > 65535 || grid.z > 65535) {
    fail("the grid is empty or too large");
  }
  if (grid.x % static_cast<unsigned>(cluster) != 0 || cluster > 8)
    fail("clusters do not fit the grid");
  if (shared_bytes > 227 * 1024) fail("more shared memory than a block can have");
  const int64_t blocks = static_cast<int64_t>(grid.x) * grid.y * grid.z;
  const int64_t alive = cooperative ? blocks : cluster;
  for (int64_t first = 0; first < blocks; first += alive) {
    Group group;
    group.grid = grid;
    group.threads = threads;
    group.cluster = cluster;
    group.cooperative = cooperative;
    group.kernel = kernel;
    group.cluster_barriers.resize(static_cast<size_t>(alive / cluster));
    for (auto& barrier : group.cluster_barriers) {
      barrier.expected = static_cast<size_t>(cluster) * static_cast<size_t>(threads);
    }
    group.grid_barrier.expected = static_cast<size_t>(alive) * static_cast<size_t>(threads);
    for (int64_t j = first; j < first + alive; ++j) {
      auto block = std::make_unique<Block>();
      block->index =
          dim3(static_cast<unsigned>(j % grid.x), static_cast<unsigned>(j / grid.x % grid.y),
               static_cast<unsigned>(j / grid.x / grid.y));
      block->rank = static_cast<int>(j % cluster);
      block->shared = std::make_unique<GuardedMemory>(shared_bytes);
      block->barrier.expected = static_cast<size_t>(threads);
      for (int t = 0; t < threads; ++t) {
        if (t % kWarp == 0) {
          block->warps.push_back(std::make_unique<Warp>());
          block->warps.back()->barrier.expected = static_cast<size_t>(std::min(kWarp, threads - t));
        }
        auto fiber = std::make_unique<Fiber>();
        fiber->group = &group;
        fiber->block = block.get();
        fiber->warp = block->warps.back().get();
        fiber->thread = dim3(static_cast<unsigned>(t), 0, 0);
        fiber->lane = t % kWarp;
        group.fibers.push_back(std::move(fiber));
      }
      group.blocks.push_back(std::move(block));
    }
    run(group);
  }
}

inline Barrier& cluster_barrier() {
  Fiber* fiber = current();
  auto& group = *fiber->group;
  const size_t position = static_cast<size_t>(
      std::find_if(group.blocks.begin(), group.blocks.end(),
                   [&](const auto& block) { return block.get() == fiber->block; }) -
      group.blocks.begin());
  return group.cluster_barriers[position / static_cast<size_t>(group.cluster)];
}

// What `pointer` into this block's shared memory is in block `rank` of the cluster.
template <typename T>
T* in_block(T* pointer, int rank) {
  Fiber* fiber = current();
  auto& group = *fiber->group;
  if (rank < 0 || rank >= group.cluster) fail("no such block in the cluster");
  size_t position = 0;
  while (group.blocks[position].get() != fiber->block) ++position;
  position = position - static_cast<size_t>(fiber->block->rank) + static_cast<size_t>(rank);
  const auto offset =
      reinterpret_cast<const unsigned char*>(pointer) - fiber->block->shared->data();
  return reinterpret_cast<T*>(group.blocks[position]->shared->data() + offset);
}

}  // namespace emulator
