//! Memory that does not fit: pages of zeros that are kept in a scratch file when there are more of them than
//! the bound allows.
//!
//! The file has no name, so nothing is left behind. A page is in one of sixteen shards, each with its own
//! lock and its share of the bound; a full shard gives up the page that was not used for longest (second
//! chance). A page that was never written reads as zeros, as the end of the file does.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use crate::context::lock;
use crate::error::{Error, Result};

/// Bytes of a page.
pub const PAGE: usize = 4096;
const SHARDS: usize = 16;

/// Pages in memory and in a file.
pub struct Scratch {
    file: File,
    folder: PathBuf,
    shards: [Mutex<Shard>; SHARDS],
    /// The first failure of the file: the caller of a map cannot be told at once.
    failed: Mutex<Option<io::Error>>,
}

struct Shard {
    pages: HashMap<u64, Page>,
    order: VecDeque<u64>,
    most: usize,
}

struct Page {
    bytes: Box<[u8; PAGE]>,
    dirty: bool,
    used: bool,
}

impl Scratch {
    /// A scratch file in a folder, with `bytes` of memory in front of it.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn create(folder: &Path, bytes: u64) -> Result<Scratch> {
        let file = tempfile::tempfile_in(folder)
            .map_err(|source| Error::Scratch { folder: folder.to_owned(), source })?;
        let most = usize::try_from(bytes / (PAGE * SHARDS) as u64).unwrap_or(usize::MAX).max(4);
        let shard = || Mutex::new(Shard { pages: HashMap::new(), order: VecDeque::new(), most });
        Ok(Scratch {
            file,
            folder: folder.to_owned(),
            shards: std::array::from_fn(|_| shard()),
            failed: Mutex::default(),
        })
    }

    /// Shows a page; it counts as changed when `change` says so.
    pub fn with<R>(&self, page: u64, change: bool, visit: impl FnOnce(&mut [u8; PAGE]) -> R) -> R {
        let mut shard = lock(&self.shards[(page % SHARDS as u64) as usize]);
        if !shard.pages.contains_key(&page) {
            if shard.pages.len() >= shard.most {
                self.evict(&mut shard);
            }
            let mut bytes = Box::new([0; PAGE]);
            self.note(self.load(page, &mut bytes));
            shard.pages.insert(page, Page { bytes, dirty: false, used: false });
            shard.order.push_back(page);
        }
        let Some(page) = shard.pages.get_mut(&page) else { return visit(&mut [0; PAGE]) };
        page.used = true;
        page.dirty |= change;
        visit(&mut page.bytes)
    }

    /// Fails when the file has failed at any time: what the maps say is then worth nothing.
    ///
    /// # Errors
    /// The first failure.
    pub fn check(&self) -> Result<()> {
        match lock(&self.failed).take() {
            Some(source) => Err(Error::Scratch { folder: self.folder.clone(), source }),
            None => Ok(()),
        }
    }

    fn evict(&self, shard: &mut Shard) {
        while let Some(oldest) = shard.order.pop_front() {
            let Some(page) = shard.pages.get_mut(&oldest) else { continue };
            if std::mem::take(&mut page.used) {
                shard.order.push_back(oldest);
                continue;
            }
            if page.dirty {
                self.note(self.file.write_all_at(&*page.bytes, oldest * PAGE as u64));
            }
            shard.pages.remove(&oldest);
            return;
        }
    }

    fn load(&self, page: u64, bytes: &mut [u8; PAGE]) -> io::Result<()> {
        let mut done = 0;
        while done < PAGE {
            match self.file.read_at(&mut bytes[done..], page * PAGE as u64 + done as u64)? {
                0 => break,
                read => done += read,
            }
        }
        Ok(())
    }

    fn note(&self, result: io::Result<()>) {
        if let Err(error) = result {
            lock(&self.failed).get_or_insert(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_were_given_up_come_back() {
        let scratch = Scratch::create(&std::env::temp_dir(), 0).unwrap();
        let pages = 3 * 4 * SHARDS as u64;
        for page in 0..pages {
            scratch.with(page, true, |bytes| bytes[0] = page as u8 + 1);
        }
        for page in 0..pages {
            assert_eq!(scratch.with(page, false, |bytes| bytes[0]), page as u8 + 1);
        }
        assert_eq!(scratch.with(pages * 7, false, |bytes| bytes[0]), 0);
        let kept: usize = scratch.shards.iter().map(|shard| lock(shard).pages.len()).sum();
        assert!(kept <= 4 * SHARDS, "{kept} pages in memory");
        scratch.check().unwrap();
    }
}
