//! Pass 3: every directory hangs on the root, and its `..` says where.

use std::collections::HashSet;

use ext4_format::dirent::{DirBlock, DirBlockMut, DirFormat, NewEntry};
use ext4_format::inode::{FileType, Inode, flag};
use ext4_format::{BlockNo, Ino};

use crate::alloc;
use crate::context::{Context, Dir, lock};
use crate::error::{Error, Result};
use crate::inline_dir;
use crate::map::Use;
use crate::options::Mode;
use crate::pass1;
use crate::problem::{Code, Problem};
use crate::prompt::{Ask, Prompter};

const LOST_FOUND: &[u8] = b"lost+found";

/// Runs the pass.
pub fn run(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<()> {
    check_root(ctx, prompter)?;
    // As e2fsck has it: to lack the directory is no damage, but who may write makes it.
    if ctx.options.mode != Mode::CheckOnly
        && lock(&ctx.found.dirs).contains_key(&Ino::ROOT.get())
        && find(ctx, Ino::ROOT, LOST_FOUND)?.is_none()
        && takes_plain_names(ctx, Ino::ROOT)?
        && has_room(ctx)
        && prompter.ask(Problem::new(Code::LostFoundMissing))?
    {
        create_lost_found(ctx)?;
    }
    let all: Vec<(u32, Dir)> = lock(&ctx.found.dirs).iter().map(|(&ino, &dir)| (ino, dir)).collect();
    let mut connected: HashSet<u32> = HashSet::from([Ino::ROOT.get()]);
    let total = all.len() as u64;
    prompter.progress(3, 0, total)?;
    for (done, (number, _)) in all.iter().enumerate() {
        if done % 4096 == 0 {
            prompter.progress(3, done as u64, total)?;
        }
        connect(ctx, prompter, *number, &mut connected)?;
    }
    for (number, _) in all {
        let dir = lock(&ctx.found.dirs).get(&number).copied().unwrap_or_default();
        let parent = if number == Ino::ROOT.get() { number } else { dir.parent };
        let Some(ino) = Ino::new(number) else { continue };
        if dir.dotdot != parent && parent != 0 {
            let problem = Problem::of(Code::DotDotWrong, ino).values(dir.dotdot, parent);
            if prompter.ask(problem)? {
                set_dotdot(ctx, ino, dir.dotdot, parent)?;
            }
        }
    }
    Ok(())
}

fn check_root(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<()> {
    if ctx.found.inodes.get(Ino::ROOT).is_dir() || !prompter.ask(Problem::new(Code::RootMissing))? {
        return Ok(());
    }
    let mut root = alloc::fresh(ctx, FileType::Directory, 0o755);
    root.links = 2;
    make_directory(ctx, Ino::ROOT, root, Ino::ROOT)
}

/// Writes a new, empty directory and enters it into the picture.
fn make_directory(ctx: &Context, ino: Ino, mut inode: Inode, parent: Ino) -> Result<()> {
    let size = ctx.disk.block_size();
    let block = alloc::cluster(ctx, BlockNo(0))?;
    let mut bytes = vec![0; size];
    let _ = DirBlockMut::init_first(&mut bytes, DirFormat::new(&ctx.sb, 0), ino, parent);
    ctx.csum.set_dir_block(&mut bytes, ino, inode.generation);
    ctx.disk.write(block, &bytes)?;
    ctx.write_record(ino, &mut vec![0; ctx.geometry.inode_size])?;
    alloc::map_block(ctx, ino, &mut inode, 0, block)?;
    inode.size = size as u64;
    ctx.write_inode(ino, &inode)?;
    ctx.found.inodes.set(ino, Use::File(FileType::Directory.dirent_code()), inode.links);
    lock(&ctx.found.dirs).insert(ino.get(), Dir { parent: parent.get(), dotdot: parent.get() });
    // Its own `.`, and its `..`.
    ctx.found.inodes.add_names(ino, 1);
    ctx.found.inodes.add_names(parent, 1);
    Ok(())
}

fn create_lost_found(ctx: &Context) -> Result<Ino> {
    let ino = alloc::inode(ctx)?;
    let mut inode = alloc::fresh(ctx, FileType::Directory, 0o700);
    inode.links = 2;
    make_directory(ctx, ino, inode, Ino::ROOT)?;
    add_entry(ctx, Ino::ROOT, LOST_FOUND, ino, FileType::Directory)?;
    ctx.found.inodes.add_names(ino, 1);
    Ok(ino)
}

/// Follows the parents of a directory; where they do not lead to the root, it is reconnected.
fn connect(
    ctx: &Context,
    prompter: &mut Prompter<'_>,
    start: u32,
    connected: &mut HashSet<u32>,
) -> Result<()> {
    let mut way = Vec::new();
    let mut on_way = HashSet::new();
    let mut at = start;
    loop {
        if connected.contains(&at) {
            break;
        }
        let known = lock(&ctx.found.dirs).get(&at).copied();
        let dead_end = match known {
            None => true,
            Some(dir) => dir.parent == 0,
        };
        // A loop is cut where it was entered.
        if dead_end || !on_way.insert(at) {
            let Some(ino) = Ino::new(at).filter(|_| known.is_some()) else { break };
            if prompter.ask(Problem::of(Code::DirUnconnected, ino))? {
                let in_loop = !dead_end;
                if !reconnect_dir(ctx, ino, in_loop)? {
                    prompter.ask(Problem::of(Code::NoRoomToReconnect, ino))?;
                }
            }
            break;
        }
        way.push(at);
        at = known.map_or(0, |dir| dir.parent);
    }
    connected.extend(way);
    connected.insert(at);
    Ok(())
}

/// Gives a directory a name; false when there is no room for one.
fn reconnect_dir(ctx: &Context, ino: Ino, in_loop: bool) -> Result<bool> {
    let Some(home) = enter(ctx, ino, FileType::Directory)? else { return Ok(false) };
    if in_loop {
        let parent = lock(&ctx.found.dirs).get(&ino.get()).and_then(|dir| Ino::new(dir.parent));
        if let Some(parent) = parent {
            remove_name(ctx, parent, ino, |name| name != number(ino).as_bytes())?;
            ctx.found.inodes.add_names(ino, -1);
        }
    }
    let dotdot = lock(&ctx.found.dirs).get(&ino.get()).map_or(0, |dir| dir.dotdot);
    if let Some(dir) = lock(&ctx.found.dirs).get_mut(&ino.get()) {
        dir.parent = home.get();
    }
    set_dotdot(ctx, ino, dotdot, home.get())?;
    Ok(true)
}

/// The name of an inode that lost its own.
fn number(ino: Ino) -> String {
    format!("#{ino}")
}

/// Gives an inode a name in lost+found or, where that has no room, in the root directory. Returns which.
fn enter(ctx: &Context, ino: Ino, kind: FileType) -> Result<Option<Ino>> {
    let none_when_full = |result: Result<Ino>| match result {
        Err(Error::NoSpace) => Ok(None),
        other => other.map(Some),
    };
    for home in [none_when_full(lost_found(ctx))?, Some(Ino::ROOT)].into_iter().flatten() {
        if !takes_plain_names(ctx, home)? {
            continue;
        }
        let entered = add_entry(ctx, home, number(ino).as_bytes(), ino, kind).map(|()| home);
        if let Some(home) = none_when_full(entered)? {
            ctx.found.inodes.add_names(ino, 1);
            return Ok(Some(home));
        }
    }
    Ok(None)
}

/// Whether names that are not encrypted may stand in a directory.
fn takes_plain_names(ctx: &Context, dir: Ino) -> Result<bool> {
    Ok(!ctx.read_inode(dir)?.has(flag::ENCRYPT))
}

/// Whether a directory can be made.
fn has_room(ctx: &Context) -> bool {
    ctx.found.blocks.find_free(BlockNo(0), 1).is_some() && alloc::inode(ctx).is_ok()
}

/// Gives a file without a name one in lost+found; false when there is no room for one.
///
/// # Errors
/// The device's.
pub fn reconnect_file(ctx: &Context, ino: Ino) -> Result<bool> {
    let kind = match ctx.found.inodes.get(ino) {
        Use::File(code) => FileType::from_dirent(code).unwrap_or(FileType::Regular),
        _ => FileType::Regular,
    };
    Ok(enter(ctx, ino, kind)?.is_some())
}

fn lost_found(ctx: &Context) -> Result<Ino> {
    if let Some((ino, _)) = *lock(&ctx.found.lost_found) {
        return Ok(ino);
    }
    let ino = settle_lost_found(ctx)?;
    *lock(&ctx.found.lost_found) = Some((ino, 0));
    Ok(ino)
}

/// Finds lost+found or makes it.
fn settle_lost_found(ctx: &Context) -> Result<Ino> {
    if let Some(ino) = find(ctx, Ino::ROOT, LOST_FOUND)? {
        let is_dir = ctx.found.inodes.get(ino).is_dir();
        if is_dir && takes_plain_names(ctx, ino)? {
            return Ok(ino);
        }
        if !has_room(ctx) {
            return Err(Error::NoSpace);
        }
        // Something else has the name, or a directory with names that are encrypted: it moves into the one
        // that takes its place.
        let kind = ctx.read_inode(ino)?.file_type().unwrap_or(FileType::Regular);
        remove_name(ctx, Ino::ROOT, ino, |_| true)?;
        ctx.found.inodes.add_names(ino, -1);
        let home = create_lost_found(ctx)?;
        add_entry(ctx, home, number(ino).as_bytes(), ino, kind)?;
        ctx.found.inodes.add_names(ino, 1);
        if is_dir {
            let dotdot = lock(&ctx.found.dirs).get(&ino.get()).map_or(0, |dir| dir.dotdot);
            if let Some(dir) = lock(&ctx.found.dirs).get_mut(&ino.get()) {
                dir.parent = home.get();
            }
            set_dotdot(ctx, ino, dotdot, home.get())?;
        }
        return Ok(home);
    }
    if takes_plain_names(ctx, Ino::ROOT)? { create_lost_found(ctx) } else { Err(Error::NoSpace) }
}

/// Calls `visit` with each block of a directory that holds entries, from a file block on until it returns
/// true; changed blocks are written back. Returns the file block where a visit did.
fn with_blocks(
    ctx: &Context,
    ino: Ino,
    from: u64,
    mut visit: impl FnMut(&mut [u8], DirFormat) -> bool,
) -> Result<Option<u64>> {
    let inode = ctx.read_inode(ino)?;
    if inode.has(flag::INLINE_DATA) {
        return Ok(inline_dir::with_areas(ctx, ino, &inode, visit)?.then_some(0));
    }
    let format = DirFormat::new(&ctx.sb, inode.flags);
    for extent in pass1::extents_of(ctx, &inode) {
        for ahead in 0..u64::from(extent.len) {
            let file_block = u64::from(extent.first.0) + ahead;
            if file_block < from {
                continue;
            }
            let block = BlockNo(extent.start.0 + ahead);
            let mut bytes = ctx.disk.read(block)?;
            let root = inode.has(flag::INDEX) && file_block == 0;
            if inode.has(flag::INDEX) && !root && crate::rehash::hides_all(&bytes, 4) {
                continue;
            }
            let leaf = !(root && crate::rehash::hides_all(&bytes, 16));
            let here = if leaf { format } else { DirFormat { tail: false, ..format } };
            let before = bytes.clone();
            let stop = visit(&mut bytes, here);
            if bytes != before {
                if leaf {
                    ctx.csum.set_dir_block(&mut bytes, ino, inode.generation);
                } else {
                    let at = ext4_format::htree::ROOT_ENTRIES;
                    ctx.csum.set_htree_block(&mut bytes, at, ino, inode.generation);
                }
                ctx.disk.write(block, &bytes)?;
            }
            if stop {
                return Ok(Some(file_block));
            }
        }
    }
    Ok(None)
}

fn find(ctx: &Context, dir: Ino, name: &[u8]) -> Result<Option<Ino>> {
    let mut found = None;
    with_blocks(ctx, dir, 0, |bytes, format| {
        found = DirBlock::new(bytes, format).find(name).ok().flatten().and_then(|entry| entry.ino);
        found.is_some()
    })?;
    Ok(found)
}

/// Removes the first name of `target` in `dir` that is one of those meant.
///
/// # Errors
/// The device's.
pub fn remove_name(ctx: &Context, dir: Ino, target: Ino, meant: impl Fn(&[u8]) -> bool) -> Result<()> {
    with_blocks(ctx, dir, 0, |bytes, format| {
        let entry = DirBlock::new(bytes, format).entries().map_while(std::result::Result::ok).find(|entry| {
            entry.ino == Some(target) && entry.name != b"." && entry.name != b".." && meant(entry.name)
        });
        let Some(at) = entry.map(|entry| entry.at) else { return false };
        DirBlockMut::new(bytes, format).remove(at).unwrap_or(false)
    })?;
    Ok(())
}

/// Adds an entry to a directory. An index cannot be kept right here, so it is given up and rebuilt later.
fn add_entry(ctx: &Context, dir: Ino, name: &[u8], target: Ino, kind: FileType) -> Result<()> {
    if ctx.read_inode(dir)?.has(flag::INDEX) {
        crate::rehash::linearize(ctx, dir)?;
        lock(&ctx.found.rebuild).push(dir);
    }
    let new = NewEntry { ino: target, file_type: kind, name };
    // Many names may go into lost+found, and blocks that are full stay so.
    let from = lock(&ctx.found.lost_found).filter(|known| known.0 == dir).map_or(0, |known| known.1);
    let put = |ctx: &Context| -> Result<bool> {
        let place = with_blocks(ctx, dir, from, |bytes, format| {
            DirBlockMut::new(bytes, format).insert(&new).is_ok_and(|place| place.is_some())
        })?;
        if let (Some(place), Some(known)) = (place, &mut *lock(&ctx.found.lost_found))
            && known.0 == dir
        {
            known.1 = place;
        }
        Ok(place.is_some())
    };
    if put(ctx)? {
        return Ok(());
    }
    if ctx.read_inode(dir)?.has(flag::INLINE_DATA) {
        inline_dir::to_block(ctx, dir)?;
        if put(ctx)? {
            return Ok(());
        }
    }
    let end = ctx.read_inode(dir)?.size / u64::from(ctx.geometry.block_size);
    alloc::append_dir_block(ctx, dir, end as u32)?;
    put(ctx).map(|_| ())
}

fn set_dotdot(ctx: &Context, ino: Ino, old: u32, parent: u32) -> Result<()> {
    let Some(target) = Ino::new(parent) else { return Ok(()) };
    let mut inode = ctx.read_inode(ino)?;
    if inode.has(flag::INLINE_DATA) {
        inode.block[..4].copy_from_slice(&parent.to_le_bytes());
        ctx.write_inode(ino, &inode)?;
    } else {
        with_blocks(ctx, ino, 0, |bytes, format| {
            let place = DirBlock::new(bytes, format).find(b"..").ok().flatten().map(|entry| entry.at);
            place
                .is_some_and(|at| DirBlockMut::new(bytes, format).set_target(at, target, FileType::Directory))
        })?;
    }
    if let Some(old) = Ino::new(old) {
        ctx.found.inodes.add_names(old, -1);
    }
    ctx.found.inodes.add_names(target, 1);
    if let Some(dir) = lock(&ctx.found.dirs).get_mut(&ino.get()) {
        dir.dotdot = parent;
    }
    Ok(())
}
