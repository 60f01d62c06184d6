// How a product on tiles of bfloat16 is cut.
#ifndef BITSMITH_PANELS_SPLIT_PLAN_H
#define BITSMITH_PANELS_SPLIT_PLAN_H

#include "product.h"
#include "cut.h"

namespace bitsmith::panels {

constexpr int64_t kUnitChunks = 4, kPieceChunks = 4;  // of a unit, and of a piece, at most
constexpr int64_t kMostUnits = 2 * kPieceChunks;      // of a piece
static_assert(kChunk == kTileColumns);

// Units that are multiplied at a time: `count` from `first` on, the columns of `chunks` from `chunk`
// on. Their weights take as many tiles, or twice as many where two units share a chunk.
struct Piece {
  int64_t first, count;
  int64_t chunk, chunks;
  int64_t tiles;
  Unit units[kMostUnits];
};

// Groups cut into units, none longer than 128 columns: what is summed in which order depends on
// the weight alone.
class Units {
 public:
  explicit Units(const Layout& layout)
      : halves_(layout.padded < kChunk),
        group_chunks_(halves_ ? 1 : layout.padded / kChunk),
        of_group_((group_chunks_ + kUnitChunks - 1) / kUnitChunks),
        most_((group_chunks_ + of_group_ - 1) / of_group_),
        count_(layout.stored_groups * of_group_) {}

  int64_t count() const { return count_; }
  int64_t most_chunks() const { return most_; }  // of a unit
  int64_t group(int64_t unit) const { return unit / of_group_; }
  // The half of the chunk that a unit has; −1: all.
  int half(int64_t unit) const { return halves_ ? int(unit % 2) : -1; }
  int64_t chunk(int64_t unit) const {
    if (halves_) return unit / 2;
    return group(unit) * group_chunks_ + unit % of_group_ * most_;
  }
  int64_t chunks(int64_t unit) const {
    return std::min(most_, group_chunks_ - unit % of_group_ * most_);
  }
  int64_t of_piece() const {
    return std::max<int64_t>(1, kPieceChunks / most_) * (halves_ ? 2 : 1);
  }
  // The units from `first` on.
  Piece piece(int64_t first) const {
    Piece out;
    out.first = first;
    out.count = std::min(of_piece(), count_ - first);
    out.chunk = chunk(first);
    out.tiles = 0;
    for (int64_t i = 0; i < out.count; ++i) {
      const int64_t chunks_of = chunks(first + i);
      out.units[i] = {chunk(first + i) - out.chunk, chunks_of};
      out.chunks = out.units[i].tile + chunks_of;
      out.tiles += chunks_of;
    }
    return out;
  }

 private:
  const bool halves_;
  const int64_t group_chunks_, of_group_, most_, count_;
};

// Rows in tiles of about the same number.
inline int64_t tile_rows_of(int64_t rows) {
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  return (rows + tiles - 1) / tiles;
}

// Tasks of some panels and some rows, whose sums stay in the second-level cache. Each task decodes
// its panels and splits its rows: of the ways to have enough tasks, the one with the least of that.
inline Cut cut_of(const Request& request) {
  constexpr int64_t kMostPanels = 64, kMostRows = 256;
  const int64_t wanted = request.threads > 1 ? 3 * int64_t{request.threads} : 1;
  const int64_t panels = request.layout.blocks, rows = request.m;
  const auto pieces = [](int64_t count, int64_t most) { return (count + most - 1) / most; };
  const auto panel_pieces = [&](int64_t row_pieces) {
    return std::max(pieces(wanted, row_pieces), pieces(panels, kMostPanels));
  };
  // In rows of w that are decoded; to split a row of x takes twice as long.
  const auto work = [&](int64_t row_pieces) {
    return row_pieces * request.layout.n + 2 * panel_pieces(row_pieces) * rows;
  };
  int64_t best = pieces(rows, kMostRows);
  for (int64_t i = best + 1; i <= std::min(wanted, pieces(rows, 2 * kTileRows)); ++i) {
    if (work(i) < work(best)) best = i;
  }
  Cut cut = {round_up(pieces(panels, panel_pieces(best)), 2), panels, pieces(rows, best), rows, 0};
  cut.tasks = cut.panel_tasks() * pieces(rows, cut.rows);
  return cut;
}

}  // namespace bitsmith::panels
#endif
