//! What user space calls attributes.

use ext4_format::xattr::{self as codec, Attributes, OwnedValue};

use crate::error::{Posix, Result};

/// Name index of `user.`.
pub const USER: u8 = 1;
/// Name index of `trusted.`.
pub const TRUSTED: u8 = 4;
/// Name index of `security.`.
pub const SECURITY: u8 = 6;
/// `system.posix_acl_access`.
pub const ACL_ACCESS: Key<'static> = Key { index: 2, name: b"" };
/// `system.posix_acl_default`.
pub const ACL_DEFAULT: Key<'static> = Key { index: 3, name: b"" };
/// `security.capability`.
pub const CAPABILITY: Key<'static> = Key { index: SECURITY, name: b"capability" };

/// A name: the index of its prefix and the rest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key<'a> {
    /// Index of the prefix ([`codec::PREFIXES`]).
    pub index: u8,
    /// What follows the prefix.
    pub name: &'a [u8],
}

impl<'a> Key<'a> {
    /// Reads a full name.
    ///
    /// # Errors
    /// `NotSupported` for a namespace that ext4 does not offer to user space, `Invalid` for a
    /// namespace without a name, `Range` for a name that is too long.
    pub fn parse(full: &'a [u8]) -> Result<Key<'a>> {
        if full.len() > codec::MAX_NAME {
            return Err(Posix::Range.into());
        }
        if matches!(full, b"user." | b"trusted." | b"security.") {
            return Err(Posix::Invalid.into());
        }
        match codec::split_name(full) {
            Some((index, name)) if [USER, TRUSTED, SECURITY].contains(&index) => Ok(Key { index, name }),
            Some((index, name)) if index == ACL_ACCESS.index || index == ACL_DEFAULT.index => {
                Ok(Key { index, name })
            }
            _ => Err(Posix::NotSupported.into()),
        }
    }

    /// Whether it is an access control list.
    #[must_use]
    pub fn is_acl(&self) -> bool {
        *self == ACL_ACCESS || *self == ACL_DEFAULT
    }

    /// The value in `list`.
    pub(super) fn of(&self, list: &Attributes) -> Option<OwnedValue> {
        list.get(self.index, self.name).cloned()
    }

    /// `list` without this name.
    pub(super) fn without(&self, list: &Attributes) -> Attributes {
        let mut list = list.clone();
        list.remove(self.index, self.name);
        list
    }
}

/// The full name that user space sees; `None` for a namespace that it does not see, or not unless
/// `privileged`.
#[must_use]
pub fn visible(index: u8, name: &[u8], privileged: bool) -> Option<Vec<u8>> {
    let shown = match index {
        USER | SECURITY => true,
        TRUSTED => privileged,
        _ => index == ACL_ACCESS.index || index == ACL_DEFAULT.index,
    };
    let prefix = codec::prefix(index).filter(|_| shown)?;
    Some([prefix.as_bytes(), name].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn namespaces_are_those_of_ext4() {
        assert_eq!(Key::parse(b"user.a").unwrap(), Key { index: USER, name: b"a" });
        assert_eq!(Key::parse(b"system.posix_acl_default").unwrap(), ACL_DEFAULT);
        for (name, want) in [
            (&b"user."[..], Posix::Invalid),
            (b"system.data", Posix::NotSupported),
            (b"os2.x", Posix::NotSupported),
            (b"", Posix::NotSupported),
            (&[b'u'; 256], Posix::Range),
        ] {
            assert!(matches!(Key::parse(name), Err(Error::Posix(p)) if p == want), "{name:?}");
        }
        assert_eq!(visible(TRUSTED, b"t", false), None);
        assert_eq!(visible(TRUSTED, b"t", true), Some(b"trusted.t".to_vec()));
    }
}
