//! Logs exchanged with the other implementations: what we leave dirty is replayed by the kernel and by
//! e2fsck, and what the kernel leaves dirty we replay as e2fsck does.
//!
//! Needs e2fsprogs; the kernel parts need root and loop devices. What is missing is skipped loudly, and
//! fails under `CI=true`.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use blockdev::{BlockDevice, FileDevice, OpenOptions, open};
use common::any;
use ext4_format::csum::Csum;
use ext4_format::superblock::SuperBlock;
use ext4_format::{BlockNo, Ino};
use jbd2::{
    Checkpoint, Credits, Journal, LogChecksum, LogExtent, LogFeatures, LogLocation, Options, recovery,
};

fn can_run(tools: &[&str], root: bool) -> bool {
    let has = |tool: &&str| {
        let paths = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        paths.split(':').any(|dir| Path::new(dir).join(tool).exists())
    };
    let missing = tools.iter().find(|tool| !has(tool)).map(|tool| format!("{tool} is not installed"));
    let why = missing
        .or_else(|| (root && !Path::new("/dev/loop-control").exists()).then(|| "no loop devices".into()))
        .or_else(|| (root && run("id", &["-u"]).trim() != "0").then(|| "not root".into()));
    if let Some(why) = &why {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "cannot run here: {why}");
        eprintln!("SKIPPED: {why}");
    }
    why.is_none()
}

fn output(program: &str, args: &[&str]) -> (i32, String) {
    let paths = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let out = Command::new(program).args(args).env("PATH", paths).env("LC_ALL", "C").output().expect(program);
    let text = String::from_utf8_lossy(&out.stdout) + String::from_utf8_lossy(&out.stderr);
    (out.status.code().unwrap_or(-1), text.into_owned())
}

fn run(program: &str, args: &[&str]) -> String {
    let (code, text) = output(program, args);
    assert_eq!(code, 0, "{program} {args:?}: {text}");
    text
}

/// An image made by mke2fs from a tree with the files `a` to `e`.
struct Image {
    dir: tempfile::TempDir,
    block_size: u32,
}

impl Image {
    fn new(block_size: u32, options: &[&str]) -> Image {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let tree = dir.path().join("tree");
        std::fs::create_dir(&tree).unwrap();
        for name in ["a", "b", "c", "d", "e"] {
            std::fs::write(tree.join(name), vec![name.as_bytes()[0]; block_size as usize]).unwrap();
        }
        let image = Image { dir, block_size };
        let (size, path, tree) = (block_size.to_string(), image.path(), tree);
        // The smallest log: 1024 blocks.
        let log = format!("size={}", block_size / 1024);
        let mut args = vec!["-q", "-F", "-t", "ext4", "-b", &size, "-J", &log, "-d", tree.to_str().unwrap()];
        args.extend(options);
        args.extend([path.to_str().unwrap(), "48M"]);
        run("mke2fs", &args);
        image
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn copy(&self, name: &str) -> PathBuf {
        let copy = self.dir.path().join(name);
        run("cp", &["--sparse=always", self.path().to_str().unwrap(), copy.to_str().unwrap()]);
        copy
    }

    fn debugfs(&self, request: &str) -> String {
        run("debugfs", &["-R", request, self.path().to_str().unwrap()])
    }

    /// The runs of a file: "(0-11):3280-3291, (IND):3292, ..." in debugfs's words.
    fn runs_of(&self, file: &str) -> Vec<LogExtent> {
        let out = self.debugfs(&format!("stat {file}"));
        let list = out.split_once("EXTENTS:").or(out.split_once("BLOCKS:")).expect("a list of blocks").1;
        let range = |text: &str| -> Option<(u64, u64)> {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            Some((first.parse().ok()?, last.parse().ok()?))
        };
        let mut runs = Vec::new();
        for word in list.split([',', '\n']).filter_map(|word| word.trim().strip_prefix('(')) {
            let (logical, physical) = word.split_once("):").expect("a run");
            // The names of tree blocks are no numbers.
            if let Some((first, last)) = range(logical) {
                let start = range(physical).expect("a place").0;
                runs.push(LogExtent {
                    first: first as u32,
                    len: (last - first + 1) as u32,
                    start: BlockNo(start),
                });
            }
        }
        runs
    }

    fn journal(&self) -> LogLocation {
        LogLocation { extents: self.runs_of("<8>") }
    }

    /// Block and byte of a file's inode, and its number.
    fn inode_of(&self, file: &str) -> (u64, usize, Ino) {
        let out = self.debugfs(&format!("imap {file}"));
        let number = |after: &str| {
            out.split(after).nth(1).unwrap().trim_start().split([' ', ',', '\n']).next().unwrap()
        };
        let offset = usize::from_str_radix(number("offset 0x"), 16).unwrap();
        (number("at block").parse().unwrap(), offset, Ino::new(number("Inode").parse().unwrap()).unwrap())
    }
}

fn device(path: &Path) -> Arc<FileDevice> {
    open(path, &OpenOptions::default()).expect("open the image")
}

fn superblock(dev: &dyn BlockDevice) -> SuperBlock {
    let mut bytes = [0; 1024];
    dev.read_at(1024, &mut bytes).unwrap();
    SuperBlock::parse(&bytes).unwrap()
}

const TIME: u32 = 1_234_567_890;

/// Leaves a dirty log on the image that changes: file `a` in the first transaction, and an mtime; `b`
/// with bytes that must be escaped; `c` in the first, freed in the second and written directly; `d`
/// freed and created again; `e` never committed.
fn leave_dirty(image: &Image, checksum: LogChecksum) {
    let log = image.journal();
    let block_of = |file| image.runs_of(file)[0].start.0;
    let (a, b, c, d, e) = (block_of("a"), block_of("b"), block_of("c"), block_of("d"), block_of("e"));
    let (inode_block, inode_offset, ino) = image.inode_of("a");
    let dev = device(&image.path());
    let mut sb = superblock(&*dev);
    sb.set_needs_recovery(true);
    dev.write_at(1024, &sb.encode()).unwrap();
    let wide = sb.incompat().has(ext4_format::features::Incompat::BIT64);
    let opts = Options { features: Some(LogFeatures { checksum, wide }), ..Options::default() };
    let journal = Journal::open(dev.clone(), image.block_size, log, opts).unwrap();
    let bs = image.block_size as usize;
    let fill = |handle: &jbd2::Handle<'_>, block: u64, bytes: &[u8]| {
        let buf = journal.read(BlockNo(block), any).unwrap();
        handle.write(&buf).unwrap()[..bytes.len()].copy_from_slice(bytes);
    };

