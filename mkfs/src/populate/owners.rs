//! Who owns the files of the image: as the source says, all the same, or through a map of id ranges.

use super::error::{Error, Result};

/// A range of ids on the host and where it starts in the image, as subuid(5) counts them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IdRange {
    /// First id on the host.
    pub host: u32,
    /// Its id in the image.
    pub image: u32,
    /// How many ids.
    pub count: u32,
}

/// Which owners the image's files get.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Owners {
    /// One user and group for all.
    pub all: Option<(u32, u32)>,
    /// Ranges of users; none keeps them.
    pub users: Vec<IdRange>,
    /// Ranges of groups; none keeps them.
    pub groups: Vec<IdRange>,
}

fn map(ranges: &[IdRange], id: u32, what: &str, name: &[u8]) -> Result<u32> {
    if ranges.is_empty() {
        return Ok(id);
    }
    ranges
        .iter()
        .find_map(|range| {
            let ahead = id.checked_sub(range.host).filter(|ahead| *ahead < range.count)?;
            range.image.checked_add(ahead)
        })
        .ok_or_else(|| Error::entry(name, format!("{what} {id} is in no range of the id map")))
}

impl Owners {
    /// The owner and group of a file.
    pub fn of(&self, uid: u32, gid: u32, name: &[u8]) -> Result<(u32, u32)> {
        match self.all {
            Some(owner) => Ok(owner),
            None => Ok((self.user(uid, name)?, self.group(gid, name)?)),
        }
    }

    /// A user that an access control list names.
    pub fn user(&self, uid: u32, name: &[u8]) -> Result<u32> {
        map(&self.users, uid, "user", name)
    }

    /// A group that an access control list names.
    pub fn group(&self, gid: u32, name: &[u8]) -> Result<u32> {
        map(&self.groups, gid, "group", name)
    }
}
