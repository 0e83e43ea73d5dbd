//! Striped volumes (RAID): a write of whole stripes needs no read of the old parity, so what is long enough
//! begins where a stripe does. More exactly, each block of a file has the place in a stripe of the volume that it
//! has in a stripe of the file.

use ext4_format::superblock::SuperBlock;
use ext4_format::{BlockNo, FileBlock};

/// Blocks of a stripe, if there is one to be aligned to: as mounted, else the stripe width or the stride that the
/// superblock tells, the first of them that fits into a group.
#[must_use]
pub fn stripe_of(sb: &SuperBlock, mounted: Option<u32>) -> Option<u32> {
    let (stride, width) = sb.raid();
    let fits = |blocks: &u32| (1..=sb.blocks_per_group()).contains(blocks);
    [mounted.unwrap_or(0), width, stride].into_iter().find(fits).filter(|blocks| *blocks > 1)
}

/// Where a run has to begin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Alignment {
    stripe: u32,
    /// The first block, modulo the stripe.
    phase: u32,
}

impl Alignment {
    /// For a run that begins with block `at` of a file.
    pub fn of(stripe: u32, at: FileBlock) -> Alignment {
        Alignment { stripe, phase: at.0 % stripe }
    }

    /// Whether a run may begin at `block`.
    pub fn allows(self, block: BlockNo) -> bool {
        block.0 % u64::from(self.stripe) == self.phase.into()
    }

    /// The first place from `index` on, counted from block `first`.
    pub fn next(self, first: BlockNo, index: u32) -> u32 {
        let stripe = u64::from(self.stripe);
        let behind = (first.0 + u64::from(index)) % stripe;
        index.saturating_add(((stripe + u64::from(self.phase) - behind) % stripe) as u32)
    }

    /// The longest part of a run of `len` blocks that ends with a stripe.
    pub fn whole(self, len: u32) -> u32 {
        let end = self.phase.saturating_add(len) / self.stripe * self.stripe;
        end.saturating_sub(self.phase)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_the_phase_of_the_file() {
        for stripe in [2, 48, 64, 1000] {
            for (at, index, first) in [(0, 0, 0), (0, 1, 1), (5, 4, 1), (1003, 32760, 98305), (64, 63, 1)] {
                let alignment = Alignment::of(stripe, FileBlock(at));
                let next = alignment.next(BlockNo(first), index);
                assert!(next >= index && next < index + stripe);
                assert!(alignment.allows(BlockNo(first + u64::from(next))));
                assert_eq!((first + u64::from(next)) % u64::from(stripe), u64::from(at % stripe));
            }
        }
    }

    #[test]
    fn a_part_ends_with_a_stripe() {
        let parts = |at, len| Alignment::of(64, FileBlock(at)).whole(len);
        assert_eq!(
            [parts(0, 63), parts(0, 64), parts(0, 200), parts(60, 3), parts(60, 5)],
            [0, 64, 192, 0, 4]
        );
        assert_eq!(parts(64 + 10, 54 + 64), 54 + 64);
    }
}
