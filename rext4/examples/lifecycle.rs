//! Makes a volume in a new image file, fills it, reads it back and checks it: `lifecycle IMAGE`.

use std::error::Error;
use std::io::Write as _;

use rext4::{Filesystem, OpenOptions, mkfs};

fn main() -> Result<(), Box<dyn Error>> {
    let image = std::env::args_os().nth(1).ok_or("usage: lifecycle IMAGE")?;

    let options = mkfs::Options { label: b"lifecycle".to_vec(), ..mkfs::Options::default() };
    mkfs::format_file(&image, 64 << 20, &options)?;

    let fs = Filesystem::open(&image)?;
    fs.create_dir_all("letters/sent")?;
    for n in 0..100 {
        fs.write(format!("letters/sent/{n}"), format!("letter {n}\n").repeat(n))?;
    }
    fs.symlink("sent/99", "letters/last")?;
    fs.set_xattr("letters", "user.language", "en")?;
    let mut diary = fs.create_file("diary")?;
    for day in 1..=1000 {
        writeln!(diary, "day {day}")?;
    }
    diary.sync_all()?;
    drop(diary);
    fs.remove_file("letters/sent/7")?;
    fs.close()?;

    let fs = OpenOptions::new().read_only(true).open(&image)?;
    let count = fs.read_dir("letters/sent")?.count();
    let last = String::from_utf8(fs.read("letters/last")?)?;
    println!("{count} letters; the last has {} lines", last.lines().count());
    fs.close()?;

    let report = rext4::check(&image)?;
    print!("{}", report.summary());
    println!("{} of {} inodes in use", report.usage.inodes, report.usage.inodes_total);
    if report.is_clean() { Ok(()) } else { Err("the volume is damaged".into()) }
}
