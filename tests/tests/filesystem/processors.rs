//! FUSE over io_uring has a queue for each processor that the machine could ever have, and waits for all of
//! them. Lists that say something else, as container tools put them over the kernel's, must not make a mount
//! that hangs, nor one with a thousand threads.

use anyhow::{Context, Result, ensure};
use tests::run::{run, tool};
use tests::scale::{Need, can_run, scratch};
use tests::system::{System, binary, with_own_mounts};

#[test]
fn a_list_of_processors_that_lies_does_no_harm() -> Result<()> {
    let name = "a_list_of_processors_that_lies_does_no_harm";
    if !can_run(name, &[Need::Root, Need::Fuse, Need::Rings, Need::Tool("flock")]) {
        return Ok(());
    }
    let folder = tempfile::tempdir_in(scratch())?;
    let image = folder.path().join("image");
    System::Rext4Image.mkfs(&image, 16 << 20, &[])?;
    let list = "/sys/devices/system/cpu/possible";
    let truth = std::fs::read_to_string(list)?;
    for (words, lie) in [("auto", None), ("auto", Some("0")), ("ring", Some("0-511")), ("ring", Some(""))] {
        let lie = lie.filter(|lie| *lie != truth.trim());
        let script = format!(
            r#"cd "$1"; mkdir -p point; printf '%s\n' '{lie}' >list
            [ "$3" = truth ] || mount --bind list {list}
            "$2" -v -f -o transport={words} image point 2>log & server=$!
            until grep -q 'serving through' log; do kill -0 $server; sleep 0.02; done
            timeout 20 sh -c 'echo through >point/file; cat point/file; ls point'
            grep Threads /proc/$server/status; grep -o 'serving through .*' log
            umount point; wait $server"#,
            lie = lie.unwrap_or_default(),
        );
        let mut command = tool("timeout");
        let within = with_own_mounts();
        command.args(["-k", "5", "60"]).arg(within.get_program()).args(within.get_args());
        command.args(["sh", "-ec", &script, "sh"]).arg(folder.path());
        command.arg(std::fs::canonicalize(binary("mount-rext4").get_program())?);
        let said = run(command.arg(if lie.is_some() { "lie" } else { "truth" })).with_context(|| {
            format!("{lie:?}, {}", std::fs::read_to_string(folder.path().join("log")).unwrap_or_default())
        })?;
        let threads = said.lines().find_map(|line| line.strip_prefix("Threads:")?.trim().parse::<u32>().ok());
        ensure!(said.contains("through\n"), "{lie:?}: {said}");
        ensure!(said.contains("io_uring") == lie.is_none(), "{lie:?}: {said}");
        ensure!(lie.is_none() || threads.is_some_and(|threads| threads < 40), "{lie:?}: {said}");
    }
    tests::oracle::e2fsck_is_clean(&image)
}
