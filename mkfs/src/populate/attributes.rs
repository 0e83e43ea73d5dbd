//! Extended attributes: sets that inodes share, and where each set's values lie.
//!
//! Most files of a tree have one of a few sets (a label, a capability), so a set is kept once, and its block,
//! where it needs one, is shared as far as ext4 allows. Values that fit neither the inode nor a block lie in
//! inodes of their own (feature `ea_inode`), one for each value of a set.

use std::collections::HashMap;
use std::sync::Arc;

use ext4_format::xattr::{self, Home, OwnedValue};

use super::acl::Acl;
use super::error::{Error, Result};
use super::owners::Owners;

/// `system.posix_acl_access`.
pub const ACL_ACCESS: &[u8] = b"system.posix_acl_access";
/// `system.posix_acl_default`.
pub const ACL_DEFAULT: &[u8] = b"system.posix_acl_default";

/// One attribute, as ext4 stores it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Attribute {
    /// Index of its prefix.
    pub index: u8,
    /// The name behind the prefix.
    pub name: Box<[u8]>,
    /// The value.
    pub value: Box<[u8]>,
}

/// A full name and a value, as the system call shows them.
pub type NamedValue = (Vec<u8>, Vec<u8>);

/// All sets of attributes in a tree; set 0 is empty.
#[derive(Default)]
pub struct AttributeSets {
    sets: Vec<Arc<[Attribute]>>,
    numbers: HashMap<Arc<[Attribute]>, u32>,
}

impl AttributeSets {
    /// The attributes of a set.
    pub fn get(&self, set: u32) -> &[Attribute] {
        (set as usize).checked_sub(1).map_or(&[], |at| &self.sets[at])
    }

    /// How many sets there are, the empty one included.
    pub fn len(&self) -> usize {
        self.sets.len() + 1
    }

    /// The number of the set of these attributes.
    pub fn number(&mut self, mut attributes: Vec<Attribute>) -> u32 {
        if attributes.is_empty() {
            return 0;
        }
        attributes.sort();
        let set: Arc<[Attribute]> = attributes.into();
        let next = self.sets.len() as u32 + 1;
        *self.numbers.entry(set.clone()).or_insert_with(|| {
            self.sets.push(set);
            next
        })
    }
}

/// Turns attributes as the system call shows them into what ext4 stores. Those of other filesystems, which
/// ext4 has no place for, are returned by name.
pub fn convert(
    pairs: Vec<NamedValue>,
    owners: &Owners,
    path: &[u8],
) -> Result<(Vec<Attribute>, Vec<Vec<u8>>)> {
    let mut attributes: Vec<Attribute> = Vec::with_capacity(pairs.len());
    let mut foreign = Vec::new();
    for (name, mut value) in pairs {
        let is_list = name == ACL_ACCESS || name == ACL_DEFAULT;
        let Some((index, rest)) = xattr::split_name(&name).filter(|(index, _)| {
            is_list || (*index != xattr::INDEX_SYSTEM && xattr::prefix(*index).is_some_and(user_sees))
        }) else {
            foreign.push(name);
            continue;
        };
        if rest.len() > xattr::MAX_NAME || value.len() > xattr::MAX_VALUE {
            return Err(Error::entry(path, format!("attribute {} is too long", name.escape_ascii())));
        }
        if rest.contains(&0) {
            return Err(Error::entry(path, "an attribute with a zero byte in its name"));
        }
        if is_list {
            let problem = || Error::entry(path, format!("attribute {} is damaged", name.escape_ascii()));
            let mut list = Acl::from_wire(&value).ok_or_else(problem)?;
            if name == ACL_ACCESS && list.is_minimal() {
                continue;
            }
            list.map(owners, path)?;
            value = list.to_disk();
        }
        attributes.retain(|other| (other.index, &*other.name) != (index, rest));
        attributes.push(Attribute { index, name: rest.into(), value: value.into() });
    }
    Ok((attributes, foreign))
}

/// The prefixes that user space can set on ext4.
fn user_sees(prefix: &str) -> bool {
    matches!(prefix, "user." | "trusted." | "security.")
}