    // Around the ring until a few blocks before its end: what is left dirty lies across the wrap.
    let mut head = 0;
    let mut rewrite = |count: u64| {
        let handle = journal.start(Credits::blocks(count as u32)).unwrap();
        for block in (0..count).map(|i| inode_block + i) {
            let buf = journal.read(BlockNo(block), any).unwrap();
            drop(handle.write(&buf).unwrap());
        }
        handle.finish().unwrap();
        journal.commit_running().unwrap();
        head += journal.stats().log_used;
        journal.checkpoint(Checkpoint::All).unwrap();
        journal.stats().log_size - head
    };
    while rewrite(60) > 100 {}
    while rewrite(1) > 6 {}

    let handle = journal.start(Credits::blocks(8)).unwrap();
    fill(&handle, a, &vec![b'A'; bs]);
    fill(&handle, c, &vec![b'?'; bs]);
    fill(&handle, d, &vec![b'?'; bs]);
    let buf = journal.read(BlockNo(inode_block), any).unwrap();
    let mut inode = handle.write(&buf).unwrap();
    let size = sb.inode_size();
    let bytes = &mut inode[inode_offset..inode_offset + size];
    bytes[0x10..0x14].copy_from_slice(&TIME.to_le_bytes());
    Csum::new(&sb).set_inode(bytes, ino);
    drop(inode);
    handle.finish().unwrap();
    journal.commit_running().unwrap();

    let handle = journal.start(Credits { blocks: 4, revokes: 2 }).unwrap();
    let mut escaped = vec![b'B'; bs];
    escaped[..4].copy_from_slice(&ext4_format::jbd2::MAGIC_BYTES);
    fill(&handle, b, &escaped);
    handle.forget(BlockNo(c)).unwrap();
    handle.forget(BlockNo(d)).unwrap();
    handle.finish().unwrap();
    journal.commit_running().unwrap();
    dev.write_at(c * bs as u64, &vec![b'C'; bs]).unwrap();

    let handle = journal.start(Credits::blocks(2)).unwrap();
    let buf = handle.create(BlockNo(d)).unwrap();
    handle.write(&buf).unwrap().fill(b'D');
    handle.finish().unwrap();
    journal.commit_running().unwrap();

    let handle = journal.start(Credits::blocks(2)).unwrap();
    fill(&handle, e, &vec![b'!'; bs]);
    handle.finish().unwrap();
    dev.flush().unwrap();
}

