//! Whether somebody may do something with a file: the check that operations leave to their callers.
//! Source: acl(5), "Access check algorithm"; capabilities(7) for root.

use ext4_format::inode::FileType;

use crate::error::{Error, Posix, Result};
use crate::node::Node;
use crate::types::{Attr, Credentials};
use crate::xattr::acl::Acl;

/// What is asked for. On a directory `write` means to change its names, `execute` to look them up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Access {
    /// To read.
    pub read: bool,
    /// To write.
    pub write: bool,
    /// To execute.
    pub execute: bool,
}

impl Access {
    /// As three bits of a mode.
    fn bits(self) -> u16 {
        u16::from(self.read) << 2 | u16::from(self.write) << 1 | u16::from(self.execute)
    }
}

/// Whether `who` has the access to a file with these attributes and this access control list. The superuser has
/// all, but executes only what is executable for somebody.
///
/// # Errors
/// `Access` when it is denied.
pub fn check_access(attr: &Attr, acl: Option<&Acl>, who: &Credentials, access: Access) -> Result<()> {
    let (mode, want) = (attr.mode, access.bits());
    let is_dir = FileType::from_mode(mode) == Some(FileType::Directory);
    let granted = match acl {
        _ if who.uid == 0 => !access.execute || is_dir || mode & 0o111 != 0,
        Some(acl) => acl.allows(attr.uid, attr.gid, who, want),
        None if who.uid == attr.uid => mode >> 6 & want == want,
        None if who.is_in_group(attr.gid) => mode >> 3 & want == want,
        None => mode & want == want,
    };
    if granted { Ok(()) } else { Err(Posix::Access.into()) }
}

impl Node {
    /// Whether `who` has the access to this file, by its mode and its access control list.
    ///
    /// # Errors
    /// `Access` when it is denied; those of damaged attributes.
    pub fn check_access(&self, who: &Credentials, access: Access) -> Result<()> {
        let acl = match self.xattr("system.posix_acl_access") {
            Ok(list) => Acl::from_wire(&list)?,
            Err(Error::Posix(Posix::NoData | Posix::NotSupported)) => None,
            Err(error) => return Err(error),
        };
        check_access(&self.attributes()?, acl.as_ref(), who, access)
    }
}

#[cfg(test)]
mod tests {
    use ext4_format::Ino;

    use super::*;

    fn attr(mode: u16) -> Attr {
        Attr {
            ino: Ino::ROOT,
            generation: 0,
            size: 0,
            sectors: 0,
            atime: Default::default(),
            mtime: Default::default(),
            ctime: Default::default(),
            crtime: None,
            mode,
            links: 1,
            uid: 10,
            gid: 20,
            rdev: (0, 0),
            flags: 0,
        }
    }

    fn may(mode: u16, acl: Option<&Acl>, (uid, gid): (u32, u32), rwx: &str) -> bool {
        let who = Credentials { uid, gid, groups: vec![77], ..Credentials::root() };
        let access = Access { read: rwx.contains('r'), write: rwx.contains('w'), execute: rwx.contains('x') };
        check_access(&attr(mode), acl, &who, access).is_ok()
    }

    #[test]
    fn the_first_class_that_fits_decides() {
        for (who, allowed, denied) in [((10, 20), "rw", "x"), ((11, 20), "x", "r"), ((11, 21), "r", "w")] {
            assert!(may(0o100_614, None, who, allowed) && !may(0o100_614, None, who, denied), "{who:?}");
        }
        assert!(may(0o100_000, None, (0, 0), "rw") && !may(0o100_666, None, (0, 0), "x"));
        assert!(may(0o100_001, None, (0, 0), "rwx") && may(0o040_000, None, (0, 0), "rwx"));
    }

    /// Tag, permissions, id.
    fn list(entries: &[(u16, u16, u32)]) -> Acl {
        let mut bytes = 2_u32.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&perm.to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        Acl::from_wire(&bytes).unwrap().unwrap()
    }

    #[test]
    fn named_entries_count_within_the_mask() {
        const NO_ID: u32 = u32::MAX;
        // Owner rwx, user 12 rw, group r, groups 30 rx and 77 w, mask rx, other nothing.
        let acl = list(&[
            (1, 7, NO_ID),
            (2, 6, 12),
            (4, 4, NO_ID),
            (8, 5, 30),
            (8, 2, 77),
            (0x10, 5, NO_ID),
            (0x20, 0, NO_ID),
        ]);
        let may = |who, rwx| may(0o100_750, Some(&acl), who, rwx);
        assert!(may((10, 99), "rwx"), "the mask is not for the owner");
        assert!(may((12, 99), "r") && !may((12, 99), "w"));
        assert!(may((11, 30), "rx") && !may((11, 30), "w"));
        // In two groups: any that grants it, but not together.
        assert!(may((11, 20), "r") && !may((11, 20), "x"));
        // In a group that is named, so that "other" is not asked.
        assert!(!may((11, 99), "r"));
    }

    #[test]
    fn others_are_those_whom_nothing_else_fits() {
        const NO_ID: u32 = u32::MAX;
        let acl = list(&[(1, 7, NO_ID), (2, 0, 12), (4, 0, NO_ID), (0x10, 7, NO_ID), (0x20, 4, NO_ID)]);
        let may = |who, rwx| may(0o100_774, Some(&acl), who, rwx);
        assert!(may((11, 99), "r") && !may((12, 99), "r") && !may((11, 20), "r"));
    }
}
