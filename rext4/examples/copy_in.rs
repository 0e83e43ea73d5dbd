//! Copies what a folder of the host holds into a volume: `copy_in IMAGE FOLDER [DIRECTORY]`.

use std::error::Error;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rext4::{Dir, Filesystem, Node, SetAttr, SetTime, Time};

fn main() -> Result<(), Box<dyn Error>> {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    let (image, folder, directory) = match &words[..] {
        [image, folder] => (image, folder, "/".as_ref()),
        [image, folder, directory] => (image, folder, directory.as_os_str()),
        _ => return Err("usage: copy_in IMAGE FOLDER [DIRECTORY]".into()),
    };
    let fs = Filesystem::open(image)?;
    fs.create_dir_all(directory)?;
    copy_entries(folder.as_ref(), &fs.lookup(directory)?.into_dir()?)?;
    fs.close()?;
    Ok(())
}

fn copy_entries(from: &Path, to: &Dir) -> Result<(), Box<dyn Error>> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (path, name, meta) = (entry.path(), entry.file_name(), entry.metadata()?);
        let (name, mode) = (name.as_bytes(), (meta.mode() & 0o7777) as u16);
        let copy: Node = if meta.is_dir() {
            let dir = to.create_dir(name, 0o700)?;
            copy_entries(&path, &dir)?;
            dir.into()
        } else if meta.is_file() {
            let mut file = to.create(name, 0o600)?;
            io::copy(&mut File::open(&path)?, &mut file)?;
            Node::clone(&file)
        } else if meta.is_symlink() {
            to.symlink(name, fs::read_link(&path)?.as_os_str().as_bytes())?
        } else {
            eprintln!("{} is neither file nor folder nor link and is left out", path.display());
            continue;
        };
        // Last: the owner's change takes away set-user-id, and copying entries changes a directory's time.
        copy.set_attributes(&SetAttr { uid: Some(meta.uid()), gid: Some(meta.gid()), ..SetAttr::default() })?;
        copy.set_attributes(&SetAttr {
            mode: (!meta.is_symlink()).then_some(mode),
            atime: Some(time(meta.atime(), meta.atime_nsec())),
            mtime: Some(time(meta.mtime(), meta.mtime_nsec())),
            ..SetAttr::default()
        })?;
    }
    Ok(())
}

fn time(sec: i64, nsec: i64) -> SetTime {
    SetTime::At(Time { sec, nsec: nsec as u32 })
}
