//! POSIX access control lists: the form ext4 stores (version 1: entries without an id are four
//! bytes short), the form the system call speaks (version 2: all entries eight bytes), and the
//! arithmetic between a list and a mode.
//!
//! A list in memory is always valid: one owner, one group and one other entry in the canonical
//! order, and a mask where there are named entries. It knows no inode and no storage.
//!
//! Sources: acl(5); the layout of both forms is the kernel's `Documentation` of `posix_acl_xattr`
//! and ext4's attribute values as `getfattr` and `debugfs` show them.

use ext4_format::inode::FileType;
use ext4_format::inode::mode::S_IRWXUGO;

use crate::error::{Posix, Result};
use crate::types::Credentials;

const DISK_VERSION: u32 = 1;
const WIRE_VERSION: u32 = 2;
const NO_ID: u32 = u32::MAX;
const PERM_MASK: u16 = 0o7;

/// Whom an entry is about. The order is the canonical one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Who {
    Owner,
    User(u32),
    OwnerGroup,
    Group(u32),
    Mask,
    Other,
}

impl Who {
    fn tag(self) -> u16 {
        match self {
            Who::Owner => 0x01,
            Who::User(_) => 0x02,
            Who::OwnerGroup => 0x04,
            Who::Group(_) => 0x08,
            Who::Mask => 0x10,
            Who::Other => 0x20,
        }
    }

    fn id(self) -> Option<u32> {
        match self {
            Who::User(id) | Who::Group(id) => Some(id),
            _ => None,
        }
    }

    /// Whether entries with this tag carry an id; `None` for a tag that does not exist.
    fn tag_has_id(tag: u16) -> Option<bool> {
        match tag {
            0x02 | 0x08 => Some(true),
            0x01 | 0x04 | 0x10 | 0x20 => Some(false),
            _ => None,
        }
    }

    fn from_tag(tag: u16, id: u32) -> Option<Who> {
        match tag {
            0x01 => Some(Who::Owner),
            0x02 => Some(Who::User(id)),
            0x04 => Some(Who::OwnerGroup),
            0x08 => Some(Who::Group(id)),
            0x10 => Some(Who::Mask),
            0x20 => Some(Who::Other),
            _ => None,
        }
    }

