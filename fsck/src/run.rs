//! The driver of a check: rounds of repair until one finds nothing, and in each round the volume is opened,
//! its journal replayed, its orphans settled, and the passes run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use blockdev::BlockDevice;
use ext4_format::BlockNo;
use ext4_format::features::{Compat, RoCompat};
use ext4_format::superblock::State;

use crate::context::{Context, lock};
use crate::convergence::Turns;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::journal::{self, Outcome};
use crate::options::{Mode, Options};
use crate::problem::{Code, Problem};
use crate::prompt::{Ask, Prompter, Ui};
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
        let mut prompter = Prompter::new(&options, ui);
        match round(disk(&changed), &options, &mut prompter) {
            Err(Error::Cancelled { .. }) => {
                let changed = changed.load(Relaxed) || total.is_some_and(|earlier| earlier.changed);
                if changed {
                    volume::mark_unfinished(&disk(&Arc::default()))?;
                }
                return Err(Error::Cancelled { changed });
            }
            other => other?,
        }
        let (restart, mode) = (prompter.restart, prompter.mode());
        let report = prompter.report;
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
    let mut prompter = Prompter::new(&options, ui);
    let changed = Arc::new(AtomicBool::new(false));
    let look = disk.again(&changed);
    round(look, &options, &mut prompter)?;
    if prompter.report.left > 0 {
        prompter.ask(Problem::new(Code::RepairCycle).named(turns.returning()))?;
        volume::mark_unfinished(&disk)?;
    }
    Ok(total.then(prompter.report))
}

/// Runs one round; the prompter holds what it found.
fn round(disk: Disk, options: &Options, prompter: &mut Prompter<'_>) -> Result<()> {
    // The journal of a volume in use changes meanwhile.
    let overlaid = !options.may_write() && !options.in_use && volume::needs_recovery(&disk);
    let disk = if options.no_read_ahead { disk.without_read_ahead() } else { disk };
    let disk = if overlaid { disk.overlaid(&options.scratch_folder())? } else { disk };
    prompter.overlaid = overlaid;
    let ctx = volume::open(disk, options, prompter)?;
    prompter.label(&String::from_utf8_lossy(ctx.sb.volume_name()));
    mmp::check(&ctx, prompter)?;
    let mut ctx = settle_journal(ctx, options, prompter)?;
    if options.journal_only {
        prompter.report.changed = ctx.disk.changed();
        return ctx.disk.flush();
    }
    let doubt = settle_orphans(&mut ctx, prompter)?;
    prompter.overlaid = false;
    if let Some(list) = &options.bad_blocks {
        ctx = bad_blocks::update(ctx, list, options, prompter)?;
    } else if !options.force {
        let reason = doubt.map(|why| format!("has {why}")).or_else(|| due::reason(&ctx));
        if prompter.report.count == 0 && reason.is_none() {
            return skip(&ctx, prompter);
        }
        if let Some(reason) = reason {
            prompter.forced(reason);
        }
    }
    passes(ctx, options, prompter)
}

/// Checks and replays the journal until nothing of it is unsettled. What stays unsettled is not asked for
/// again, and repairs that return are given up.
fn settle_journal(mut ctx: Context, options: &Options, prompter: &mut Prompter<'_>) -> Result<Context> {
    let mut turns = Turns::default();
    for turn in 0..=REOPENED {
        let before = prompter.report.findings.len();
        if journal::check(&ctx, prompter)? == Outcome::AsItWas {
            break;
        }
        turns.add(prompter.report.findings.get(before..).unwrap_or_default());
        if turns.repeats() || turn == REOPENED {
            prompter.ask(Problem::new(Code::RepairCycle).named(turns.returning()))?;
            break;
        }
        if prompter.overlaid {
            // What was wrong with the volume is asked for again, as it will be after the replay.
            prompter.report.forget(|code| code != Code::JournalOverlaid);
        }
        ctx = volume::open(ctx.disk, options, prompter)?;
    }
    Ok(ctx)
}

/// Frees the orphans and gives back what they held. Returns why that needs the passes, if it does.
fn settle_orphans(ctx: &mut Context, prompter: &mut Prompter<'_>) -> Result<Option<String>> {
    if ctx.sb.last_orphan().is_some() || ctx.sb.compat().has(Compat::ORPHAN_FILE) {
        pass1::claim_metadata(ctx);
    }
    orphans::process(ctx, prompter)?;
    release::apply(ctx)
}