fn expected(block_size: u32) -> [(&'static str, Vec<u8>); 5] {
    let full = |byte| vec![byte; block_size as usize];
    let mut escaped = full(b'B');
    escaped[..4].copy_from_slice(&ext4_format::jbd2::MAGIC_BYTES);
    [("a", full(b'A')), ("b", escaped), ("c", full(b'C')), ("d", full(b'D')), ("e", full(b'e'))]
}

/// Checksums and block sizes to try: each with the mke2fs options it belongs to.
fn kinds() -> Vec<(u32, LogChecksum, Vec<&'static str>)> {
    vec![
        (4096, LogChecksum::V3, vec!["-O", "metadata_csum,64bit"]),
        (1024, LogChecksum::V3, vec!["-O", "metadata_csum,^64bit"]),
        (4096, LogChecksum::V2, vec!["-O", "metadata_csum,64bit"]),
        (2048, LogChecksum::V2, vec!["-O", "metadata_csum,^64bit"]),
        (4096, LogChecksum::Compat, vec!["-O", "^metadata_csum,64bit"]),
        (4096, LogChecksum::None, vec!["-O", "^metadata_csum,64bit"]),
        (1024, LogChecksum::None, vec!["-O", "^metadata_csum,^64bit,^extent"]),
    ]
}

#[test]
fn e2fsck_replays_our_log() {
    if !can_run(&["mke2fs", "debugfs", "e2fsck"], false) {
        return;
    }
    for (block_size, checksum, options) in kinds() {
        let image = Image::new(block_size, &options);
        leave_dirty(&image, checksum);
        let path = image.path();
        let path = path.to_str().unwrap();
        let (code, text) = output("e2fsck", &["-fy", path]);
        assert!(code <= 1 && text.contains("recovering journal"), "{checksum:?} {block_size}: {code} {text}");
        assert!(!text.to_lowercase().contains("corrupt"), "{text}");
        for (file, bytes) in expected(block_size) {
            let out = image.dir.path().join("out");
            image.debugfs(&format!("dump {file} {}", out.display()));
            assert!(std::fs::read(&out).unwrap() == bytes, "{file} with {checksum:?} {block_size}");
        }
        assert!(
            image.debugfs("stat a").contains(&format!("mtime: {TIME:#010x}")),
            "{}",
            image.debugfs("stat a")
        );
        run("e2fsck", &["-fn", path]);
    }
}

/// A kernel mount that goes away again.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, on: &Path, options: &str) -> Mounted {
        std::fs::create_dir_all(on).unwrap();
        run("mount", &["-o", options, image.to_str().unwrap(), on.to_str().unwrap()]);
        Mounted(on.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // A child that another test has forked holds copies of our descriptors until it execs.
        let umount = || output("umount", &[self.0.to_str().unwrap()]);
        let wait = || std::thread::sleep(std::time::Duration::from_millis(10));
        let gone = (0..1000).any(|_| umount().0 == 0 || (wait(), false).1);
        assert!(gone || std::thread::panicking(), "{:?}", umount());
    }
}

#[test]
fn the_kernel_replays_our_log() {
    if !can_run(&["mke2fs", "debugfs", "e2fsck", "mount"], true) {
        return;
    }
    for (block_size, checksum, options) in kinds() {
        let image = Image::new(block_size, &options);
        leave_dirty(&image, checksum);
        let mounted = Mounted::new(&image.path(), &image.dir.path().join("mnt"), "loop");
        for (file, bytes) in expected(block_size) {
            let found = std::fs::read(mounted.0.join(file)).unwrap();
            assert!(found == bytes, "{file} with {checksum:?} {block_size}");
        }
        let modified = run("stat", &["-c", "%Y", mounted.0.join("a").to_str().unwrap()]);
        assert_eq!(modified.trim(), TIME.to_string());
        drop(mounted);
        run("e2fsck", &["-fn", image.path().to_str().unwrap()]);
    }
}

/// Work that goes around a kernel's log: files, directories grown and removed again (revokes), everything
/// synced.
const WORK: &str = r#"
    set -e; cd "$1"
    for i in $(seq 1 120); do mkdir t$i; echo > t$i/f; sync -f .; rm -r t$i; done
    for i in $(seq 1 12); do
        mkdir dir$i
        for j in $(seq 1 60); do echo "$i $j" > dir$i/a_file_with_a_rather_long_name_to_fill_blocks_$j; done
    done
    sync -f .
    rm -rf dir2 dir4 dir6
    for i in 1 2 3; do head -c 300000 /dev/urandom > big$i; done
    sync -f .
    rm -rf dir8 dir10; mv dir1 moved
    echo last > last; sync -f last
"#;