    /// Position of the tag in the canonical order.
    fn place(self) -> u8 {
        match self {
            Who::Owner => 0,
            Who::User(_) => 1,
            Who::OwnerGroup => 2,
            Who::Group(_) => 3,
            Who::Mask => 4,
            Who::Other => 5,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Entry {
    who: Who,
    perm: u16,
}

/// A valid access control list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acl(Vec<Entry>);

/// What a new file gets from its directory's default list.
pub struct Inherited {
    /// The mode after the list, or the umask where there is none, has been applied.
    pub mode: u16,
    /// The file's own access list, where the mode cannot express it.
    pub access: Option<Acl>,
    /// A new directory's default list.
    pub default: Option<Acl>,
}

impl Acl {
    /// Reads the form of the system call. `None` stands for an empty list, which removes.
    ///
    /// # Errors
    /// `NotSupported` for another version, `Invalid` for anything that is not a valid list.
    pub fn from_wire(bytes: &[u8]) -> Result<Option<Acl>> {
        let (version, mut rest) = split_u32(bytes).ok_or(Posix::Invalid)?;
        if version != WIRE_VERSION {
            return Err(Posix::NotSupported.into());
        }
        if rest.is_empty() {
            return Ok(None);
        }
        let mut entries = Vec::with_capacity(rest.len() / 8);
        while !rest.is_empty() {
            let (head, tail) = split_u32(rest).ok_or(Posix::Invalid)?;
            let (id, tail) = split_u32(tail).ok_or(Posix::Invalid)?;
            entries.push(entry(head, id).ok_or(Posix::Invalid)?);
            rest = tail;
        }
        Ok(Some(Acl::checked(entries).ok_or(Posix::Invalid)?))
    }

    /// The form of the system call.
    #[must_use]
    pub fn to_wire(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 + 8 * self.0.len());
        bytes.extend_from_slice(&WIRE_VERSION.to_le_bytes());
        for e in &self.0 {
            bytes.extend_from_slice(&e.who.tag().to_le_bytes());
            bytes.extend_from_slice(&e.perm.to_le_bytes());
            bytes.extend_from_slice(&e.who.id().unwrap_or(NO_ID).to_le_bytes());
        }
        bytes
    }

    /// Reads the form ext4 stores; `None` when it is damaged.
    #[must_use]
    pub fn from_disk(bytes: &[u8]) -> Option<Acl> {
        let (version, mut rest) = split_u32(bytes)?;
        if version != DISK_VERSION {
            return None;
        }
        let mut entries = Vec::with_capacity(rest.len() / 4);
        while !rest.is_empty() {
            let (head, tail) = split_u32(rest)?;
            let (id, tail) = if Who::tag_has_id(head as u16)? { split_u32(tail)? } else { (NO_ID, tail) };
            entries.push(entry(head, id)?);
            rest = tail;
        }
        Acl::checked(entries)
    }

    /// The form ext4 stores.
    #[must_use]
    pub fn to_disk(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(4 + 8 * self.0.len());
        bytes.extend_from_slice(&DISK_VERSION.to_le_bytes());
        for e in &self.0 {
            bytes.extend_from_slice(&e.who.tag().to_le_bytes());
            bytes.extend_from_slice(&e.perm.to_le_bytes());
            if let Some(id) = e.who.id() {
                bytes.extend_from_slice(&id.to_le_bytes());
            }
        }
        bytes
    }

    /// The permission bits this list amounts to, and whether they say all of it.
    #[must_use]
    pub fn as_mode(&self) -> (u16, bool) {
        let mut mode = 0;
        let mut exact = true;
        for e in &self.0 {
            match e.who {
                Who::Owner => mode |= e.perm << 6,
                Who::OwnerGroup => mode |= e.perm << 3,
                Who::Other => mode |= e.perm,
                // The mask stands in the group's bits.
                Who::Mask => {
                    mode = mode & !0o070 | e.perm << 3;
                    exact = false;
                }
                Who::User(_) | Who::Group(_) => exact = false,
            }
        }
        (mode, exact)
    }

    /// The list after `chmod` to `mode`.
    #[must_use]
    pub fn with_mode(mut self, mode: u16) -> Acl {
        let group = self.group_class();
        for e in &mut self.0 {
            match e.who {
                Who::Owner => e.perm = mode >> 6 & PERM_MASK,
                Who::Other => e.perm = mode & PERM_MASK,
                who if who == group => e.perm = mode >> 3 & PERM_MASK,
                _ => {}
            }
        }
        self
    }

    /// Whether the list gives `who` all of the permissions `want`, three bits of a mode, for a file of this owner
    /// and group. acl(5), "Access check algorithm".
    #[must_use]
    pub fn allows(&self, owner: u32, group: u32, who: &Credentials, want: u16) -> bool {
        let of = |wanted: Who| self.0.iter().find(|e| e.who == wanted).map(|e| e.perm);
        let mask = of(Who::Mask).unwrap_or(PERM_MASK);
        if who.uid == owner {
            return of(Who::Owner).unwrap_or(0) & want == want;
        }
        if let Some(perm) = of(Who::User(who.uid)) {
            return perm & mask & want == want;
        }
        let mut in_one = false;
        for e in &self.0 {
            let fits = match e.who {
                Who::OwnerGroup => who.is_in_group(group),
                Who::Group(id) => who.is_in_group(id),
                _ => false,
            };
            if fits && e.perm & mask & want == want {
                return true;
            }
            in_one |= fits;
        }
        !in_one && of(Who::Other).unwrap_or(0) & want == want
    }

    /// The entry that the group bits of the mode stand for.
    fn group_class(&self) -> Who {
        if self.0.iter().any(|e| e.who == Who::Mask) { Who::Mask } else { Who::OwnerGroup }
    }

    /// Both list and `mode` restricted to what both allow: the access list of a new file.
    fn masked_by(mut self, mode: u16) -> (Acl, u16) {
        let group = self.group_class();
        let mut result = mode;
        for e in &mut self.0 {
            let shift = match e.who {
                Who::Owner => 6,
                Who::Other => 0,
                who if who == group => 3,
                _ => continue,
            };
            e.perm &= mode >> shift & PERM_MASK;
            result &= !(PERM_MASK << shift) | e.perm << shift;
        }
        (self, result)
    }

    fn checked(entries: Vec<Entry>) -> Option<Acl> {
        let count = |who: Who| entries.iter().filter(|e| e.who.place() == who.place()).count();
        let named = count(Who::User(0)) + count(Who::Group(0)) > 0;
        let once = count(Who::Owner) == 1 && count(Who::OwnerGroup) == 1 && count(Who::Other) == 1;
        let masks = count(Who::Mask);
        let ordered = entries.is_sorted_by_key(|e| e.who.place());
        let ids = entries.iter().all(|e| e.who.id() != Some(NO_ID));
        (once && ordered && ids && masks <= 1 && (masks == 1 || !named)).then_some(Acl(entries))
    }
}

/// Applies a directory's default list, or the umask where there is none, to a new file.
#[must_use]
pub fn inherit(default: Option<Acl>, kind: FileType, mode: u16, umask: u32) -> Inherited {
    let Some(default) = default.filter(|_| kind != FileType::Symlink) else {
        let mode = if kind == FileType::Symlink { mode } else { mode & !(umask as u16 & S_IRWXUGO) };
        return Inherited { mode, access: None, default: None };
    };
    let (access, mode) = default.clone().masked_by(mode);
    let (_, exact) = access.as_mode();
    Inherited {
        mode,
        access: (!exact).then_some(access),
        default: (kind == FileType::Directory).then_some(default),
    }
}

fn entry(head: u32, id: u32) -> Option<Entry> {
    let perm = (head >> 16) as u16;
    let who = Who::from_tag(head as u16, id)?;
    (perm & !PERM_MASK == 0).then_some(Entry { who, perm })
}

fn split_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (head, tail) = bytes.split_first_chunk::<4>()?;
    Some((u32::from_le_bytes(*head), tail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(entries: &[(Who, u16)]) -> Acl {
        Acl::checked(entries.iter().map(|&(who, perm)| Entry { who, perm }).collect()).expect("valid")
    }

    fn rich() -> Acl {
        acl(&[
            (Who::Owner, 7),
            (Who::User(1000), 5),
            (Who::OwnerGroup, 4),
            (Who::Group(7), 7),
            (Who::Mask, 5),
            (Who::Other, 0),
        ])
    }

    #[test]
    fn both_forms_round_trip() {
        let list = rich();
        assert_eq!(Acl::from_wire(&list.to_wire()).unwrap(), Some(list.clone()));
        assert_eq!(Acl::from_disk(&list.to_disk()), Some(list.clone()));
        assert_eq!((list.to_wire().len(), list.to_disk().len()), (4 + 6 * 8, 4 + 2 * 8 + 4 * 4));
    }

    #[test]
    fn invalid_lists_are_refused() {
        let bad = |entries: &[(Who, u16)]| {
            Acl::checked(entries.iter().map(|&(who, perm)| Entry { who, perm }).collect()).is_none()
        };
        assert!(bad(&[(Who::Owner, 7), (Who::OwnerGroup, 5)]), "other is missing");
        assert!(bad(&[(Who::Owner, 7), (Who::User(1), 7), (Who::OwnerGroup, 5), (Who::Other, 0)]), "mask");
        assert!(bad(&[(Who::OwnerGroup, 5), (Who::Owner, 7), (Who::Other, 0)]), "order");
        assert!(Acl::from_wire(&[2, 0, 0, 0, 1]).is_err());
        assert!(Acl::from_wire(&[3, 0, 0, 0]).is_err());
        assert_eq!(Acl::from_wire(&[2, 0, 0, 0]).unwrap(), None);
        let mut wire = rich().to_wire();
        wire[6] = 8;
        assert!(Acl::from_wire(&wire).is_err(), "permission bits beyond rwx");
    }

    #[test]
    fn a_mode_says_all_of_a_minimal_list_only() {
        let minimal = acl(&[(Who::Owner, 6), (Who::OwnerGroup, 4), (Who::Other, 4)]);
        assert_eq!(minimal.as_mode(), (0o644, true));
        assert_eq!(rich().as_mode(), (0o750, false));
    }

    #[test]
    fn chmod_moves_the_mask_and_leaves_the_group_entry() {
        let changed = rich().with_mode(0o604);
        assert_eq!(changed.as_mode(), (0o604, false));
        assert!(changed.0.contains(&Entry { who: Who::OwnerGroup, perm: 4 }));
    }

    #[test]
    fn a_default_list_replaces_the_umask() {
        let got = inherit(Some(rich()), FileType::Regular, 0o100_666, 0o077);
        assert_eq!(got.mode, 0o100_640);
        assert!(got.access.is_some() && got.default.is_none());
        let got = inherit(None, FileType::Regular, 0o100_666, 0o027);
        assert_eq!(got.mode, 0o100_640);
        let minimal = acl(&[(Who::Owner, 7), (Who::OwnerGroup, 5), (Who::Other, 1)]);
        let got = inherit(Some(minimal.clone()), FileType::Directory, 0o040_777, 0o077);
        assert_eq!((got.mode, got.access.is_none(), got.default), (0o040_751, true, Some(minimal)));
    }
}
