//! One round over a volume: open, journal, orphans, the passes, and writing back what they changed.

use std::sync::atomic::Ordering::Relaxed;

use ext4_format::BlockNo;
use ext4_format::features::RoCompat;
use ext4_format::superblock::{SUPERBLOCK_OFFSET, State};

use crate::ask::{Ask, Judge};
use crate::context::{Context, lock};
use crate::disk::Disk;
use crate::error::Result;
use crate::journal::{self, Outcome};
use crate::options::{Mode, Options};
use crate::problem::{Code, Problem};
use crate::{
    alloc, mmp, orphans, pass1, pass1b, pass2, pass3, pass4, pass5, quota, rehash, relocate, volume,
};

/// How often what was found about the journal may change the volume before the passes begin.
const REOPENED: u32 = 8;

/// Runs one round; the judge holds what it found.
pub fn round(disk: Disk, options: &Options, judge: &mut Judge<'_>) -> Result<()> {
    let mut ctx = volume::open(disk, options, judge)?;
    mmp::check(&ctx, judge)?;
    // Each time something of the journal was settled; what stays unsettled is not asked for again.
    for _ in 0..REOPENED {
        if journal::check(&ctx, judge)? == Outcome::AsItWas {
            break;
        }
        ctx = volume::open(ctx.disk, options, judge)?;
    }
    if options.journal_only {
        judge.report.changed = ctx.disk.changed();
        return ctx.disk.flush();
    }
    orphans::process(&ctx, judge)?;
    if !options.force && judge.report.count == 0 && may_skip(&ctx) {
        judge.report.skipped = true;
        judge.report.usage.inodes_total = ctx.geometry.inodes_count.into();
        judge.report.usage.inodes = u64::from(ctx.geometry.inodes_count - ctx.sb.free_inodes());
        judge.report.usage.blocks_total = ctx.geometry.blocks_count;
        judge.report.usage.blocks = ctx.geometry.blocks_count.saturating_sub(ctx.sb.free_blocks());
        judge.report.changed = ctx.disk.changed();
        return Ok(());
    }
    pass1::run(&mut ctx, judge)?;
    relocate::run(&mut ctx)?;
    let shares = ctx.sb.ro_compat().has(RoCompat::SHARED_BLOCKS);
    if ctx.found.any_multiple.load(Relaxed) && (!shares || options.unshare_blocks) {
        pass1b::run(&ctx, judge)?;
    }
    for ino in std::mem::take(&mut *lock(&ctx.found.to_extents)) {
        alloc::to_extents(&ctx, ino)?;
    }
    if shares && options.unshare_blocks && options.may_write() {
        ctx.edit_super(|raw| {
            raw.feature_ro_compat.set(raw.feature_ro_compat.get() & !RoCompat::SHARED_BLOCKS.0);
        });
    }
    pass2::run(&ctx, judge)?;
    if begin_again(&mut ctx, judge)? {
        return Ok(());
    }
    pass3::run(&ctx, judge)?;
    pass4::run(&ctx, judge)?;
    rehash::run(&ctx, judge)?;
    if judge.journal_lost && options.may_write() {
        journal::create(&ctx, judge)?;
    }
    quota::run(&ctx, judge)?;
    pass5::run(&mut ctx, judge)?;
    if let Some(scratch) = &ctx.found.scratch {
        scratch.check()?;
    }
    judge.name_findings(&ctx);
    if options.fragcheck {
        let mut pieces = std::mem::take(&mut *lock(&ctx.found.pieces));
        pieces.sort_unstable();
        judge.learn_paths(&ctx, pieces.iter().filter_map(|piece| ext4_format::Ino::new(piece.0)));
        for (ino, count) in pieces {
            let path = judge.path(ino).map(|path| format!(" ({path})")).unwrap_or_default();
            judge.say(&format!("inode {ino}{path}: {count} pieces"));
        }
    }
    if ctx.sb.state().has(State::ERROR) && judge.report.left == 0 && options.may_write() {
        judge.ask(Problem::new(Code::StateError))?;
    }
    if options.may_write() {
        write_back(&ctx, judge)?;
    }
    if options.discard && options.may_write() && judge.report.left == 0 {
        discard_free(&ctx)?;
    }
    judge.report.changed = ctx.disk.changed();
    Ok(())
}

/// Ends the round when groups were found to hold more inodes than they say: the next one looks at all of
/// them.
fn begin_again(ctx: &mut Context, judge: &mut Judge<'_>) -> Result<bool> {
    let wrong = std::mem::take(&mut *lock(&ctx.found.distrusted));
    if wrong.is_empty() {
        return Ok(false);
    }
    for group in wrong {
        let desc = &mut ctx.descs[group.0 as usize];
        *desc = volume::distrusted(*desc);
    }
    volume::write_back(ctx)?;
    judge.say("The check begins again.");
    (judge.report.changed, judge.restart) = (true, true);
    Ok(true)
}

/// Gives the device back what no file and no metadata use.
fn discard_free(ctx: &Context) -> Result<()> {
    let end = ctx.geometry.blocks_count;
    let mut at = u64::from(ctx.geometry.first_data_block);
    while at < end {
        let start = at;
        while at < end && !ctx.found.blocks.has(BlockNo(at)) {
            at += 1;
        }
        if at > start {
            ctx.disk.discard(BlockNo(start), at - start)?;
        }
        at += 1;
    }
    Ok(())
}

/// Whether the volume says that it is clean and no check is due.
fn may_skip(ctx: &Context) -> bool {
    let sb = &ctx.sb;
    let due = sb.max_mount_count().is_some_and(|max| sb.mount_count() >= max)
        || (sb.check_interval() > 0
            && u64::from(ctx.options.now()) >= sb.check_time() + u64::from(sb.check_interval()));
    sb.state().has(State::VALID) && !sb.state().has(State::ERROR) && !due
}

fn write_back(ctx: &Context, judge: &mut Judge<'_>) -> Result<()> {
    let clean = judge.report.left == 0;
    {
        let mut sb = lock(&ctx.next_sb);
        if clean {
            sb.set_state(State::VALID);
            if ctx.sb.error_count() > 0 {
                sb.clear_errors();
            }
        } else {
            let state = sb.state();
            sb.set_state(State(state.0 & !State::VALID.0));
        }
        sb.set_check_time(u64::from(ctx.options.now()));
        sb.set_mount_count(0);
    }
    if ctx.disk.changed() || judge.report.count > 0 {
        volume::write_back(ctx)?;
        // The stamp alone is no change that another round must look at.
        ctx.disk.flush()?;
    } else if ctx.options.mode != Mode::CheckOnly {
        let sb = lock(&ctx.next_sb).encode();
        ctx.disk.device().write_at(SUPERBLOCK_OFFSET, &sb)?;
        ctx.disk.flush()?;
    }
    Ok(())
}
