//! A tree with everything in it that a filesystem can hold, grown from a seed: the same plan gives the same
//! names, bytes, modes, owners and times on every system.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, lchown, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use fastrand::Rng;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, makedev, mknodat, utimensat,
};

/// What to build.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Decides every name, size and byte.
    pub seed: u64,
    /// Regular files of ordinary size, spread over `dirs` folders.
    pub files: usize,
    /// Folders, some inside others.
    pub dirs: usize,
    /// Empty and tiny files in one folder.
    pub big_dir: usize,
    /// Length of one file with a few islands of data in it.
    pub sparse_bytes: u64,
    /// Length of one file full of data.
    pub solid_bytes: u64,
    /// Owners other than the builder, device nodes, times of others: needs root.
    pub as_root: bool,
    /// Extended attributes and ACLs.
    pub xattrs: bool,
}

impl Plan {
    /// A few hundred entries with one of everything.
    pub fn small(seed: u64) -> Plan {
        Plan {
            seed,
            files: 150,
            dirs: 30,
            big_dir: 1000,
            sparse_bytes: 300 << 20,
            solid_bytes: 20 << 20,
            as_root: rustix::process::geteuid().is_root(),
            xattrs: false,
        }
    }

    /// The full sizes of the main job: 100 000 files in a folder, a 20 GiB sparse file and a 4 GiB real one.
    pub fn full(seed: u64) -> Plan {
        Plan {
            files: 3000,
            dirs: 300,
            big_dir: 100_000,
            sparse_bytes: 20 << 30,
            solid_bytes: 4 << 30,
            ..Plan::small(seed)
        }
    }
}

/// The bytes of the endless stream `seed`, from `offset` on. Any part can be produced, or checked, alone.
pub fn fill(seed: u64, offset: u64, buffer: &mut [u8]) {
    for (index, byte) in buffer.iter_mut().enumerate() {
        let at = offset + index as u64;
        let word = (seed ^ (at / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xd6e8_feb8_6659_fd93);
        // Never zero: a zero in a file is a hole or a loss, and told apart from data.
        *byte = ((word ^ (word >> 32)).to_le_bytes()[(at % 8) as usize]) | 1;
    }
}

/// Writes `length` bytes of stream `seed` at `offset`, which is their place in the stream too.
pub fn write_stream(file: &File, seed: u64, offset: u64, length: u64) -> std::io::Result<()> {
    let mut buffer = vec![0; length.min(1 << 20) as usize];
    let mut done = 0;
    while done < length {
        let part = buffer.len().min((length - done) as usize);
        fill(seed, offset + done, &mut buffer[..part]);
        file.write_all_at(&buffer[..part], offset + done)?;
        done += part as u64;
    }
    Ok(())
}

/// Builds the tree below `root`, an existing folder.
pub fn build(root: &Path, plan: &Plan) -> Result<()> {
    let mut builder = Builder { rng: Rng::with_seed(plan.seed), plan, root: root.to_owned() };
    let dirs = builder.folders()?;
    let files = builder.regular_files(&dirs)?;
    builder.big_folder()?;
    builder.links(&dirs, &files)?;
    builder.long_names()?;
    builder.large_files()?;
    builder.special_files()?;
    if plan.xattrs {
        builder.attributes(&files)?;
    }
    builder.owners_modes_times()
}

struct Builder<'a> {
    rng: Rng,
    plan: &'a Plan,
    root: PathBuf,
}

