//! The driver of a check: rounds of repair until one finds nothing, and in each round the volume is opened,
//! its journal replayed, its orphans settled, and the passes run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use blockdev::BlockDevice;
use ext4_format::BlockNo;
use ext4_format::features::{Compat, RoCompat};
use ext4_format::superblock::State;

use crate::ask::{Ask, Judge, Ui};
use crate::context::{Context, lock};
use crate::convergence::Turns;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::journal::{self, Outcome};
use crate::options::{Mode, Options};
use crate::problem::{Code, Problem};
use crate::report::Report;
use crate::undo::UndoLog;
use crate::{
    alloc, bad_blocks, due, marks, mmp, optimize, orphans, pass1, pass1b, pass2, pass3, pass4, pass5, quota,
    realign, rehash, release, relocate, volume,
};

/// Rounds of repair before giving up on a volume that never becomes clean.
const ROUNDS: u32 = 8;

/// How often what was found about the journal may change the volume before the passes begin.
const REOPENED: u32 = 8;

/// Checks the volume on a device, and repairs it as the options say.
///
/// # Errors
/// Whatever keeps the check from its end.
pub fn check(device: Arc<dyn BlockDevice>, options: &Options, ui: &mut dyn Ui) -> Result<Report> {
    let undo = match &options.undo {
        Some(path) if options.may_write() => Some(Arc::new(UndoLog::open(path, &*device, options.offset)?)),
        _ => None,
    };
    let ended = rounds(&device, undo.clone(), options, ui);
    undo.map_or(Ok(()), |undo| undo.finish(&*device))?;
    ended
}

/// Rounds until one finds nothing, or they are given up.
fn rounds(
    device: &Arc<dyn BlockDevice>,
    undo: Option<Arc<UndoLog>>,
    options: &Options,
    ui: &mut dyn Ui,
) -> Result<Report> {
    let disk = |changed: &Arc<AtomicBool>| Disk::new(Arc::clone(device), undo.clone(), Arc::clone(changed));
    let mut options = options.clone();
    let mut total: Option<Report> = None;
    let mut turns = Turns::default();
    let mut ended = false;
    for _ in 0..ROUNDS {
        let changed = Arc::new(AtomicBool::new(false));
        let mut judge = Judge::new(&options, ui);
        match round(disk(&changed), &options, &mut judge) {
            Err(Error::Cancelled { .. }) => {
                let changed = changed.load(Relaxed) || total.is_some_and(|earlier| earlier.changed);
                if changed {
                    volume::mark_unfinished(&disk(&Arc::default()))?;
                }
                return Err(Error::Cancelled { changed });
            }
            other => other?,
        }
        let (restart, mode) = (judge.restart, judge.mode());
        let report = judge.report;
        turns.add(&report.findings);
        let again = restart || report.needs_another_round();
        let refused = report.left > 0 && options.mode == Mode::Ask && !restart;
        total = Some(match total {
            None => report,
            Some(earlier) => earlier.then(report),
        });
        ended = !again || refused;
        if ended || turns.go_in_circles() {
            break;
        }
        // What follows looks at the repaired volume, whatever it says of itself and wherever it was found.
        ui.say("The check begins again, to see whether the repairs hold.");
        options.force = true;
        options.superblock = None;
        options.bad_blocks = None;
        options.mode = mode;
    }
    let mut total = total.unwrap_or_default();
    if !ended {
        total = give_up(disk(&Arc::default()), &options, ui, total, &turns)?;
    }
    Ok(total)
}

/// The rounds are over, and the last one still repaired something: what is left now stays.
fn give_up(disk: Disk, options: &Options, ui: &mut dyn Ui, total: Report, turns: &Turns) -> Result<Report> {
    let options = Options { mode: Mode::CheckOnly, force: true, superblock: None, ..options.clone() };
    let mut judge = Judge::new(&options, ui);
    let changed = Arc::new(AtomicBool::new(false));
    let look = disk.again(&changed);
    round(look, &options, &mut judge)?;
    if judge.report.left > 0 {
        judge.ask(Problem::new(Code::RepairCycle).named(turns.returning()))?;
        volume::mark_unfinished(&disk)?;
    }
    Ok(total.then(judge.report))
}

/// Runs one round; the judge holds what it found.
fn round(disk: Disk, options: &Options, judge: &mut Judge<'_>) -> Result<()> {
    // The journal of a volume in use changes meanwhile.
    let overlaid = !options.may_write() && !options.in_use && volume::needs_recovery(&disk);
    let disk = if options.no_read_ahead { disk.without_read_ahead() } else { disk };
    let disk = if overlaid { disk.overlaid(&options.scratch_folder())? } else { disk };
    judge.overlaid = overlaid;
    let ctx = volume::open(disk, options, judge)?;
    judge.label(&String::from_utf8_lossy(ctx.sb.volume_name()));
    mmp::check(&ctx, judge)?;
    let mut ctx = settle_journal(ctx, options, judge)?;
    if options.journal_only {
        judge.report.changed = ctx.disk.changed();
        return ctx.disk.flush();
    }
    let doubt = settle_orphans(&mut ctx, judge)?;
    judge.overlaid = false;
    if let Some(list) = &options.bad_blocks {
        ctx = bad_blocks::update(ctx, list, options, judge)?;
    } else if !options.force {
        let reason = doubt.map(|why| format!("has {why}")).or_else(|| due::reason(&ctx));
        if judge.report.count == 0 && reason.is_none() {
            return skip(&ctx, judge);
        }
        if let Some(reason) = reason {
            judge.forced(reason);
        }
    }
    passes(ctx, options, judge)
}

