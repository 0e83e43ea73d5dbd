//! Judges that nobody here wrote: e2fsck, the kernel's own mount, dumpe2fs; and our fsck beside them.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::manifest::{Depth, Manifest};
use crate::run::{both, output, run, tool};
use crate::system::{Options, System, binary};

/// e2fsck finds nothing at all: exit status zero, and no journal left to replay. Our own checker must agree
/// with it, whatever it says.
pub fn e2fsck_is_clean(image: &Path) -> Result<()> {
    let answer = output(tool("e2fsck").arg("-fn").arg(image))?;
    let said = both(&answer);
    let ours = our_report(image)?;
    ensure!(
        answer.status.success() == ours.is_clean(),
        "the checkers disagree about {}: {:?}\n{said}",
        image.display(),
        ours.codes()
    );
    ensure!(answer.status.success(), "e2fsck -fn {}: {}\n{said}", image.display(), answer.status);
    ensure!(!said.contains("skipping journal recovery"), "the journal is not empty: {said}");
    Ok(())
}

/// What our checker says of an image or a device, which it only reads.
fn our_report(image: &Path) -> Result<fsck::Report> {
    let how = blockdev::OpenOptions {
        read_only: true,
        exclusive: false,
        direct: blockdev::Direct::Never,
        ..blockdev::OpenOptions::default()
    };
    let options = fsck::Options { mode: fsck::Mode::CheckOnly, force: true, ..fsck::Options::default() };
    Ok(fsck::check(blockdev::open(image, &how)?, &options)?)
}

/// fsck.rext4 finds nothing either.
pub fn our_fsck_is_clean(image: &Path) -> Result<()> {
    run(binary("fsck-rext4").arg("-fn").arg(image)).map(drop)
}

/// e2fsck replays the journal (and does nothing else), and finds a clean filesystem then.
pub fn e2fsck_replays(image: &Path) -> Result<()> {
    let answer = output(tool("e2fsck").args(["-fy", "-E", "journal_only"]).arg(image))?;
    // 1 is "something was done", which is the replay here.
    ensure!(matches!(answer.status.code(), Some(0 | 1)), "e2fsck -E journal_only: {}", both(&answer));
    // Orphans are no damage: a preen removes them, and only what a preen may repair is accepted.
    let answer = output(tool("e2fsck").arg("-p").arg(image))?;
    ensure!(matches!(answer.status.code(), Some(0 | 1)), "e2fsck -p: {}", both(&answer));
    e2fsck_is_clean(image)
}

/// The kernel mounts the image, recovers it, and leaves it clean. Returns the tree it showed.
pub fn kernel_replays(image: &Path) -> Result<Manifest> {
    let mounted = System::Kernel.mount(image)?;
    let manifest = Manifest::read(mounted.path(), Depth::Same)?;
    mounted.unmount()?;
    e2fsck_is_clean(image).context("after the kernel's replay")?;
    Ok(manifest)
}

/// What the kernel shows of a clean image, without a change to it.
pub fn kernel_view(image: &Path) -> Result<Manifest> {
    let mounted = System::Kernel.mount_with(image, &Options::words(&["ro"]))?;
    let manifest = Manifest::read(mounted.path(), Depth::Same)?;
    mounted.unmount()?;
    Ok(manifest)
}

/// A field of `dumpe2fs -h`, such as "Mount count".
pub fn super_field(image: &Path, name: &str) -> Result<String> {
    let said = run(tool("dumpe2fs").arg("-h").arg(image))?;
    let field = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(field.with_context(|| format!("dumpe2fs shows no {name:?}:\n{said}"))?.trim().to_owned())
}

/// A copy that keeps holes.
pub fn copy_image(from: &Path, to: &Path) -> Result<()> {
    run(tool("cp").args(["--sparse=always", "--reflink=auto"]).arg(from).arg(to)).map(drop)
}

/// A hash over the whole image, to prove that nothing was written. Anything that is not a file is an error.
pub fn fingerprint(image: &Path) -> Result<String> {
    if !image.is_file() {
        bail!("{} is no file", image.display());
    }
    Manifest::read(image, Depth::Same).map(|manifest| format!("{manifest:?}"))
}
