//! What a caller is told of damage: EBADMSG where the checksum alone is wrong, EUCLEAN where the bytes contradict
//! the format, as the kernel's ext4 says it.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use ext4_format::Ino;
use rustix::fs::SeekFrom;
use tests::forge::Forge;
use tests::run::{run, tool};
use tests::scale::{Need, can_run, scratch};
use tests::system::{Options, System};

/// A structure that gets a wrong byte.
#[derive(Clone, Copy, Debug)]
enum Part {
    Inode,
    InodeExtra,
    Directory,
    DirectoryEntry,
    Index,
    ExtentBlock,
    ExtentHeader,
    AttributeBlock,
    AttributeHeader,
}

const PARTS: [Part; 9] = [
    Part::Inode,
    Part::InodeExtra,
    Part::Directory,
    Part::DirectoryEntry,
    Part::Index,
    Part::ExtentBlock,
    Part::ExtentHeader,
    Part::AttributeBlock,
    Part::AttributeHeader,
];

const FILL: &str = "
mkdir small big
touch small/one
i=0; while [ $i -lt 200 ]; do touch big/a-rather-long-name-to-fill-the-block-$i; i=$((i+1)); done
i=0; while [ $i -lt 24 ]; do dd if=/dev/zero of=holes bs=1024 count=1 seek=$i conv=notrunc status=none; i=$((i+2)); done
touch attributes; setfattr -n user.large -v $(printf 'y%.0s' $(seq 400)) attributes
";

/// The errno of looking at what the part belongs to.
fn errno(root: &Path, part: Part) -> Option<i32> {
    let answer = match part {
        Part::Inode | Part::InodeExtra => fs::metadata(root.join("attributes")).map(drop),
        Part::Directory | Part::DirectoryEntry => fs::metadata(root.join("small/one")).map(drop),
        Part::Index => fs::metadata(root.join("big/a-rather-long-name-to-fill-the-block-7")).map(drop),
        // A read of mapped pages would be EIO in the kernel, whatever is wrong.
        Part::ExtentBlock | Part::ExtentHeader => File::open(root.join("holes"))
            .and_then(|file| Ok(rustix::fs::seek(&file, SeekFrom::Data(0))?))
            .map(drop),
        Part::AttributeBlock | Part::AttributeHeader => {
            let mut value = [0; 1000];
            rustix::fs::getxattr(root.join("attributes"), "user.large", &mut value[..])
                .map(drop)
                .map_err(std::io::Error::from)
        }
    };
    answer.err().and_then(|error| error.raw_os_error())
}

/// Changes a byte of the part. Sums are not made right again: either nothing else is wrong, or more is.
fn damage(forge: &mut Forge, names: &dyn Fn(&str) -> Result<Ino>, part: Part) -> Result<()> {
    let (block, at) = match part {
        // The access time, and the size of the extra fields.
        Part::Inode => (forge.inode_place(names("attributes")?)?, 8),
        Part::InodeExtra => (forge.inode_place(names("attributes")?)?, 0x81),
        // The padding of `.`, and the length of its record.
        Part::Directory => ((forge.blocks_of(names("small")?)?[0], 0), 9),
        Part::DirectoryEntry => ((forge.blocks_of(names("small")?)?[0], 0), 4),
        // A hash in the root of the index.
        Part::Index => ((forge.blocks_of(names("big")?)?[0], 0), 0x28),
        // The generation in the header, and its magic.
        Part::ExtentBlock => ((forge.tree_block(names("holes")?)?, 0), 8),
        Part::ExtentHeader => ((forge.tree_block(names("holes")?)?, 0), 0),
        // The hash of all attributes, and the magic.
        Part::AttributeBlock => ((forge.inode(names("attributes")?)?.file_acl.0, 0), 12),
        Part::AttributeHeader => ((forge.inode(names("attributes")?)?.file_acl.0, 0), 0),
    };
    forge.block_mut(block.0)[block.1 + at] ^= 0x41;
    Ok(())
}

#[test]
fn damage_is_told_as_the_kernel_tells_it() -> Result<()> {
    if !can_run("damage_is_told_as_the_kernel_tells_it", &[Need::Root, Need::Loop, Need::Fuse]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    File::create(&image)?.set_len(16 << 20)?;
    let words = ["-q", "-F", "-t", "ext4", "-b", "1024", "-J", "size=1", "-N", "512", "-O", "metadata_csum"];
    run(tool("mke2fs").args(words).arg(&image))?;
    let mounted = System::Kernel.mount(&image)?;
    run(tool("sh").arg("-ec").arg(FILL).current_dir(mounted.path()))?;
    let mut numbers = std::collections::BTreeMap::new();
    for name in ["small", "big", "holes", "attributes"] {
        use std::os::unix::fs::MetadataExt as _;
        numbers.insert(name, fs::metadata(mounted.path().join(name))?.ino() as u32);
    }
    mounted.unmount()?;
    let names = |name: &str| numbers.get(name).and_then(|ino| Ino::new(*ino)).context("a name");
    let good = Forge::load(&image)?;
    let options = Options::words(&["errors=continue"]);
    let (mut told, mut faults) = (std::collections::BTreeSet::new(), Vec::new());
    for part in PARTS {
        let mut forge = good.clone();
        damage(&mut forge, &names, part)?;
        let mut answers = Vec::new();
        for system in [System::Kernel, System::under_test()] {
            fs::write(&image, &forge.bytes)?;
            let mounted = system.mount_with(&image, &options)?;
            answers.push(errno(mounted.path(), part));
            mounted.unmount()?;
        }
        told.insert(answers[0]);
        if answers[0] != answers[1] {
            faults.push(format!("{part:?}: the kernel says {:?}, we say {:?}", answers[0], answers[1]));
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    // EBADMSG and EUCLEAN.
    ensure!(told.contains(&Some(74)) && told.contains(&Some(117)), "one-sided: {told:?}");
    Ok(())
}
