//! What a recovered disk holds: as our own filesystem shows it, and as the kernel does.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use fs_core::{Credentials, Filesystem, OpenFlags};
use rustix::fs::{lgetxattr, llistxattr};

use super::model::{Found, Kind, Node, Tree};
use super::ops::CELL;

/// Names that mkfs makes and no workload touches.
const NOT_OURS: &str = "lost+found";

/// Reads a whole mounted volume.
///
/// # Errors
/// Whatever cannot be read: on a recovered volume that is a failure of its own.
pub fn by_us(fs: &Arc<Filesystem>) -> Result<Tree> {
    let mut tree = Tree::new();
    let mut open = vec![(String::new(), fs.root()?)];
    while let Some((path, dir)) = open.pop() {
        let mut names = vec![];
        dir.list(0, |item| {
            if item.name != b"." && item.name != b".." {
                names.push(String::from_utf8_lossy(item.name).into_owned());
            }
            ControlFlow::Continue(())
        })
        .with_context(|| format!("listing {path:?}"))?;
        for name in names.into_iter().filter(|name| !path.is_empty() || name != NOT_OURS) {
            let at = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            let node = dir.lookup(&name).with_context(|| at.clone())?;
            tree.insert(at.clone(), one(&node, &at)?);
            if node.is_dir() {
                open.push((at, node.into_dir()?));
            }
        }
    }
    Ok(tree)
}

fn one(node: &fs_core::Node, path: &str) -> Result<Found> {
    let attr = node.attributes()?;
    let kind =
        kind_of(u32::from(attr.mode), path, || Ok(String::from_utf8_lossy(&node.read_link()?).into_owned()))?;
    let mut xattrs = BTreeMap::new();
    let names = node.list_xattrs_as(&Credentials::root())?;
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        xattrs.insert(String::from_utf8_lossy(name).into_owned(), node.xattr(name)?);
    }
    let mut bytes = vec![];
    if kind == Kind::File {
        bytes = vec![0; usize::try_from(attr.size)?.min(MAX_FILE)];
        let file = node.open(OpenFlags::default())?;
        let read = file.read_at(&mut bytes, 0).with_context(|| format!("reading {path}"))?;
        bytes.truncate(read);
    }
    Ok(found(u64::from(attr.ino.get()), kind, attr.mode, xattrs, attr.links, attr.size, &bytes))
}

/// Reads a tree that the kernel has mounted.
///
/// # Errors
/// Whatever cannot be read.
pub fn by_kernel(root: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    for entry in walkdir::WalkDir::new(root).min_depth(1) {
        let entry = entry?;
        let path = entry.path();
        let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
        if name == NOT_OURS || name.starts_with("lost+found/") {
            continue;
        }
        let metadata = path.symlink_metadata()?;
        let kind =
            kind_of(metadata.mode(), &name, || Ok(std::fs::read_link(path)?.to_string_lossy().into_owned()))?;
        let mut xattrs = BTreeMap::new();
        let mut list = vec![0; 4096];
        let len = llistxattr(path, &mut list[..])?;
        for attr in list[..len].split(|byte| *byte == 0).filter(|attr| !attr.is_empty()) {
            let attr = String::from_utf8_lossy(attr).into_owned();
            let mut value = vec![0; 4096];
            let len = lgetxattr(path, attr.as_str(), &mut value[..])?;
            value.truncate(len);
            xattrs.insert(attr, value);
        }
        let bytes = if kind == Kind::File { std::fs::read(path)? } else { vec![] };
        let mode = metadata.mode() as u16;
        let links = u32::try_from(metadata.nlink())?;
        tree.insert(name, found(metadata.ino(), kind, mode, xattrs, links, metadata.len(), &bytes));
    }
    Ok(tree)
}

/// Longest file that is read; a larger size is a failure anyway.
const MAX_FILE: usize = 1 << 20;

fn kind_of(mode: u32, path: &str, target: impl FnOnce() -> Result<String>) -> Result<Kind> {
    Ok(match mode & 0o170_000 {
        0o100_000 => Kind::File,
        0o040_000 => Kind::Directory,
        0o120_000 => Kind::Symlink(target()?),
        other => bail!("{path} has type {other:o}"),
    })
}

fn found(
    ino: u64,
    kind: Kind,
    mode: u16,
    xattrs: BTreeMap<String, Vec<u8>>,
    links: u32,
    size: u64,
    bytes: &[u8],
) -> Found {
    let is_file = kind == Kind::File;
    let cells = bytes
        .chunks(CELL as usize)
        .enumerate()
        .map(|(i, cell)| {
            let uniform = cell.iter().all(|byte| *byte == cell[0]);
            let shown = &cell[..cell.len().min(16)];
            if uniform {
                Ok(cell[0])
            } else {
                Err(format!("strange bytes at {}: {shown:02x?}", i as u64 * CELL))
            }
        })
        .collect();
    let node = Node { kind, mode: mode & 0o7777, xattrs };
    Found { ino, node, links, size: if is_file { size } else { 0 }, cells }
}
