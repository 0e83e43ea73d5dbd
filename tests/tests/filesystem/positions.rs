//! Positions in an indexed folder, beside the kernel: those it has handed out, here as well as there, and any
//! other number.

use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::path::Path;

use anyhow::{Result, ensure};
use rustix::fs::{Mode, OFlags, RawDir, SeekFrom, open, seek};
use tests::run::{run, tool};
use tests::scale::{Need, can_run};
use tests::system::System;

use crate::beside::Pair;

const NEEDS: [Need; 4] = [Need::Root, Need::Loop, Need::Fuse, Need::Tool("debugfs")];

/// The names of `folder` from a position on, at most `most`, each with the position after it.
fn list(folder: &Path, from: u64, most: usize) -> Result<Vec<(String, u64)>> {
    let dir = open(folder, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    seek(&dir, SeekFrom::Start(from))?;
    let mut buffer = [MaybeUninit::uninit(); 16384];
    let mut entries = RawDir::new(&dir, &mut buffer);
    let mut names = Vec::new();
    while names.len() < most
        && let Some(entry) = entries.next()
    {
        let entry = entry?;
        names.push((entry.file_name().to_string_lossy().into_owned(), entry.next_entry_cookie()));
    }
    Ok(names)
}

#[test]
fn every_position_means_what_it_means_to_the_kernel() -> Result<()> {
    if !can_run("every_position_means_what_it_means_to_the_kernel", &NEEDS) {
        return Ok(());
    }
    for hash in ["half_md4", "tea", "legacy"] {
        let mut pair = Pair::of(|image| {
            System::Kernel.mkfs(image, 32 << 20, &["-t", "ext4", "-b", "1024", "-N", "4000"])?;
            let request = format!("ssv def_hash_version {hash}");
            run(tool("debugfs").args(["-w", "-R", &request]).arg(image))?;
            let mounted = System::Kernel.mount(image)?;
            let folder = mounted.path().join("folder");
            fs::create_dir(&folder)?;
            for i in 0..1500 {
                File::create(folder.join(format!("name {i}")))?;
            }
            mounted.unmount()
        })?;
        pair.mount(&["ro"])?;
        let all = list(&pair.both()?[0].path().join("folder"), 0, usize::MAX)?;
        ensure!(all.len() == 1502, "{hash}: {} names", all.len());
        let end = i64::MAX as u64;
        let mut asked: Vec<u64> = all.iter().step_by(7).map(|(_, position)| *position).collect();
        asked.extend([0, 1, 2, 11, 12, 13, 24, 1024, 4096, 1 << 20, (1 << 31) - 1, 1 << 31, end - 1, end]);
        asked.extend([(1 << 32) - 1, 1 << 32, (1 << 32) + 1, 1 << 33, 1 << 40, 1 << 62]);
        // Anywhere between two names.
        asked.extend((1..100_u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 1));
        pair.ask(hash, |root| {
            let folder = root.join("folder");
            let mut said = String::new();
            for position in &asked {
                let found = list(&folder, *position, 5)?;
                let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
                said += &format!("{position:#x}: {names:?}\n");
            }
            let last = list(&folder, end / 2, usize::MAX)?;
            Ok(format!("{said}{} behind the middle", last.len()))
        })?;
        pair.finish()?;
    }
    Ok(())
}
