//! POSIX access control lists: from the form of the system call or from text (the PAX records
//! `SCHILY.acl.access` and `SCHILY.acl.default`) to the form that ext4 stores, ids mapped on the way.
//!
//! Sources: acl(5) for the text; `getfattr -e hex` for the form of the system call (version 2, entries of
//! eight bytes); `debugfs` for ext4's (version 1, entries without an id are four bytes).

use super::owners::Owners;

const WIRE_VERSION: u32 = 2;
const DISK_VERSION: u32 = 1;
const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// A list: tag, permissions and id of each entry.
#[derive(Debug, PartialEq, Eq)]
pub struct Acl(Vec<(u16, u16, u32)>);

impl Acl {
    /// Reads the form of the system call.
    pub fn from_wire(bytes: &[u8]) -> Option<Acl> {
        let (version, entries) = bytes.split_first_chunk::<4>()?;
        let (entries, rest) = entries.as_chunks::<8>();
        if u32::from_le_bytes(*version) != WIRE_VERSION || !rest.is_empty() {
            return None;
        }
        let entries = entries.iter().map(|e| {
            let id = u32::from_le_bytes([e[4], e[5], e[6], e[7]]);
            let tag = u16::from_le_bytes([e[0], e[1]]);
            (tag, u16::from_le_bytes([e[2], e[3]]), if matches!(tag, USER | GROUP) { id } else { 0 })
        });
        Acl(entries.collect()).sorted()
    }

    /// Reads text: entries `type:qualifier:permissions[:id]`, separated by commas or line ends. GNU tar writes
    /// names without numbers; those are looked up on this machine, as GNU tar does when it extracts.
    pub fn from_text(text: &str) -> Result<Acl, String> {
        let mut entries = Vec::new();
        for entry in text.split([',', '\n']).map(|entry| entry.split('#').next().unwrap_or_default().trim()) {
            if entry.is_empty() {
                continue;
            }
            let mut fields = entry.split(':');
            let mut field = || fields.next().unwrap_or_default().trim();
            let (kind, qualifier, permissions, number) = (field(), field(), field(), field());
            let id = if number.is_empty() { qualifier } else { number };
            let tag = match (kind, qualifier) {
                ("user" | "u", "") => USER_OBJ,
                ("user" | "u", _) => USER,
                ("group" | "g", "") => GROUP_OBJ,
                ("group" | "g", _) => GROUP,
                ("mask" | "m", _) => MASK,
                ("other" | "o", _) => OTHER,
                _ => return Err(format!("access control list entry {entry}")),
            };
            let id = match tag {
                USER | GROUP => id.parse().ok().or_else(|| known(tag, id)).ok_or_else(|| {
                    format!("access control list entry {entry} names nobody who is known here")
                })?,
                _ => 0,
            };
            let mut bits = 0;
            for letter in permissions.chars() {
                bits |= match letter {
                    'r' => 4,
                    'w' => 2,
                    'x' => 1,
                    '-' => 0,
                    _ => return Err(format!("access control list entry {entry}")),
                };
            }
            entries.push((tag, bits, id));
        }
        Acl(entries).sorted().ok_or_else(|| format!("access control list {text}"))
    }

    /// A valid list in its canonical order: each base entry once, a mask where somebody is named.
    fn sorted(mut self) -> Option<Acl> {
        self.0.sort_unstable_by_key(|(tag, _, id)| (*tag, *id));
        let count = |tag: u16| self.0.iter().filter(|entry| entry.0 == tag).count();
        let base = [USER_OBJ, GROUP_OBJ, OTHER].into_iter().all(|tag| count(tag) == 1);
        let named = count(USER) + count(GROUP);
        let known = 3 + named + count(MASK) == self.0.len();
        let bits = self.0.iter().all(|entry| entry.1 <= 7);
        (base && known && bits && count(MASK) <= 1 && (named == 0 || count(MASK) == 1)).then_some(self)
    }

    /// Lets the ids be those of the image.
    pub fn map(&mut self, owners: &Owners, name: &[u8]) -> super::error::Result<()> {
        for (tag, _, id) in &mut self.0 {
            match *tag {
                USER => *id = owners.user(*id, name)?,
                GROUP => *id = owners.group(*id, name)?,
                _ => {}
            }
        }
        self.0.sort_unstable_by_key(|(tag, _, id)| (*tag, *id));
        Ok(())
    }

    /// The form of the system call.
    pub fn to_wire(&self) -> Vec<u8> {
        let mut bytes = WIRE_VERSION.to_le_bytes().to_vec();
        for (tag, permissions, id) in &self.0 {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&permissions.to_le_bytes());
            let id = if matches!(*tag, USER | GROUP) { *id } else { u32::MAX };
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        bytes
    }

    /// The form ext4 stores.
    pub fn to_disk(&self) -> Vec<u8> {
        let mut bytes = DISK_VERSION.to_le_bytes().to_vec();
        for (tag, permissions, id) in &self.0 {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&permissions.to_le_bytes());
            if matches!(*tag, USER | GROUP) {
                bytes.extend_from_slice(&id.to_le_bytes());
            }
        }
        bytes
    }

    /// Whether the list says no more than the permission bits do.
    pub fn is_minimal(&self) -> bool {
        self.0.len() == 3
    }
}

/// The id of a user or group of this machine.
fn known(tag: u16, name: &str) -> Option<u32> {
    match tag {
        USER => Some(nix::unistd::User::from_name(name).ok()??.uid.as_raw()),
        _ => Some(nix::unistd::Group::from_name(name).ok()??.gid.as_raw()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_the_system_call_mean_the_same() {
        let text = Acl::from_text("user::rwx,user:1000:r-x,group::r--,mask::r-x,other::---").unwrap();
        let mut wire = WIRE_VERSION.to_le_bytes().to_vec();
        for (tag, bits, id) in
            [(USER_OBJ, 7u16, !0u32), (USER, 5, 1000), (GROUP_OBJ, 4, !0), (MASK, 5, !0), (OTHER, 0, !0)]
        {
            wire.extend_from_slice(&tag.to_le_bytes());
            wire.extend_from_slice(&bits.to_le_bytes());
            wire.extend_from_slice(&id.to_le_bytes());
        }
        assert_eq!(Acl::from_wire(&wire).unwrap().to_disk(), text.to_disk());
        assert_eq!(text.to_disk().len(), 4 + 4 * 4 + 8);
        let star = Acl::from_text("user::rw-\nuser:joe:r--:1000\ngroup::r--\nmask::r--\nother::r--").unwrap();
        assert_eq!(star.0[1], (USER, 4, 1000));
    }

    #[test]
    fn broken_lists_are_refused() {
        for text in ["", "user::rwx", "user::rwx,user:5:r--,group::r--,other::r--", "x:::", "user::rwq"] {
            assert!(Acl::from_text(text).is_err(), "{text}");
        }
        assert!(Acl::from_text("user::r--,user:nobody-here:r--,group::r--,mask::r--,other::r--").is_err());
        assert!(Acl::from_wire(&[2, 0, 0, 0, 1]).is_none());
        assert!(Acl::from_wire(&[1, 0, 0, 0]).is_none());
    }
}
