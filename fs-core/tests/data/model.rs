//! One file, random operations, and a vector of bytes that says what it must hold.

use std::sync::Arc;

use blockdev::sim::{Dice, MemDevice};
use fs_core::{
    Credentials, Error, FallocateMode, Filesystem, OpenFile, OpenFlags, SeekWhence, SetAttr, WriteKind,
};

use crate::harness::{assert_same, e2fsck, foreign_read, manual, mke2fs, mount, open, pick, read_all};

/// Largest size that the model lets the file have.
const MAX: u64 = 3 << 20;

/// Says of a byte at some time what it is; never [`crate::harness::STALE`].
fn pattern(dice: &mut Dice, len: usize) -> Vec<u8> {
    let start = dice.roll() as u8;
    (0..len).map(|i| (start.wrapping_add(i as u8)) % 0xa0).collect()
}

struct Model {
    bytes: Vec<u8>,
    dice: Dice,
    block: u64,
}

impl Model {
    /// A place in the file, often near a block boundary or the end.
    fn place(&mut self, limit: u64) -> u64 {
        let at = match self.dice.below(4) {
            0 => self.dice.below(limit + 1) / self.block * self.block,
            1 => (self.bytes.len() as u64).saturating_add(self.dice.below(3)).saturating_sub(1),
            2 => self.dice.below(limit.min(64 << 10) + 1),
            _ => self.dice.below(limit + 1),
        };
        at.min(limit)
    }

    fn length(&mut self) -> u64 {
        match self.dice.below(4) {
            0 => 1 + self.dice.below(100),
            1 => self.block * (1 + self.dice.below(8)),
            2 => 1 + self.dice.below(200 << 10),
            _ => 1 + self.dice.below(3 * self.block),
        }
    }

    fn grow(&mut self, size: u64) {
        if self.bytes.len() < size as usize {
            self.bytes.resize(size as usize, 0);
        }
    }

    /// One operation on both. `Err` is an operation that the volume may refuse.
    fn step(&mut self, fs: &Filesystem, file: &OpenFile) -> String {
        let root = Credentials::root();
        let (at, len) = (self.place(MAX - (256 << 10)), self.length());
        match self.dice.below(20) {
            0..=4 | 17 => {
                let mode = *self.dice.pick(&[WriteKind::Cached, WriteKind::Delayed]);
                self.write(file, at, len, mode)
            }
            5..=6 => self.write(file, at, len, WriteKind::Direct),
            7..=9 => {
                let at = at / self.block * self.block;
                let len = len.next_multiple_of(self.block);
                self.write(file, at, len, WriteKind::Direct)
            }
            10 => {
                file.set_len(at).unwrap();
                self.bytes.resize(at as usize, 0);
                format!("truncate {at}")
            }
            11 => {
                file.sync(self.dice.one_in(2)).unwrap();
                "fsync".into()
            }
            12 => {
                match self.dice.below(3) {
                    0 => fs.step_convert(),
                    1 => fs.step_flush(),
                    _ => fs.tick().unwrap(),
                }
                "background".into()
            }
            13 => {
                if file.fallocate_as(&root, at, len, FallocateMode::PunchHole).is_ok() {
                    let end = (at + len).min(self.bytes.len() as u64);
                    if at < end {
                        self.bytes[at as usize..end as usize].fill(0);
                    }
                }
                format!("punch {at}+{len}")
            }
            14 => {
                let keep_size = self.dice.one_in(2);
                if supported(file.fallocate_as(&root, at, len, FallocateMode::Allocate { keep_size }))
                    && !keep_size
                {
                    self.grow(at + len);
                }
                format!("allocate {at}+{len} keep {keep_size}")
            }
            15 => {
                let keep_size = self.dice.one_in(2);
                if supported(file.fallocate_as(&root, at, len, FallocateMode::ZeroRange { keep_size })) {
                    if !keep_size {
                        self.grow(at + len);
                    }
                    let end = (at + len).min(self.bytes.len() as u64);
                    if at < end {
                        self.bytes[at as usize..end as usize].fill(0);
                    }
                }
                format!("zero {at}+{len} keep {keep_size}")
            }
            16 => self.move_blocks(file, at),
            18 => {
                let to = self.place(MAX - (256 << 10));
                let size = self.bytes.len() as u64;
                let result = file.copy_range_as(&root, at, file, to, len);
                if at.abs_diff(to) >= len {
                    let copied = result.unwrap();
                    assert_eq!(copied, len.min(size.saturating_sub(at)));
                    let bytes = self.bytes[at.min(size) as usize..(at + copied).min(size) as usize].to_vec();
                    if copied > 0 {
                        self.grow(to + copied);
                        self.bytes[to as usize..(to + copied) as usize].copy_from_slice(&bytes);
                    }
                }
                format!("copy {at}+{len} to {to}")
            }
            _ => {
                self.check_seek(file, at);
                format!("seek {at}")
            }
        }
    }

