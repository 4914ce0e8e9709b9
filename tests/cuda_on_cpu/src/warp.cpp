// Where the lanes of a warp meet: shuffles, votes, __syncwarp, ldmatrix, mma.
#include <list>

#include "state.h"

namespace cuda_on_cpu {

namespace {

// The lanes of `mask` in one operation; lanes[i] is what lane i brought.
struct Meeting {
  const char* what;
  Site site;
  unsigned mask, arrived;
  void* lanes[kWarp];
};

std::list<Meeting> meetings[kMaxThreads / kWarp];

Thread& lane_of_warp(int lane) { return threads[current->warp() * kWarp + lane]; }

void check_mask(unsigned mask, const char* what) {
  if (!(mask >> current->lane() & 1)) {
    fail(text("%s with mask 0x%08x, which does not name its own lane %d", what, mask,
              current->lane()));
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(mask >> lane & 1)) continue;
    const bool exists = current->warp() * kWarp + lane < block.num_threads;
    if (!exists || lane_of_warp(lane).done) {
      fail(text("%s with mask 0x%08x, but lane %d %s", what, mask, lane,
                exists ? "has ended" : "is not in this block"));
    }
  }
}

Meeting& join(unsigned mask, const char* what, Site site) {
  check_mask(mask, what);
  auto& pending = meetings[current->warp()];
  for (Meeting& meeting : pending) {
    if (!(meeting.mask & mask)) continue;
    if (meeting.mask == mask && meeting.what == what && same(meeting.site, site)) return meeting;
    fail(text("came to %s (mask 0x%08x) at %s while its lanes wait in %s (mask 0x%08x) at %s", what,
              mask, place(site).c_str(), meeting.what, meeting.mask, place(meeting.site).c_str()));
  }
  pending.push_back({what, site, mask, 0, {}});
  return pending.back();
}

// Brings `own`; the lane that comes last calls `complete` on what all of them brought.
template <typename Own, typename Complete>
void meet(unsigned mask, const char* what, Site site, Own& own, Complete complete) {
  Meeting& meeting = join(mask, what, site);
  meeting.lanes[current->lane()] = &own;
  meeting.arrived |= 1u << current->lane();
  if (meeting.arrived == meeting.mask) {
    Own* lanes[kWarp];
    for (int i = 0; i < kWarp; ++i) lanes[i] = static_cast<Own*>(meeting.lanes[i]);
    complete(lanes);
    for (int i = 0; i < kWarp; ++i) {
      if (mask >> i & 1) resume(lane_of_warp(i));
    }
    meetings[current->warp()].remove_if([&](const Meeting& other) { return &other == &meeting; });
  }
  wait_for(what, site);
}

struct Shuffled {
  uint64_t value, result;
  int operand, width;
};

// The lane that `lane` reads; itself where the group of `width` lanes ends.
int source_lane(Shuffle how, int lane, int operand, int width) {
  const int first = lane & ~(width - 1), last = first + width - 1;
  if (how == Shuffle::index) return first + (operand & (width - 1));
  int source = lane;
  if (how == Shuffle::up) source = lane - operand;
  if (how == Shuffle::down) source = lane + operand;
  if (how == Shuffle::exclusive_or) source = lane ^ operand;
  const bool inside = how == Shuffle::exclusive_or ? source <= last : source >= first && source <= last;
  return inside ? source : lane;
}

}  // namespace

void reset_warps() {
  for (auto& pending : meetings) pending.clear();
}

uint64_t shuffle(Shuffle how, unsigned mask, uint64_t value, int operand, int width, Site site) {
  static const char* const kNames[] = {"__shfl_sync", "__shfl_up_sync", "__shfl_down_sync",
                                       "__shfl_xor_sync"};
  const char* name = kNames[static_cast<int>(how)];
  if (width < 1 || width > kWarp || (width & (width - 1))) {
    fail(text("%s over groups of %d lanes at %s", name, width, place(site).c_str()));
  }
  const int source = source_lane(how, current->lane(), operand, width);
  if (source < 0 || source >= kWarp || !(mask >> source & 1)) {
    fail(text("%s reads lane %d, which its mask 0x%08x does not name, at %s", name, source, mask,
              place(site).c_str()));
  }
  Shuffled own{value, 0, source, width};
  meet(mask, name, site, own, [&](Shuffled** lanes) {
    for (int i = 0; i < kWarp; ++i) {
      if (mask >> i & 1) lanes[i]->result = lanes[lanes[i]->operand]->value;
    }
  });
  return own.result;
}

unsigned ballot(unsigned mask, bool predicate, Site site) {
  struct Vote {
    bool predicate;
    unsigned result;
  } own{predicate, 0};
  meet(mask, "a vote", site, own, [&](Vote** lanes) {
    unsigned result = 0;
    for (int i = 0; i < kWarp; ++i) {
      if ((mask >> i & 1) && lanes[i]->predicate) result |= 1u << i;
    }
    for (int i = 0; i < kWarp; ++i) {
      if (mask >> i & 1) lanes[i]->result = result;
    }
  });
  return own.result;
}

void syncwarp(unsigned mask, Site site) {
  int own = 0;
  meet(mask, "__syncwarp", site, own, [](int**) {});
  if (mask == kAllLanes) ++current->warp_epoch;
}

void ldmatrix(uint32_t* fragment, const void* row, bool transposed, Site site) {
  struct Lane {
    uint32_t* fragment;
    const void* row;
  } own{fragment, row};
  check_aligned(row, 16);
  if (on_fiber_stack(row)) fail("ldmatrix of an address that is not in shared memory");
  check_access(row, 16, Access::read);
  meet(kAllLanes, transposed ? "ldmatrix.trans" : "ldmatrix", site, own, [&](Lane** lanes) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint16_t element[8][8];
      for (int i = 0; i < 8; ++i) memcpy(element[i], lanes[8 * matrix + i]->row, 16);
      for (int lane = 0; lane < kWarp; ++lane) {
        const int i = lane / 4, j = 2 * (lane % 4);
        const uint16_t low = transposed ? element[j][i] : element[i][j];
        const uint16_t high = transposed ? element[j + 1][i] : element[i][j + 1];
        lanes[lane]->fragment[matrix] = low | uint32_t{high} << 16;
      }
    }
  });
}

void mma(float* c, const uint32_t* a, const uint32_t* b, bool is_bfloat16, Site site) {
  struct Lane {
    float* c;
    const uint32_t *a, *b;
  } own{c, a, b};
  const auto number = [&](uint32_t word, int half) {
    const uint16_t bits = static_cast<uint16_t>(word >> 16 * half);
    return is_bfloat16 ? __bfloat162float({bits}) : __half2float({bits});
  };
  meet(kAllLanes, is_bfloat16 ? "mma.bf16" : "mma.f16", site, own, [&](Lane** lanes) {
    float matrix_a[16][16], matrix_b[16][8];
    for (int lane = 0; lane < kWarp; ++lane) {
      const int group = lane / 4, t = lane % 4;
      for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 4; ++i) {
          matrix_a[group + 8 * (i % 2)][2 * t + half + 8 * (i / 2)] = number(lanes[lane]->a[i], half);
        }
        for (int i = 0; i < 2; ++i) {
          matrix_b[2 * t + half + 8 * i][group] = number(lanes[lane]->b[i], half);
        }
      }
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      for (int i = 0; i < 4; ++i) {
        const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
        float sum = lanes[lane]->c[i];
        for (int k = 0; k < 16; ++k) sum += matrix_a[row][k] * matrix_b[k][column];
        lanes[lane]->c[i] = sum;
      }
    }
  });
}

}  // namespace cuda_on_cpu
