// A block's share of a matrix where threads own columns: kWarp columns of a chunk of rows, which
// kTileGroups groups of threads divide. Free of torch.
#pragma once

#include "geometry.h"

namespace selavi::cuda {

constexpr int kTileGroups = 8;
constexpr int kTileThreads = kTileGroups * kWarp;

struct ColumnTile {
  int64_t b, chunk, k;
  int64_t first, last;  // rows of this thread's group
  int group, lane;

  // Blocks: problems x chunks x tiles of the columns.
  __device__ ColumnTile(int64_t rows, int64_t columns, int64_t chunks) {
    const int64_t tiles = (columns + kWarp - 1) / kWarp, task = blockIdx.x / tiles;
    group = static_cast<int>(threadIdx.x) / kWarp;
    lane = static_cast<int>(threadIdx.x) % kWarp;
    b = task / chunks;
    chunk = task % chunks;
    k = blockIdx.x % tiles * kWarp + lane;
    const int64_t chunk_rows = (rows + chunks - 1) / chunks;
    const int64_t begin = chunk * chunk_rows, end = min(begin + chunk_rows, rows);
    const int64_t each = (chunk_rows + kTileGroups - 1) / kTileGroups;
    first = min(begin + group * each, end);
    last = min(first + each, end);
  }
};

inline int64_t tile_blocks(int64_t problems, int64_t columns, int64_t chunks) {
  return problems * chunks * ceil_div(columns, kWarp);
}

}  // namespace selavi::cuda