    fn write(&mut self, file: &OpenFile, at: u64, len: u64, mode: WriteKind) -> String {
        let data = pattern(&mut self.dice, len as usize);
        assert_eq!(file.write_as(&Credentials::root(), &data, at, mode).unwrap(), data.len());
        self.grow(at + len);
        self.bytes[at as usize..(at + len) as usize].copy_from_slice(&data);
        format!("write {at}+{len} {mode:?}")
    }

    fn move_blocks(&mut self, file: &OpenFile, at: u64) -> String {
        let root = Credentials::root();
        let at = at / self.block * self.block;
        let len = self.block * (1 + self.dice.below(9));
        let size = self.bytes.len() as u64;
        if self.dice.one_in(2) {
            let result = file.fallocate_as(&root, at, len, FallocateMode::Collapse);
            if at + len < size && supported(result) {
                self.bytes.drain(at as usize..(at + len) as usize);
            }
            format!("collapse {at}+{len}")
        } else {
            let result = file.fallocate_as(&root, at, len, FallocateMode::Insert);
            if at < size && size + len < MAX && supported(result) {
                self.bytes.splice(at as usize..at as usize, std::iter::repeat_n(0, len as usize));
            }
            format!("insert {at}+{len}")
        }
    }

    /// What is called a hole must be zeros, and what is found must be where it was asked for.
    fn check_seek(&self, file: &OpenFile, at: u64) {
        let size = self.bytes.len() as u64;
        let data = file.seek_to(at, SeekWhence::Data);
        let hole = file.seek_to(at, SeekWhence::Hole);
        if at >= size {
            assert_eq!(data.unwrap_err().errno(), libc::ENXIO);
            assert_eq!(hole.unwrap_err().errno(), libc::ENXIO);
            return;
        }
        let (data, hole) = (data.unwrap_or(size), hole.unwrap());
        assert!(data == at || hole == at, "{data} {hole} for {at}");
        assert!(self.bytes[at as usize..data as usize].iter().all(|b| *b == 0));
        assert!(hole <= size && data <= size);
    }

    fn check(&mut self, file: &OpenFile, what: &str) {
        assert_eq!(file.attributes().unwrap().size, self.bytes.len() as u64, "size after {what}");
        let at = self.place(MAX) as usize;
        let len = self.length() as usize;
        let mut buf = vec![0xcc; len];
        let got = file.read_at(&mut buf, at as u64).unwrap();
        let expected = &self.bytes[at.min(self.bytes.len())..(at + len).min(self.bytes.len())];
        assert_same(&buf[..got], expected, &format!("{len} bytes at {at} after {what}"));
    }
}

/// Whether it was done. What an indirect map cannot do is refused as the kernel refuses it.
fn supported(result: fs_core::Result<()>) -> bool {
    match result {
        Ok(()) => true,
        Err(e) if e.errno() == libc::EOPNOTSUPP => false,
        Err(e) => panic!("{e}"),
    }
}

