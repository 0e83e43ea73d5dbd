//! The server is killed in the middle of parallel work, again and again on one image. Afterwards its own
//! recovery, the kernel's and e2fsck's each give a clean filesystem with everything in it that had been
//! promised.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::load::{Promises, Storm};
use tests::oracle::{copy_image, e2fsck_is_clean, e2fsck_replays, kernel_replays};
use tests::scale::{Need, can_run, pick, scratch};
use tests::system::System;

#[test]
fn a_killed_server_loses_nothing_promised() -> Result<()> {
    if !can_run("a_killed_server_loses_nothing_promised", &[Need::Root, Need::Loop, Need::Fuse]) {
        return Ok(());
    }
    let system = System::under_test();
    let folder = tempfile::tempdir_in(scratch())?;
    let (image, copy) = (folder.path().join("image"), folder.path().join("copy"));
    system.mkfs(&image, 256 << 20, &[])?;
    let mut kept = 0;
    let rounds = pick(20, 200);
    for round in 0..rounds {
        let mounted = system.mount(&image)?;
        let root = mounted.path().join(format!("round{round}"));
        std::fs::create_dir(&root)?;
        // The kill may come before anything else is durable.
        std::fs::File::open(mounted.path())?.sync_all()?;
        let stop = AtomicBool::new(false);
        let pause = Duration::from_millis(fastrand::Rng::with_seed(round).u64(50..pick(600, 3000)));
        let storm = Storm { seed: round, threads: 2, time: pause * 3, may_fill_up: true };
        let promises = std::thread::scope(|scope| -> Result<Promises> {
            let keepers = scope.spawn(|| Promises::gather(&root, round, 4, &stop));
            let stormy = scope.spawn(|| storm.run(&root, true));
            std::thread::sleep(pause);
            let crashed = mounted.crash();
            stop.store(true, Ordering::Relaxed);
            stormy.join().expect("no panic")?;
            crashed?;
            keepers.join().expect("no panic")
        })
        .with_context(|| format!("round {round}"))?;
        kept += promises.count();

        copy_image(&image, &copy)?;
        e2fsck_replays(&copy).with_context(|| format!("round {round}, e2fsck's replay"))?;
        copy_image(&image, &copy)?;
        kernel_replays(&copy).with_context(|| format!("round {round}, the kernel's replay"))?;
        let mounted = System::Kernel.mount(&copy)?;
        let inside = |root: &std::path::Path| root.join(format!("round{round}"));
        promises
            .check(&inside(mounted.path()))
            .with_context(|| format!("round {round}, replayed by the kernel"))?;
        mounted.unmount()?;

        let mounted = system.mount(&image)?;
        promises.check(&inside(mounted.path())).with_context(|| format!("round {round}, replayed by us"))?;
        std::fs::remove_dir_all(inside(mounted.path()))
            .with_context(|| format!("round {round}, removing it; the server said: {}", mounted.log()))?;
        mounted.unmount()?;
        e2fsck_is_clean(&image).with_context(|| format!("round {round}, after our replay"))?;
    }
    ensure!(
        kept > 20 * rounds as usize,
        "only {kept} promises were made in {rounds} rounds: nothing was tested"
    );
    Ok(())
}
