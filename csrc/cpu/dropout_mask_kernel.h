// Fills rows of consecutive Philox elements, tile by tile. Included once per instruction set.
#include "cpu/philox_words.h"

namespace sbrrt::SBRRT_ISA {

constexpr int kTileBlocks = 256;  // words, block numbers and pieces of a tile stay in L1
static_assert(kTileBlocks % kPhiloxGroup == 0);

// A run of elements that lie together both in a tile's words and in the output.
struct Piece {
  int64_t out_start;
  int word_start, count;
};

struct Tile {
  alignas(64) uint64_t blocks[kTileBlocks];
  alignas(64) uint32_t words[4 * kTileBlocks];
  Piece pieces[kTileBlocks];
  int num_blocks, num_pieces;
};

inline void append_piece(Tile& tile, const Piece& piece) {
  if (piece.count <= 0) return;
  if (tile.num_pieces > 0) {
    Piece& last = tile.pieces[tile.num_pieces - 1];
    if (last.word_start + last.count == piece.word_start &&
        last.out_start + last.count == piece.out_start) {
      last.count += piece.count;
      return;
    }
  }
  tile.pieces[tile.num_pieces++] = piece;
}

// Slot s of a row is the s-th block that the row touches; slots begin ... end - 1, counted over
// all rows, become the tile's blocks.
inline void plan_tile(const PhiloxRows& rows, int64_t begin, int64_t end, Tile& tile) {
  tile.num_blocks = tile.num_pieces = 0;
  int64_t row = begin / rows.slots_per_row, slot = begin % rows.slots_per_row;
  for (int64_t left = end - begin; left > 0; ++row, slot = 0) {
    const int64_t num_slots = std::min(rows.slots_per_row - slot, left);
    const int64_t offset = rows.offsets[row], skipped = offset % 4;
    const int64_t first = std::max<int64_t>(4 * slot - skipped, 0);
    const int64_t last = std::min(4 * (slot + num_slots) - skipped, rows.width);
    append_piece(tile, {row * rows.width + first,
                        static_cast<int>(4 * tile.num_blocks + first + skipped - 4 * slot),
                        static_cast<int>(last - first)});
    for (int64_t i = 0; i < num_slots; ++i) {
      tile.blocks[tile.num_blocks + i] = static_cast<uint64_t>(offset / 4 + slot + i);
    }
    tile.num_blocks += static_cast<int>(num_slots);
    left -= num_slots;
  }
  while (tile.num_blocks % kPhiloxGroup != 0) tile.blocks[tile.num_blocks++] = 0;
}

template <typename T>
inline void emit(const KeptValue<T>& kept, const uint32_t* words, int count, T* out) {
  for (int i = 0; i < count; ++i) {
    out[i] = words[i] >= kept.threshold ? kept.bits : T(0);
  }
}

inline void emit(RawWords, const uint32_t* words, int count, uint32_t* out) {
  for (int i = 0; i < count; ++i) out[i] = words[i];
}

template <typename Value, typename T>
void fill_slots(const PhiloxRows& rows, Value value, T* out, int64_t begin, int64_t end) {
  Tile tile;
  for (int64_t start = begin; start < end; start += kTileBlocks) {
    plan_tile(rows, start, std::min(start + kTileBlocks, end), tile);
    philox_words(tile.blocks, tile.num_blocks, rows.stream, tile.words);
    for (int i = 0; i < tile.num_pieces; ++i) {
      const Piece& piece = tile.pieces[i];
      emit(value, tile.words + piece.word_start, piece.count, out + piece.out_start);
    }
  }
}

}  // namespace sbrrt::SBRRT_ISA