fn run(args: &[&str], block: u64, seed: u64, steps: usize) {
    let mut dev = Arc::new(MemDevice::from_image(mke2fs(args)));
    let mut fs = mount(dev.clone(), manual());
    let mut file = open(&fs, "file");
    let mut model = Model { bytes: Vec::new(), dice: Dice::new(seed), block };
    let mut last = Vec::new();
    for step in 0..steps {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let what = model.step(&fs, &file);
            model.check(&file, &what);
            what
        }));
        match outcome {
            Ok(what) => last.push(what),
            Err(panic) => {
                let from = last.len().saturating_sub(12);
                eprintln!("mke2fs {args:?} seed {seed} step {step}, before: {:#?}", &last[from..]);
                std::panic::resume_unwind(panic);
            }
        }
        if model.dice.one_in(150) {
            assert_same(&read_all(&file), &model.bytes, "everything");
            fs.close().unwrap();
            drop(fs);
            e2fsck(&dev.snapshot(), &format!("mke2fs {args:?} seed {seed} step {step}"));
            assert_same(&foreign_read(&dev.snapshot()), &model.bytes, "everything, read by debugfs");
            dev = Arc::new(MemDevice::from_image(dev.snapshot()));
            fs = mount(dev.clone(), manual());
            file = open(&fs, "file");
            last.push("remount".into());
        }
    }
    assert_same(&read_all(&file), &model.bytes, "everything at the end");
    fs.close().unwrap();
    e2fsck(&dev.snapshot(), &format!("mke2fs {args:?} seed {seed} end"));
    assert_same(&foreign_read(&dev.snapshot()), &model.bytes, "the end, read by debugfs");
}

fn seeds() -> u64 {
    pick(2, 200)
}

#[test]
fn four_kilobyte_blocks() {
    (0..seeds()).for_each(|seed| run(&["-t", "ext4", "-b", "4096"], 4096, seed, 600));
}

#[test]
fn one_kilobyte_blocks() {
    (0..seeds()).for_each(|seed| run(&["-t", "ext4", "-b", "1024"], 1024, 100 + seed, 600));
}

#[test]
fn two_kilobyte_blocks_without_a_journal() {
    (0..seeds()).for_each(|seed| {
        run(&["-t", "ext4", "-b", "2048", "-O", "^has_journal"], 2048, 200 + seed, 400);
    });
}

#[test]
fn indirect_blocks_of_ext3() {
    (0..seeds()).for_each(|seed| run(&["-t", "ext3", "-b", "1024"], 1024, 300 + seed, 400));
}

#[test]
fn indirect_blocks_of_ext2() {
    (0..seeds()).for_each(|seed| run(&["-t", "ext2", "-b", "4096"], 4096, 400 + seed, 400));
}

#[test]
fn refusals() {
    let fs = mount(Arc::new(MemDevice::from_image(mke2fs(&["-t", "ext4", "-b", "4096"]))), manual());
    let file = open(&fs, "file");
    let root = Credentials::root();
    let errno = |result: fs_core::Result<()>| result.unwrap_err().errno();
    assert_eq!(errno(file.set_len(u64::MAX >> 1)), libc::EFBIG);
    file.set_len((1 << 44) - 4096).unwrap();
    let far = file.write_as(&root, b"x", (1 << 44) - 4096, WriteKind::Cached);
    assert_eq!(far.unwrap_err().errno(), libc::EFBIG);
    assert_eq!(file.write_as(&root, b"xyz", (1 << 44) - 4098, WriteKind::Cached).unwrap(), 2);
    file.set_len(10_000).unwrap();
    let fallocate = |at, len, mode| errno(file.fallocate_as(&root, at, len, mode));
    assert_eq!(fallocate(0, 0, FallocateMode::PunchHole), libc::EINVAL);
    assert_eq!(fallocate(0, 100, FallocateMode::Collapse), libc::EINVAL);
    assert_eq!(fallocate(8192, 4096, FallocateMode::Collapse), libc::EINVAL);
    assert_eq!(fallocate(12_288, 4096, FallocateMode::Insert), libc::EINVAL);
    assert_eq!(fallocate(0, (1 << 44) - 4096, FallocateMode::Insert), libc::EFBIG);
    let grow = FallocateMode::Allocate { keep_size: false };
    assert_eq!(fallocate(1 << 44, 1, grow), libc::EFBIG);
    assert_eq!(fallocate(0, 1 << 40, grow), libc::ENOSPC);
    let dir = fs.root().unwrap().open(OpenFlags { write: true, ..OpenFlags::default() }).map(drop);
    assert!(matches!(dir, Err(Error::Posix(_))));
    assert_eq!(dir.unwrap_err().errno(), libc::EISDIR);
}