#[test]
fn we_replay_the_kernel_s_log_as_e2fsck_does() {
    if !can_run(&["mke2fs", "debugfs", "e2fsck", "mount"], true) {
        return;
    }
    for (block_size, options, mount) in [
        (4096, "metadata_csum,64bit", "loop"),
        (1024, "metadata_csum,^64bit", "loop"),
        (4096, "^metadata_csum,64bit", "loop,journal_checksum"),
        (1024, "^metadata_csum,^64bit", "loop"),
        (4096, "metadata_csum,64bit,fast_commit", "loop"),
    ] {
        let image = Image::new(block_size, &["-O", options]);
        let mounted = Mounted::new(&image.path(), &image.dir.path().join("mnt"), mount);
        let script = image.dir.path().join("work.sh");
        std::fs::write(&script, WORK).unwrap();
        run("bash", &[script.to_str().unwrap(), mounted.0.to_str().unwrap()]);
        let (ours, theirs) = (image.copy("ours"), image.copy("theirs"));
        drop(mounted);

        let log = image.journal();
        let dev = device(&ours);
        assert!(
            superblock(&*dev).incompat().has(ext4_format::features::Incompat::RECOVER),
            "the copy should have a dirty log"
        );
        let before: Arc<dyn BlockDevice> = dev.clone();
        let replay = recovery::scan(&*before, block_size, &log).unwrap();
        let overlay = recovery::Overlay::new(before, block_size, replay);
        let block = |dev: &dyn BlockDevice, at: u64| {
            let mut bytes = vec![0; block_size as usize];
            dev.read_at(at * u64::from(block_size), &mut bytes).unwrap();
            bytes
        };
        let blocks = dev.geometry().size / u64::from(block_size);
        let seen: Vec<Vec<u8>> = (0..blocks).map(|at| block(&overlay, at)).collect();
        let found = recovery::recover(&*dev, block_size, &log).unwrap();
        assert!(found.transactions > 0 && found.blocks > 20, "{found:?} with {options}");
        if block_size == 1024 {
            assert!(found.revokes > 0, "{found:?}: the work should revoke");
        }

        // e2fsck only replays: what differs may be its superblock and the log itself.
        let (code, text) = output("e2fsck", &["-y", "-E", "journal_only", theirs.to_str().unwrap()]);
        assert!(code <= 1, "{text}");
        let other = device(&theirs);
        let in_log = |at: u64| {
            log.extents.iter().any(|run| (run.start.0..run.start.0 + u64::from(run.len)).contains(&at))
        };
        let superblock_at = 1024 / u64::from(block_size);
        for at in (0..blocks).filter(|at| !in_log(*at) && *at != superblock_at) {
            let our = block(&*dev, at);
            assert!(our == block(&*other, at), "block {at} differs from e2fsck's replay ({options})");
            assert!(our == seen[at as usize], "block {at} differs from the overlay ({options})");
        }
        let mut sb = superblock(&*dev);
        sb.set_needs_recovery(false);
        dev.write_at(1024, &sb.encode()).unwrap();
        drop(dev);
        // The log we emptied is one that the kernel goes on with.
        let mounted = Mounted::new(&ours, &image.dir.path().join("mnt"), "loop");
        assert_eq!(std::fs::read_to_string(mounted.0.join("last")).unwrap(), "last\n");
        std::fs::write(mounted.0.join("more"), "more").unwrap();
        drop(mounted);
        run("e2fsck", &["-fn", ours.to_str().unwrap()]);
    }
}

#[test]
fn fast_commits_of_the_kernel_are_refused_by_name() {
    if !can_run(&["mke2fs", "debugfs", "mount"], true) {
        return;
    }
    let image = Image::new(4096, &["-O", "fast_commit"]);
    let mounted = Mounted::new(&image.path(), &image.dir.path().join("mnt"), "loop");
    let file = mounted.0.join("a");
    run("sync", &["-f", file.to_str().unwrap()]);
    std::fs::write(&file, "short").unwrap();
    run("sync", &[file.to_str().unwrap()]);
    let copy = image.copy("copy");
    drop(mounted);
    let dump = run("debugfs", &["-R", "logdump", copy.to_str().unwrap()]);
    assert!(dump.contains("tag HEAD"), "the kernel made no fast commit: {dump}");
    let dev = device(&copy);
    let before = content(&*dev);
    match recovery::recover(&*dev, 4096, &image.journal()) {
        Err(jbd2::Error::Unsupported { what }) => assert!(what.contains("fast_commit"), "{what}"),
        other => panic!("{other:?}"),
    }
    assert!(content(&*dev) == before, "nothing is written");
}

fn content(dev: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; dev.geometry().size as usize];
    dev.read_at(0, &mut bytes).unwrap();
    bytes
}
