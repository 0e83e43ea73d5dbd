//! `make demo`: one image's life, told step by step. Every claim it prints was just checked.

use std::fs::{self, File};
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tests::manifest::{Depth, Manifest};
use tests::oracle::{e2fsck_is_clean, kernel_view, our_fsck_is_clean};
use tests::run::{run, tool};
use tests::scale::scratch;
use tests::system::{Options, System};

/// Enough to be a real tree, and not so much that a demo becomes a wait.
const WANTED_FILES: usize = 2_000;
const MOST_BYTES: u64 = 1 << 30;
const IMAGE_BYTES: u64 = 4 << 30;

fn main() -> ExitCode {
    match Story::default().tell() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\n  The demo stops here: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The narrator: one line a step, with what was seen and how long it took.
#[derive(Default)]
struct Story {
    step: usize,
}

impl Story {
    fn step<T>(&mut self, title: &str, action: impl FnOnce() -> Result<(T, String)>) -> Result<T> {
        self.step += 1;
        print!("  {:>2}. {title:<12} ", self.step);
        std::io::stdout().flush()?;
        let start = Instant::now();
        let answer = action();
        let took = start.elapsed();
        match answer {
            Ok((value, seen)) => {
                println!("{} {seen}  {}", mark("✓", "32"), mark(&spent(took), "2"));
                Ok(value)
            }
            Err(error) => {
                println!("{}", mark("✗", "31"));
                Err(error)
            }
        }
    }

    fn tell(mut self) -> Result<()> {
        let is_root = rustix::process::geteuid().is_root();
        let folder = tempfile::Builder::new().prefix("rext4-demo-").tempdir_in(scratch())?;
        let image = folder.path().join("demo.img");
        let (source, files, bytes) = find_source()?;
        println!("\n  rext4: an ext4 in user space. The kernel and e2fsck are the judges.\n");
        println!("  image   {}", image.display());
        println!("  tree    {} ({files} files, {})\n", source.display(), size(bytes));

        self.step("format", || {
            let owner = format!("root_owner={}:{}", rustix::process::geteuid(), rustix::process::getegid());
            System::Rext4Image.mkfs(&image, IMAGE_BYTES, &["-E", &owner])?;
            let used = fs::metadata(&image)?.blocks() * 512;
            Ok(((), format!("{} of ext4, of which mkfs.rext4 wrote {}", size(IMAGE_BYTES), size(used))))
        })?;
        let mounted = self.step("mount", || {
            let mounted = System::Rext4Image.mount(&image)?;
            let server = mounted.server_pid().context("a server")?;
            Ok((
                mounted,
                format!("served by process {server}{}", if is_root { "" } else { ", without any privilege" }),
            ))
        })?;
        let copy = mounted.path().join("tree");
        self.step("copy in", || {
            let start = Instant::now();
            run(tool("cp").arg("-a").arg(&source).arg(&copy))?;
            // Only what was synced must be there after the kill, and sync(1) does not reach a FUSE server.
            for entry in walkdir::WalkDir::new(&copy) {
                let entry = entry?;
                if entry.file_type().is_file() || entry.file_type().is_dir() {
                    File::open(entry.path())?.sync_all()?;
                }
            }
            let speed = size(per_second(bytes, start.elapsed()));
            Ok(((), format!("{files} files with cp -a, each fsynced, {speed}/s")))
        })?;
        let original = Manifest::read(&source, Depth::Copy)?;
        self.step("compare", || {
            mounted_is_same(&original, &copy)?;
            Ok(((), format!("{} names: same bytes, modes, owners, times, links", original.len())))
        })?;
        self.step("kill -9", || {
            let file = File::create(mounted.path().join("promise"))?;
            file.write_all_at(b"fsync returned, so this stays\n", 0)?;
            file.sync_all()?;
            drop(file);
            mounted.crash()?;
            Ok(((), "the server dies right after an fsync".to_owned()))
        })?;
        let mounted = self.step("mount again", || {
            let mounted = System::Rext4Image.mount(&image)?;
            let promise = fs::read_to_string(mounted.path().join("promise"))?;
            ensure!(promise == "fsync returned, so this stays\n", "the promise was broken: {promise:?}");
            mounted_is_same(&original, &mounted.path().join("tree"))?;
            Ok((mounted, "the journal was replayed, the promise kept, the tree whole".to_owned()))
        })?;
        self.step("unmount", || {
            mounted.unmount()?;
            Ok(((), "the server has written everything and ended".to_owned()))
        })?;
        self.step("e2fsck -fn", || {
            e2fsck_is_clean(&image)?;
            Ok(((), "finds nothing to complain about".to_owned()))
        })?;
        self.step("fsck.rext4", || {
            our_fsck_is_clean(&image)?;
            Ok(((), "agrees".to_owned()))
        })?;
        if !is_root {
            println!(
                "\n  Last would come a mount by the kernel, which needs root: run `sudo make demo` to see it.\n"
            );
            return Ok(());
        }
        self.step("kernel", || {
            let mounted = System::Kernel.mount_with(&image, &Options::words(&["ro"]))?;
            mounted_is_same(&original, &mounted.path().join("tree"))?;
            mounted.unmount()?;
            Ok(((), "mounts the image and reads the same tree".to_owned()))
        })?;
        self.step("and back", || {
            let kernel = System::Kernel.mount(&image)?;
            fs::rename(kernel.path().join("tree"), kernel.path().join("moved"))?;
            fs::write(kernel.path().join("note"), "written by the kernel\n")?;
            kernel.unmount()?;
            let mounted = System::Rext4Image.mount_with(&image, &Options::words(&["ro"]))?;
            let ours = Manifest::read(mounted.path(), Depth::Same)?;
            mounted.unmount()?;
            ours.expect_same(&kernel_view(&image)?, "rext4 / kernel")?;
            Ok(((), "what the kernel changed, rext4 reads, down to the inode numbers".to_owned()))
        })?;
        println!("\n  Done. The image is gone, nothing is left mounted.\n");
        Ok(())
    }
}

fn mounted_is_same(original: &Manifest, copy: &Path) -> Result<()> {
    original.expect_same(&Manifest::read(copy, Depth::Copy)?, "source / copy")
}

/// The first folder of this machine with thousands of files in it: sources, preferably.
fn find_source() -> Result<(PathBuf, usize, u64)> {
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    let registry = cargo.or(home).map(|cargo| cargo.join("registry/src"));
    let known = ["/usr/include", "/usr/share/doc", "/usr/share", "/usr/lib"].map(PathBuf::from);
    for folder in registry.into_iter().chain(known) {
        let (mut files, mut bytes) = (0, 0);
        for entry in walkdir::WalkDir::new(&folder).into_iter().flatten() {
            let meta = entry.metadata()?;
            files += usize::from(meta.is_file());
            bytes += meta.len();
        }
        if files >= WANTED_FILES && bytes <= MOST_BYTES {
            return Ok((folder, files, bytes));
        }
    }
    bail!("this machine has no folder with {WANTED_FILES} files for me to copy");
}

fn mark(text: &str, color: &str) -> String {
    if std::io::stdout().is_terminal() { format!("\x1b[{color}m{text}\x1b[0m") } else { text.to_owned() }
}

fn spent(time: Duration) -> String {
    match time.as_millis() {
        millis @ 0..1000 => format!("{millis} ms"),
        millis => format!("{:.1} s", millis as f64 / 1000.0),
    }
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    (bytes as f64 / time.as_secs_f64().max(1e-6)) as u64
}

fn size(bytes: u64) -> String {
    match bytes {
        0..0x10_0000 => format!("{} KiB", bytes >> 10),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}