#[test]
fn changes_by_others_take_privileges_away() {
    let fs = mount(Arc::new(MemDevice::from_image(mke2fs(&["-t", "ext4"]))), manual());
    let (file, from) = (open(&fs, "file"), open(&fs, "from"));
    let other = |gid| Credentials { uid: 1000, gid, ..Credentials::root() };
    let (root, member, outsider) = (Credentials::root(), other(0), other(1000));
    from.write_as(&root, &[1; 5000], 0, WriteKind::Cached).unwrap();
    file.write_as(&root, &[1; 5000], 0, WriteKind::Cached).unwrap();
    let mode = || file.attributes().unwrap().mode & 0o7777;
    let arm = |bits: u16| {
        file.set_attributes(&SetAttr { mode: Some(bits), ..SetAttr::default() }).unwrap();
    };
    let cases = [
        (&member, 0o6775, 0o775),
        (&member, 0o6765, 0o2765),
        (&outsider, 0o6765, 0o765),
        (&outsider, 0o644, 0o644),
    ];
    for (other, how, left) in cases {
        arm(how);
        file.fallocate_as(&root, 0, 100, FallocateMode::PunchHole).unwrap();
        from.copy_range_as(&root, 0, &file, 0, 10).unwrap();
        assert_eq!(mode(), how);
        file.fallocate_as(other, 0, 100, FallocateMode::PunchHole).unwrap();
        assert_eq!(mode(), left);
        arm(how);
        from.copy_range_as(other, 0, &file, 0, 10).unwrap();
        assert_eq!(mode(), left);
    }
    fs.close().unwrap();
}

/// Large writes into little space end short, not at all only when not a block is left. Direct ones are done in
/// full or not at all, as the kernel's: a part that is short makes the whole request an EIO there.
#[test]
fn the_last_block_is_given_out() {
    for (args, mode) in [
        (["-t", "ext4", "-m", "0", "-b", "1024"], WriteKind::Direct),
        (["-t", "ext4", "-m", "0", "-b", "4096"], WriteKind::Cached),
    ] {
        let dev = Arc::new(MemDevice::from_image(mke2fs(&args)));
        let fs = mount(dev.clone(), manual());
        let file = open(&fs, "file");
        let mut data = vec![7; 1 << 20];
        let mut size = 0;
        let error = loop {
            match file.write_as(&Credentials::root(), &data, size, mode) {
                Ok(n) if mode == WriteKind::Direct => {
                    assert_eq!(n, data.len());
                    size += n as u64;
                }
                Ok(n) => size += n as u64,
                Err(e) if mode == WriteKind::Direct && data.len() > 1024 => {
                    assert_eq!(e.errno(), libc::ENOSPC);
                    assert_eq!(file.attributes().unwrap().size, size);
                    data.truncate(data.len() / 2);
                }
                Err(e) => break e,
            }
        };
        assert_eq!(error.errno(), libc::ENOSPC);
        file.sync(false).unwrap();
        // A block of the tree may come free when conversions merge its extents.
        let left = fs.statfs().unwrap().blocks_available;
        assert!(left <= 1, "{args:?} {mode:?}: {left} blocks left");
        assert!(read_all(&file).iter().all(|b| *b == 7));
        assert_eq!(file.attributes().unwrap().size, size);
        fs.close().unwrap();
        drop(fs);
        e2fsck(&dev.snapshot(), &format!("{args:?} {mode:?} full"));
    }
}

#[test]
fn space_promised_to_what_was_cut_off_comes_back() {
    let fs = mount(Arc::new(MemDevice::from_image(mke2fs(&["-t", "ext4", "-b", "4096"]))), manual());
    let file = open(&fs, "file");
    for (at, size) in [(4100, 4100), (4100, 4200), (0, 0), (8192, 1)] {
        let before = fs.statfs().unwrap().blocks_available;
        file.write_as(&Credentials::root(), &[1; 9000], at, WriteKind::Cached).unwrap();
        assert!(fs.statfs().unwrap().blocks_available < before);
        file.set_len(size).unwrap();
        file.set_len(0).unwrap();
        let attr = file.attributes().unwrap();
        assert_eq!((attr.sectors, fs.statfs().unwrap().blocks_available), (0, before), "{at} {size}");
    }
    file.write_as(&Credentials::root(), &[1; 9000], 4100, WriteKind::Cached).unwrap();
    file.set_len(4100).unwrap();
    assert_eq!(file.attributes().unwrap().sectors, 0);
    fs.close().unwrap();
}