/// Checks and replays the journal until nothing of it is unsettled. What stays unsettled is not asked for
/// again, and repairs that return are given up.
fn settle_journal(mut ctx: Context, options: &Options, judge: &mut Judge<'_>) -> Result<Context> {
    let mut turns = Turns::default();
    for turn in 0..=REOPENED {
        let before = judge.report.findings.len();
        if journal::check(&ctx, judge)? == Outcome::AsItWas {
            break;
        }
        turns.add(judge.report.findings.get(before..).unwrap_or_default());
        if turns.repeats() || turn == REOPENED {
            judge.ask(Problem::new(Code::RepairCycle).named(turns.returning()))?;
            break;
        }
        if judge.overlaid {
            // What was wrong with the volume is asked for again, as it will be after the replay.
            judge.report.forget(|code| code != Code::JournalOverlaid);
        }
        ctx = volume::open(ctx.disk, options, judge)?;
    }
    Ok(ctx)
}

/// Frees the orphans and gives back what they held. Returns why that needs the passes, if it does.
fn settle_orphans(ctx: &mut Context, judge: &mut Judge<'_>) -> Result<Option<String>> {
    if ctx.sb.last_orphan().is_some() || ctx.sb.compat().has(Compat::ORPHAN_FILE) {
        pass1::claim_metadata(ctx);
    }
    orphans::process(ctx, judge)?;
    release::apply(ctx)
}

/// Ends a round without the passes: the volume says that it is clean.
fn skip(ctx: &Context, judge: &mut Judge<'_>) -> Result<()> {
    if ctx.disk.changed() {
        // While a volume is mounted only the groups' counts are kept right.
        marks::count_free(ctx);
        let sb = lock(&ctx.next_sb).encode();
        ctx.disk.write_bytes(1024, &sb)?;
        ctx.disk.flush()?;
    }
    let sb = lock(&ctx.next_sb);
    let usage = &mut judge.report.usage;
    usage.inodes_total = ctx.geometry.inodes_count.into();
    usage.inodes = u64::from(ctx.geometry.inodes_count - sb.free_inodes().min(ctx.geometry.inodes_count));
    usage.blocks_total = ctx.geometry.blocks_count;
    usage.blocks = ctx.geometry.blocks_count.saturating_sub(sb.free_blocks());
    judge.report.skipped = true;
    judge.report.next_check = due::in_mounts(&ctx.sb);
    judge.report.changed = ctx.disk.changed();
    ctx.disk.check_overlay()
}

/// The five passes and what belongs to them.
fn passes(mut ctx: Context, options: &Options, judge: &mut Judge<'_>) -> Result<()> {
    pass1::run(&mut ctx, judge)?;
    relocate::run(&mut ctx, judge)?;
    realign::run(&ctx, judge)?;
    let shares = ctx.sb.ro_compat().has(RoCompat::SHARED_BLOCKS);
    let mut unshared = true;
    if ctx.found.any_multiple.load(Relaxed) && (!shares || options.unshare_blocks) {
        unshared = pass1b::run(&ctx, judge)?;
    }
    alloc::build_trees(&ctx, judge)?;
    if shares && options.unshare_blocks && options.may_write() && unshared {
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
    let calm = judge.report.left == 0 && !judge.report.needs_another_round();
    if options.may_write() && calm {
        optimize::run(&mut ctx, judge)?;
    }
    if let Some(scratch) = &ctx.found.scratch {
        scratch.check()?;
    }
    ctx.disk.check_overlay()?;
    judge.name_findings(&ctx);
    if options.fragcheck {
        tell_pieces(&ctx, judge);
    }
    if options.may_write() {
        let state = ctx.sb.state();
        if judge.report.left == 0 && state.has(State::ERROR) {
            judge.ask(Problem::new(Code::StateError))?;
        }
        if judge.report.left == 0 && !state.has(State::VALID) {
            judge.note_fixed(Problem::new(Code::StateNotValid));
        }
        write_back(&ctx, judge)?;
    }
    if options.discard && options.may_write() && judge.report.left == 0 {
        discard_free(&ctx)?;
    }
    judge.report.changed = ctx.disk.changed();
    Ok(())
}

/// Lists the files in more than one piece.
fn tell_pieces(ctx: &Context, judge: &mut Judge<'_>) {
    let mut pieces = std::mem::take(&mut *lock(&ctx.found.pieces));
    pieces.sort_unstable();
    judge.learn_paths(ctx, pieces.iter().filter_map(|piece| ext4_format::Ino::new(piece.0)));
    for (ino, count) in pieces {
        let path = judge.path(ino).map(|path| format!(" ({path})")).unwrap_or_default();
        judge.say(&format!("inode {ino}{path}: {count} pieces"));
    }
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
        ctx.disk.save(BlockNo(1024 / u64::from(ctx.geometry.block_size)), 1)?;
        ctx.disk.device().write_at(1024, &sb)?;
        ctx.disk.flush()?;
    }
    Ok(())
}
