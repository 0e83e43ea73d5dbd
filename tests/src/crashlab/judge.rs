//! The verdict on one crash state: our recovery and the model always; fsck.rext4 always; the kernel and
//! e2fsck for a sampled share; and for another share, cuts in the middle of our recovery.

use std::ops::AddAssign;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use blockdev::sim::{CrashState, Dice, Image, MemDevice, Recorder, StateName};
use fsck::{Code, Mode};

use super::epochs::{Density, epoch_at, for_each_state};
use super::kernel;
use super::ledger::Pledge;
use super::model::Tree;
use super::observe;
use super::subject::{Config, Recorded, SUPERBLOCK, mount};

/// How much is asked of each state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Court {
    /// One in how many states is heard by the kernel and e2fsck; 0 for none.
    pub kernel_every: u64,
    /// One in how many states has its recovery cut, too; 0 for none.
    pub recut_every: u64,
    /// Which states are made.
    pub density: Density,
    /// Whether the volume may say that it holds errors: a device had failed before the cut.
    pub may_be_flagged: bool,
}

/// What fsck.rext4 may find in a volume that was cut off.
const CRASHED: [Code; 2] = [Code::JournalReplay, Code::OrphanPresent];
/// Files that were to be freed or cut.
const ORPHANS: [Code; 2] = [Code::OrphanInode, Code::OrphanTruncate];
/// What freeing them makes of the bitmaps, which it corrects with everything else in pass 5.
const FREED: [Code; 6] = [
    Code::BlockBitmap,
    Code::InodeBitmap,
    Code::GroupFreeBlocks,
    Code::GroupFreeInodes,
    Code::FreeBlocks,
    Code::FreeInodes,
];
/// Notes that a device has failed.
const FLAGS: [Code; 2] = [Code::JournalError, Code::StateError];

/// What was judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Distinct crash states.
    pub states: u64,
    /// Of them, heard by the kernel and e2fsck, too.
    pub kernel: u64,
    /// States after a cut in recovery.
    pub recut: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, more: Tally) {
        self.states += more.states;
        self.kernel += more.kernel;
        self.recut += more.recut;
    }
}

impl Court {
    /// Judges every state of a run; `salt` decides which of them meet the occasional judges.
    ///
    /// # Errors
    /// The first failure and its state.
    pub fn judge_all(
        &self,
        config: &Config,
        run: &Recorded,
        salt: u64,
    ) -> Result<Tally, (StateName, anyhow::Error)> {
        let mut tally = Tally::default();
        for_each_state(&run.recording, self.density, |_, epoch, state| {
            let pledge = &run.pledges[epoch as usize];
            let mut dice = Dice::new(salt ^ state.fingerprint);
            let hear_kernel = self.kernel_every != 0 && dice.one_in(self.kernel_every);
            let recut = self.recut_every != 0 && dice.one_in(self.recut_every);
            tally.recut += self.judge(config, pledge, &state, hear_kernel, recut)?;
            tally.states += 1;
            tally.kernel += u64::from(hear_kernel);
            Ok(())
        })?;
        Ok(tally)
    }

