//! A request that does not end holds up nobody else, through each door, as long as one thread is left that
//! the door may give the next request to (docs/PERFORMANCE.md says how many that are).

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use blockdev::Op;
use blockdev::sim::{Fill, MemDevice};
use rustix::thread::{CpuSet, sched_setaffinity};
use tests::gate::{Gate, Gated, Opening};
use tests::scale::{Need, can_run};
use tests::served::Served;

/// Long enough to tell a request that waits from one that takes its time on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// All callers on one processor: through the ring door they share a queue.
fn on_one_processor() -> Result<()> {
    let mut set = CpuSet::new();
    set.set(0);
    Ok(sched_setaffinity(None, &set)?)
}

/// What others do meanwhile: nothing of it needs the device.
fn others(root: &Path) -> Result<()> {
    on_one_processor()?;
    for round in 0..50 {
        let name = root.join(format!("other{round}"));
        fs::write(&name, b"meanwhile")?;
        ensure!(fs::metadata(&name)?.len() == 9 && !root.join("nothing").exists());
        fs::rename(&name, root.join("renamed"))?;
        ensure!(fs::read(root.join("renamed"))? == b"meanwhile" && fs::read_dir(root)?.count() > 0);
    }
    Ok(())
}

fn stall(words: &str, blocked: usize) -> Result<()> {
    let disk = MemDevice::new(64 << 20, Fill::Zero);
    mkfs::format(&disk, &mkfs::Options::new(mkfs::Kind::Ext4, 1_700_000_000)).context("mkfs")?;
    let gate = Arc::new(Gate::default());
    let served = Served::start(Arc::new(Gated { inner: disk, gate: gate.clone() }), words)?;
    let root = served.path();
    for index in 0..blocked {
        let file = File::create(root.join(format!("slow{index}")))?;
        file.write_all_at(&vec![index as u8; 8192], 0)?;
        file.sync_all()?;
    }
    others(root)?;
    for op in [Op::Read, Op::Flush] {
        gate.close(op);
        let opening = Opening(&gate);
        std::thread::scope(|scope| -> Result<()> {
            let opening = opening;
            let slow: Vec<_> = (0..blocked)
                .map(|index| {
                    scope.spawn(move || -> Result<()> {
                        on_one_processor()?;
                        let name = root.join(format!("slow{index}"));
                        let file = File::options().read(true).write(true).open(name)?;
                        if op == Op::Flush {
                            file.write_all_at(b"!", 0)?;
                            return Ok(file.sync_all()?);
                        }
                        // Past the page cache: the device is asked in any case.
                        rustix::fs::fcntl_setfl(&file, rustix::fs::OFlags::DIRECT)?;
                        let mut bytes = blockdev::AlignedBuf::zeroed(4096);
                        file.read_exact_at(&mut bytes, 4096)?;
                        ensure!(bytes.iter().all(|&byte| byte == index as u8));
                        Ok(())
                    })
                })
                .collect();
            // A commit is led by one; the others of a flush wait for it, inside their requests as well.
            let held = if op == Op::Flush { 1 } else { blocked };
            ensure!(gate.holds(held, LIMIT), "{op:?}: they do not wait for the device");
            let (tell, done) = std::sync::mpsc::channel();
            scope.spawn(move || tell.send(others(root)));
            let meanwhile = done.recv_timeout(LIMIT);
            let still_held = gate.holds(held, Duration::ZERO) && slow.iter().all(|one| !one.is_finished());
            drop(opening);
            meanwhile.with_context(|| format!("{op:?}: one that waits has stopped the others"))??;
            ensure!(still_held, "{op:?}: nobody was waiting any more");
            slow.into_iter().try_for_each(|one| one.join().expect("no panic"))
        })?;
    }
    served.end()
}

#[test]
fn a_request_that_waits_holds_up_nobody() -> Result<()> {
    if !can_run("a_request_that_waits_holds_up_nobody", &[Need::Root, Need::Fuse]) {
        return Ok(());
    }
    let rings = can_run("a_request_that_waits_holds_up_nobody, ring", &[Need::Rings]);
    // So many may wait as there are threads but one.
    let doors = [
        ("fuser,threads=4", 3),
        ("dev,threads=4", 3),
        ("ring,ring_threads=2", 1),
        ("ring,ring_threads=4", 3),
    ];
    for (door, blocked) in doors {
        if rings || !door.starts_with("ring") {
            stall(&format!("transport={door}"), blocked).context(door)?;
        }
    }
    Ok(())
}
