//! Volumes with the casefold feature: ordinary directories are served as everywhere else, case-insensitive ones
//! are read. e2fsck judges; the kernels of most machines do not know the feature.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tests::oracle::e2fsck_is_clean;
use tests::run::{both, output, run, tool};
use tests::scale::{Need, can_run, scratch};
use tests::system::{Options, System};

const EOPNOTSUPP: i32 = 95;

/// A volume of which mke2fs has filled the folders `plain` and `folded` from one tree; `folded` is
/// case-insensitive, and e2fsck has made its index.
fn volume(folder: &Path, names: u32) -> Result<std::path::PathBuf> {
    let (from, image) = (folder.join("from"), folder.join("image"));
    for dir in ["plain", "folded"] {
        fs::create_dir_all(from.join(dir))?;
        for index in 0..names {
            fs::write(from.join(dir).join(format!("Some-Name-{index}")), format!("{dir} {index}"))?;
        }
        fs::write(from.join(dir).join("Straße"), "s")?;
    }
    File::create(&image)?.set_len(32 << 20)?;
    let words = ["-q", "-F", "-t", "ext4", "-b", "1024", "-O", "casefold", "-E", "encoding=utf8", "-d"];
    run(tool("mke2fs").args(words).arg(&from).arg(&image))?;
    // EXT4_CASEFOLD_FL.
    run(tool("debugfs").args(["-w", "-R", "sif folded flags 0x40080000"]).arg(&image))?;
    let answer = output(tool("e2fsck").args(["-fyD"]).arg(&image))?;
    ensure!(answer.status.code().is_some_and(|code| code <= 1), "{}", both(&answer));
    Ok(image)
}

#[test]
fn a_case_insensitive_folder_is_read_and_the_others_are_written() -> Result<()> {
    if !can_run("a_case_insensitive_folder_is_read_and_the_others_are_written", &[Need::Root, Need::Fuse])
        || !System::under_test().is_rext4()
    {
        return Ok(());
    }
    for names in [3, 300] {
        let folder = tempfile::tempdir_in(scratch())?;
        let image = volume(folder.path(), names)?;
        let mounted = System::under_test().mount_with(&image, &Options::default())?;
        let (plain, folded) = (mounted.path().join("plain"), mounted.path().join("folded"));

        let listed = |dir: &Path| -> Result<BTreeSet<_>> {
            fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect()
        };
        ensure!(listed(&folded)? == listed(&plain)?, "{names}: the folders do not list the same names");
        for index in 0..names {
            for name in [format!("Some-Name-{index}"), format!("sOME-nAME-{index}")] {
                let content = fs::read_to_string(folded.join(&name)).with_context(|| name.clone())?;
                ensure!(content == format!("folded {index}"), "{name}: {content}");
            }
        }
        for name in ["Straße", "STRASSE", "strasse"] {
            ensure!(fs::read_to_string(folded.join(name)).with_context(|| name)? == "s");
        }
        ensure!(
            fs::metadata(folded.join("some name")).is_err() && fs::metadata(plain.join("STRASSE")).is_err()
        );

        let refused = |what: &str, answer: std::io::Result<()>| {
            let code = answer.err().and_then(|error| error.raw_os_error());
            ensure!(code == Some(EOPNOTSUPP), "{names}, {what}: {code:?}");
            Ok(())
        };
        let name = folded.join("Some-Name-0");
        refused("create", File::create(folded.join("new")).map(drop))?;
        refused("mkdir", fs::create_dir(folded.join("new")))?;
        refused("link", fs::hard_link(plain.join("Some-Name-0"), folded.join("new")))?;
        refused("unlink", fs::remove_file(&name))?;
        refused("rename away", fs::rename(&name, plain.join("new")))?;
        refused("rename into", fs::rename(plain.join("Some-Name-0"), folded.join("new")))?;
        refused("rename onto", fs::rename(plain.join("Some-Name-0"), &name))?;
        let taken = fs::create_dir(folded.join("SOME-NAME-0")).err().and_then(|error| error.raw_os_error());
        ensure!(taken == Some(17), "mkdir of a name that is there: {taken:?}");

        // The files in it are files, and it is itself a name like any other.
        fs::write(&name, "changed")?;
        ensure!(fs::read_to_string(folded.join("SOME-NAME-0"))? == "changed");
        fs::rename(&folded, plain.join("moved"))?;
        fs::create_dir(mounted.path().join("new"))?;
        fs::write(plain.join("new"), "new")?;
        fs::remove_file(plain.join("Some-Name-1"))?;
        mounted.unmount()?;
        e2fsck_is_clean(&image)?;
    }
    Ok(())
}