    /// Judges one state by its name, with every judge.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn judge_one(&self, config: &Config, run: &Recorded, name: StateName) -> Result<()> {
        let pledge = &run.pledges[epoch_at(&run.recording, name.cut) as usize];
        self.judge(config, pledge, &run.recording.build(name), kernel::available(), true).map(drop)
    }

    fn judge(
        &self,
        config: &Config,
        pledge: &Pledge,
        state: &CrashState,
        hear_kernel: bool,
        recut: bool,
    ) -> Result<u64> {
        if !config.format().journal {
            self.judge_unlogged(pledge, &state.image, hear_kernel)?;
            return Ok(0);
        }
        let block = u64::from(config.block);
        let (recovering, tree) = self.recover(&state.image)?;
        pledge.check(&tree, block).map_err(anyhow::Error::msg)?;
        let recovered = recovering.snapshot();
        self.checked(&recovered, Mode::CheckOnly).context("fsck.rext4 after our recovery")?;
        if hear_kernel {
            let by_fsck = self.checked(&state.image, Mode::Yes).context("fsck.rext4's own replay")?;
            self.checked(&by_fsck, Mode::CheckOnly).context("fsck.rext4 after its own replay")?;
            agree("fsck.rext4", &tree, &self.recover(&by_fsck)?.1)?;
            let (by_kernel, by_e2fsck) = kernel::opinions(&state.image)?;
            agree("the kernel", &tree, &by_kernel)?;
            if let Some(by_e2fsck) = by_e2fsck {
                agree("e2fsck", &tree, &self.recover(&by_e2fsck)?.1)?;
            }
            let dir = kernel::scratch()?;
            let disk = dir.path().join("disk");
            kernel::save(&recovered, &disk)?;
            kernel::is_clean(&disk).context("e2fsck after our recovery")?;
        }
        if !recut {
            return Ok(0);
        }
        let density = Density { exhaustive: 2, sampled: 1, seed: state.fingerprint };
        for_each_state(&recovering.recording(), density, |_, _, cut| {
            let (_, again) = self.recover(&cut.image)?;
            agree("recovery after a cut in recovery", &tree, &again)
        })
        .map_err(|(at, why)| why.context(format!("cut in recovery at {at}")))
    }

    /// Without a journal a check comes first, whose findings are nobody's fault.
    fn judge_unlogged(&self, pledge: &Pledge, image: &Image, hear_kernel: bool) -> Result<()> {
        let (repaired, _) = check(image, Mode::Yes)?;
        self.checked(&repaired, Mode::CheckOnly).context("fsck.rext4 after itself")?;
        let (_, tree) = self.recover(&repaired)?;
        pledge.check_steady(&tree).map_err(anyhow::Error::msg)?;
        if hear_kernel {
            let by_kernel = kernel::opinion_on_repaired(&repaired)?;
            agree("the kernel", &tree, &by_kernel)?;
            if let Some(repaired) = kernel::repaired_by_e2fsck(image)? {
                let (_, tree) = self.recover(&repaired)?;
                pledge.check_steady(&tree).map_err(anyhow::Error::msg).context("after e2fsck's repair")?;
            }
        }
        Ok(())
    }

    /// Mounts a disk, reads it, unmounts it. The recorder knows all that recovery wrote.
    fn recover(&self, image: &Image) -> Result<(Recorder, Tree)> {
        let recorder = Recorder::with_whole(image.clone(), SUPERBLOCK);
        let fs = mount(Arc::new(recorder.clone()), 1)?;
        let tree = observe::by_us(&fs)?;
        ensure!(fs.is_writable(), "mounted read-only");
        fs.close().context("closing")?;
        Ok((recorder, tree))
    }

    /// A disk that our mount has recovered and fsck.rext4 has found in order.
    pub fn recovered(&self, image: &Image) -> Result<Image> {
        let recovered = self.recover(image)?.0.snapshot();
        self.checked(&recovered, Mode::CheckOnly).context("fsck.rext4 after our recovery")
    }

    /// A disk after fsck.rext4, which may find nothing but a journal to replay and orphans to clear.
    fn checked(&self, image: &Image, mode: Mode) -> Result<Image> {
        let (disk, report) = check(image, mode)?;
        let has_orphans = report.findings.iter().any(|finding| ORPHANS.contains(&finding.problem.code));
        let expected = |code: &Code| match mode {
            _ if self.may_be_flagged && FLAGS.contains(code) => true,
            Mode::CheckOnly => false,
            _ => CRASHED.contains(code) || ORPHANS.contains(code) || (has_orphans && FREED.contains(code)),
        };
        let found = report.findings.iter().map(|finding| &finding.problem);
        let strange: Vec<_> = found.filter(|problem| !expected(&problem.code)).collect();
        ensure!(strange.is_empty(), "{strange:?}");
        Ok(disk)
    }
}

/// A disk after fsck.rext4, and what that found.
fn check(image: &Image, mode: Mode) -> Result<(Image, fsck::Report)> {
    let disk = Arc::new(MemDevice::from_image(image.clone()));
    let options = fsck::Options {
        mode,
        force: true,
        memory: 64 << 20,
        threads: 1,
        now: 1_700_000_000,
        ..fsck::Options::default()
    };
    let report = fsck::check(disk.clone(), &options)?;
    Ok((disk.snapshot(), report))
}

fn agree(who: &str, ours: &Tree, theirs: &Tree) -> Result<()> {
    for (name, found) in ours {
        let other = theirs.get(name);
        ensure!(other == Some(found), "{who} disagrees on {name}: we found {found:?}, it found {other:?}");
    }
    ensure!(ours.len() == theirs.len(), "{who} found other names: {:?}", theirs.keys());
    Ok(())
}
