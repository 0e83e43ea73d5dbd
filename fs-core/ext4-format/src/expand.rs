//! Letting an inode use more extra fields than it was made with: the attributes behind them move on.

use crate::inode::{BASE_SIZE, Inode, InodeLayout};
use crate::xattr;

/// Lets `inode`, which lies in `record`, use `want` bytes of extra fields; the new ones are zero. False, and no
/// change, when the record has no room for them and the attributes.
#[must_use]
pub fn expand_extra(record: &mut [u8], inode: &mut Inode, layout: &InodeLayout, want: u16) -> bool {
    let old = BASE_SIZE + usize::from(inode.extra_isize);
    let new = BASE_SIZE + usize::from(want);
    let Some(record) = record.get_mut(..layout.inode_size.into()) else { return false };
    if new <= old || new > record.len() {
        return false;
    }
    if inode.extra_isize == 0 {
        // Nothing behind the first 128 bytes was in use.
        record[old..].fill(0);
    } else if xattr::in_use(&record[old..]) && !xattr::shift(&mut record[old..], new - old) {
        return false;
    }
    record[old..new].fill(0);
    inode.extra_isize = want;
    if inode.has_room_for_crtime() {
        inode.crtime.get_or_insert_default();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xattr::{Attributes, Home, OwnedValue};

    const LAYOUT: InodeLayout = InodeLayout {
        inode_size: 256,
        block_size: 4096,
        huge_file: true,
        large_dir: false,
        wide_blocks: true,
        ea_inode: false,
        cluster_size: 4096,
    };

    fn record(extra: u16, values: &[usize]) -> (Vec<u8>, Inode, Attributes) {
        let mut record = vec![0; 256];
        record[BASE_SIZE..BASE_SIZE + 2].copy_from_slice(&extra.to_le_bytes());
        let inode = Inode::decode(&record, &LAYOUT).unwrap();
        let mut list = Attributes::default();
        for (i, len) in values.iter().enumerate() {
            list.set(1, &[b'a' + i as u8], OwnedValue::Bytes(vec![i as u8 + 1; *len]));
        }
        assert!(list.write(&mut record[BASE_SIZE + usize::from(extra)..], Home::Inode));
        (record, inode, list)
    }

    #[test]
    fn attributes_move_on_or_are_left_alone() {
        for values in [&[][..], &[0], &[1, 0, 7], &[20, 12], &[72]] {
            for want in [32, 36, 64, 96, 120, 128, 200] {
                let (mut bytes, mut inode, list) = record(28, values);
                let before = (bytes.clone(), inode.clone());
                let fits = want <= 128
                    && (list.list().is_empty() || list.size(Home::Inode) <= 128 - usize::from(want));
                assert_eq!(expand_extra(&mut bytes, &mut inode, &LAYOUT, want), fits, "{values:?} {want}");
                if !fits {
                    assert_eq!((bytes, inode), before);
                    continue;
                }
                let extra = usize::from(want);
                assert!(bytes[BASE_SIZE + 28..BASE_SIZE + extra].iter().all(|byte| *byte == 0));
                let region = &bytes[BASE_SIZE + extra..];
                crate::xattr::check(region, Home::Inode).unwrap();
                assert_eq!(Attributes::read(region, Home::Inode, |_| 0).unwrap(), list);
            }
        }
    }

    #[test]
    fn a_record_that_used_none_starts_afresh() {
        let mut bytes = vec![0xff; 256];
        bytes[BASE_SIZE..BASE_SIZE + 2].fill(0);
        let mut inode = Inode::decode(&bytes, &LAYOUT).unwrap();
        assert!(inode.crtime.is_none());
        assert!(expand_extra(&mut bytes, &mut inode, &LAYOUT, 32));
        assert!(inode.crtime.is_some() && bytes[BASE_SIZE..].iter().all(|byte| *byte == 0));
    }
}