/// Ends a round without the passes: the volume says that it is clean.
fn skip(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<()> {
    if ctx.disk.changed() {
        // While a volume is mounted only the groups' counts are kept right.
        marks::count_free(ctx);
        let sb = lock(&ctx.next_sb).encode();
        ctx.disk.write_bytes(1024, &sb)?;
        ctx.disk.flush()?;
    }
    let sb = lock(&ctx.next_sb);
    let usage = &mut prompter.report.usage;
    usage.inodes_total = ctx.geometry.inodes_count.into();
    usage.inodes = u64::from(ctx.geometry.inodes_count - sb.free_inodes().min(ctx.geometry.inodes_count));
    usage.blocks_total = ctx.geometry.blocks_count;
    usage.blocks = ctx.geometry.blocks_count.saturating_sub(sb.free_blocks());
    prompter.report.skipped = true;
    prompter.report.next_check = due::in_mounts(&ctx.sb);
    prompter.report.changed = ctx.disk.changed();
    ctx.disk.check_overlay()
}

/// The five passes and what belongs to them.
fn passes(mut ctx: Context, options: &Options, prompter: &mut Prompter<'_>) -> Result<()> {
    pass1::run(&mut ctx, prompter)?;
    relocate::run(&mut ctx, prompter)?;
    realign::run(&ctx, prompter)?;
    let shares = ctx.sb.ro_compat().has(RoCompat::SHARED_BLOCKS);
    let mut unshared = true;
    if ctx.found.any_multiple.load(Relaxed) && (!shares || options.unshare_blocks) {
        unshared = pass1b::run(&ctx, prompter)?;
    }
    alloc::build_trees(&ctx, prompter)?;
    if shares && options.unshare_blocks && options.may_write() && unshared {
        ctx.edit_super(|raw| {
            raw.feature_ro_compat.set(raw.feature_ro_compat.get() & !RoCompat::SHARED_BLOCKS.0);
        });
    }
    pass2::run(&ctx, prompter)?;
    if begin_again(&mut ctx, prompter)? {
        return Ok(());
    }
    pass3::run(&ctx, prompter)?;
    pass4::run(&ctx, prompter)?;
    rehash::run(&ctx, prompter)?;
    if prompter.journal_lost && options.may_write() {
        journal::create(&ctx, prompter)?;
    }
    quota::run(&ctx, prompter)?;
    pass5::run(&mut ctx, prompter)?;
    let calm = prompter.report.left == 0 && !prompter.report.needs_another_round();
    if options.may_write() && calm {
        optimize::run(&mut ctx, prompter)?;
    }
    if let Some(scratch) = &ctx.found.scratch {
        scratch.check()?;
    }
    ctx.disk.check_overlay()?;
    prompter.name_findings(&ctx);
    if options.fragcheck {
        list_pieces(&ctx, prompter);
    }
    if options.may_write() {
        let state = ctx.sb.state();
        if prompter.report.left == 0 && state.has(State::ERROR) {
            prompter.ask(Problem::new(Code::StateError))?;
        }
        if prompter.report.left == 0 && !state.has(State::VALID) {
            prompter.note_fixed(Problem::new(Code::StateNotValid));
        }
        write_back(&ctx, prompter)?;
    }
    if options.discard && options.may_write() && prompter.report.left == 0 {
        discard_free(&ctx)?;
    }
    prompter.report.changed = ctx.disk.changed();
    Ok(())
}

/// Lists the files in more than one piece.
fn list_pieces(ctx: &Context, prompter: &mut Prompter<'_>) {
    let mut pieces = std::mem::take(&mut *lock(&ctx.found.pieces));
    pieces.sort_unstable();
    prompter.learn_paths(ctx, pieces.iter().filter_map(|piece| ext4_format::Ino::new(piece.0)));
    for (ino, count) in pieces {
        let path = prompter.path(ino).map(|path| format!(" ({path})")).unwrap_or_default();
        prompter.say(&format!("inode {ino}{path}: {count} pieces"));
    }
}

/// Ends the round when groups were found to hold more inodes than they say: the next one looks at all of
/// them.
fn begin_again(ctx: &mut Context, prompter: &mut Prompter<'_>) -> Result<bool> {
    let wrong = std::mem::take(&mut *lock(&ctx.found.distrusted));
    if wrong.is_empty() {
        return Ok(false);
    }
    for group in wrong {
        let desc = &mut ctx.descs[group.0 as usize];
        *desc = volume::distrusted(*desc);
    }
    volume::write_back(ctx)?;
    (prompter.report.changed, prompter.restart) = (true, true);
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

fn write_back(ctx: &Context, prompter: &mut Prompter<'_>) -> Result<()> {
    let clean = prompter.report.left == 0;
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
    if ctx.disk.changed() || prompter.report.count > 0 {
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