/// Where the attributes of one set lie.
#[derive(Clone, Debug, Default)]
pub struct Division {
    /// In the inode.
    pub inode: Vec<usize>,
    /// In a block.
    pub block: Vec<usize>,
    /// In inodes of their own; the entry that names each lies in the block or the inode.
    pub values: Vec<usize>,
}

impl Division {
    /// Divides a set between the inode's `room`, a block and, where `ea_inode` is there, inodes for values.
    /// `None`: it does not fit.
    pub fn new(set: &[Attribute], room: usize, block_size: usize, ea_inode: bool) -> Option<Division> {
        // A label or a list is looked at on every access: it comes first. What is left goes to the block.
        let mut order: Vec<usize> = (0..set.len()).collect();
        order.sort_by_key(|at| (rank(set[*at].index), *at));
        let mut division = Division::default();
        let mut inode_left = room.saturating_sub(xattr::INODE_HEADER + 4);
        let mut block_left = block_size.saturating_sub(xattr::BLOCK_HEADER + 4);
        for at in order {
            let name = xattr::entry_size(set[at].name.len());
            let size = name + set[at].value.len().next_multiple_of(4);
            let outside =
                ea_inode && (size > block_left || set[at].value.len() > block_size / 2) && size > inode_left;
            let size = if outside { name } else { size };
            if outside {
                division.values.push(at);
            }
            if size <= inode_left && room > 0 {
                inode_left -= size;
                division.inode.push(at);
            } else if size <= block_left {
                block_left -= size;
                division.block.push(at);
            } else {
                return None;
            }
        }
        division.inode.sort_unstable();
        division.block.sort_unstable();
        Some(division)
    }

    /// Writes a part of the set into its region. `value` names the inode of a value that has one, and its
    /// hash.
    pub fn encode(
        &self,
        set: &[Attribute],
        home: Home,
        region: &mut [u8],
        value: impl Fn(usize) -> Option<(ext4_format::Ino, u32)>,
    ) -> bool {
        let part = if home == Home::Inode { &self.inode } else { &self.block };
        let mut list = xattr::Attributes::default();
        for at in part {
            let attribute = &set[*at];
            let stored = match value(*at) {
                Some((ino, value_hash)) => {
                    OwnedValue::InInode { ino, size: attribute.value.len() as u32, value_hash }
                }
                None => OwnedValue::Bytes(attribute.value.to_vec()),
            };
            list.set(attribute.index, &attribute.name, stored);
        }
        list.write(region, home)
    }
}

fn rank(index: u8) -> u8 {
    match index {
        6 => 0,
        2 | 3 => 1,
        4 => 2,
        _ => 3,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attribute(index: u8, name: &str, len: usize) -> Attribute {
        Attribute { index, name: name.as_bytes().into(), value: vec![7; len].into() }
    }

    #[test]
    fn what_fits_lies_in_the_inode_and_the_rest_in_a_block() {
        let set = [attribute(1, "big", 500), attribute(6, "capability", 20)];
        let division = Division::new(&set, 96, 4096, false).unwrap();
        assert_eq!((division.inode, division.block, division.values), (vec![1], vec![0], vec![]));
        assert!(Division::new(&[attribute(1, "huge", 5000)], 96, 4096, false).is_none());
        let division = Division::new(&[attribute(1, "huge", 5000)], 96, 4096, true).unwrap();
        assert_eq!((division.inode, division.values), (vec![0], vec![0]));
    }

    #[test]
    fn attributes_of_other_filesystems_are_named() {
        let pairs =
            vec![(b"btrfs.compression".to_vec(), b"zstd".to_vec()), (b"user.a".to_vec(), b"1".to_vec())];
        let (kept, foreign) = convert(pairs, &Owners::default(), b"f").unwrap();
        assert_eq!((kept.len(), foreign), (1, vec![b"btrfs.compression".to_vec()]));
    }

    #[test]
    fn equal_sets_have_one_number() {
        let mut sets = AttributeSets::default();
        let (a, b) = (attribute(1, "a", 1), attribute(1, "b", 1));
        let first = sets.number(vec![a.clone(), b.clone()]);
        assert_eq!(first, sets.number(vec![b.clone(), a]));
        assert_ne!(first, sets.number(vec![b]));
        assert_eq!((sets.number(Vec::new()), sets.len()), (0, 3));
    }
}
