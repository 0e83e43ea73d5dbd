//! A file written through a shared mapping: a round changes one page and syncs it with msync.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use mmap_io::MemoryMappedFile;

use super::Program;

/// The mapping.
pub struct Mapped;

const PAGES: u64 = 24;
const PAGE: u64 = 4096;
const SECTOR: usize = 512;

fn page_of(round: u64) -> u64 {
    round * 7 % PAGES
}

impl Program for Mapped {
    fn name(&self) -> &'static str {
        "mapped"
    }

    fn work(&self, root: &Path, rounds: u64, durable: &mut dyn FnMut(u64)) -> Result<()> {
        let path = root.join("file");
        let file = File::create(&path)?;
        // Every second page is a hole until it is written.
        file.set_len(PAGES * PAGE)?;
        for page in (0..PAGES).step_by(2) {
            file.write_all_at(&[0; PAGE as usize], page * PAGE)?;
        }
        file.sync_all()?;
        let map = MemoryMappedFile::open_rw(&path)?;
        for round in 1..=rounds {
            let at = page_of(round) * PAGE;
            map.update_region(at, &round.to_le_bytes().repeat(PAGE as usize / 8))?;
            map.flush_range(at, PAGE)?;
            durable(round);
        }
        Ok(())
    }

    fn check(&self, root: &Path, durable: u64) -> Result<()> {
        let Ok(bytes) = std::fs::read(root.join("file")) else {
            ensure!(durable == 0, "the file is gone");
            return Ok(());
        };
        for (page, bytes) in bytes.chunks(PAGE as usize).enumerate() {
            let oldest = (1..=durable).rev().find(|&round| page_of(round) == page as u64).unwrap_or(0);
            for (n, sector) in bytes.chunks(SECTOR).enumerate() {
                let (first, _) = sector.split_first_chunk().context("a piece of a sector")?;
                let stamp = u64::from_le_bytes(*first);
                let uniform = sector.chunks(8).all(|word| word == first);
                let own = stamp == 0 || page_of(stamp) == page as u64;
                ensure!(
                    uniform && own && (oldest..=durable + 1).contains(&stamp),
                    "page {page}, sector {n}: stamp {stamp:x}, durable is {oldest}"
                );
            }
        }
        ensure!(durable == 0 || bytes.len() as u64 == PAGES * PAGE, "the file has {} bytes", bytes.len());
        Ok(())
    }
}