impl Builder<'_> {
    fn folders(&mut self) -> Result<Vec<PathBuf>> {
        let mut dirs = vec![self.root.clone()];
        for index in 0..self.plan.dirs {
            let parent = &dirs[self.rng.usize(0..dirs.len())];
            let dir = parent.join(format!("folder-{index}"));
            fs::create_dir(&dir).with_context(|| format!("mkdir {}", dir.display()))?;
            dirs.push(dir);
        }
        let mut deep = self.root.clone();
        for level in 0..40 {
            deep.push(format!("deep{level}"));
            fs::create_dir(&deep)?;
        }
        dirs.push(deep);
        Ok(dirs)
    }

    fn regular_files(&mut self, dirs: &[PathBuf]) -> Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for index in 0..self.plan.files {
            let path = dirs[self.rng.usize(0..dirs.len())].join(format!("file-{index}.dat"));
            let length = match self.rng.u8(0..10) {
                0 => 0,
                1..=5 => self.rng.u64(1..5000),
                6..=8 => self.rng.u64(5000..200_000),
                _ => self.rng.u64(200_000..3_000_000),
            };
            let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
            write_stream(&file, self.rng.u64(..), 0, length)
                .with_context(|| format!("write {}", path.display()))?;
            files.push(path);
        }
        Ok(files)
    }

    fn big_folder(&mut self) -> Result<()> {
        let dir = self.root.join("crowd");
        fs::create_dir(&dir)?;
        for index in 0..self.plan.big_dir {
            let path = dir.join(format!("member-{index:06}"));
            let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
            if index % 100 == 0 {
                file.write_all_at(b"one of the crowd\n", 0)?;
            }
        }
        // Gaps in the middle of its tree.
        for index in (0..self.plan.big_dir).filter(|index| index % 7 == 3) {
            fs::remove_file(dir.join(format!("member-{index:06}")))?;
        }
        Ok(())
    }

    fn links(&mut self, dirs: &[PathBuf], files: &[PathBuf]) -> Result<()> {
        for index in 0..self.plan.files / 5 {
            let target = &files[self.rng.usize(0..files.len())];
            let dir = &dirs[self.rng.usize(0..dirs.len())];
            fs::hard_link(target, dir.join(format!("hard-{index}")))?;
        }
        // 59 bytes fit into an inode, 60 do not, 4095 or what a block holds are the most there can be.
        let block = rustix::fs::statvfs(&self.root)?.f_bsize as usize;
        for length in [1, 20, 58, 59, 60, 61, 500, 1023, 4095].into_iter().filter(|length| *length < block) {
            let target: String = "target/".chars().cycle().take(length).collect();
            symlink(target, self.root.join(format!("symlink-{length}")))?;
        }
        Ok(())
    }

    fn long_names(&mut self) -> Result<()> {
        let dir = self.root.join("names");
        fs::create_dir(&dir)?;
        for index in 0..60 {
            let mut name = vec![0u8; if index % 2 == 0 { 255 } else { self.rng.usize(1..255) }];
            name.fill_with(|| match self.rng.u8(1..) {
                b'/' => b'_',
                byte => byte,
            });
            if name != b"." && name != b".." {
                File::create(dir.join(OsStr::from_bytes(&name)))?;
            }
        }
        Ok(())
    }

    fn large_files(&mut self) -> Result<()> {
        let sparse = File::create(self.root.join("sparse"))?;
        for _ in 0..20 {
            let offset = self.rng.u64(0..self.plan.sparse_bytes);
            let length = self.rng.u64(1..20_000).min(self.plan.sparse_bytes - offset);
            write_stream(&sparse, self.plan.seed, offset, length)?;
        }
        sparse.set_len(self.plan.sparse_bytes)?;
        let solid = File::create(self.root.join("solid"))?;
        write_stream(&solid, self.plan.seed + 1, 0, self.plan.solid_bytes)?;
        solid.sync_all()?;
        Ok(())
    }

    fn special_files(&mut self) -> Result<()> {
        let mode = Mode::from_raw_mode(0o640);
        let node = |name: &str, kind, device| {
            mknodat(CWD, self.root.join(name), kind, mode, device).with_context(|| format!("mknod {name}"))
        };
        node("fifo", FileType::Fifo, 0)?;
        node("socket", FileType::Socket, 0)?;
        if self.plan.as_root {
            node("char", FileType::CharacterDevice, makedev(1, 3))?;
            node("char-wide", FileType::CharacterDevice, makedev(300, 70_000))?;
            node("block", FileType::BlockDevice, makedev(7, 200))?;
        }
        Ok(())
    }

    fn attributes(&mut self, files: &[PathBuf]) -> Result<()> {
        for path in files.iter().step_by(3) {
            for index in 0..self.rng.u8(1..6) {
                let mut value = vec![0; self.rng.usize(0..if index == 0 { 600 } else { 60 })];
                fill(self.rng.u64(..), 0, &mut value);
                rustix::fs::setxattr(path, format!("user.name{index}"), &value, XattrFlags::empty())
                    .with_context(|| format!("setxattr {}", path.display()))?;
            }
        }
        Ok(())
    }

    fn owners_modes_times(&mut self) -> Result<()> {
        let mut entries: Vec<PathBuf> = Vec::new();
        for entry in walkdir::WalkDir::new(&self.root).min_depth(1).sort_by_file_name().contents_first(true) {
            entries.push(entry?.into_path());
        }
        // mkfs made it, on some systems.
        entries.retain(|path| *path != self.root.join("lost+found"));
        for path in &entries {
            let kind = fs::symlink_metadata(path)?.file_type();
            if self.plan.as_root {
                lchown(path, Some(self.rng.u32(0..70_000)), Some(self.rng.u32(0..70_000)))?;
            }
            if !kind.is_symlink() {
                let bits = if kind.is_dir() {
                    0o700 | self.rng.u32(0..0o2000)
                } else {
                    0o400 | self.rng.u32(0..0o10000)
                };
                fs::set_permissions(path, fs::Permissions::from_mode(bits))?;
            }
            // From 1901 to 2446, what the format can hold.
            let seconds = self.rng.i64(-(1 << 31)..15_032_385_535);
            let time = |rng: &mut Rng| Timespec { tv_sec: seconds, tv_nsec: rng.i64(0..1_000_000_000) };
            let times =
                Timestamps { last_access: time(&mut self.rng), last_modification: time(&mut self.rng) };
            utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }
}
